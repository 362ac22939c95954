"""The runner: what is built and computed once, how far the optimizer is from the command, and methods from files."""

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import treeward
from treeward.cli.main import run as command
from treeward.errors import UserError
from treeward.methods import find
from treeward.methods.dpo import DPO
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import ScriptedSampler
from treeward.runner.run import run, set_up
from treeward.runner.settings import build, merge
from treeward.trees.tokens import TokenTree

SOURCE = Path(treeward.__file__).parent
TINY: dict[str, Any] = {
    "data": {"source": "world:300", "test": 0.3}, "steps": 3, "batch_size": 4, "lr": 1e-3,
    "require": "any", "skip_check": ["F48"], "model": {"config": {"num_hidden_layers": 1}},
    "evaluation": {"prompts": 2, "samples": 1, "max_new_tokens": 4}, "reference": {"store": "off"},
}  # fmt: skip


def configuration(out: Path, **over: Any) -> Any:
    return build(DPO.Config, merge(merge(TINY, over), {"out": str(out)}))


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.names: list[tuple[str, int]] = []
        self.steps: list[tuple[int, dict[str, float]]] = []

    def progress(self, items: Any, total: int, what: str, done: int = 0, figures: Any = None) -> Any:
        self.names.append((what, total))
        yield from items

    def step(self, index: int, metrics: Any) -> None:
        self.steps.append((index, dict(metrics)))


@pytest.mark.slow
def test_a_reporter_hears_of_every_step(tmp_path: Path) -> None:
    reporter = Recorder()
    run(configuration(tmp_path / "run"), DPO, reporter=reporter)
    assert reporter.names == [("dpo", 3)]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [index for index, _ in reporter.steps] == [1, 2, 3]
    assert [metrics["loss"] for _, metrics in reporter.steps] == [row["loss"] for row in rows]


def test_a_sampler_that_is_passed_is_used(tmp_path: Path) -> None:
    """Every sample before and after is the script's."""

    class Always(dict[Any, Any]):
        def __missing__(self, prompt: Any) -> list[tuple[int, ...]]:
            return [(7, 8, 9)]

    def method(config: Any) -> DPO:
        return DPO(config, sampler=ScriptedSampler(Always()))

    run(configuration(tmp_path / "run"), method)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert rows
    assert {tuple(row[side]) for row in rows for side in ("ids_before", "ids_after")} == {(7, 8, 9)}


class CountingDPO(DPO):
    """Counts objectives, and the reference's forward passes over training trees by the trees in them."""

    built: ClassVar[list["CountingDPO"]] = []

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.built.append(self)
        self.first_objective = self.objective
        self.computed: list[TokenTree] = []
        self.calls = 0
        reference = self.objective.reference
        assert reference is not None
        compute = reference.token_logps

        def counted(trees: Any, token_budget: int) -> Any:
            self.calls += 1
            self.computed += trees
            return compute(trees, token_budget)

        reference.token_logps = counted  # type: ignore[method-assign]


@pytest.fixture
def counting() -> list[CountingDPO]:
    CountingDPO.built.clear()
    return CountingDPO.built


def test_objective_and_reference_log_probabilities_are_made_once_a_run(
    counting: list[CountingDPO], tmp_path: Path
) -> None:
    """Six epochs over the training trees; the checks before the first step look at a few of them."""
    config = configuration(tmp_path / "run", data={"source": "world:40", "test": 0.4}, steps=30)
    setup = set_up(config, CountingDPO)
    (method,) = counting
    assert setup.loop.objective is method.objective is method.first_objective
    assert set(method.computed) <= set(setup.data.train)
    method.computed.clear()
    method.precompute(setup.batches.used_trees())
    assert sorted(map(hash, method.computed)) == sorted(map(hash, set(setup.batches.used_trees())))
    method.computed.clear()
    for batch in setup.batches:
        setup.loop.step(batch)
    assert method.computed == [], "a step computes none again"


def test_a_whole_run_builds_one_objective_and_computes_each_tree_once(
    counting: list[CountingDPO], tmp_path: Path
) -> None:
    config = configuration(tmp_path / "run", data={"source": "world:40", "test": 0.4}, steps=12)
    run(config, CountingDPO)
    (method,) = counting
    assert method.objective is method.first_objective
    times = {tree: method.computed.count(tree) for tree in method.computed}
    once = [tree for tree, count in times.items() if count == 1]
    assert len(once) >= len(times) - 4, "all but the few trees of the checks before the first step"


@pytest.mark.parametrize("reference", [{"store": "off"}, {"kind": "ema", "rate": 0.2}], ids=str)
def test_the_checked_objective_is_the_trained_one(
    reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I02, I06 and I11 get the objective and the tensors of the loop that trains."""
    from treeward.checks import identities

    seen: dict[str, list[Any]] = {}
    for name in ("start_value", "accumulation", "reached"):
        honest = getattr(identities, name)

        def watched(*arguments: Any, honest: Any = honest, name: str = name) -> Any:
            seen[name] = list(arguments)
            return honest(*arguments)

        monkeypatch.setattr(identities, name, watched)
    over = {key: value for key, value in TINY.items() if key != "reference"}
    setup = set_up(build(DPO.Config, {**over, "reference": reference, "out": str(tmp_path / "run")}), DPO)
    assert all(seen[name][1] is setup.loop.objective for name in ("start_value", "accumulation", "reached"))
    trained = [p for group in setup.loop.optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in seen["reached"][3]] == [id(p) for p in trained]
    ids = {check.id: check.passed for check in setup.checks}
    assert ids["I02"] is True
    assert ids["I11"] is True
    followed = getattr(setup.method.objective, "reference", None) if "kind" in reference else None
    assert setup.loop.reference is followed


def test_an_optimizer_that_lacks_a_tensor_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.training import loop

    monkeypatch.setattr(loop, "AdamW", lambda parameters, **options: torch.optim.AdamW(parameters[1:], **options))
    with pytest.raises(UserError, match="optimizer lacks 1 trainable weights of the model"):
        run(configuration(tmp_path / "run"), DPO)
    assert not (tmp_path / "run").exists()


def test_few_frames_lie_between_the_command_and_the_optimizer(tmp_path: Path) -> None:
    stacks: list[list[tuple[str, str]]] = []

    def look(*arguments: Any) -> None:
        frame, frames = sys._getframe(1), []
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(SOURCE):
                frames.append((str(file.relative_to(SOURCE)), frame.f_code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        stacks.append(frames)

    handle = register_optimizer_step_pre_hook(look)
    try:
        words = ["--data.source", "world-texts:300", "--data.test", "0.3", "--steps", "1", "--batch-size", "4",
                 "--lr", "1e-3", "--require", "any", "--skip-check", "F48", "--model.path", "world",
                 "--evaluation.prompts", "2", "--evaluation.samples", "1",
                 "--evaluation.max-new-tokens", "4"]  # fmt: skip
        assert command(["sft", *words, "--out", str(tmp_path / "run")]) == 0
    finally:
        handle.remove()
    (frames,) = stacks
    assert frames[-1] == ("cli/main.py", "run")
    assert len(frames) <= 7, frames
    assert len({file for file, _ in frames}) <= 6, frames


TOY = '''
from dataclasses import dataclass, field
from treeward.evaluation import policies
from treeward.data.prepare import DataConfig
from treeward.methods.method import Method, RunConfig
from treeward.methods.sft import TokenNLL
from treeward.models.policy import Policy
from treeward.stats.tables import Measurement


@dataclass(frozen=True, kw_only=True)
class ToyRun(RunConfig):
    """Half of the token loss."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="world-texts"))
    """The data."""
    share: float = 0.5
    """How much of the loss."""


class Half:
    def __init__(self, share):
        self.inner, self.share = TokenNLL(), share

    def count(self, tree):
        return self.inner.count(tree)

    def __call__(self, model, forest):
        terms = self.inner(model, forest)
        return type(terms)(self.share * terms.values, terms.metrics, terms.weights)


class Toy(Method):
    """A method of a user's file."""

    Config = ToyRun
    usual_lr = (1e-5, 5e-5, 3e-3)
    purpose = "sft"
    metric = "nll"

    def __init__(self, config):
        self.config = config
        self.model = Policy.from_config(config.model, config.seed)
        self.start = self.model.frozen_copy()
        self.objective = Half(config.share)

    def measure(self, trees):
        return Measurement({"texts": policies.likelihood(self.model, trees)})
'''


@pytest.mark.slow
def test_a_method_of_a_users_file_reaches_its_receipt(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    name = f"{tmp_path / 'toy.py'}:Toy"
    method = find(name)
    losses = []
    for share in (0.5, 1.0):
        out = tmp_path / str(share)
        values = {k: v for k, v in TINY.items() if k not in ("reference", "evaluation")}
        values = merge(values, {"data": {"source": "world-texts:300"}, "share": share, "out": str(out)})
        finished = run(build(method.Config, values), method)
        assert finished.receipt["metric"] == "nll"
        assert finished.receipt["verdict"] != "broken"
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 3
        losses.append(rows[0]["loss"])
        assert (out / "config.yaml").read_text().startswith(f"command: {name}")
    assert losses[0] == pytest.approx(losses[1] / 2, rel=1e-6)


@pytest.mark.slow
def test_the_command_line_trains_a_method_of_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    words = ["train", "--method", f"{tmp_path / 'toy.py'}:Toy", "--steps", "3", "--batch-size", "4", "--lr", "1e-3",
             "--data.source", "world-texts:300", "--data.test", "0.3", "--model.path", "world", "--require", "any",
             "--skip-check", "F48", "--allow-code", "--out", str(tmp_path / "run")]  # fmt: skip
    assert command(words) == 0
    assert json.loads((tmp_path / "run" / "receipt.json").read_text())["verdict"] != "broken"


@pytest.mark.parametrize("name", ["dppo", "nowhere.py:Toy"])
def test_an_unknown_method_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="method is"):
        find(name)


def test_an_object_that_is_no_method_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("Toy = 5\n")
    with pytest.raises(UserError, match=r"must be a subclass of treeward\.Method"):
        find(f"{tmp_path / 'toy.py'}:Toy")


def test_loading_a_policy_changes_no_global_state(tmp_path: Path) -> None:
    """Threads, gradient mode, default dtype and the random generator stay as the caller left them."""

    def state() -> tuple[Any, ...]:
        return torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()

    threads = torch.get_num_threads()
    Policy.from_config(ModelConfig()).save(tmp_path / "model")
    try:
        torch.set_num_threads(2)
        with torch.no_grad():
            before, drawn = state(), torch.get_rng_state()
            assert before == (2, False, torch.float32)
            Policy.load("world")
            Policy.load(tmp_path / "model")
            assert state() == before
            assert torch.equal(torch.get_rng_state(), drawn)
        with torch.enable_grad():
            Policy.load("world").frozen_copy()
            assert state() == (2, True, torch.float32)
    finally:
        torch.set_num_threads(threads)
