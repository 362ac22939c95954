"""`treeward pairs --rounds`: pairs from the current policy, DPO on them, each round against the first policy."""

from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.jobs import rounds as job
from treeward.jobs import settings
from treeward.jobs.pairs import PairsRun
from treeward.jobs.rounds import rounds
from treeward.models.policy import Policy

PAIRS: dict[str, Any] = {
    "data": {"source": "world:200", "validation": 0.0, "test": 0.4}, "samples": 3, "max_new_tokens": 8, "rounds": 2,
    "scorer": "gold",
}  # fmt: skip
DPO: dict[str, Any] = {
    "steps": 2, "batch_size": 16, "lr": 1e-3, "require": "any", "skip_check": ["F09", "F10"],
    "evaluation": {"prompts": 4, "samples": 2, "max_new_tokens": 8}, "anchor": {"store": "off"},
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    Policy.load("world", device="cpu", config={"num_hidden_layers": 1}).save(folder)
    return folder / "model"


def plan(start: Path, out: Path, **over: Any) -> PairsRun:
    model = {"path": str(start), "device": "cpu"}
    return settings.build(PairsRun, settings.merge(PAIRS | {"model": model, "dpo": DPO, "out": str(out)}, over))


def test_each_round_samples_from_the_policy_before_and_is_measured_against_the_first(
    start: Path, tmp_path: Path
) -> None:
    found = rounds(plan(start, tmp_path / "r"))
    assert [each.number for each in found] == [1, 2]
    first, second = (each.path for each in found)
    settings_of = (second / "pairs" / "config.yaml").read_text()
    assert str(first / "dpo" / "model") in settings_of
    kls = [each.facts["kl"]["value"] for each in found]
    assert 0 < kls[0] < kls[1], "the second round starts where the first ended, and both are measured from the first"
    weights = [
        next(iter(Policy.load(str(path), device="cpu").tree.parameters()))
        for path in (start, first / "dpo" / "model", second / "dpo" / "model")
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_stopped_series_goes_on_with_what_is_there(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rounds(plan(start, tmp_path / "a"))
    train = job.train

    def failing(config: Any, resume: Any = None) -> Any:
        if "round-2" in str(config.out):
            raise KeyboardInterrupt
        return train(config, resume)

    monkeypatch.setattr(job, "train", failing)
    with pytest.raises(KeyboardInterrupt):
        rounds(plan(start, tmp_path / "b"))
    monkeypatch.setattr(job, "train", train)
    again = rounds(plan(start, tmp_path / "b"))
    assert [each.facts["score"] for each in again] == [each.facts["score"] for each in whole]


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"dpo": {"data": {"source": "world"}, "name": "mine"}}, r"dpo.name is set, but the rounds set it themselves"),
        ({"model": {"init": "random"}}, "random weights: rounds start from a trained policy"),
    ],
)
def test_what_the_rounds_set_themselves_is_refused(
    over: dict[str, Any], said: str, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        rounds(plan(start, tmp_path / "r", **over))
