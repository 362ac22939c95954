"""A run that was stopped and resumed equals the whole run bit for bit; a checkpoint of another run is refused."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import BuildPolicy, Grow
from treeward.data.prepare import DataConfig, prepare
from treeward.errors import UserError
from treeward.losses.preference import Sigmoid
from treeward.methods import find
from treeward.methods.dpo import DPOConfig, PairObjective
from treeward.methods.sft import SFTConfig, TokenNLL
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.runner.run import run
from treeward.runner.settings import build, merge, recipe
from treeward.runs.directory import RunDirectory
from treeward.training.batches import Batches
from treeward.training.loop import Loop, Step, TrainingConfig
from treeward.trees.tokens import TokenTree

CONFIG = SFTConfig(steps=6, batch_size=8, lr=3e-3)


def world(dropout: float = 0.0) -> Policy:
    return Policy.from_config(ModelConfig(device="cpu", dropout=dropout))


@pytest.fixture(scope="module")
def texts() -> list[TokenTree]:
    """Reviews of the world: 6 steps of 8 take more than one pass over them."""
    return prepare(DataConfig(source="world-texts", limit=40), world().tokenizer, "sft").train


def started(policy: Policy, trees: list[TokenTree], config: TrainingConfig) -> tuple[Loop, Batches[TokenTree]]:
    """A loop of the configuration (DPO with its frozen copy, or SFT) and its batches."""
    is_dpo = isinstance(config, DPOConfig)
    objective = PairObjective(config.loss, policy.frozen_copy()) if is_dpo else TokenNLL()
    batches = config.batches(trees)
    return Loop.from_config(policy, objective, config, len(batches)), batches


def outcome(loop: Loop, step: Step) -> tuple[Any, ...]:
    """Everything that a run is: weights, optimizer, position, metrics."""
    moments = loop.optimizer.state_dict()["state"]
    weights = [p.detach().clone() for p in loop.packed.parameters()]
    return weights, moments, loop.scheduler.get_last_lr(), loop.index, step.numbers()


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][n][name], b[1][n][name]) for n in a[1] for name in a[1][n])
    assert a[2:] == b[2:]


def whole(policy: Policy, trees: list[TokenTree], config: TrainingConfig) -> tuple[Any, ...]:
    """The outcome of all steps."""
    loop, batches = started(policy, trees, config)
    steps = [loop.step(batch) for batch in batches]
    return outcome(loop, steps[-1])


def interrupted(policy: Policy, trees: list[TokenTree], config: TrainingConfig, directory: Path, after: int) -> None:
    """Take that many steps, then save."""
    loop, batches = started(policy, trees, config)
    for batch in batches:
        if loop.step(batch).index == after:
            loop.save(directory, batches=batches)
            return


def resumed(policy: Policy, trees: list[TokenTree], config: TrainingConfig, directory: Path) -> tuple[Loop, list[Step]]:
    """Load, then take the remaining steps."""
    loop, batches = started(policy, trees, config)
    loop.load(directory, batches=batches)
    return loop, [loop.step(batch) for batch in batches]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_three_steps_and_three_are_six_bit_for_bit(dropout: float, texts: list[TokenTree], tmp_path: Path) -> None:
    """With dropout the generator's state is part of the run as well."""
    assert len(texts) < 6 * 8
    torch.manual_seed(0)
    expected = whole(world(dropout), texts, CONFIG)
    torch.manual_seed(0)
    interrupted(world(dropout), texts, CONFIG, tmp_path / "3", 3)
    second = world(dropout)
    torch.manual_seed(99)
    loop, steps = resumed(second, texts, CONFIG, tmp_path / "3")
    assert [step.index for step in steps] == [4, 5, 6]
    same(expected, outcome(loop, steps[-1]))
    start = world(dropout).packed.parameters()
    assert not any(torch.equal(p, q) for p, q in zip(second.packed.parameters(), start, strict=True))


def test_a_resumed_dpo_run_measures_against_the_same_start(policy: BuildPolicy, grow: Grow, tmp_path: Path) -> None:
    trees, config = grow(6), DPOConfig(steps=4, batch_size=4, lr=1e-3)
    expected = whole(policy(), trees, config)
    interrupted(policy(), trees, config, tmp_path / "2", 2)
    loop, steps = resumed(policy(), trees, config, tmp_path / "2")
    same(expected, outcome(loop, steps[-1]))


def test_saving_does_not_disturb_the_run(policy: BuildPolicy, grow: Grow, tmp_path: Path) -> None:
    trees, config = grow(6), SFTConfig(steps=4, batch_size=4, lr=1e-3)
    expected = whole(policy(), trees, config)
    loop, batches = started(policy(), trees, config)
    for batch in batches:
        step = loop.step(batch)
        loop.save(tmp_path / str(step.index), batches=batches)
    same(expected, outcome(loop, step))


@pytest.mark.parametrize("fields", [{"lr": 1e-2}, {"schedule": "cosine"}, {"warmup": 0.5}, {"weight_decay": 0.1}])
def test_another_rate_is_refused_by_the_loop(
    fields: dict[str, Any], policy: BuildPolicy, grow: Grow, tmp_path: Path
) -> None:
    interrupted(policy(), grow(6), CONFIG, tmp_path / "1", 1)
    (name,) = fields
    with pytest.raises(UserError, match=f"is of another run: {name} is "):
        resumed(policy(), grow(6), replace(CONFIG, **fields), tmp_path / "1")


def test_other_threads_and_versions_are_reported(
    policy: BuildPolicy, grow: Grow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "1"
    interrupted(policy(), grow(6), CONFIG, checkpoint, 1)
    resumed(policy(), grow(6), CONFIG, checkpoint)
    assert not caplog.text
    facts = json.loads((checkpoint / "state.json").read_text())
    facts["environment"] |= {"threads": 64, "torch": "1.0"}
    facts["world"] = 2
    (checkpoint / "state.json").write_text(json.dumps(facts))
    resumed(policy(), grow(6), CONFIG, checkpoint)
    assert "resumed with threads 1, saved with 64" in caplog.text
    assert "saved with 1.0" in caplog.text
    assert "saved by 2 processes, resumed with 1" in caplog.text


# Whole runs, resumed from their directory


TINY: dict[str, Any] = {
    "data": {"source": "world:300", "test": 0.3}, "steps": 4, "batch_size": 4, "lr": 1e-3, "save_every": 1,
    "require": "any", "skip_check": ["F48"], "model": {"config": {"num_hidden_layers": 1}},
    "evaluation": {"prompts": 2, "samples": 1, "max_new_tokens": 4},
}  # fmt: skip
STOP_AFTER = 1


class Stopped(Exception):
    """What ends a run in these tests."""


class StopAfter:
    """A reporter that ends the run after some steps, when their checkpoint is written."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def progress(self, items: Any, total: int, what: str, done: int = 0, figures: Any = None) -> Any:
        for taken, item in enumerate(items, done):
            if taken == self.steps:
                raise Stopped
            yield item

    def step(self, index: int, metrics: Any) -> None:
        pass


def configuration(verb: str, out: Path, **over: Any) -> Any:
    values = recipe(f"world-{verb}")
    del values["command"]
    tiny = {name: value for name, value in TINY.items() if verb != "reward" or name != "evaluation"}
    return build(find(verb).Config, merge(merge(merge(values, tiny), over), {"out": str(out)}))


def stopped(verb: str, out: Path, **over: Any) -> Callable[..., Any]:
    """A run that stopped after one step; returns a function that resumes it with other settings."""
    with pytest.raises(Stopped):
        run(configuration(verb, out, **over), find(verb), reporter=StopAfter(STOP_AFTER))
    directory = RunDirectory.open(str(out))
    assert [path.name for path in directory.checkpoints()] == ["step-000001"]
    return lambda **changes: run(
        configuration(verb, out, **merge(over, changes)), find(verb), resume=directory, reporter=StopAfter(99)
    )


def hashes(out: Path) -> list[str]:
    names = ("metrics.jsonl", "model/model.safetensors", "evaluation.jsonl", "samples.jsonl")
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names if (out / name).exists()]


@pytest.mark.parametrize(
    ("verb", "over"),
    [
        ("sft", {}), ("reward", {}), ("dpo", {"reference": {"store": "off"}}),
        ("dpo", {"reference": {"kind": "ema", "rate": 0.2}}), ("dpo", {"loss": {"kind": "kto"}}),
    ],
    ids=str,
)  # fmt: skip
def test_a_resumed_run_writes_what_the_whole_one_writes(verb: str, over: dict[str, Any], tmp_path: Path) -> None:
    run(configuration(verb, tmp_path / "whole", **over), find(verb))
    stopped(verb, tmp_path / "run", **over)()
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_run_that_is_done_takes_no_more_steps(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the receipt."""
    out = tmp_path / "run"
    run(configuration("sft", out), find("sft"))
    before = hashes(out)
    (out / "receipt.json").unlink()
    again = run(configuration("sft", out), find("sft"), resume=RunDirectory.open(str(out)))
    assert hashes(out) == before
    assert again.receipt["verdict"]


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    return stopped("sft", tmp_path_factory.mktemp("sft") / "run")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 3}, "batch_size"), ({"seed": 1}, "seed"), ({"data": {"source": "world:400"}}, "trees"),
        ({"data": {"source": "world:300", "seed": 7}}, "trees"), ({"lr": 1e-2}, "lr"), ({"steps": 5}, "planned_steps"),
        ({"max_grad_norm": 0.5}, "max_grad_norm"),
        ({"model": {"config": {"num_hidden_layers": 2}}}, "the start's hash"),
        ({"model": {"config": {"intermediate_size": 48}}}, "the start's hash"),
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], named: str, sft_run: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=f"is of another run: {named} is .* and model it began with"):
        sft_run(**changes)


@pytest.fixture(scope="module")
def dpo_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    over = {"loss": {"kind": "sigmoid", "beta": 0.1}, "reference": {"store": "off"}}
    return stopped("dpo", tmp_path_factory.mktemp("dpo") / "run", **over)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"kind": "sigmoid", "beta": 0.2}}, "loss"), ({"loss": {"kind": "sigmoid", "flip": 0.1}}, "loss"),
        ({"divergence": {"kind": "alpha", "alpha": 0.5}}, "divergence"), ({"margin": 0.5}, "margin"),
        ({"reference": {"kind": "ema", "rate": 0.01}}, "reference"), ({"max_grad_norm": 0.5}, "max_grad_norm"),
    ],
    ids=str,
)  # fmt: skip
def test_another_loss_or_reference_is_refused(changes: dict[str, Any], named: str, dpo_run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=f"is of another run: {named} is "):
        dpo_run(**changes)


def test_how_a_batch_is_cut_and_where_values_are_stored_may_change(tmp_path: Path) -> None:
    resume = stopped("dpo", tmp_path / "run", reference={"store": "off"})
    finished = resume(token_budget=64, reference={"store": str(tmp_path / "a.sqlite")})
    assert finished.receipt["verdict"] != "broken"


@pytest.mark.parametrize(
    "change", [{"weight": 2.0}, {"margin": 0.5}, {"ratings": ((2.0,), (1.0,))}], ids=["weight", "margin", "labels"]
)
def test_other_labels_weights_and_margins_are_refused(
    change: dict[str, Any], policy: BuildPolicy, grow: Grow, tmp_path: Path
) -> None:
    config = DPOConfig(steps=4, batch_size=4, loss=Sigmoid(beta=0.1))
    interrupted(policy(), grow(6), config, tmp_path / "1", 1)
    first, *rest = grow(6)
    with pytest.raises(UserError, match="is of another run: trees is"):
        resumed(policy(), [replace(first, **change), *rest], config, tmp_path / "1")


def test_another_reward_loss_is_refused(tmp_path: Path) -> None:
    resume = stopped("reward", tmp_path / "run", loss={"kind": "bradley-terry"})
    with pytest.raises(UserError, match="is of another run: loss is "):
        resume(loss={"kind": "bradley-terry", "centre": 0.1})
    assert resume().receipt["verdict"] != "broken"
