"""Reward functions in a pool of processes: the same scores, a time limit for each call, failures that name the row."""

import time
from pathlib import Path
from typing import Any

import pytest

from treeward.errors import UserError
from treeward.rewards import pool as pools
from treeward.rewards import scorers
from treeward.rewards.models import RunOptions
from treeward.rewards.scorers import BadScore
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree

FILE = """
import os, time

def wordy(prompt, response, row):
    if "w13" in response:
        raise KeyError("no such word")
    if "w14" in response:
        time.sleep(60)
    if "w15" in response:
        os._exit(1)
    return len(response.split()) + row.get("bonus", 0) + (0 if os.getpid() == row["parent"] else 0.5)

def together(samples):
    return [0.0 for _ in samples]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "slow.py"
    path.write_text(FILE)
    return path


def rollout(tokenizer: Any, *branches: tuple[int, ...]) -> Rollout:
    import os

    return Rollout([TokenTree((5, 6), branches, row={"bonus": 2, "parent": os.getpid()})], tokenizer)


@pytest.mark.slow
def test_calls_run_in_other_processes_in_order_and_within_their_time(
    file: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorers.find(f"{file}:wordy", RunOptions(processes=2, timeout=0.5))
    good = rollout(tiny_tokenizer, (7,), (7, 8), (7, 8, 9))
    assert scorer(good).tolist() == [3.5, 4.5, 5.5]  # the half says that it was another process

    with pytest.raises(
        BadScore, match=r"response 2, 'w13', to the prompt 'w5 w6', in line 6 .*KeyError: 'no such word'"
    ):
        scorer(rollout(tiny_tokenizer, (7,), (13,)))

    clock = time.monotonic()
    with pytest.raises(
        BadScore, match=r"response 1, 'w14', to the prompt 'w5 w6': it took longer than reward_timeout 0.5 s"
    ):
        scorer(rollout(tiny_tokenizer, (14,), (7,)))
    assert time.monotonic() - clock < 20

    monkeypatch.setattr(pools, "START_SECONDS", 1.0)
    with pytest.raises(BadScore, match=r"response 1, 'w15'.*its process ended"):
        scorer(rollout(tiny_tokenizer, (15,)))
    monkeypatch.undo()
    assert scorer(good).tolist() == [3.5, 4.5, 5.5]  # new processes


def test_a_function_of_all_samples_cannot_be_spread(file: Path) -> None:
    with pytest.raises(UserError, match="takes all samples at once, so it cannot be spread over reward_processes 2"):
        scorers.find(f"{file}:together", RunOptions(processes=2))


def test_without_processes_the_function_runs_here(file: Path, tiny_tokenizer: Any) -> None:
    assert scorers.find(f"{file}:wordy")(rollout(tiny_tokenizer, (7,))).tolist() == [3.0]


def test_exact_match_is_of_the_whole_response(tiny_tokenizer: Any) -> None:
    row = {"answer": "w7 w8"}
    trees = [TokenTree((5,), ((7, 8), (7,), (7, 8, 9), (8, 7)), row=row)]
    assert scorers.find("exact-match")(Rollout(trees, tiny_tokenizer)).tolist() == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(BadScore, match=r"no answer for the prompt 'w5'.*data.keep must name it"):
        scorers.find("exact-match")(Rollout([TokenTree((5,), ((7,),), row={"other": 1})], tiny_tokenizer))
