"""`treeward pairs --rounds`: pairs from the current policy, DPO on them, each round against the first policy."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from treeward.cli.pairs import show_rounds
from treeward.data import world
from treeward.errors import ChecksFailed
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.runner import rounds as job
from treeward.runner import settings
from treeward.runner.pairs import PairsMade, PairsRun, prompts_of
from treeward.runner.progress import Interrupted
from treeward.runner.rounds import rounds
from treeward.runner.run import Finished
from treeward.runs.directory import RunDirectory

PAIRS: dict[str, Any] = {
    "data": {"source": "world:200", "validation": 0.0, "test": 0.4}, "samples": 3, "max_new_tokens": 8, "rounds": 2,
    "scorer": "gold", "skip_check": ["I17"],
}  # fmt: skip
DPO: dict[str, Any] = {
    "steps": 2, "batch_size": 16, "lr": 1e-3, "require": "any", "skip_check": ["F09", "F10", "F48"],
    "evaluation": {"prompts": 4, "samples": 2, "max_new_tokens": 8}, "reference": {"store": "off"},
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    Policy.from_config(ModelConfig(device="cpu", config={"num_hidden_layers": 1})).save(folder / "model")
    return folder / "model"


def plan(start: Path, out: Path, **over: Any) -> PairsRun:
    model = {"path": str(start), "device": "cpu"}
    return settings.build(PairsRun, settings.merge(PAIRS | {"model": model, "dpo": DPO, "out": str(out)}, over))


def test_each_round_samples_from_the_policy_before_and_is_measured_against_the_first(
    start: Path, tmp_path: Path
) -> None:
    finished = rounds(plan(start, tmp_path / "r"))
    assert [each.number for each in finished] == [1, 2]
    first, second = (each.path for each in finished)
    settings_of = (second / "pairs" / "config.yaml").read_text()
    assert str(first / "dpo" / "model") in settings_of
    kls = [each.facts["kl"]["value"] for each in finished]
    assert 0 < kls[0] < kls[1], "the second round starts where the first ended, and both are measured from the first"
    weights = [
        next(iter(Policy.load(str(path), device="cpu").packed.parameters()))
        for path in (start, first / "dpo" / "model", second / "dpo" / "model")
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_stopped_series_goes_on_with_what_is_there(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rounds(plan(start, tmp_path / "a"))
    honest = job.run

    def failing(config: Any, method: Any, **named: Any) -> Any:
        if "round-2" in str(config.out):
            raise KeyboardInterrupt
        return honest(config, method, **named)

    monkeypatch.setattr(job, "run", failing)
    with pytest.raises(Interrupted, match=f"go on with the same command and --out {tmp_path}/b"):
        rounds(plan(start, tmp_path / "b"))
    with pytest.raises(ValueError, match=r"another configuration: dpo is .*'beta': 0.1.* there and .*'beta': 0.9"):
        rounds(plan(start, tmp_path / "b", dpo={"loss": {"beta": 0.9}}))
    with pytest.raises(ValueError, match="another configuration: scorer is 'gold' there and 'length' here"):
        rounds(plan(start, tmp_path / "b", scorer="length"))
    monkeypatch.setattr(job, "run", honest)
    again = rounds(plan(start, tmp_path / "b"))
    assert [each.facts["score"] for each in again] == [each.facts["score"] for each in whole]


FACTS = {name: {"value": 0.0, "low": -1.0, "high": 1.0, "n": 9} for name in ("score", "kl")}


def receipts(monkeypatch: pytest.MonkeyPatch, verdict: str, require: str = "improved") -> list[str]:
    """Rounds that sample, train and measure nothing: each receipt says this. Returns the places trained to."""
    trained: list[str] = []

    def train(config: Any, method: Any, **named: Any) -> Finished:
        trained.append(config.out)
        receipt = {"verdict": verdict, "reason": "as planted", "require": require}
        RunDirectory.create(Path(config.out)).write_json("receipt.json", receipt)
        return Finished(Path(config.out), receipt, 0)

    monkeypatch.setattr(
        job, "make_pairs", lambda config: PairsMade(RunDirectory.create(Path(str(config.out))).path, {})
    )
    monkeypatch.setattr(job, "run", train)
    monkeypatch.setattr(job, "evaluate", lambda config: SimpleNamespace(figures=FACTS))
    return trained


@pytest.mark.parametrize(
    ("verdict", "require", "code"),
    [("improved", "improved", 0), ("worse", "improved", 3), ("worse", "any", 0), ("broken", "any", 4)],
)
def test_a_series_read_from_disk_has_the_exit_code_of_its_receipts(
    verdict: str, require: str, code: int, *, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = receipts(monkeypatch, verdict, require)
    config = plan(start, tmp_path / "r")
    assert show_rounds(rounds(config)) == code
    count = len(trained)
    for number in range(1, count + 1):
        RunDirectory(tmp_path / "r" / f"round-{number}" / "pairs").write_json("report.json", {})
    assert show_rounds(rounds(config)) == code
    assert len(trained) == count, "nothing is trained again"


def test_a_broken_round_ends_the_series(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = receipts(monkeypatch, "broken")
    finished = rounds(plan(start, tmp_path / "r"))
    assert [each.verdict for each in finished] == ["broken"]
    assert len(trained) == 1
    show_rounds(finished)
    assert "round 1    broken, no further round: as planted" in capsys.readouterr().out


def test_prompts_and_their_parts_are_the_same_in_all_rounds(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"the plot is {a} and the {b} is bad ." for a in world.ADJECTIVE for b in world.ASPECT]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    receipts(monkeypatch, "improved")
    seen = []

    def made(config: PairsRun) -> PairsMade:
        opened = prompts_of(config, world.tokenizer())
        seen.append((config.seed, [(prompt.ids, prompt.split) for prompt in opened.prompts]))
        return PairsMade(RunDirectory.create(Path(str(config.out))).path, {})

    monkeypatch.setattr(job, "make_pairs", made)
    data = {"source": str(source), "format": "text"}
    rounds(plan(start, tmp_path / "r", data=data, prompt_tokens=[4, 7], prompts=30))
    assert [seed for seed, _ in seen] == [0, 1]
    assert len(seen[0][1]) == 30
    assert seen[0][1] == seen[1][1]


def test_a_series_that_comes_to_nothing_leaves_nothing(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ChecksFailed, match="I17"):
        rounds(plan(start, tmp_path / "r", scorer="count:no such word", skip_check=[]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"dpo": {"data": {"source": "world"}, "name": "mine"}}, r"dpo.name is set, but the rounds set it themselves"),
        ({"model": {"init": "random"}}, "random weights: rounds start from a trained policy"),
        ({"data": {"test": 0.0}}, "no prompt is in the test part, .*: data.test is 0.0; raise it"),
    ],
)
def test_what_the_rounds_set_themselves_is_refused(
    over: dict[str, Any], said: str, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        rounds(plan(start, tmp_path / "r", **over))
