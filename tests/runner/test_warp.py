"""WARP from members to receipt: merges and interpolations by hand, controls, deaths, resume, the choice of a policy."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from treeward.checks import guards
from treeward.cli.main import run as command
from treeward.cli.warp import show_front
from treeward.errors import UserError
from treeward.merging import lerp, linear, slerp
from treeward.merging.checkpoints import Checkpoint
from treeward.methods.reinforce import ReinforceRun
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reference import EMA, EMAReference
from treeward.models.weights import snapshot
from treeward.runner import settings
from treeward.runner.progress import Interrupted
from treeward.runner.run import Finished
from treeward.runner.warp import (
    Candidate,
    Member,
    MemberFailed,
    WarpRun,
    choose,
    config_of,
    interpolation_check,
    members_table,
    remarks_on,
    warp,
)
from treeward.stats.formatting import interval
from treeward.stats.tables import Measurement, Table

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip


REWARD = """
calls = 0

def characters(prompt, response, row):
    return len(response) / 10

def breaks(prompt, response, row):
    global calls
    calls += 1
    return float("nan") if calls > 30 else characters(prompt, response, row)
"""


class InProcess:
    """Starts a member in this process; `deaths` are exit codes that the first calls give without training."""

    def __init__(self, deaths: Sequence[int] = (), interrupt_after: int | None = None) -> None:
        self.deaths = list(deaths)
        self.interrupt_after = interrupt_after
        self.calls: list[list[str]] = []

    def __call__(self, arguments: Sequence[str], output: Path, threads: int | None) -> "InProcess":
        if self.interrupt_after is not None and len(self.calls) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.calls.append(list(arguments))
        output.touch()
        if self.deaths:
            output.write_text("treeward: killed by the test\n")
            self.code = self.deaths.pop(0)
        else:
            self.code = command(arguments)
        return self

    def poll(self) -> int | None:
        return self.code

    def interrupt(self) -> None:
        """It has ended."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small policy with the world's vocabulary, on disk."""
    path = tmp_path_factory.mktemp("start") / "model"
    (path.parent / "reward.py").write_text(REWARD)
    Policy.from_config(ModelConfig(path="world", init="random", device="cpu", config=SMALL), 0).save(path)
    return str(path)


def fields(start: str, out: Path, **changes: Any) -> dict[str, Any]:
    shared = {
        "model": {"path": start, "device": "cpu"}, "data": {"source": "world:300"}, "steps": 2,
        "reward": str(Path(start).parent / "reward.py:characters"),
        "batch_size": 2, "samples": 2, "max_new_tokens": 8, "unfinished": "keep", "lr": 1e-3, "out": str(out),
        "evaluation": {"prompts": 30, "samples": 2}, "skip_check": ["learning-rate-usual"], "require": "any",
    }  # fmt: skip
    return settings.merge(shared, changes)


def series(start: str, out: Path, launch: Any = None, **changes: Any) -> Finished:
    return warp(settings.build(WarpRun, fields(start, out, **changes)), launch or InProcess())


def weights(path: Path | str) -> dict[str, Tensor]:
    return dict(Checkpoint(path))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(start: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two iterations of two members, eta 0.3, the share 0.5 chosen."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return series(start, out, eta=0.3, front=[0.0, 0.5, 1.0], choose="0.5", reference={"rate": 0.5})


# The series


def test_every_merge_and_interpolation_is_that_of_the_paper(whole: Finished, start: str) -> None:
    sft = weights(start)
    origin = sft
    for iteration in (1, 2):
        here = whole.path / f"iteration-{iteration}"
        members = [weights(here / f"member-{number}" / "model") for number in (1, 2)]
        merged = weights(here / "merged")
        assert same(merged, slerp(origin, members).weights)
        assert not same(members[0], members[1])
        if iteration == 1:
            origin = weights(here / "next")
            assert same(origin, lerp(sft, towards=merged, weight=0.3))
    final = lerp(sft, towards=merged, weight=0.5)
    assert all(torch.equal(tensor, final[name]) for name, tensor in weights(whole.path / "model").items())


def test_members_differ_in_their_seed_alone(whole: Finished) -> None:
    configs = [
        settings.read_yaml(path / "config.yaml", "") for path in sorted(whole.path.glob("iteration-*/member-*/"))
    ]
    assert [config["seed"] for config in configs] == [0, 1, 2, 3]
    paths = [config["model"]["path"] for config in configs]
    assert paths[0] == paths[1] != paths[2] == paths[3] == str(whole.path / "iteration-1" / "next")
    for config in configs:
        config["model"]["path"] = config["out"] = config["seed"] = None
        assert config == configs[0]
        assert config["reference"] == {"kind": "ema", "rate": 0.5}


def test_the_receipt_has_members_angles_front_and_choice(whole: Finished) -> None:
    facts = whole.receipt["warp"]
    assert whole.receipt["command"] == "warp"
    assert [len(each["members"]) for each in facts["iterations"]] == [2, 2]
    record = json.loads((whole.path / "iteration-2" / "merged" / "merge.json").read_text())
    angles = [group["angles"][0] for group in record["groups"]]
    assert facts["iterations"][1]["angles"]["median"] == pytest.approx(float(np.median(angles)))
    assert [each["share"] for each in facts["front"]] == [0.0, 0.5, 1.0]
    assert [each["name"] for each in facts["members"]] == ["member-1", "member-2"]
    assert facts["chosen"] == 0.5
    assert facts["front"][0]["test"]["kl"]["value"] == 0.0
    assert facts["front"][1]["test"]["score"]["value"] == pytest.approx(whole.receipt["after"]["value"])
    assert facts["front"][1]["test"]["kl"]["value"] == pytest.approx(whole.receipt["metrics"]["kl"]["after"]["value"])
    assert facts["remarks"][0].startswith("the merge scores ")
    checks = {check["slug"]: check for check in whole.receipt["checks"]}
    assert checks["interpolated-as-asked"]["passed"] is True
    assert checks["planned-updates-taken"]["value"] == 0.0
    receipts = [json.loads(file.read_text()) for file in whole.path.glob("iteration-*/member-*/receipt.json")]
    assert len(receipts) == 4
    assert whole.receipt["seconds"] == pytest.approx(sum(each["seconds"] for each in receipts))
    tokens = sum(each["seconds"] * each["tokens_per_second"] for each in receipts)
    assert whole.receipt["tokens_per_second"] == pytest.approx(tokens / whole.receipt["seconds"], rel=1e-2)
    assert whole.receipt["peak_gb"] >= max(each["peak_gb"] for each in receipts)


def test_the_table_of_a_terminal_has_members_scores_and_angles(whole: Finished, tmp_path: Path) -> None:
    ended = whole.receipt["warp"]["iterations"]
    training = Member(tmp_path / "member-1", "reinforce", ReinforceRun())
    training.path.mkdir()
    waiting = replace(training, path=tmp_path / "member-2")
    steps = [{"step": 1, "score": 0.1, "kl": 0.0}, {"step": 2, "score": 0.123, "kl": 1.5}]
    (training.path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    screen = Console(width=150, force_terminal=False)
    with screen.capture() as captured:
        screen.print(members_table(ended, [training, waiting]))
    lines = [line.split() for line in captured.get().splitlines()]
    for number, facts in enumerate(ended, 1):
        for place, member in enumerate(facts["members"], 1):
            (row,) = (line for line in lines if line[:3] == [str(number), str(place), "end"])
            assert row[3] == interval(member["after"]).split()[0]
            assert row[-1] == f"{facts['angles']['median']:.0f}"
    assert ["3", "1", "2", "0.123", "1.5", "–"] in lines
    assert ["3", "2", "–", "–", "–", "–"] in lines


def test_validation_and_test_prompts_are_apart(start: str, tmp_path: Path) -> None:
    ended = series(start, tmp_path / "run", iterations=1, members=1, front=[0.0, 0.5], choose="knee")
    front = rows(ended.path / "front.jsonl")
    parts = {part: {row["group"] for row in front if row["part"] == part} for part in ("validation", "test")}
    assert parts["validation"]
    assert not parts["validation"] & parts["test"]
    assert parts["test"] == {row["group"] for row in rows(ended.path / "evaluation.jsonl")}
    assert {row["name"] for row in front if row["part"] == "validation"} == {"0", "0.5"}  # what may be chosen
    assert {row["name"] for row in front if row["part"] == "test"} == {"0", "0.5", "1", "member-1"}
    assert "chosen by knee on the validation prompts" in (ended.path / "report.html").read_text()
    assert ended.receipt["warp"]["remarks"] == []  # the merge of one member is that member


def test_the_command_prints_the_front_and_the_choice(whole: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    show_front(whole)
    lines = capsys.readouterr().out.splitlines()
    facts = whole.receipt["warp"]
    scores = [interval(each["test"]["score"]) for each in (*facts["front"], *facts["members"])]
    names = ("share 0 ", "share 0.5 ", "share 1 ", "member-1 ", "member-2 ")
    for line, name, score in zip(lines[1:], names, scores, strict=False):
        assert line.startswith(name)
        assert f"score {score}, KL " in line
    assert "KL 0 by construction" in lines[1]
    assert lines[-1] == "chosen     share 0.5, as configured"
    front = [each | {"validation": each["test"]} for each in facts["front"]]
    show_front(replace(whole, receipt={"warp": {**facts, "front": front, "choose": "knee"}}))
    assert capsys.readouterr().out.endswith("chosen     share 0.5, by knee on the validation prompts\n")


def test_a_fixed_share_is_measured_on_test_prompts_alone(whole: Finished) -> None:
    front = rows(whole.path / "front.jsonl")
    assert {row["part"] for row in front} == {"test"}
    assert "validation" not in json.dumps(whole.receipt["warp"]["front"])
    page = (whole.path / "report.html").read_text()
    assert "The model is at share 0.5, as configured." in page
    assert "on validation: score" not in page
    half = [row for row in front if row["name"] == "0.5" and row["part"] == "test"]
    assert np.mean([row["score"] for row in half]) == pytest.approx(whole.receipt["after"]["value"])
    measured = rows(whole.path / "evaluation.jsonl")
    assert [row["length"] for row in half] == [row["after"]["length"] for row in measured]


def test_a_series_that_was_stopped_goes_on_to_the_same_weights(whole: Finished, start: str, tmp_path: Path) -> None:
    same_settings: Any = {"eta": 0.3, "front": [0.0, 0.5, 1.0], "choose": "0.5", "reference": {"rate": 0.5}}
    for members, choice in ((1, "0.5"), (2, "1")):  # the choice may change until the end
        with pytest.raises(Interrupted, match=r"stopped; go on with: treeward resume .*run"):
            series(start, tmp_path / "run", InProcess(interrupt_after=members), **{**same_settings, "choose": choice})
        with pytest.raises(UserError, match=r"eta is 0\.3 there and 0\.4 here"):
            series(start, tmp_path / "run", **{**same_settings, "eta": 0.4})
    launch = InProcess()
    again = series(start, tmp_path / "run", launch, **same_settings)
    assert len(launch.calls) == 4 - 1 - 2  # one member, then two more, were there
    assert same(weights(again.path / "model"), weights(whole.path / "model"))
    assert again.receipt["after"] == whole.receipt["after"]
    with pytest.raises(UserError, match="has ended: it has a receipt"):
        series(start, tmp_path / "run", **same_settings)


COUNTING = """
import gc
from pathlib import Path

import torch

calls = 0

def embeddings(prompt, response, row):
    global calls
    calls += 1
    if calls % 40 == 0:
        tensors = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
        shapes = [tuple(each.shape) for each in tensors if not each.is_meta]
        with Path(__file__).with_suffix(".txt").open("a") as file:
            print(shapes.count(SHAPE), file=file)
    return len(response) / 10
"""


def test_a_longer_front_needs_no_more_copies_of_the_model(start: str, tmp_path: Path) -> None:
    """The most embedding tables in memory while responses are scored, with a front of 2 and of 5 policies."""
    shape = tuple(weights(start)["model.embed_tokens.weight"].shape)
    most = []
    for policies in (2, 5):
        reward = tmp_path / f"front-{policies}.py"
        reward.write_text(f"SHAPE = {shape}\n{COUNTING}")
        front = np.linspace(0.0, 1.0, policies).tolist()
        series(start, tmp_path / str(policies), members=1, iterations=1, choose="1", front=front,
               reward=f"{reward}:embeddings", evaluation={"samples": 1})  # fmt: skip
        counts = [int(line) for line in reward.with_suffix(".txt").read_text().split()]
        assert len(counts) > policies / 2
        most.append(max(counts))
    assert most[0] == most[1]


# Controls


def test_one_member_without_averaging_takes_the_steps_of_reinforce(start: str, tmp_path: Path) -> None:
    """Rate 0 and one member: the metrics of every step, the samples and the weights are those of `reinforce`."""
    series(start, tmp_path / "warp", members=1, iterations=1, choose="1", reference={"rate": 0.0}, kl={"beta": 0.1})
    plain = {**fields(start, tmp_path / "plain", kl={"beta": 0.1}), "evaluate_every": 10**9}
    (tmp_path / "plain.yaml").write_text(json.dumps({"command": "reinforce", **plain}))
    assert command(["reinforce", str(tmp_path / "plain.yaml"), "--allow-code"]) == 0
    member = tmp_path / "warp" / "iteration-1" / "member-1"
    assert rows(member / "metrics.jsonl") == rows(tmp_path / "plain" / "metrics.jsonl")
    assert rows(member / "rollouts.jsonl") == rows(tmp_path / "plain" / "rollouts.jsonl")
    assert same(weights(tmp_path / "warp" / "model"), weights(tmp_path / "plain" / "model"))


def test_share_zero_is_the_start_bit_for_bit(start: str, tmp_path: Path) -> None:
    ended = series(start, tmp_path / "run", members=1, iterations=1, choose="0")
    assert same(weights(ended.path / "model"), weights(start))
    assert ended.receipt["verdict"] == "no detectable change"
    assert ended.receipt["difference"]["value"] == 0.0


def test_rate_one_is_no_kl_at_all(start: str, tmp_path: Path) -> None:
    """The reference is the policy itself, so KL and its gradient are zero up to rounding."""
    for name, changes in (
        ("followed", {"reference": {"rate": 1.0}, "kl": {"beta": 0.5}}),
        ("free", {"kl": {"beta": 0.0}}),
    ):
        series(start, tmp_path / name, members=1, iterations=1, choose="1", **changes)
    a, b = weights(tmp_path / "followed" / "model"), weights(tmp_path / "free" / "model")
    origin = weights(start)
    moved = sum(float((b[name] - origin[name]).square().sum()) for name in b) ** 0.5
    apart = sum(float((a[name] - b[name]).square().sum()) for name in b) ** 0.5
    assert apart < 1e-3 * moved


def test_dpo_may_train_the_members(start: str, tmp_path: Path) -> None:
    config = settings.build(
        config_of("dpo"),
        {
            "method": "dpo", "model": {"path": start, "device": "cpu"}, "data": {"source": "world:300"}, "steps": 2,
            "batch_size": 4, "lr": 1e-3, "iterations": 1, "out": str(tmp_path / "run"), "require": "any",
            "evaluation": {"scorer": "gold", "prompts": 30, "samples": 2, "max_new_tokens": 8},
            "skip_check": ["learning-rate-usual", "nll-below-uniform"], "merge": "linear", "choose": "1",
            "reference": {"rate": 0.5},
        },
    )  # fmt: skip
    ended = warp(config, InProcess())
    members = [weights(tmp_path / "run" / "iteration-1" / f"member-{n}" / "model") for n in (1, 2)]
    assert same(weights(ended.path / "model"), linear(weights(start), members).weights)
    with pytest.raises(UserError, match=r"evaluation\.scorer is not set; name the scorer that the front is"):
        settings.build(config_of("dpo"), {"method": "dpo", "model": {"path": start}, "data": {"source": "world"}})
    with pytest.raises(UserError, match="method is 'reward', which has no reference model; WARP averages policies"):
        config_of("reward")


# Processes


def test_members_in_processes_of_their_own_are_the_same_bits(start: str, tmp_path: Path) -> None:
    """`treeward warp` with two members at a time, against one after another in this process."""
    here = series(start, tmp_path / "here", iterations=1, choose="1")
    values = fields(start, tmp_path / "apart", iterations=1, choose="1", parallel=2)
    (tmp_path / "apart.yaml").write_text(json.dumps({"command": "warp", **values}))
    assert command(["warp", str(tmp_path / "apart.yaml"), "--allow-code"]) == 0
    assert same(weights(tmp_path / "apart" / "model"), weights(here.path / "model"))
    assert "verdict" in (tmp_path / "apart" / "iteration-1" / "member-2.log").read_text()


def test_a_member_that_dies_once_is_started_again_and_twice_is_reported(start: str, tmp_path: Path) -> None:
    ended = series(start, tmp_path / "once", InProcess(deaths=[-9]), iterations=1)
    assert ended.receipt["warp"]["chosen"] in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
    with pytest.raises(MemberFailed, match=r"member-1 died 2 times, at last with exit code -9 .*killed by the test"):
        series(start, tmp_path / "twice", InProcess(deaths=[-9, -9]), iterations=1)


def test_a_refused_member_leaves_no_directory(start: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="member-1 cannot be trained: killed by the test"):
        series(start, tmp_path / "run", InProcess(deaths=[2]), iterations=1)
    assert not (tmp_path / "run").exists()


def test_a_broken_member_ends_the_series(start: str, tmp_path: Path) -> None:
    """F37: members that train with rate 0 are the start; nothing is merged."""
    with pytest.raises(MemberFailed, match=r"member-1 is broken, so nothing was merged: every-tensor-moved"):
        series(start, tmp_path / "still", iterations=1, lr=0.0)
    values = fields(start, tmp_path / "broken", iterations=1, steps=9)
    values["reward"] = values["reward"].replace("characters", "breaks")
    values["evaluation"]["scorer"] = "length"
    with pytest.raises(MemberFailed, match="member-1 is broken, so nothing was merged") as raised:
        warp(settings.build(WarpRun, values), InProcess())
    assert raised.value.exit_code == 4


def test_data_without_a_validation_part_is_refused_before_training(start: str, tmp_path: Path) -> None:
    for name, parts in (("without", ("train", "test")), ("with", ("train", "validation", "test"))):
        lines = [{"prompt": f"this film {n} by a {n} :", "split": parts[n % len(parts)]} for n in range(120)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    launch = InProcess()
    with pytest.raises(
        UserError, match=r"no validation part \(60 train, 0 validation, 60 test\).*--data.splits ignore"
    ):
        series(start, tmp_path / "run", launch, data={"source": str(tmp_path / "without.jsonl")})
    assert not launch.calls
    assert not (tmp_path / "run").exists()
    with pytest.raises(Interrupted):
        series(start, tmp_path / "run", InProcess(interrupt_after=0), data={"source": str(tmp_path / "with.jsonl")})


def test_random_weights_are_no_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="with random weights; WARP starts from a trained policy"):
        series("world", tmp_path / "run")


# The reference (F39)


@pytest.mark.parametrize(("rate", "updates", "left_out", "passed"), [
    (0.05, 40, 0, True), (0.05, 40, 40, False), (0.01, 100, 0, True), (0.01, 100, 80, False), (1.0, 3, 0, True),
    (0.0, 10, 10, None),
])  # fmt: skip
def test_a_reference_that_is_not_updated_is_found(
    policy: Callable[..., Policy], rate: float, updates: int, left_out: int, passed: bool | None
) -> None:
    model = policy()
    before = snapshot(model.packed)
    reference = EMAReference(model, rate)
    drift = torch.Generator().manual_seed(0)
    direction = {name: torch.randn(p.shape, generator=drift) for name, p in model.packed.named_parameters()}
    for step in range(updates):
        with torch.no_grad():
            for name, parameter in model.packed.named_parameters():
                parameter.add_(direction[name], alpha=1e-3)
        if step >= left_out:
            reference.update()
    check = guards.reference_follows(reference, before, guards.Movement.since(model, before), updates)
    assert check.passed is passed


def test_a_steady_drift_is_followed_as_far_as_the_formula_says(policy: Callable[..., Policy]) -> None:
    model = policy()
    before = snapshot(model.packed)
    reference = EMAReference(model, 0.02)
    for _ in range(60):
        with torch.no_grad():
            for parameter in model.packed.parameters():
                parameter.add_(1e-2)
        reference.update()
    check = guards.reference_follows(reference, before, guards.Movement.since(model, before), 60)
    assert check.value == pytest.approx(1.0, abs=1e-3)


# Choosing


def candidate(weight: float | None, score: float, kl: float, name: str = "") -> Candidate:
    def measurement(shift: float) -> Measurement:
        groups = [f"p{n}" for n in range(8)]
        noise = np.linspace(-0.5, 0.5, 8)
        columns = {"score": score + shift + noise, "kl": np.full(8, kl)}
        return Measurement({"samples": Table(groups, columns)})

    return Candidate(name or str(weight), weight, {"validation": measurement(0.0), "test": measurement(0.1)})


FRONT = [candidate(0.0, 0.0, 0.0), candidate(0.3, 1.0, 1.0), candidate(0.5, 1.3, 3.0), candidate(1.0, 1.5, 9.0)]


@pytest.mark.parametrize(
    ("rule", "weight"), [("knee", 0.3), ("kl<=3.5", 0.5), ("kl<=0.5", 0.0), ("kl<=20", 1.0), ("1", 1.0), ("0.3", 0.3)]
)
def test_the_choice_on_the_front(rule: str, weight: float) -> None:
    assert choose(rule, FRONT).share == weight
    assert choose(rule, FRONT[::-1]).share == weight


def test_a_front_without_a_slope_gives_one_of_its_policies() -> None:
    assert choose("knee", [candidate(0.0, 1.0, 0.0), candidate(1.0, 1.0, 0.0)]).share in (0.0, 1.0)


def test_weights_that_were_interpolated_twice_are_found() -> None:
    start, end = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    half, quarter = ({"w": torch.full((2,), share)} for share in (0.5, 0.25))
    assert interpolation_check(start, end, half, 0.5).passed is True
    assert interpolation_check(start, end, quarter, 0.5).passed is False
    assert interpolation_check(start, start, half, 0.5).passed is False


def test_remarks_on_a_merge_beside_its_members() -> None:
    members = [candidate(None, 1.0, 2.0, "member-1"), candidate(None, 0.5, 2.0, "member-2")]
    inside = remarks_on(candidate(1.0, 0.8, 2.0), members)
    assert len(inside) == 1
    assert inside[0].startswith("the merge scores -0.2 [")
    assert "best member, member-1" in inside[0]
    outside = remarks_on(candidate(1.0, 1.2, 2.0), members)
    assert outside[1] == "the merge scores 1.3, outside its members (0.6 to 1.1)"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"members": 0}, "members is 0; it must be at least 1"),
        ({"eta": 1.5}, "eta is 1.5; it takes shares from 0 to 1"),
        ({"front": []}, "front is"),
        ({"front": [0.5, 2.0]}, "front is"),
        ({"choose": "best"}, "choose is 'best'; it may be knee, kl<=8"),
        ({"choose": "kl<=1.2.3"}, "choose is 'kl<=1.2.3'"),
        ({"choose": "0.4"}, r"choose is 0\.4, but front is \[0\.0, 0\.1, .*\]; add this share to front"),
        ({"choose": "kl<=8", "front": [0.5]}, "choose is 'kl<=8', but front may have no policy that near; add 0"),
        ({"data": {"validation": 0.0}}, "data.validation is 0, but the share of the front is chosen on that part"),
        ({"merge": "ties"}, "merge"),
        ({"reference": {"rate": 1.5}}, "reference.rate is 1.5; it is from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        settings.build(WarpRun, fields("start", Path("run"), **changes))


def test_averaging_is_the_default_reference() -> None:
    assert settings.build(WarpRun, fields("start", Path("run"))).reference == EMA(0.01)
    assert settings.build(WarpRun, fields("start", Path("run"), reference={"kind": "frozen"})).reference.is_start


def test_a_process_ends_with_the_one_that_started_it() -> None:
    import subprocess
    import sys
    import time

    child = (
        "import os, sys, threading, time; from treeward.__main__ import end_with; "
        "threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())]).wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = int(process.stdout.readline())
    os.kill(number, 0)
    process.kill()
    process.wait()
    for _ in range(100):
        time.sleep(0.1)
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{number}/stat").read_text().split()[2] == "Z":
            break
    else:
        pytest.fail("the child outlived its parent")
