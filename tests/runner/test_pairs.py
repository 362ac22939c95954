"""`treeward pairs`: what it writes, what it counts, that it resumes, and that its data trains."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import treeward as tw
from treeward.cli.main import run
from treeward.data import world
from treeward.data.prompts import Prompt
from treeward.data.render import vocabulary_hash
from treeward.errors import ChecksFailed
from treeward.evaluation.pairs import PairStatistics
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import Noise, ScriptedSampler
from treeward.rewards.scorers import Gold
from treeward.runner import pairs as job
from treeward.runner import settings
from treeward.runner.pairs import PairsRun, make_pairs, sample_rows
from treeward.runner.pairs import select as select_pairs
from treeward.runner.progress import Interrupted
from treeward.trees.tokens import TokenTree

TOKENIZER = world.tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plan(out: Path, **fields: Any) -> PairsRun:
    values = {"model": {"device": "cpu"}, "data": {"source": "world:40"}, "samples": 3,
              "max_new_tokens": 6, "skip_check": ["I17"], "out": str(out)}  # fmt: skip
    return settings.build(PairsRun, values | fields)


PROMPT = "this old film by a team : the plot is"
ANSWERS = [" good .", " bad .", " superb .", " bad .", " good"]
SCORES = [world.gold(PROMPT, answer) for answer in ANSWERS]


def scripted(config: PairsRun) -> dict[str, Any]:
    """One row of five scripted answers: the fourth says the second again, the fifth does not end."""
    ends = [(*ids(answer), 2) for answer in ANSWERS[:-1]] + [ids(ANSWERS[-1])]
    prompt = (1, *ids(PROMPT))
    sampler = ScriptedSampler({prompt: ends}, TOKENIZER)
    policy = Policy.from_config(ModelConfig(device="cpu"))
    rollout = sampler([TokenTree(prompt, (), "group")], config.samples, Noise(config.seed))
    (row,) = sample_rows([Prompt(PROMPT, prompt, "group", "train")], policy, rollout, Gold())
    return row | {"generator": "abc"}


def test_a_row_keeps_ids_text_scores_and_ends(tmp_path: Path) -> None:
    row = scripted(plan(tmp_path, samples=5))
    assert row["prompt"] == PROMPT
    assert row["prompt_ids"] == [1, *ids(PROMPT)]
    assert row["scores"] == pytest.approx(SCORES)
    assert row["ended"] == [True, True, True, True, False]
    assert row["ids"][0] == [*ids(" good ."), 2]
    assert [text.strip() for text in row["responses"]] == [answer.strip() for answer in ANSWERS]


@pytest.mark.parametrize(
    ("select", "sides"),
    [
        ({"kind": "best-worst"}, [("superb .", "good")]),
        ({"kind": "top-bottom", "k": 2}, [("superb .", "good"), ("good .", "bad .")]),
    ],
)
def test_pairs_hold_the_response_alone_with_scores_ids_and_generator(
    select: dict[str, Any], sides: list[tuple[str, str]], tmp_path: Path
) -> None:
    config = plan(tmp_path, samples=5, select=select)
    statistics = PairStatistics(5)
    made = list(select_pairs([scripted(config)], config, statistics, "v"))
    assert [(row["chosen"].strip(), row["rejected"].strip()) for row in made] == sides
    first = made[0]
    assert first["chosen_rating"] == pytest.approx(SCORES[2])
    assert first["rejected_ids"] == [*ids(" good")]
    assert (first["chosen_finished"], first["rejected_finished"]) == (True, False)
    assert (first["generator"], first["vocabulary"], first["split"]) == ("abc", "v", "train")
    assert all(PROMPT not in row["chosen"] for row in made)
    assert statistics.dropped == {"repeated samples": 1}


def test_a_ranking_is_one_list_best_first(tmp_path: Path) -> None:
    config = plan(tmp_path, samples=5, select={"kind": "ranking"})
    (row,) = select_pairs([scripted(config)], config, PairStatistics(5), "v")
    assert [text.strip() for text in row["responses"]] == ["superb .", "good .", "bad .", "good"]
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert len(row["responses_ids"]) == len(row["responses_finished"]) == 4


def test_figures_by_hand(tmp_path: Path) -> None:
    config = plan(tmp_path, samples=5, min_gap=0.1)
    statistics = PairStatistics(5)
    silent = scripted(config) | {"scores": [0.2] * 5, "group": "other"}
    assert len(list(select_pairs([scripted(config), silent], config, statistics, "v"))) == 1
    report = statistics.report()
    gap = SCORES[2] - SCORES[4]
    assert (report["prompts"], report["picks"]) == (2, 1)
    assert report["no_signal"]["value"] == 0.5
    assert report["gap"]["value"] == pytest.approx(gap)
    assert (report["below_min_gap"]["value"], report["below_min_gap"]["n"]) == (0.0, 2)
    assert (report["ended"]["value"], report["ended"]["n"]) == (0.8, 2), "by prompt"
    assert report["score"]["value"] == pytest.approx((sum(SCORES) / 5 + 0.2) / 2), "what is said twice counts twice"
    distinct = [SCORES[n] for n in (0, 1, 2, 4)]
    spread = torch.tensor(distinct).double().var().item()
    assert report["sd_within"] == pytest.approx((spread / 2) ** 0.5), "the other prompt's spread is 0"
    assert report["gap_in_sd"] == pytest.approx(gap / (spread / 2) ** 0.5)
    assert report["length_difference"]["value"] == 2.0, "superb . END against good"
    assert report["expected_gap_in_sd"] == pytest.approx(2.326, abs=1e-3)


def test_prompts_whose_pairs_lie_too_close_are_not_without_signal(tmp_path: Path) -> None:
    config = plan(tmp_path, samples=5, min_gap=100)
    statistics = PairStatistics(5)
    assert not list(select_pairs([scripted(config)], config, statistics, "v"))
    report = statistics.report()
    assert (report["no_signal"]["value"], report["below_min_gap"]["value"]) == (0.0, 1.0)


def stop_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once this many chunks are sampled."""
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > chunks:
            raise KeyboardInterrupt
        return sample_rows(*arguments)

    monkeypatch.setattr(job, "sample_rows", failing)


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_pairs(plan(tmp_path / "a"))
    stop_after(2, monkeypatch)
    with pytest.raises(
        Interrupted, match=rf"after 32 of 40 prompts; go on with the same command and --out {tmp_path}/b"
    ):
        make_pairs(plan(tmp_path / "b"))
    assert len(rows(tmp_path / "b" / "samples.jsonl")) == 2 * job.CHUNK
    with (tmp_path / "b" / "samples.jsonl").open("a") as file:
        file.write('{"half a li')
    monkeypatch.setattr(job, "sample_rows", sample_rows)
    made = make_pairs(plan(tmp_path / "b"))
    assert made.pairs.read_bytes() == whole.pairs.read_bytes()
    assert made.report == whole.report


def test_ctrl_c_before_the_first_chunk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make_pairs(plan(tmp_path / "a"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"model": {"device": "cpu", "seed": 7}}, r"sample row 1 is by the weights \w+, and the policy's are \w+"),
        ({}, r"sample row 1 has the prompt '.*', but the data now gives 'the plot is'"),
    ],
)
def test_f55_samples_of_another_policy_or_of_other_prompts_are_not_gone_on_with(
    fault: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration says the same, but what it names has changed."""
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"the cast {n}"}) + "\n" for n in range(20)))
    config = plan(tmp_path / "a", data={"source": str(source)}, scorer="length", samples=2)
    stop_after(1, monkeypatch)
    with pytest.raises(Interrupted):
        make_pairs(config)
    monkeypatch.setattr(job, "sample_rows", sample_rows)
    before = (tmp_path / "a" / "samples.jsonl").read_bytes()
    policy = None
    if "model" in fault:
        policy = Policy.from_config(settings.build(ModelConfig, fault["model"]))
    else:
        source.write_text(json.dumps({"prompt": "the plot is"}) + "\n" + source.read_text())
    with pytest.raises(ValueError, match=said):
        make_pairs(config, policy)
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == before


def test_a_live_run_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second: list[str] = []

    def meddling(*arguments: Any) -> Any:
        if (tmp_path / "a").exists() and not second:
            with pytest.raises(ValueError, match="is being written by process") as refused:
                make_pairs(plan(tmp_path / "a"))
            second.append(str(refused.value))
        return sample_rows(*arguments)

    monkeypatch.setattr(job, "sample_rows", meddling)
    assert make_pairs(plan(tmp_path / "a")).report["prompts"] == 40
    assert len(second) == 1


def test_two_runs_that_begin_together_do_not_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(plan(tmp_path, data={"source": "world:5"}), out=None)
    other: list[Path] = []

    def overtaken(*arguments: Any) -> Any:
        if not other:
            other.append(tmp_path)
            other[0] = make_pairs(config).path
        return sample_rows(*arguments)

    monkeypatch.setattr(job, "sample_rows", overtaken)
    assert make_pairs(config).path == Path("runs/pairs-2")
    assert other == [Path("runs/pairs")]


def test_the_selection_may_change_before_the_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"no pair is left of 40 prompts: in \d+ all scores are equal, in \d+ no pair meets min_gap 100.0; "
    said += f".* --out {tmp_path}/a"
    with pytest.raises(ValueError, match=said):
        make_pairs(plan(tmp_path / "a", min_gap=100.0))
    kept = (tmp_path / "a" / "samples.jsonl").read_bytes()
    stop_after(0, monkeypatch)
    made = make_pairs(plan(tmp_path / "a", min_gap=0.0, select={"kind": "all-pairs"}, most=2))
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == kept
    assert made.report["picks"] > 0
    assert "min_gap: 0.0" in (tmp_path / "a" / "config.yaml").read_text()


def verifiable(tmp_path: Path) -> Path:
    """Prompts with a column for a scorer, and one that JSON has no word for once parquet has read it."""
    source = tmp_path / "prompts.parquet"
    rows = [
        {"prompt": f"this {word} by a team : the plot is", "word": word, "day": date(2026, 1, 1)} for word in world.KIND
    ]
    pq.write_table(pa.Table.from_pylist(rows), source)
    return source


def test_pairs_keep_the_columns_that_their_scorer_reads(tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.py"
    scorer.write_text("def length(prompt, response, row):\n    return len(response) + len(row['word']) / 100\n")
    data = {"source": str(verifiable(tmp_path)), "test": 0.0, "validation": 0.0}
    made = make_pairs(plan(tmp_path / "a", data=data, scorer=f"{scorer}:length"))
    (first, *_) = rows(made.path / "pairs.jsonl")
    assert set(first["row"]) == {"word"}
    trees = tw.load(made.path / "pairs.jsonl", validation=0, test=0).train
    assert len(trees) > 1
    assert all(tree.row is not None and tree.row["word"] in str(tree.prompt).split() for tree in trees)


def test_each_prompt_is_prefilled_once(tmp_path: Path) -> None:
    policy, widths = Policy.from_config(ModelConfig(device="cpu")), []
    policy.packed.model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].shape) if named.get("use_cache") else None,
        with_kwargs=True,
    )
    made = make_pairs(plan(tmp_path / "a"), policy)
    looked_at_the_cache = 1
    assert sum(rows for rows, width in widths if width > 1) == made.report["prompts"] + looked_at_the_cache


def test_a_finished_or_other_directory_is_refused(tmp_path: Path) -> None:
    make_pairs(plan(tmp_path / "a", data={"source": "world:5"}))
    with pytest.raises(ValueError, match="exists; runs are never overwritten"):
        make_pairs(plan(tmp_path / "a", data={"source": "world:5"}))
    (tmp_path / "a" / "report.json").unlink()
    with pytest.raises(ValueError, match=r"has a run with another configuration: seed is 0 there and 5 here"):
        make_pairs(plan(tmp_path / "a", data={"source": "world:5"}, seed=5))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"samples": 1}, "samples is 1; a comparison needs at least 2"),
        ({"prompt_tokens": [5, 2]}, "prompt_tokens is"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"min_gap": -1}, "min_gap is -1"),
        ({"most": 0}, "most is 0"),
        ({"prompts": 0}, "prompts is 0"),
        ({"rounds": -1}, "rounds is -1; it must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"dpo": {"lr": 0.5}}, "dpo is set, but rounds is 0"),
        ({"data": {"source": "mine.jsonl"}}, "scorer is not set: name a scorer for responses to 'mine.jsonl'"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        plan(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"scorer": "count:no such word", "skip_check": []},
            r"first-samples-differ \(I17\) FAILED: prompts whose samples differ in score 0 .* of the first 16",
        ),
        (
            {"skip_check": []},
            r"first-samples-end \(I17\) FAILED: share of the first samples that are cut off .* max_new_tokens 6",
        ),
        ({"scorer": "nothing.py:f"}, "there is no file 'nothing.py'"),
        ({"model": {"path": "no-such-model"}}, "no-such-model"),
        ({"data": {"source": "none.jsonl"}, "scorer": "gold"}, "none.jsonl"),
    ],
)
def test_what_cannot_give_pairs_leaves_nothing_behind(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, ChecksFailed), match=said):
        make_pairs(plan(tmp_path / "a", **fields))
    assert not (tmp_path / "a").exists()


def test_openings_of_texts_need_no_end(tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text(json.dumps({"text": "the plot is good and the cast is bad ."}) + "\n")
    named = {"data": {"source": str(source)}, "scorer": "count:no such word", "prompt_tokens": 3, "skip_check": []}
    config = plan(tmp_path / "a", max_new_tokens=1, **named)
    with pytest.raises(ChecksFailed) as failed:
        make_pairs(config)
    assert [check.guards for check in failed.value.checks] == [("F29",)]


def test_the_command_prints_the_yield(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pairs", "--model.path", "world", "--data.source", "world:20", "--samples", "4", "--max-new-tokens", "5",
             "--skip-check", "[I17]"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "p")]) == 0
    said = capsys.readouterr().out
    assert "sd, where normal scores would give best against worst 2.06" in said
    assert str(tmp_path / "p" / "pairs.jsonl") in said
    row = rows(tmp_path / "p" / "pairs.jsonl")[0]
    assert row["chosen_rating"] > row["rejected_rating"]
    assert row["vocabulary"] == vocabulary_hash(TOKENIZER)
