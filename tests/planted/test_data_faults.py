"""Faults planted in data: each is refused before the first step by the check that names it."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from treeward.proof.checks import ChecksFailed, require
from treeward.proof.data_checks import data_checks, enough_groups
from treeward.trees.tokens import TokenTree


def failed(prepared: Any, tokenizer: Any, rows: int = 91, purpose: Any = "pairs") -> set[str]:
    return {check.id for check in data_checks(prepared, tokenizer, rows, purpose) if check.passed is False}


@pytest.fixture
def rankings(policy: Any) -> Any:
    """Three hundred rankings of three, best first, split and rendered."""
    from treeward.data.prepare import DataConfig, prepare

    found = prepare(DataConfig(source="world-graded:300", validation=0.0, test=0.2), policy.tokenizer, "ranked")
    for part in found.parts:
        third = [tree.branches[0][:-1] + tree.branches[1] for tree in found.parts[part]]
        found.parts[part] = [
            replace(tree, branches=(*tree.branches, more), ratings=(*tree.ratings, (-9.0,)))
            for tree, more in zip(found.parts[part], third, strict=True)
        ]
    return found


def test_twins_of_rankings_and_labels_are_silent(rankings: Any, prepared: Any, policy: Any) -> None:
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


def test_twin_is_silent(prepared: Any, policy: Any) -> None:
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
    for change, fell in (({}, []), ({"validation": [t for t in single["validation"] if t.grades == (1.0,)]}, ["F50"])):
        prepared.parts = single | change
        checks = data_checks(prepared, policy.tokenizer, 91, "unpaired")
        assert [check.id for check in checks if check.passed is False] == fell


def test_f05_ratings_that_contradict_the_order(prepared: Any, policy: Any) -> None:
    prepared.parts["train"] = [replace(tree, ratings=((1.0,), (2.0,))) for tree in prepared.train]
    assert failed(prepared, policy.tokenizer) == {"F05"}


def test_f09_ids_beyond_the_embedding(prepared: Any, policy: Any) -> None:
    assert failed(prepared, policy.tokenizer, rows=80) == {"F09"}


def test_f10_rows_dropped_without_a_word(prepared: Any, policy: Any) -> None:
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


def test_f16_two_bos(prepared: Any, policy: Any) -> None:
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
    with pytest.raises(ChecksFailed) as found:
        require(checks)
    assert {check.id for check in found.value.checks} == {"F04", "F48"}
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
def test_f08_an_echo_is_all_words_of_the_prompt_and_more_than_one(
    prompt: str, text: str, names: set[str], prepared: Any, policy: Any
) -> None:
    for part, trees in prepared.texts.items():
        said = tuple(replace(r, text=f" {text}") for r in trees[0].responses)
        prepared.texts[part] = [replace(tree, prompt=prompt, responses=said) for tree in trees]
    assert failed(prepared, policy.tokenizer) == names


@pytest.mark.parametrize(("token", "names"), [(1, {"F08"}), (2, {"F08"}), (7, set())])
def test_f08_prompts_of_the_start_token_alone(token: int, names: set[str], prepared: Any, policy: Any) -> None:
    """A word of one token is a prompt; BOS or EOS alone is none."""
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
