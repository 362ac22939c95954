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

from fixtures import BuildPolicy
from treeward.errors import UserError
from treeward.methods.sft import TokenNLL
from treeward.models.policy import Policy
from treeward.training.batches import Batches
from treeward.training.loop import Loop, TrainingConfig, learning_rate_factor
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree


def numbered(count: int) -> list[TokenTree]:
    """Trees that are all different."""
    return [TokenTree((n + 1,), ((1,),)) for n in range(count)]


def batches_of(count: int, size: int, seed: int = 0, **length: Any) -> Batches[TokenTree]:
    return Batches(numbered(count), size, seed=seed, **length)


ORDERS = st.builds(batches_of, st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))


@given(ORDERS, st.integers(0, 4))
def test_an_epoch_visits_every_row_once(batches: Batches[TokenTree], epoch: int) -> None:
    start = epoch * batches.per_epoch
    rows = [batches.rows(start + n) for n in range(batches.per_epoch)]
    assert sorted(row for batch in rows for row in batch) == list(range(len(batches.trees)))
    assert all(len(batch) == batches.size for batch in rows[:-1])
    assert 1 <= len(rows[-1]) <= batches.size


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(1, 60))
def test_used_trees_are_those_of_the_batches_in_the_order_of_first_use(
    count: int, size: int, seed: int, steps: int
) -> None:
    batches = batches_of(count, size, seed, steps=steps)
    assert batches.used_trees() == list(dict.fromkeys(tree for batch in batches for tree in batch))


@given(ORDERS, st.integers(0, 60))
def test_a_batch_depends_on_its_index_alone(batches: Batches[TokenTree], index: int) -> None:
    torch.manual_seed(index)
    assert batches.rows(index) == batches_of(len(batches.trees), batches.size, batches.seed).rows(index)
    assert batches.batch(index) == [batches.trees[row] for row in batches.rows(index)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = [batches_of(50, 50).rows(n) for n in range(3)] + [batches_of(50, 50, 1).rows(0)]
    assert len(set(map(tuple, epochs))) == 4
    assert list(range(50)) not in epochs


def test_the_order_of_a_seed_is_written_out() -> None:
    """Checkpoints of older versions continue only if this order never changes."""
    assert [batches_of(6, 4, seed=4).rows(n) for n in range(3)] == ORDER_OF_SEED_4


ORDER_OF_SEED_4: list[list[int]] = [
    torch.randperm(6, generator=torch.Generator().manual_seed(4_000_012)).tolist()[:4],
    torch.randperm(6, generator=torch.Generator().manual_seed(4_000_012)).tolist()[4:],
    torch.randperm(6, generator=torch.Generator().manual_seed(4_000_013)).tolist()[:4],
]


def test_batches_of_a_configuration() -> None:
    trees = numbered(10)
    batches = TrainingConfig(steps=2, batch_size=3, seed=4).batches(trees)
    assert list(batches) == [batches_of(10, 3, 4).batch(0), batches_of(10, 3, 4).batch(1)]
    assert batches.used_trees() == batches.batch(0) + batches.batch(1)


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
    batches = TrainingConfig(**fields).batches(numbered(trees))
    assert len(batches) == len(list(batches)) == total


def test_text_trees_make_batches_too() -> None:
    trees = [Tree(f"w{n}", [" w7"]) for n in range(5, 10)]
    batches = Batches(trees, 2, seed=3)
    assert [[tree.prompt for tree in batch] for batch in batches] == [
        [trees[row].prompt for row in batches_of(5, 2, 3).rows(n)] for n in range(3)
    ]
    other = Batches([*trees[:4], Tree("w9", [" w8"])], 2, seed=3)
    assert other.fingerprint != batches.fingerprint
    with pytest.raises(UserError, match="is of another run: trees is"):
        other.load_state_dict(batches.state_dict())


def test_after_the_last_batch_iterating_starts_again() -> None:
    batches = batches_of(5, 2)
    first = list(batches)
    assert batches.position == len(batches) == 3
    assert list(batches) == first


def test_a_position_is_saved_and_continued() -> None:
    batches = batches_of(10, 3, epochs=2)
    expected = list(batches_of(10, 3, epochs=2))
    iterator = iter(batches)
    assert [next(iterator) for _ in range(5)] == expected[:5]
    state = json.loads(json.dumps(batches.state_dict()))
    again = batches_of(10, 3, epochs=2)
    again.load_state_dict(state)
    assert list(again) == expected[5:]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (batches_of(11, 4), "trees"),
        (batches_of(9, 4), "trees"),
        (batches_of(10, 5), "batch_size"),
        (batches_of(10, 4, seed=1), "seed"),
        (batches_of(10, 4, epochs=2), "steps"),
        (Batches(numbered(10)[::-1], 4), "trees"),
        (Batches([*numbered(9), TokenTree((10,), ((1,),), weight=2.0)], 4), "trees"),
    ],
)
def test_a_state_of_other_batches_is_refused_and_changes_nothing(other: Batches[TokenTree], name: str) -> None:
    batches = batches_of(10, 4)
    next(iter(batches))
    with pytest.raises(UserError, match=f"is of another run: {name} is .* resume with the data"):
        other.load_state_dict(batches.state_dict())
    assert other.position == 0


def test_f54_a_sampler_shifted_by_one_is_refused() -> None:
    batches = batches_of(20, 4)
    state = batches.state_dict()
    state["next_rows"] = state["next_rows"][1:] + state["next_rows"][:1]
    with pytest.raises(UserError, match="order of the data has changed"):
        batches.load_state_dict(state)


def test_no_trees_and_bad_numbers_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="trees is empty, so there is nothing to train on"):
        Batches([], 4)
    for name, value in (("size", 0), ("epochs", 0.0), ("epochs", math.nan), ("steps", -1)):
        with pytest.raises(UserError, match=f"{name} is {value}; it must be above 0"):
            Batches(**{"trees": numbered(3), "size": 2, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", -1), ("epochs", 0.0), ("batch_size", 0), ("lr", -1e-5), ("max_grad_norm", 0.0),
        ("token_budget", 0), ("warmup", 1.0), ("warmup", -0.1), ("lr", math.nan), ("epochs", math.nan),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        TrainingConfig(**{name: value})


def loop_of(policy: Policy, **fields: Any) -> Loop:
    """A loop of ten steps, of AdamW with the default warm-up and schedule."""
    return Loop.from_config(policy, TokenNLL(), TrainingConfig(**fields), 10)


def take_steps(loop: Loop, count: int, gradient: float = 1.0) -> list[float]:
    """Take steps with a gradient that is everywhere the same; the learning rate of each."""
    rates = []
    for _ in range(count):
        for parameter in loop.parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        groups = {group["lr"] for group in loop.optimizer.param_groups}
        rates.append(float(loop.update()["lr"]))
        assert groups == {rates[-1]}
    return rates


def test_the_linear_schedule_written_out(policy: BuildPolicy) -> None:
    expected = [0.5, 1.0, *((11 - n) / 9 for n in range(3, 11))]
    assert take_steps(loop_of(policy(), lr=2.0, warmup=0.2), 10) == pytest.approx([2 * rate for rate in expected])


def test_the_cosine_schedule_written_out(policy: BuildPolicy) -> None:
    expected = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * (n - 2) / 9)) for n in range(3, 11))]
    loop = loop_of(policy(), lr=1.0, warmup=0.2, schedule="cosine")
    assert take_steps(loop, 10) == pytest.approx(expected)


def test_the_constant_schedule_written_out(policy: BuildPolicy) -> None:
    loop = loop_of(policy(), lr=1.0, warmup=0.4, schedule="constant_with_warmup")
    assert take_steps(loop, 10) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_no_step_has_a_rate_of_zero_and_none_exceeds_the_peak(schedule: Any, total: int, warmup: float) -> None:
    factor = learning_rate_factor(schedule, total, warmup)
    factors = [factor(index) for index in range(total)]
    assert min(factors) > 0
    assert max(factors) <= 1 + 1e-12


def test_the_first_step_is_adams(policy: BuildPolicy) -> None:
    """At the first step Adam moves each weight by its rate, against the gradient's sign."""
    loop = loop_of(policy(), lr=0.1, warmup=0.0, schedule="constant_with_warmup", max_grad_norm=1e9)
    before = [p.detach().clone() for p in loop.parameters]
    take_steps(loop, 1, gradient=-3.0)
    for old, new in zip(before, loop.parameters, strict=True):
        torch.testing.assert_close(new.detach(), old + 0.1)
        assert new.grad is None
    assert loop.index == 1


def test_weight_decay_is_decoupled(policy: BuildPolicy) -> None:
    loop = loop_of(policy(), lr=0.1, weight_decay=0.5, warmup=0.0, schedule="constant_with_warmup")
    before = [p.detach().clone() for p in loop.parameters]
    take_steps(loop, 1, gradient=0.0)
    for old, new in zip(before, loop.parameters, strict=True):
        torch.testing.assert_close(new.detach(), old * 0.95)


class Notes:
    """The state of whoever drives the loop."""

    def __init__(self, **notes: float) -> None:
        self.notes = notes

    def state_dict(self) -> dict[str, Any]:
        return self.notes

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.notes = state


def test_a_saved_state_is_loaded_whole(policy: BuildPolicy, tmp_path: Path) -> None:
    first, notes = loop_of(policy()), Notes(best=2, nll=0.5)
    take_steps(first, 3)
    torch.manual_seed(77)
    first.save(tmp_path / "3", notes=notes)
    drawn = torch.rand(3).tolist()
    second, loaded = loop_of(policy(seed=5)), Notes()
    second.load(tmp_path / "3", notes=loaded)
    assert torch.rand(3).tolist() == drawn
    assert (second.index, loaded.notes) == (3, {"best": 2, "nll": 0.5})
    assert take_steps(first, 4) == take_steps(second, 4)
    for a, b in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_state_that_was_not_saved_is_refused(policy: BuildPolicy, tmp_path: Path) -> None:
    loop_of(policy()).save(tmp_path / "0")
    with pytest.raises(UserError, match="has no state of 'batches'; pass to load what was passed to save"):
        loop_of(policy()).load(tmp_path / "0", batches=batches_of(10, 4))


def test_saving_again_replaces_and_leaves_nothing_else(policy: BuildPolicy, tmp_path: Path) -> None:
    loop = loop_of(policy())
    loop.save(tmp_path / "last")
    take_steps(loop, 2)
    loop.save(tmp_path / "last")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert json.loads((tmp_path / "last" / "state.json").read_text())["index"] == 2


def test_a_save_that_fails_leaves_the_old_checkpoint(
    policy: BuildPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(policy())
    loop.save(tmp_path / "last")
    take_steps(loop, 2)

    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            loop.save(tmp_path / "last")
    again = loop_of(policy(seed=5))
    again.load(tmp_path / "last")
    assert again.index == 0


def test_a_save_that_is_stopped_at_its_last_step_leaves_the_old_checkpoint(
    policy: BuildPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(policy())
    loop.save(tmp_path / "last")
    take_steps(loop, 2)
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if target == tmp_path / "last":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            loop.save(tmp_path / "last")
    (old,) = tmp_path.glob(".last.old")
    again = loop_of(policy(seed=5))
    again.load(old)
    assert again.index == 0
    loop.save(tmp_path / "last")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(str(os.getpid()))] == ["last"]


def test_a_folder_that_is_no_checkpoint_is_refused(policy: BuildPolicy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a checkpoint: it has no state\.json"):
        loop_of(policy()).load(tmp_path)


@pytest.mark.parametrize("other", [batches_of(11, 4), batches_of(9, 4), batches_of(10, 5)])
def test_a_checkpoint_of_other_rows_is_refused(other: Batches[TokenTree], policy: BuildPolicy, tmp_path: Path) -> None:
    loop_of(policy()).save(tmp_path / "0", batches=batches_of(10, 4))
    with pytest.raises(UserError, match="is of another run"):
        loop_of(policy()).load(tmp_path / "0", batches=other)


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 3}, {"attention_bias": True}, {"intermediate_size": 48}, {"family": "gpt2"}],
    ids=["deeper", "more names", "other shapes", "another family"],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    changes: dict[str, Any], policy: BuildPolicy, tmp_path: Path
) -> None:
    loop_of(policy()).save(tmp_path / "0")
    other = loop_of(policy(**changes))
    before = [p.detach().clone() for p in other.parameters]
    with pytest.raises(UserError, match="belongs to another model"):
        other.load(tmp_path / "0")
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters, strict=True))
