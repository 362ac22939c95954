"""Faults planted in data: the check for each must fail before the first step, and pass on clean data."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treeward.checks.check import require
from treeward.checks.data import data_checks, enough_groups
from treeward.errors import ChecksFailed
from treeward.trees.tokens import TokenTree


def failed(prepared: Any, tokenizer: Any, rows: int = 91, purpose: Any = "pairs") -> set[str]:
    return {check.id for check in data_checks(prepared, tokenizer, rows, purpose) if check.passed is False}


@pytest.fixture
def rankings(policy: Any) -> Any:
    """Three hundred rankings of three, best first, split and rendered."""
    from treeward.data.prepare import DataConfig, prepare

    data = prepare(DataConfig(source="world-graded:300", validation=0.0, test=0.2), policy.tokenizer, "ranked")
    for part in data.parts:
        third = [tree.branches[0][:-1] + tree.branches[1] for tree in data.parts[part]]
        data.parts[part] = [
            replace(tree, branches=(*tree.branches, more), ratings=(*tree.ratings, (-9.0,)))
            for tree, more in zip(data.parts[part], third, strict=True)
        ]
    return data


def test_clean_rankings_and_labels_pass_all_checks(rankings: Any, prepared: Any, policy: Any) -> None:
    assert failed(rankings, policy.tokenizer, purpose="ranked") == set()
    assert failed(prepared, policy.tokenizer, purpose="unpaired") == set()


def test_f04_rankings_that_order_two_responses_both_ways(rankings: Any, policy: Any) -> None:
    tree = rankings.train[0]
    a, b, c = tree.branches
    rankings.parts["train"] = [*rankings.train, replace(tree, branches=(c, a, b))]
    assert failed(rankings, policy.tokenizer, purpose="ranked") == {"F04"}


def test_f05_a_ranking_that_its_ratings_contradict(rankings: Any, policy: Any) -> None:
    rankings.parts["train"] = [replace(tree, ratings=tree.ratings[::-1]) for tree in rankings.train]
    assert "F05" in failed(rankings, policy.tokenizer, purpose="ranked")


@pytest.mark.parametrize("reason", ["identical after truncation", "response that stands in its ranking twice"])
def test_f11_rankings_that_lost_branches(reason: str, rankings: Any, policy: Any) -> None:
    rankings.account.cut[reason] = len(rankings.train) // 3
    assert failed(rankings, policy.tokenizer, purpose="ranked") == {"F11"}


def test_f13_only_the_better_responses_are_cut(rankings: Any, policy: Any) -> None:
    rankings.account.cut["response 0"] = rankings.account.rows // 2
    assert failed(rankings, policy.tokenizer, purpose="ranked") == {"F13"}


def test_clean_pairs_pass_all_checks(prepared: Any, policy: Any) -> None:
    assert failed(prepared, policy.tokenizer) == set()


def test_f02_no_end_token(prepared: Any, policy: Any) -> None:
    prepared.account.ended = prepared.account.responses // 2
    assert failed(prepared, policy.tokenizer) == {"F02"}


def test_f04_training_prompts_in_evaluation(prepared: Any, policy: Any) -> None:
    prepared.parts["test"] = [*prepared.parts["test"], *prepared.train[:5]]
    assert failed(prepared, policy.tokenizer) == {"F04"}


def test_f04_a_pair_in_both_orders(prepared: Any, policy: Any) -> None:
    first = prepared.train[0]
    prepared.parts["train"] = [*prepared.train, replace(first, branches=first.branches[::-1])]
    assert failed(prepared, policy.tokenizer) == {"F04"}


def test_f50_a_held_out_part_of_one_label_cannot_be_measured(prepared: Any, policy: Any) -> None:
    single = {
        part: [replace(tree, branches=tree.branches[:1], ratings=((float(n % 2),),)) for n, tree in enumerate(trees)]
        for part, trees in prepared.parts.items()
    }
    for change, expected in (
        ({}, []),
        ({"validation": [t for t in single["validation"] if t.grades == (1.0,)]}, ["F50"]),
    ):
        prepared.parts = single | change
        checks = data_checks(prepared, policy.tokenizer, 91, "unpaired")
        assert [check.id for check in checks if check.passed is False] == expected


def test_f05_ratings_that_contradict_the_order(prepared: Any, policy: Any) -> None:
    prepared.parts["train"] = [replace(tree, ratings=((1.0,), (2.0,))) for tree in prepared.train]
    assert failed(prepared, policy.tokenizer) == {"F05"}


def test_f09_ids_beyond_the_embedding(prepared: Any, policy: Any) -> None:
    assert failed(prepared, policy.tokenizer, rows=80) == {"F09"}


def test_f10_half_of_the_rows_dropped(prepared: Any, policy: Any) -> None:
    prepared.account.dropped = Counter({"too long": prepared.account.rows // 2})
    assert failed(prepared, policy.tokenizer) == {"F10"}


def test_f11_pairs_that_differ_only_after_the_cut(policy: Any) -> None:
    from treeward.data.prepare import DataConfig, prepare

    cut = prepare(DataConfig(limit=400, max_response=1), policy.tokenizer, "pairs")
    assert cut.account.dropped["identical after truncation"] > 0
    assert "F11" in failed(cut, policy.tokenizer)


def test_f13_only_one_side_is_cut(prepared: Any, policy: Any) -> None:
    prepared.account.cut["response 1"] = prepared.account.rows // 2
    assert failed(prepared, policy.tokenizer) == {"F13"}


def test_i16_two_bos(prepared: Any, policy: Any) -> None:
    bos = policy.tokenizer.bos_token_id
    prepared.parts["train"] = [replace(tree, prompt=(bos, *tree.prompt)) for tree in prepared.train]
    assert failed(prepared, policy.tokenizer) == {"I16"}


def test_f48_too_few_groups(prepared: Any, policy: Any) -> None:
    """The verdict of a sampled metric uses evaluation.prompts of the held-out groups; each way out is named."""
    assert enough_groups(prepared, 30).passed
    few_prompts = enough_groups(prepared, 2)
    assert (few_prompts.id, few_prompts.passed, few_prompts.value) == ("F48", False, 2)
    assert "2 show only differences above 2 standard deviations; raise evaluation.prompts, or" in few_prompts.detail
    prepared.parts["test"] = prepared.parts["test"][:2]
    assert "raise data.test or data.limit, or" in enough_groups(prepared, 2).detail
    assert "raise evaluation.prompts and raise data.test" in enough_groups(prepared, 1).detail


def test_f12_a_row_without_a_scored_token_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="branch 0"):
        TokenTree((1,), ((),))


def test_all_failures_are_reported_together_and_accepted_by_id(prepared: Any, policy: Any) -> None:
    prepared.parts["test"] = prepared.train[:2]
    checks = [*data_checks(prepared, policy.tokenizer, 91, "pairs"), enough_groups(prepared, 2)]
    with pytest.raises(ChecksFailed) as caught:
        require(checks)
    assert {check.id for check in caught.value.checks} == {"F04", "F48"}
    accepted = require(checks, ["F04", "F48"])
    assert {check.id for check in accepted if check.passed is None} == {"F04", "F48"}
    assert {check.id for check in accepted if check.accepted} == {"F04", "F48"}
    with pytest.raises(ValueError, match="F99"):
        require(checks, ["F04", "F48", "F99"])


@pytest.mark.parametrize("purpose", ["pairs", "ranked", "graded", "unpaired"])
def test_f08_the_prompt_is_repeated_in_the_response(purpose: str, prepared: Any, policy: Any) -> None:
    for part, trees in prepared.texts.items():
        prepared.texts[part] = [
            replace(tree, responses=tuple(replace(r, text=f"{tree.prompt}{r.text}") for r in tree.responses))
            for tree in trees
        ]
    assert failed(prepared, policy.tokenizer, purpose=purpose) == {"F08"}


@pytest.mark.parametrize(
    ("prompt", "text", "names"),
    [
        ("I", "I was there.", set()), ("I was", "I was, once.", {"F08"}), ("I was", "I wasted it.", set()),
        ("I was", "I was there.", {"F08"}), ("Why me?", "Why me?No idea.", {"F08"}),
    ],
)  # fmt: skip
def test_f08_a_response_repeats_its_prompt_if_it_begins_with_all_of_several_words(
    prompt: str, text: str, names: set[str], prepared: Any, policy: Any
) -> None:
    for part, trees in prepared.texts.items():
        responses = tuple(replace(r, text=f" {text}") for r in trees[0].responses)
        prepared.texts[part] = [replace(tree, prompt=prompt, responses=responses) for tree in trees]
    assert failed(prepared, policy.tokenizer) == names


@pytest.mark.parametrize(("token", "names"), [(1, {"F08"}), (2, {"F08"}), (7, set())])
def test_f08_prompts_of_the_start_token_alone(token: int, names: set[str], prepared: Any, policy: Any) -> None:
    """A prompt of one ordinary token passes; BOS or EOS alone fails."""
    special = policy.tokenizer.bos_token_id, policy.tokenizer.eos_token_id
    prompt = (dict(enumerate(special, 1)).get(token, token),)
    prepared.parts["train"] = [replace(tree, prompt=prompt) for tree in prepared.train]
    assert failed(prepared, policy.tokenizer) == names


@pytest.mark.parametrize(("gap", "names"), [(0.05, {"F08"}), (0.5, set())])
def test_f08_a_gap_near_zero(gap: float, names: set[str], prepared: Any, policy: Any) -> None:
    prepared.parts = {
        part: [replace(tree, ratings=((n % 7 + gap,), (n % 7 + 0.0,))) for n, tree in enumerate(trees)]
        for part, trees in prepared.parts.items()
    }
    assert failed(prepared, policy.tokenizer) == names


def leaking(folder: Path) -> str:
    """Labelled texts with a `split` column; three of the test part's texts stand in training too."""
    from treeward.data import world

    texts = [f"the {aspect} is {word} ." for word in world.ADJECTIVE for aspect in world.ASPECT][:280]
    rows = [{"text": text, "label": n % 2, "split": "train" if n < 200 else "test"} for n, text in enumerate(texts)]
    rows += [{**row, "split": "test"} for row in rows[:3]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def leaks(source: str, tokenizer: Any, **named: Any) -> tuple[Any, Any]:
    """The prepared data and its first check F04."""
    from treeward.data.prepare import DataConfig, prepare

    data = prepare(DataConfig(source=source, **named), tokenizer, "pairs")
    return data, next(check for check in data_checks(data, tokenizer, 91, "pairs") if check.id == "F04")


def test_f04_texts_in_both_parts_are_counted_before_they_are_paired(tmp_path: Path, policy: Any) -> None:
    _, check = leaks(leaking(tmp_path), policy.tokenizer)
    assert (check.passed, check.value) == (False, 3)
    assert check.detail == (
        "3 of 83 held-out examples (3.6%), such as 'the acting is superb .'; 'the music is superb .'; 'the plot is "
        "superb .'; split all rows again with --data.splits ignore, or drop the 3 training examples of these groups "
        "with --data.leaks drop"
    )


def test_f04_both_fixes_work_and_are_counted(tmp_path: Path, policy: Any) -> None:
    source = leaking(tmp_path)
    dropped, check = leaks(source, policy.tokenizer, leaks="drop")
    assert check.passed
    assert dropped.account.dropped["training example whose group is held out too"] == 3
    texts = {part: {r.text for tree in trees for r in tree.responses} for part, trees in dropped.texts.items()}
    assert not texts["train"] & texts["test"]
    anew, check = leaks(source, policy.tokenizer, splits="ignore")
    assert check.passed
    assert anew.account.columns["split"] == 0
    assert all(anew.parts.values())
    alone, check = leaks(source, policy.tokenizer, split="train")
    assert check.passed
    assert alone.account.rows == 200
    assert all(alone.parts.values()), "the training split's rows are split anew"


@pytest.mark.parametrize("reason", ["text without a partner of the other label", "tie", "nothing to rank"])
def test_f10_rows_dropped_for_reasons_that_are_no_faults_do_not_count(reason: str, prepared: Any, policy: Any) -> None:
    prepared.account.dropped = Counter({reason: prepared.account.rows // 2})
    assert failed(prepared, policy.tokenizer) == set()


def test_f10_the_fix_depends_on_the_reason(prepared: Any, policy: Any) -> None:
    def detail_for(reason: str) -> str:
        prepared.account.dropped = Counter({reason: prepared.account.rows // 2, "tie": 200})
        (check,) = (check for check in data_checks(prepared, policy.tokenizer, 91, "pairs") if check.id == "F10")
        return check.detail

    assert "give these rows a response" in detail_for("empty response")
    assert "max_response" not in detail_for("empty response")
    lengths = sorted(n for tree in prepared.train + prepared.held_out for n in map(len, tree.branches))
    numbers = r"have (\d+) tokens at the median, (\d+) at 95 % and (\d+) at most: --data.max_response (\d+)"
    quantiles = re.search(numbers, detail_for("identical after truncation"))
    assert quantiles is not None
    middle, most, longest, budget = map(int, quantiles.groups())
    assert abs(middle - lengths[len(lengths) // 2]) <= 1
    assert abs(most - lengths[int(0.95 * len(lengths))]) <= 1
    assert longest == lengths[-1]
    assert budget == most


def test_f63_rows_that_were_chosen_by_the_hash_that_splits_them(tmp_path: Path, policy: Any) -> None:
    from treeward.data import world
    from treeward.data.prepare import DataConfig, prepare
    from treeward.data.splits import unit

    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in world.pairs(0, 2000)]
    for chosen, names in ((sorted(rows, key=lambda row: unit(row["prompt"], 0))[:400], {"F63"}), (rows[:400], set())):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
        data = prepare(DataConfig(source=str(tmp_path / "rows.jsonl")), policy.tokenizer, "pairs")
        failures = [check for check in data_checks(data, policy.tokenizer, 91, "pairs") if check.passed is False]
        assert {check.id for check in failures} - {"F48"} == names
        assert all("train has" in check.detail or "test has" in check.detail for check in failures if check.id == "F63")


def test_f63_a_selection_of_prompts_by_the_hash_that_splits_them(policy: Any) -> None:
    from treeward.checks.data import selection_check
    from treeward.data.prepare import DataConfig
    from treeward.data.prompts import drawn, openings
    from treeward.data.splits import unit

    opened = openings(DataConfig(source="world:2000"), policy.tokenizer, (8, 8))
    fair = Counter(prompt.split for prompt in drawn(opened.prompts, 100, 0))
    assert selection_check(opened.parts, fair).passed
    assert set(fair) == {"train", "validation", "test"}
    assert 65 < fair["train"] < 95
    first = sorted(opened.prompts, key=lambda prompt: unit(prompt.group, 0))[:100]
    check = selection_check(opened.parts, Counter(prompt.split for prompt in first))
    assert (check.id, check.passed) == ("F63", False)
    assert "test has 100 of 100, but the requested share is 1" in check.detail
    assert selection_check(opened.parts, opened.parts).passed


NAMES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def rated(folder: Path, change: Any = lambda n, scores: scores) -> str:
    """Sixty rows with HelpSteer2's five ratings in alphabetical order: helpfulness 4, then one less each."""
    rows = []
    for n in range(60):
        scores = {name: {"helpfulness": 4, "correctness": 3, "coherence": 2, "complexity": 1}.get(name, 0)
                  for name in sorted(NAMES)}  # fmt: skip
        rows.append({"prompt": f"film {n} :", "response": " the plot is good .", "scores": change(n, scores)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def test_f62_ratings_are_matched_by_name_whatever_their_order(tmp_path: Path, policy: Any) -> None:
    from treeward.data.prepare import DataConfig, prepare

    config = DataConfig(source=rated(tmp_path), validation=0.0)
    for names in (NAMES, NAMES[::-1]):
        data = prepare(config, policy.tokenizer, "graded", names)
        values = dict(zip(NAMES, (4.0, 3.0, 2.0, 1.0, 0.0), strict=True))
        assert {tree.ratings for tree in data.train} == {(tuple(values[name] for name in names),)}
        assert {tree.attributes for tree in data.train} == {names}


def test_f62_a_reward_model_learns_each_attribute_under_its_own_name(tmp_path: Path) -> None:
    """`tw.reward` on trees whose attributes have another order: helpfulness must learn its own ratings of 4."""
    import torch

    from treeward.data.prepare import DataConfig, prepare
    from treeward.evaluation.rewards import ScoredTrees
    from treeward.losses.heads import Attributes
    from treeward.losses.reward import Graded
    from treeward.methods.reward import RewardConfig, reward
    from treeward.models.loading import ModelConfig
    from treeward.models.reward_model import RewardModel

    model = RewardModel.from_config(ModelConfig(device="cpu"), 0, Attributes(NAMES))
    data = prepare(DataConfig(source=rated(tmp_path), validation=0.0), model.tokenizer, "graded")
    assert {tree.attributes for tree in data.train} == {tuple(sorted(NAMES))}
    config = RewardConfig(loss=Graded(scale=(0.0, 4.0)), steps=20, batch_size=16, lr=1e-2)
    reward(model, data.train, config)
    probabilities = model.head.log_probs(model.outputs(data.held_out)).exp()
    scores = (probabilities * torch.arange(5.0)).sum(-1).mean(0).tolist()
    assert sorted(NAMES, key=lambda name: -scores[NAMES.index(name)]) == list(NAMES)
    table = ScoredTrees.of(model, data.held_out).graded((0.0, 4.0))
    assert table is not None
    assert float(table.columns["mae"].mean()) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, s: {k: v for k, v in s.items() if k != "coherence"} if n == 6 else s, "row 7: .*coherence missing"),
        (lambda n, s: {**s, "humour": 1} if n == 6 else s, "row 7: .*humour extra"),
        (lambda n, s: {**s, "coherence": None} if n == 6 else s, "row 7: .*coherence missing"),
        (lambda n, s: {k.upper(): v for k, v in s.items()} if n == 6 else s, "row 7: .*missing; .* extra"),
        (lambda n, s: {**{k: v for k, v in s.items() if k != "verbosity"}, "length": 1},
         "row 1: the data rates .*length, but head.names is helpfulness, .*set head.names to \\["),
    ],
)  # fmt: skip
def test_f62_other_names_are_refused_with_their_row(change: Any, message: str, tmp_path: Path, policy: Any) -> None:
    from treeward.data.prepare import DataConfig, prepare

    source = rated(tmp_path, change)
    with pytest.raises(ValueError, match=rf"rows\.jsonl'?, {message}"):
        prepare(DataConfig(source=source), policy.tokenizer, "graded", NAMES)
