"""A run that was stopped and resumed is the run that was not, bit for bit; and other runs are not taken for it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.data.prepare import DataConfig, prepare
from treeward.losses.divergences import Alpha
from treeward.losses.preference import Hinge, Sigmoid
from treeward.losses.reward import BradleyTerry
from treeward.methods.dpo import DPOConfig, dpo
from treeward.methods.reward import RewardConfig, reward
from treeward.methods.sft import SFTConfig, sft
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reference import EMA, Frozen
from treeward.models.reward_model import RewardModel
from treeward.trees.tokens import TokenTree

CONFIG = SFTConfig(steps=6, batch_size=8, lr=3e-3)
Build = Callable[..., Any]


def world(dropout: float = 0.0) -> Policy:
    return Policy.load("world", device="cpu", dropout=dropout)


@pytest.fixture(scope="module")
def texts() -> list[TokenTree]:
    """Reviews of the world: 6 steps of 8 take more than one pass over them."""
    return prepare(DataConfig(source="world-texts", limit=40), world().tokenizer, "sft").train


def outcome(policy: Policy, step: Any) -> tuple[Any, ...]:
    """Everything that a run is: weights, optimiser, place, metrics."""
    moments = step.state.optimizer.state_dict()["state"]
    return [p.detach().clone() for p in policy.packed.parameters()], moments, step.index, step.metrics


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][n][name], b[1][n][name]) for n in a[1] for name in a[1][n])
    assert a[2:] == b[2:]


def interrupted(run: Any, directory: Path, after: int) -> None:
    for step in run:
        if step.index == after:
            step.state.save(directory)
            return


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_three_steps_and_three_are_six_bit_for_bit(dropout: float, texts: list[TokenTree], tmp_path: Path) -> None:
    """With dropout the generator's state is part of the run as well."""
    assert len(texts) < 6 * 8
    whole = world(dropout)
    torch.manual_seed(0)
    *_, last = sft(whole, texts, CONFIG)
    first = world(dropout)
    torch.manual_seed(0)
    interrupted(sft(first, texts, CONFIG), tmp_path / "3", 3)
    second = world(dropout)
    torch.manual_seed(99)
    steps = list(sft(second, texts, CONFIG, resume=tmp_path / "3"))
    assert [step.index for step in steps] == [4, 5, 6]
    same(outcome(whole, last), outcome(second, steps[-1]))
    start = world(dropout).packed.parameters()
    assert not any(torch.equal(p, q) for p, q in zip(second.packed.parameters(), start, strict=True))


def test_a_resumed_dpo_run_measures_against_the_same_start(policy: Build, grow: Build, tmp_path: Path) -> None:
    trees, config = grow(6), DPOConfig(steps=4, batch_size=4, lr=1e-3)
    whole = policy()
    *_, last = dpo(whole, trees, config)
    interrupted(dpo(policy(), trees, config), tmp_path / "2", 2)
    again = policy()
    *_, other = dpo(again, trees, config, resume=tmp_path / "2")
    same(outcome(whole, last), outcome(again, other))


def test_saving_does_not_disturb_the_run(policy: Build, grow: Build, tmp_path: Path) -> None:
    trees, config = grow(6), SFTConfig(steps=4, batch_size=4, lr=1e-3)
    quiet, saved = policy(), policy()
    *_, a = sft(quiet, trees, config)
    for step in sft(saved, trees, config):
        step.state.save(tmp_path / str(step.index))
    same(outcome(quiet, a), outcome(saved, step))


def test_a_run_that_is_done_has_no_steps_left(policy: Build, grow: Build, tmp_path: Path) -> None:
    trees, config = grow(6), SFTConfig(steps=2, batch_size=4)
    interrupted(sft(policy(), trees, config), tmp_path / "2", 2)
    assert list(sft(policy(), trees, config, resume=tmp_path / "2")) == []


@pytest.fixture
def checkpoint(policy: Build, grow: Build, tmp_path: Path) -> Path:
    """One step of a run over six trees."""
    interrupted(sft(policy(), grow(6), SFTConfig(steps=4, batch_size=4)), tmp_path / "1", 1)
    return tmp_path / "1"


def resumed(policy: Policy, trees: list[TokenTree], checkpoint: Path, **fields: Any) -> None:
    config = SFTConfig(**{"steps": 4, "batch_size": 4, **fields})
    next(sft(policy, trees, config, resume=checkpoint))


def test_the_same_run_is_resumed(policy: Build, grow: Build, checkpoint: Path) -> None:
    ours = policy()
    resumed(ours, grow(6), checkpoint)
    assert ours.packed.backend == "tree"


@pytest.mark.parametrize("fields", [{"batch_size": 3}, {"seed": 1}])
def test_another_order_is_refused(fields: dict[str, int], policy: Build, grow: Build, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="is of another run"):
        resumed(policy(), grow(6), checkpoint, **fields)


def test_data_of_another_size_is_refused(policy: Build, grow: Build, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="is of another run"):
        resumed(policy(), grow(9), checkpoint)


def test_other_data_of_the_same_size_is_refused(policy: Build, grow: Build, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="data"):
        resumed(policy(), grow(6, seed=1), checkpoint)


def test_another_learning_rate_is_refused(policy: Build, grow: Build, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="lr"):
        resumed(policy(), grow(6), checkpoint, lr=1e-2)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"intermediate_size": 48}], ids=["deeper", "narrower"])
def test_another_model_is_refused(changes: dict[str, int], policy: Build, grow: Build, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="is of another run: the start's hash"):
        resumed(policy(**changes), grow(6), checkpoint)


def test_a_start_that_was_trained_since_is_refused(policy: Build, grow: Build, checkpoint: Path) -> None:
    trained = policy()
    list(sft(trained, grow(6), SFTConfig(steps=1, batch_size=4)))
    with pytest.raises(ValueError, match=r"the start's hash .* and model it began with"):
        resumed(trained, grow(6), checkpoint)


PAIRS = DPOConfig(steps=4, batch_size=4, loss=Sigmoid(beta=0.1), reference=Frozen(store="off"))


@pytest.fixture
def preferences(policy: Build, grow: Build, tmp_path: Path) -> Path:
    """One step of a preference run over six pairs."""
    interrupted(dpo(policy(), grow(6), PAIRS), tmp_path / "1", 1)
    return tmp_path / "1"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"loss": Sigmoid(beta=0.2)}, "loss"), ({"loss": Hinge()}, "loss"), ({"divergence": Alpha(0.5)}, "divergence"),
        ({"margin": 0.5}, "margin"), ({"reference": EMA()}, "reference"), ({"max_grad_norm": 0.5}, "max_grad_norm"),
    ],
    ids=str,
)  # fmt: skip
def test_another_loss_or_reference_is_refused(
    fields: dict[str, Any], named: str, policy: Build, grow: Build, preferences: Path
) -> None:
    with pytest.raises(ValueError, match=f"is of another run: {named} is "):
        next(dpo(policy(), grow(6), replace(PAIRS, **fields), resume=preferences))


def test_how_a_batch_is_cut_and_where_values_are_kept_may_change(
    policy: Build, grow: Build, preferences: Path, tmp_path: Path
) -> None:
    config = replace(PAIRS, token_budget=64, steps=None, epochs=2.0, reference=Frozen(store=str(tmp_path / "a.sqlite")))
    assert next(dpo(policy(), grow(6), config, resume=preferences)).index == 2


@pytest.mark.parametrize(
    "change", [{"weight": 2.0}, {"margin": 0.5}, {"ratings": ((2.0,), (1.0,))}], ids=["weight", "margin", "labels"]
)
def test_other_labels_weights_and_margins_are_refused(
    change: dict[str, Any], policy: Build, grow: Build, preferences: Path
) -> None:
    first, *rest = grow(6)
    with pytest.raises(ValueError, match="is of another run: the data's hash"):
        next(dpo(policy(), [replace(first, **change), *rest], PAIRS, resume=preferences))


def test_another_reward_loss_is_refused(grow: Build, tmp_path: Path) -> None:
    def steps(loss: Any, resume: Path | None = None) -> Any:
        config = RewardConfig(steps=4, batch_size=4, loss=loss)
        return reward(RewardModel.from_config(ModelConfig(device="cpu")), grow(6), config, resume)

    interrupted(steps(None), tmp_path / "1", 1)
    assert next(steps(BradleyTerry(), tmp_path / "1")).index == 2
    with pytest.raises(ValueError, match="is of another run: loss is "):
        next(steps(BradleyTerry(centre=0.1), tmp_path / "1"))


def test_other_threads_and_versions_are_said(
    policy: Build, grow: Build, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resumed(policy(), grow(6), checkpoint)
    assert not caplog.text
    facts = json.loads((checkpoint / "state.json").read_text())
    facts["under"] |= {"threads": 64, "torch": "1.0"}
    (checkpoint / "state.json").write_text(json.dumps(facts))
    resumed(policy(), grow(6), checkpoint)
    assert "resumed with threads 1, saved with 64" in caplog.text
    assert "saved with 1.0" in caplog.text


def test_f54_a_sampler_shifted_by_one_is_refused(tmp_path: Path) -> None:
    from treeward.models.policy import Policy
    from treeward.training.loop import LoopConfig
    from treeward.training.state import TrainState

    state = TrainState(Policy.load("world").packed, LoopConfig(batch_size=4).order(20), 5, LoopConfig(batch_size=4))
    state.save(tmp_path / "checkpoint")
    facts = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    facts["next_rows"] = facts["next_rows"][1:] + facts["next_rows"][:1]
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="order of the data has changed"):
        state.load(tmp_path / "checkpoint")
