"""`treeward pairs`: what it writes, what it counts, that it resumes, and that its data trains."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.cli.main import run
from treeward.data import world
from treeward.data.prompts import Prompt
from treeward.data.render import vocabulary_hash
from treeward.evaluation.pairs import Yield
from treeward.jobs import pairs as job
from treeward.jobs import settings
from treeward.jobs.pairs import PairsRun, make_pairs, sampled, selected
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import ScriptedSampler
from treeward.proof.checks import ChecksFailed
from treeward.rewards.scorers import Gold

TOKENIZER = world.tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plan(out: Path, **fields: Any) -> PairsRun:
    values = {"model": {"device": "cpu"}, "data": {"source": "world", "limit": 40}, "samples": 3,
              "max_new_tokens": 6, "out": str(out)}  # fmt: skip
    return settings.build(PairsRun, values | fields)


PROMPT = "this old film by a team : the plot is"
ANSWERS = [" good .", " bad .", " superb .", " bad .", " good"]
SCORES = [world.gold(PROMPT, answer) for answer in ANSWERS]


def scripted(config: PairsRun) -> dict[str, Any]:
    """One row of five scripted answers: the fourth says the second again, the fifth does not end."""
    ends = [(*ids(answer), 2) for answer in ANSWERS[:-1]] + [ids(ANSWERS[-1])]
    prompt = (1, *ids(PROMPT))
    sampler = ScriptedSampler({prompt: ends})
    policy = Policy.from_config(ModelConfig(device="cpu"))
    (row,) = sampled([Prompt(PROMPT, prompt, "group", "train")], policy, sampler, Gold(), config, 0)
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
    found = Yield(5)
    made = list(selected([scripted(config)], config, found, "v"))
    assert [(row["chosen"].strip(), row["rejected"].strip()) for row in made] == sides
    first = made[0]
    assert first["chosen_rating"] == pytest.approx(SCORES[2])
    assert first["rejected_ids"] == [*ids(" good")]
    assert (first["chosen_finished"], first["rejected_finished"]) == (True, False)
    assert (first["generator"], first["vocabulary"], first["split"]) == ("abc", "v", "train")
    assert all(PROMPT not in row["chosen"] for row in made)
    assert found.dropped == {"repeated samples": 1}


def test_a_ranking_is_one_list_best_first(tmp_path: Path) -> None:
    config = plan(tmp_path, samples=5, select={"kind": "ranking"})
    (row,) = selected([scripted(config)], config, Yield(5), "v")
    assert [text.strip() for text in row["responses"]] == ["superb .", "good .", "bad .", "good"]
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert len(row["responses_ids"]) == len(row["responses_finished"]) == 4


def test_figures_by_hand(tmp_path: Path) -> None:
    config = plan(tmp_path, samples=5, min_gap=0.1)
    found = Yield(5)
    silent = scripted(config) | {"scores": [0.2] * 5, "group": "other"}
    assert len(list(selected([scripted(config), silent], config, found, "v"))) == 1
    report = found.report()
    gap = SCORES[2] - SCORES[4]
    assert (report["prompts"], report["picks"]) == (2, 1)
    assert report["no_signal"]["value"] == 0.5
    assert report["gap"]["value"] == pytest.approx(gap)
    assert report["ended"]["value"] == 0.8
    distinct = [SCORES[n] for n in (0, 1, 2, 4)]
    spread = torch.tensor(distinct).double().var().item()
    assert report["sd_within"] == pytest.approx((spread / 2) ** 0.5), "the other prompt's spread is 0"
    assert report["gap_in_sd"] == pytest.approx(gap / (spread / 2) ** 0.5)
    assert report["length_difference"]["value"] == 2.0, "superb . END against good"
    assert report["expected_gap_in_sd"] == pytest.approx(2.326, abs=1e-3)


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_pairs(plan(tmp_path / "a"))
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sampled(*arguments)

    monkeypatch.setattr(job, "sampled", failing)
    with pytest.raises(KeyboardInterrupt):
        make_pairs(plan(tmp_path / "b"))
    assert len(rows(tmp_path / "b" / "samples.jsonl")) == 2 * job.CHUNK
    with (tmp_path / "b" / "samples.jsonl").open("a") as file:
        file.write('{"half a li')
    monkeypatch.setattr(job, "sampled", sampled)
    made = make_pairs(plan(tmp_path / "b"))
    assert made.pairs.read_bytes() == whole.pairs.read_bytes()
    assert made.report == whole.report


def test_a_finished_or_other_directory_is_refused(tmp_path: Path) -> None:
    make_pairs(plan(tmp_path / "a", data={"source": "world", "limit": 5}))
    with pytest.raises(ValueError, match="exists; runs are never overwritten"):
        make_pairs(plan(tmp_path / "a", data={"source": "world", "limit": 5}))
    (tmp_path / "a" / "report.json").unlink()
    with pytest.raises(ValueError, match=r"left by another run: seed is 0 there and 5 here"):
        make_pairs(plan(tmp_path / "a", data={"source": "world", "limit": 5}, seed=5))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"samples": 1}, "samples is 1; a comparison needs at least 2"),
        ({"prompt_tokens": [5, 2]}, "prompt_tokens is"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"min_gap": -1}, "min_gap is -1"),
        ({"most": 0}, "most is 0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        plan(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scorer": "count:no such word"}, r"I17 FAILED: prompts of the first 16 whose samples differ in score 0"),
        ({"scorer": "nothing.py:f"}, "there is no file 'nothing.py'"),
        ({"model": {"path": "no-such-model"}}, "no-such-model"),
        ({"data": {"source": "none.jsonl"}}, "none.jsonl"),
    ],
)
def test_what_cannot_give_pairs_leaves_nothing_behind(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, ChecksFailed), match=said):
        make_pairs(plan(tmp_path / "a", **fields))
    assert not (tmp_path / "a").exists()


def test_no_pair_left_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pair is left of \d+ prompts"):
        make_pairs(plan(tmp_path / "a", min_gap=100.0))


def test_the_command_prints_the_yield(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pairs", "--data.source", "world", "--data.limit", "20", "--samples", "4", "--max-new-tokens", "5"]
    assert run([*words, "--out", str(tmp_path / "p")]) == 0
    said = capsys.readouterr().out
    assert "sd, where normal scores would give best against worst 2.06" in said
    assert str(tmp_path / "p" / "pairs.jsonl") in said
    row = rows(tmp_path / "p" / "pairs.jsonl")[0]
    assert row["chosen_rating"] > row["rejected_rating"]
    assert row["vocabulary"] == vocabulary_hash(TOKENIZER)


def test_samples_of_two_places_are_drawn_apart(tmp_path: Path) -> None:
    policy = Policy.from_config(ModelConfig(device="cpu"))
    prompts = [Prompt(PROMPT, (1, *ids(PROMPT)), "group", "train")]

    def draw(place: int) -> Sequence[Any]:
        sampler = job.DecodeSampler.of(policy, 6)
        return [row["ids"] for row in sampled(prompts, policy, sampler, Gold(), plan(tmp_path), place)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(16)
