"""The order of the data, the learning rate of each step, and checkpoints."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from treeward.training.loop import LoopConfig, reached
from treeward.training.state import DataOrder, TrainState
from treeward.trees.tokens import TokenTree

ORDERS = st.builds(DataOrder, st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))


@given(ORDERS, st.integers(0, 4))
def test_an_epoch_visits_every_row_once(order: DataOrder, epoch: int) -> None:
    start = epoch * order.steps_per_epoch
    batches = [order.batch(start + n) for n in range(order.steps_per_epoch)]
    assert sorted(row for batch in batches for row in batch) == list(range(order.rows))
    assert all(len(batch) == order.batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= order.batch_size


@given(ORDERS, st.integers(0, 60))
def test_reached_rows_are_those_of_the_batches_in_the_order_of_first_use(order: DataOrder, steps: int) -> None:
    seen = [row for index in range(steps) for row in order.batch(index)]
    assert order.reached(steps) == list(dict.fromkeys(seen))


@given(ORDERS, st.integers(0, 60))
def test_a_batch_depends_on_its_index_alone(order: DataOrder, index: int) -> None:
    torch.manual_seed(index)
    assert order.batch(index) == DataOrder(order.rows, order.batch_size, order.seed).batch(index)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = [DataOrder(50, 50, 0).batch(n) for n in range(3)] + [DataOrder(50, 50, 1).batch(0)]
    assert len(set(map(tuple, epochs))) == 4
    assert list(range(50)) not in epochs


def test_reached_trees_are_those_of_the_run() -> None:
    trees = [TokenTree((n + 1,), ((1,),)) for n in range(10)]
    config = LoopConfig(steps=2, batch_size=3, seed=4)
    order = DataOrder(10, 3, 4)
    assert reached(config, trees) == [trees[row] for row in order.batch(0) + order.batch(1)]


@pytest.mark.parametrize(
    ("fields", "trees", "total"),
    [
        ({"epochs": 1.0, "batch_size": 4}, 10, 3),
        ({"epochs": 2.5, "batch_size": 4}, 10, 8),
        ({"epochs": 0.01, "batch_size": 4}, 10, 1),
        ({"steps": 7, "epochs": 3.0}, 10, 7),
    ],
)
def test_the_number_of_steps(fields: dict[str, Any], trees: int, total: int) -> None:
    assert LoopConfig(**fields).total(trees) == total


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", -1), ("epochs", 0.0), ("batch_size", 0), ("lr", -1e-5), ("max_grad_norm", 0.0),
        ("token_budget", 0), ("warmup", 1.0), ("warmup", -0.1), ("lr", math.nan), ("epochs", math.nan),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        LoopConfig(**{name: value})


def state(seed: int = 0, rows: int = 10, batch_size: int = 4, **fields: Any) -> TrainState:
    """A state over a model of two weights."""
    torch.manual_seed(seed)
    return TrainState(nn.Linear(2, 1), DataOrder(rows, batch_size, 0), fields.pop("total", 10), LoopConfig(**fields))


def rates(kept: TrainState, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(kept.rate)
        for parameter in kept.parameters:
            parameter.grad = torch.ones_like(parameter)
        kept.advance()
        assert {group["lr"] for group in kept.optimizer.param_groups} == {found[-1]}
    return found


def test_the_linear_schedule_written_out() -> None:
    expected = [0.5, 1.0, *((11 - n) / 9 for n in range(3, 11))]
    assert rates(state(lr=2.0, warmup=0.2), 10) == pytest.approx([2 * rate for rate in expected])


def test_the_cosine_schedule_written_out() -> None:
    expected = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * (n - 2) / 9)) for n in range(3, 11))]
    assert rates(state(lr=1.0, warmup=0.2, schedule="cosine"), 10) == pytest.approx(expected)


def test_the_constant_schedule_written_out() -> None:
    assert rates(state(lr=1.0, warmup=0.4, schedule="constant_with_warmup"), 10) == pytest.approx(
        [0.25, 0.5, 0.75, *[1.0] * 7]
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_no_step_has_a_rate_of_zero_and_none_exceeds_the_peak(schedule: Any, total: int, warmup: float) -> None:
    kept = state(lr=1e-3, total=total, schedule=schedule, warmup=warmup)
    found = []
    for index in range(total):
        kept.index = index
        found.append(kept.rate)
    assert min(found) > 0
    assert max(found) <= 1e-3 * (1 + 1e-12)


def test_the_first_step_is_adams() -> None:
    """At the first step Adam moves each weight by its rate, against the gradient's sign."""
    kept = state(lr=0.1, warmup=0.0, schedule="constant_with_warmup")
    before = [p.detach().clone() for p in kept.parameters]
    for parameter in kept.parameters:
        parameter.grad = torch.full_like(parameter, -3.0)
    kept.advance()
    for old, new in zip(before, kept.parameters, strict=True):
        torch.testing.assert_close(new.detach(), old + 0.1)
        assert new.grad is None
    assert kept.index == 1


def test_weight_decay_is_decoupled() -> None:
    kept = state(lr=0.1, weight_decay=0.5, warmup=0.0, schedule="constant_with_warmup")
    before = [p.detach().clone() for p in kept.parameters]
    for parameter in kept.parameters:
        parameter.grad = torch.zeros_like(parameter)
    kept.advance()
    for old, new in zip(before, kept.parameters, strict=True):
        torch.testing.assert_close(new.detach(), old * 0.95)


def test_a_saved_state_is_loaded_whole(tmp_path: Path) -> None:
    first = state()
    rates(first, 3)
    first.notes = {"best": 2, "nll": 0.5}
    torch.manual_seed(77)
    first.save(tmp_path / "3")
    drawn = torch.rand(3).tolist()
    second = state(seed=5)
    second.load(tmp_path / "3")
    assert torch.rand(3).tolist() == drawn
    assert (second.index, second.notes) == (3, {"best": 2, "nll": 0.5})
    assert rates(first, 4) == rates(second, 4)
    for a, b in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    kept = state()
    kept.save(tmp_path / "last")
    rates(kept, 2)
    kept.save(tmp_path / "last")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert json.loads((tmp_path / "last" / "state.json").read_text())["index"] == 2


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = state()
    kept.save(tmp_path / "last")
    rates(kept, 2)

    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            kept.save(tmp_path / "last")
    again = state(seed=5)
    again.load(tmp_path / "last")
    assert again.index == 0


def test_a_save_that_is_stopped_at_its_last_step_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = state()
    kept.save(tmp_path / "last")
    rates(kept, 2)
    honest = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if target == tmp_path / "last":
            raise KeyboardInterrupt
        return honest(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            kept.save(tmp_path / "last")
    (old,) = tmp_path.glob(".last.old")
    again = state(seed=5)
    again.load(old)
    assert again.index == 0
    kept.save(tmp_path / "last")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(str(os.getpid()))] == ["last"]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no state\.json"):
        state().load(tmp_path)


@pytest.mark.parametrize("changed", [{"rows": 11}, {"rows": 9}, {"batch_size": 5}])
def test_a_checkpoint_of_other_rows_is_refused(changed: dict[str, int], tmp_path: Path) -> None:
    state().save(tmp_path / "0")
    with pytest.raises(ValueError, match="is of another run"):
        state(**changed).load(tmp_path / "0")


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 1, bias=False), nn.Sequential(nn.Linear(2, 1)), nn.Linear(3, 1), nn.Linear(1, 1)]
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(model: nn.Module, tmp_path: Path) -> None:
    state().save(tmp_path / "0")
    other = TrainState(model, DataOrder(10, 4, 0), 10, LoopConfig())
    before = [p.detach().clone() for p in other.parameters]
    with pytest.raises(ValueError, match="belongs to another model"):
        other.load(tmp_path / "0")
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters, strict=True))
