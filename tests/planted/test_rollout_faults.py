"""Rollouts that cannot teach, and samplers that are not the policy: each with a twin without the fault."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from treeward.checks import identities
from treeward.checks.guards import collapse, k1_check, rollout_checks
from treeward.cli.main import run as command
from treeward.data import world
from treeward.errors import ChecksFailed
from treeward.losses.advantages import AnyBaseline, LeaveOneOut, MovingAverage, Rewards
from treeward.losses.heads import Categorical
from treeward.methods.reinforce import REINFORCE, PolicyGradientObjective
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy, token_logps
from treeward.models.reward_model import RewardModel
from treeward.models.sampler import DecodeSampler, Noise
from treeward.rewards.scorers import as_scorer
from treeward.rewards.scorers import find as find_scorer
from treeward.runner.progress import TerminalReporter
from treeward.runner.run import run, set_up
from treeward.runner.settings import build
from treeward.runs.directory import RunDirectory
from treeward.stats.tables import Table
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree

OPTIONS: dict[str, Any] = {
    "data": {"source": "world:200", "test": 0.3, "validation": 0.1},
    "steps": 25, "batch_size": 16, "samples": 2, "lr": 3e-3,
    "max_new_tokens": 8, "unfinished": "keep", "reward": "count:good", "skip_check": ["F48"], "evaluate_every": 5,
    "model": {"config": {"num_hidden_layers": 1}}, "evaluation": {"prompts": 12, "samples": 2, "max_new_tokens": 8},
}  # fmt: skip
"""A short run from random weights, whose responses seldom end."""


def receipt_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "receipt.json").read_text()))


def configured(out: Path, **over: Any) -> Any:
    return build(REINFORCE.Config, {**OPTIONS, **over, "out": str(out)})


def words(**over: Any) -> list[str]:
    options = {**OPTIONS, **over}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return ["reinforce", *(word for name, text in texts.items() for word in (f"--{name}", text))]


def test_the_rollout_of_the_first_checks_is_not_part_of_the_time_of_training(tmp_path: Path) -> None:
    setup = set_up(configured(tmp_path / "run"), REINFORCE)
    assert isinstance(setup.method, REINFORCE)
    assert setup.method.rollouts.seconds == {"sampling": 0.0, "scoring": 0.0}


def test_a_rewarded_word_becomes_frequent_and_the_receipt_says_by_what(tmp_path: Path) -> None:
    finished = run(configured(tmp_path / "run"), REINFORCE)
    receipt = finished.receipt
    assert receipt["verdict"] == "improved"
    assert receipt["reason"].endswith("by its own reward count:good")
    assert receipt["scorer"] == "count:good"
    assert receipt["metrics"]["kl"]["after"]["low"] > 0
    parts = [*receipt["rollout_seconds"].values(), receipt["step_seconds"]]
    assert list(receipt["rollout_seconds"]) == ["sampling", "scoring"]
    assert min(parts) > 0
    assert receipt["step_seconds"] < receipt["seconds"]
    assert 0.1 < receipt["peak_gb"] < 100
    assert not [check for check in receipt["checks"] if check["passed"] is False]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert rows[-1]["score"] > rows[0]["score"] + 1
    assert max(row["sampler/gap"] for row in rows) < 1e-4
    page = (tmp_path / "run" / "report.html").read_text()
    for shown in ("moving-average, decay 0.95", "in-reward, beta 0.05<", "2 a prompt, at most 8 tokens", "count:good"):
        assert shown in page
    assert page.count("<svg") == 4  # score, KL and validation by step, and the frontier


@pytest.mark.slow
def test_a_run_with_several_steps_a_rollout_resumes_between_rollouts(tmp_path: Path) -> None:
    """Killed inside a rollout, it goes on from the end of the one before, and ends with the same weights."""
    over = {
        "steps": 8, "steps_per_rollout": 2, "estimator": {"kind": "clipped-tokens"}, "save_every": 3,
        "evaluate_every": 4, "require": "any", "normalise": "running", "refill": 4,
    }  # fmt: skip
    whole = run(configured(tmp_path / "whole", **over), REINFORCE)

    class Killed(Exception):
        pass

    class Reporter(TerminalReporter):
        def step(self, index: int, metrics: Any) -> None:
            if index == 7:
                raise Killed

    with pytest.raises(Killed):
        run(configured(tmp_path / "cut", **over), REINFORCE, reporter=Reporter())
    directory = RunDirectory(tmp_path / "cut")
    assert [path.name for path in directory.checkpoints()] == ["step-000006"]
    resumed = run(configured(tmp_path / "cut", **over), REINFORCE, resume=directory)
    assert resumed.receipt["after"] == whole.receipt["after"]
    for file, lines in (("metrics.jsonl", 8), ("rollouts.jsonl", None), ("samples-by-step.jsonl", None)):
        whole_rows, cut_rows = (RunDirectory(tmp_path / name).lines(file) for name in ("whole", "cut"))
        assert whole_rows == cut_rows, file
        assert len(whole_rows) == lines or lines is None
    assert {row["step"] for row in RunDirectory(tmp_path / "whole").lines("rollouts.jsonl")} == {1, 3, 5, 7}


def test_f29_a_constant_reward_is_refused_before_the_first_step(tmp_path: Path, capsys: Any) -> None:
    assert command([*words(reward="count:nowhere"), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "first-samples-differ" in message
    assert "scores 0 to 0" in message
    assert not (tmp_path / "run").exists()


def test_f30_responses_that_never_end_are_refused_before_the_first_step(tmp_path: Path, capsys: Any) -> None:
    assert command([*words(unfinished="penalise"), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "first-samples-end" in message
    assert "max_new_tokens 8" in message


class Stale:
    """Samples from a copy of the policy that is never refreshed."""

    def __init__(self, policy: Policy, tokens: int) -> None:
        self.copy = DecodeSampler.of(Policy(policy.frozen_copy().packed.model, policy.tokenizer), tokens)

    def __call__(self, prompts: Any, samples: int, noise: Noise) -> Rollout:
        return self.copy(prompts, samples, noise)


def test_f33_a_sampler_with_stale_weights_ends_the_run_as_broken(tmp_path: Path) -> None:
    def stale(config: Any) -> REINFORCE:
        method = REINFORCE(config)
        object.__setattr__(method.rollouts, "sampler", Stale(method.model, config.max_new_tokens))
        return method

    finished = run(configured(tmp_path / "run"), stale)
    assert finished.receipt["verdict"] == "broken"
    assert finished.receipt["reason"].startswith("sampler-follows-policy (F33) FAILED")
    assert finished.exit_code == 4
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 1 < len(rows) < 25


def test_a_kl_cap_stops_the_run_and_keeps_weights_within_it(tmp_path: Path) -> None:
    finished = run(configured(tmp_path / "run", kl_cap=1.0, evaluate_every=1), REINFORCE)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 1 < len(rows) < 25
    assert rows[-1]["kl"] > 1.0 >= rows[-2]["kl"]
    assert finished.receipt["stopped"].startswith("KL ")
    assert finished.receipt["verdict"] != "broken"
    inside = [row["validation/score"] for row in rows if row["validation/kl"] <= 1.0]
    best = next(row for row in rows if row["validation/score"] == max(inside) and row["validation/kl"] <= 1.0)
    assert finished.receipt["metrics"]["kl"]["after"]["value"] == pytest.approx(best["validation/kl"], abs=0.6)


def steps(count: int, **last: Any) -> list[dict[str, Any]]:
    """Metrics of sound steps, the last ones changed."""
    sound = {"score": 1.0, "no_signal": 0.0, "ended": 1.0, "length": 5.0, "sampler/gap": 1e-6, "reward_std": 0.5}
    first = count - last.pop("over", count)
    return [
        {**sound, "step": number + 1, "score": 0.1 * number, **(last if number >= first else {})}
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("rows", "failed"),
    [
        (steps(40), []),
        (steps(1), []),
        (steps(40, no_signal=0.95, score=0.0, over=20), ["rollouts-differ"]),
        (steps(40, no_signal=0.85, score=0.0, over=20), []),
        (steps(40, no_signal=1.0, over=20), []),  # the score has risen: there is little left to learn
        (steps(40, no_signal=1.0, score=0.0, over=15), []),
        (steps(3, ended=0.0), ["rollouts-end"]),
        (steps(2, ended=0.0), []),
        (steps(30, ended=0.1, over=20), ["rollouts-end"]),
        (steps(30, ended=0.3, over=20), []),
        (steps(2, **{"sampler/gap": 0.06}), ["sampler-follows-policy"]),
        (steps(2, **{"sampler/gap": 0.04}), []),
        (steps(40, reward_std=0.004, score=0.0, over=20), ["rollouts-differ"]),  # saturated, not constant
        (steps(40, reward_std=0.004, over=20), []),
        (steps(40, reward_std=0.02, score=0.0, over=20), []),
        (steps(2, **{"sampler/probe_gap": 0.3}), ["sampler-follows-policy"]),
        (steps(2, **{"sampler/probe_gap": 1e-4}), []),
        (steps(2, **{"sampler/gap": 0.2, "sampler/effective": 0.2}), ["samples-effective"]),
        (steps(2, **{"sampler/gap": 0.2, "sampler/effective": 0.5}), []),  # corrected
    ],
)
def test_f29_f30_f31_what_ends_a_run(rows: list[dict[str, Any]], failed: list[str]) -> None:
    assert [check.slug for check in rollout_checks(rows) if check.passed is False] == failed


def watched(count: int, **last: float) -> list[dict[str, Any]]:
    """Metrics of `count` steps; the last 20 are changed."""
    sound = {"entropy": 2.0, "distinct": 0.9, "repetition": 0.1}
    return [{**sound, **(last if n >= count - 20 else {})} for n in range(count)]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (watched(60), None),
        (watched(60, repetition=0.7), "the samples repeat themselves: 70% of their 4-token sequences, 10% at first"),
        (watched(60, repetition=0.5), None),
        (watched(39, repetition=0.9), None),  # too early
        (watched(60, entropy=0.05, distinct=0.02), "the policy has collapsed: entropy 0.05 nats a token, 2 at first"),
        (watched(60, entropy=0.05), None),  # sure of itself, and right: sums have one answer each
        (watched(60, distinct=0.02), None),
    ],
)
def test_f32_samples_that_collapse_while_training_stop_it(rows: list[dict[str, Any]], reason: str | None) -> None:
    stopped = collapse(rows)
    assert stopped is None if reason is None else (stopped or "").startswith(reason)


@pytest.mark.slow
def test_f29_one_sample_a_prompt_is_not_taken_for_a_rollout_without_signal(tmp_path: Path) -> None:
    """At step 20 the guard looks for the first time, and no score can have risen above that of the first 20 steps."""
    finished = run(configured(tmp_path / "run", samples=1, batch_size=32, require="any"), REINFORCE)
    assert finished.receipt["verdict"] != "broken"
    assert len(RunDirectory(tmp_path / "run").lines("metrics.jsonl")) == 25


@pytest.mark.slow
@pytest.mark.parametrize("evaluate_every", [10, 1000])
def test_f32_a_reward_of_one_token_without_kl_collapses_and_is_not_called_improved(
    evaluate_every: int, tmp_path: Path
) -> None:
    """The reward rises as it should; training stops, and the guards of the samples make the run worse.

    Also where nothing was measured on the way: then the last weights are kept, not those of the start.
    """
    start = REINFORCE(configured(tmp_path / "unused")).model
    start.save(tmp_path / "start")
    over = {
        "steps": 120, "max_new_tokens": 12, "kl": {"beta": 0}, "lr": 5e-3, "evaluate_every": evaluate_every,
        "model": {"path": str(tmp_path / "start")},
        "evaluation": {"prompts": 24, "samples": 2, "max_new_tokens": 12},
    }  # fmt: skip
    finished = run(configured(tmp_path / "run", **over), REINFORCE)
    rows = RunDirectory(tmp_path / "run").lines("metrics.jsonl")
    assert rows[-1]["score"] > 8
    assert len(rows) < 120
    assert finished.receipt["stopped"].startswith(("the samples repeat themselves", "the policy has collapsed"))
    assert finished.receipt["verdict"] == "worse"
    assert finished.exit_code == 3


class Synced(Stale):
    """An engine with weights of its own, which takes over the policy's before each rollout, or says that it does."""

    def __init__(self, policy: Policy, tokens: int, works: bool) -> None:
        super().__init__(policy, tokens)
        self.engine = Policy(self.copy.packed.model, policy.tokenizer)
        self.works = works
        self.synced = 0

    def sync(self, policy: Policy) -> None:
        self.synced += 1
        if self.works:
            self.engine.model.load_state_dict(policy.model.state_dict())

    def logps(self, trees: Any) -> Any:
        return token_logps(self.engine, trees)

    def __call__(self, prompts: Any, samples: int, noise: Noise) -> Rollout:
        """Its log-probabilities are not recorded, so only the probe can tell."""
        return replace(super().__call__(prompts, samples, noise), logps=None, drawn_logps=None)


@pytest.mark.parametrize("works", [True, False])
def test_f33_a_sampler_is_probed_after_each_synchronisation(works: bool, tmp_path: Path) -> None:
    samplers = []

    def with_engine(config: Any) -> REINFORCE:
        method = REINFORCE(config)
        samplers.append(Synced(method.model, config.max_new_tokens, works))
        object.__setattr__(method.rollouts, "sampler", samplers[0])
        return method

    finished = run(configured(tmp_path / "run", steps=8), with_engine)
    rows = RunDirectory(tmp_path / "run").lines("metrics.jsonl")
    if works:
        assert samplers[0].synced == 9  # the first rollout, before training, too
        assert max(row["sampler/probe_gap"] for row in rows) < 1e-5
        assert finished.receipt["verdict"] != "broken"
    else:
        assert len(rows) < 8
        assert finished.receipt["reason"].startswith("sampler-follows-policy (F33) FAILED")


def off_policy(tmp_path: Path, **over: Any) -> Any:
    """A run whose sampler has the weights of the start, with the log-probabilities that it sampled from."""

    def stale(config: Any) -> REINFORCE:
        method = REINFORCE(config)
        object.__setattr__(method.rollouts, "sampler", Stale(method.model, config.max_new_tokens))
        return method

    return run(configured(tmp_path / "run", **over), stale)


def test_importance_weights_correct_a_sampler_that_is_a_little_off_and_stop_one_that_is_far_off(
    tmp_path: Path,
) -> None:
    finished = off_policy(tmp_path, correction={"kind": "truncate", "limit": 2.0})
    rows = RunDirectory(tmp_path / "run").lines("metrics.jsonl")
    assert rows[0]["sampler/effective"] == pytest.approx(1.0, abs=1e-4)
    assert rows[0]["sampler/corrected"] < 0.01
    effective = [row["sampler/effective"] for row in rows]
    assert effective[0] > effective[-2] > effective[-1]
    assert rows[-1]["sampler/gap"] > 0.01
    assert finished.receipt["verdict"] == "broken"
    assert finished.receipt["reason"].startswith("samples-effective (F31) FAILED")
    assert [c["passed"] for c in finished.receipt["checks"] if c["slug"] == "weights-reach-gradient"] == [True]


class DropsWeights(PolicyGradientObjective):
    """Computes the importance weights and loses them on the way to the loss."""

    def __call__(self, model: Any, forest: Any) -> Any:
        return replace(super().__call__(model, forest), weights=None)


def test_f68_importance_weights_that_do_not_reach_the_gradient_stop_the_run_before_its_first_step(
    tmp_path: Path,
) -> None:
    def dropping(config: Any) -> REINFORCE:
        method = REINFORCE(config)
        method.objective = DropsWeights.of(config, method.objective.reference)
        return method

    with pytest.raises(ChecksFailed, match="weights-reach-gradient"):
        run(configured(tmp_path / "run", correction={"kind": "truncate"}), dropping)


def test_samples_that_cannot_be_scored_are_kept(tmp_path: Path) -> None:
    """A scorer that fails in the middle: the run is broken, and its samples are in a file."""

    class Fails:
        name = "fails"
        calls = 0

        def __call__(self, rollout: Rollout) -> Any:
            self.calls += 1
            scores = torch.arange(float(sum(len(tree.branches) for tree in rollout.trees)))
            return scores / 0 if self.calls == 8 else scores

    finished = run(configured(tmp_path / "run", reward=()), lambda c: REINFORCE(c, reward=as_scorer(Fails())))
    assert finished.exit_code == 4
    rows = RunDirectory(tmp_path / "run").lines("failed-rollout.jsonl")
    assert len(rows) == OPTIONS["batch_size"] * OPTIONS["samples"]
    assert {"prompt", "response", "group", "ids", "finished"} == rows[0].keys()
    assert len({row["response"] for row in rows}) > 10
    trained = RunDirectory(tmp_path / "run").lines("rollouts.jsonl")
    size = OPTIONS["batch_size"] * OPTIONS["samples"]
    steps = max(row["step"] for row in trained)
    assert [row["step"] for row in trained] == [n + 1 for n in range(steps) for _ in range(size)]
    assert [row["score"] for row in trained] == [float(n) for _ in range(steps) for n in range(size)]


def test_samples_of_the_same_prompts_are_kept_by_step_and_shown_with_a_slider(tmp_path: Path) -> None:
    run(configured(tmp_path / "run", steps=10), REINFORCE)
    rows = RunDirectory(tmp_path / "run").lines("samples-by-step.jsonl")
    assert [row["step"] for row in rows] == [0] * 4 + [5] * 4 + [10] * 4
    assert [row["prompt"] for row in rows[:4]] == [row["prompt"] for row in rows[4:8]]
    assert all(row["kl"] == 0 for row in rows[:4])
    assert any(a["response"] != b["response"] for a, b in zip(rows[:4], rows[8:], strict=True))
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'type="range" min="0" max="2" value="2"' in page
    assert [step in page for step in ('data-step="0" hidden', 'data-step="5" hidden', 'data-step="10">')] == [True] * 3


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("k1-in-loss", "expected gradient of 0"), ("k3", "KL(reference, policy), the other direction")],
)
def test_f34_a_kl_term_with_another_gradient_is_not_offered(kind: str, reason: str, capsys: Any) -> None:
    assert command(words(kl={"kind": kind})) == 2
    assert reason in capsys.readouterr().err


def test_f34_a_kl_of_other_text_is_broken() -> None:
    """k1 of samples and the exact KL of other samples: both estimate one KL only where the text is the same."""
    draw = np.random.default_rng(0)
    groups = [str(n // 4) for n in range(128)]
    kl = draw.gamma(4.0, 1.0, 128)
    same = Table(groups, {"kl": kl, "k1": kl + draw.normal(0, 1, 128)})
    other = Table(groups, {"kl": kl, "k1": draw.gamma(4.0, 0.2, 128)})
    assert k1_check(same, 1.0).passed
    assert k1_check(other, 1.0).passed is False


class OwnSample(LeaveOneOut):
    """Leave-one-out that forgot to leave one out."""

    def __call__(self, rewards: Rewards) -> Any:
        return rewards.centred


class OwnBatch(MovingAverage):
    """A moving average that already holds this rollout."""

    def __call__(self, rewards: Rewards) -> Any:
        return rewards.values - self.updated(rewards)


class Uncentred(LeaveOneOut):
    """Advantages that do not sum to zero."""

    def __call__(self, rewards: Rewards) -> Any:
        return super().__call__(rewards) + 0.1


@pytest.mark.parametrize(
    ("baseline", "passed"),
    [
        *((kind(), True) for kind in get_args(AnyBaseline)),
        *((kind(), False) for kind in (OwnSample, OwnBatch, Uncentred)),
    ],
)
@pytest.mark.parametrize("rewards", [[[1.0, 2.0, 6.0]], [[0.0, 0.0, 1.0], [3.0, 3.0, 3.0]]])
def test_f35_advantages_are_those_that_the_baseline_declares(
    baseline: Any, passed: bool, rewards: list[list[float]]
) -> None:
    check = identities.advantages(baseline, torch.tensor(rewards, dtype=torch.float64))
    assert check.slug == "advantages-as-declared"
    assert check.passed is passed


def test_a_fixed_length_needs_no_end() -> None:
    assert all(check.passed for check in rollout_checks(steps(30, ended=0.0), fixed_length=True))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("raise KeyError('answer')", "KeyError"),
        ("return None", "gave None"),
        ("return float('nan')", "gave nan"),
        ("return 'good'", "gave 'good'"),
    ],
)
def test_a_reward_that_gives_no_number_is_one_line(body: str, named: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "reward.py"
    file.write_text(f"def reward(prompt, response, row):\n    {body}\n")
    assert command([*words(reward=f"{file}:reward"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in error
    assert str(file) in error


def test_zero_is_a_score(tmp_path: Path) -> None:
    """0.0 must not count as missing: half of the samples score 0."""
    file = tmp_path / "reward.py"
    file.write_text("def reward(prompt, response, row):\n    return float('good' in response.split())\n")
    finished = run(configured(tmp_path / "run", reward=f"{file}:reward", steps=2), REINFORCE)
    assert finished.receipt["verdict"] != "broken"


def test_several_rewards_are_added_by_weight_and_each_is_logged(tmp_path: Path) -> None:
    config = configured(
        tmp_path / "run", reward=["count:good", "length"], reward_weights=[1.0, -0.5], unfinished="penalise",
        skip_check=["F48", "first-samples-end"], steps=2,
    )  # fmt: skip
    finished = run(config, REINFORCE)
    assert finished.receipt["scorer"] == "count:good + -0.5 length"
    assert finished.receipt["reason"].endswith("by its own reward count:good + -0.5 length")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["score/length"] == pytest.approx(row["length"])
        assert row["score"] == pytest.approx(row["score/count:good"] - 0.5 * row["length"])


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"reward": ["length", "gold"], "reward_weights": [1.0]}, "reward_weights has 1 numbers, but reward names 2"),
        ({"reward": ["length", "length"]}, "names a scorer twice"),
        ({"reward": [], "data": {"source": "prompts.jsonl"}}, "reward is not given"),
        ({"kl_cap": -1.0}, "kl_cap is -1.0"),
        ({"control": "target-token"}, "control is target-token, which has a reward of its own"),
        ({"missing_end_penalty": 0.5}, "missing_end_penalty is 0.5, but unfinished is 'keep'"),
        ({"kl_cap": 1.0, "data": {"validation": 0, "source": "world"}}, "data.validation is 0"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"baseline": {"kind": "rloo"}}, "baseline.kind 'rloo' is not offered: it is leave-one-out here"),
        ({"samples": 1, "baseline": {"kind": "leave-one-out"}}, "samples is 1, but baseline.kind"),
        ({"max_new_tokens": 5000}, "more than the model's"),
    ],
)
def test_options_that_cannot_work_are_one_line(over: dict[str, Any], named: str, tmp_path: Path, capsys: Any) -> None:
    assert command([*words(**over), "--out", str(tmp_path / "run")]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("reading", ["#par", "#beats-reference", "#entropic"])
def test_a_reward_may_compare_with_the_start_or_use_the_coefficient_of_the_kl(reading: str, tmp_path: Path) -> None:
    """The start against itself scores one half; at beta 0.05 the entropic reward has kappa 20."""
    model = RewardModel.from_config(ModelConfig(path="world", config={"num_hidden_layers": 1}), 0, Categorical(4))
    with torch.no_grad():
        model.packed.model.score.weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
    model.save(tmp_path / "rm")
    over = {"reward": (f"{tmp_path / 'rm'}{reading}",), "steps": 2, "require": "any", "reference_samples": 3}
    if reading == "#entropic":
        method = REINFORCE(configured(tmp_path / "run", **over))
        rollout = method.batch(method.prepare(method.model.tokenizer).train[:4], 1)
        by_name = find_scorer(f"{tmp_path / 'rm'}#entropic:20")(rollout).tolist()
        assert [score for row in rollout.scores or [] for score in row] == pytest.approx(by_name, abs=1e-5)
    else:
        before = run(configured(tmp_path / "run", **over), REINFORCE).receipt["before"]
        assert before["low"] < 0.5 < before["high"]


def test_random_rewards_teach_nothing(tmp_path: Path) -> None:
    finished = run(configured(tmp_path / "run", control="random-reward"), REINFORCE)
    receipt = finished.receipt
    assert finished.exit_code == 0
    assert receipt["verdict"] in receipt["expected_verdicts"] == ["no detectable change", "worse"]
    assert "own reward" not in receipt["reason"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [row["score"] for row in rows]
    assert len(set(scores)) == 25
    assert 0.4 < sum(scores) / 25 < 0.6
    assert receipt["scorer"] == "count:good"


def test_the_target_token_is_learned_within_30_steps(tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "reward"}
    config = build(REINFORCE.Config, {**options, "control": "target-token", "steps": 30, "out": str(tmp_path / "run")})
    finished = run(config, REINFORCE)
    assert finished.exit_code == 0
    assert finished.receipt["verdict"] == "improved"
    assert finished.receipt["scorer"].startswith("token ")
    assert finished.receipt["control"] == "target-token"


@pytest.mark.parametrize(
    ("verdict", "code"), [("improved", 3), ("no detectable change", 0), ("worse", 0), ("broken", 4)]
)
def test_a_control_that_ends_otherwise_is_no_success(verdict: str, code: int) -> None:
    method = REINFORCE(configured(Path("unused"), control="random-reward"))
    assert method.exit_code(verdict, {"improved": 0, "broken": 4}.get(verdict, 3)) == code


def test_prompts_alone_are_enough(tmp_path: Path) -> None:
    """A file with a prompt and an answer: the reward sees the answer in its row."""
    data, file = tmp_path / "sums.jsonl", tmp_path / "reward.py"
    data.write_text("".join(json.dumps({"prompt": f"this film {n} :", "answer": "good"}) + "\n" for n in range(60)))
    file.write_text("def reward(prompt, response, row):\n    return float(response.split().count(row['answer']))\n")
    source = {"source": str(data), "test": 0.3, "validation": 0.1}
    finished = run(configured(tmp_path / "run", data=source, reward=f"{file}:reward", steps=2), REINFORCE)
    assert finished.receipt["data"]["rows"] == 60
    assert finished.receipt["metric"] == "score"


def test_texts_give_their_first_tokens_as_prompts(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def letters(prompt, response):\n    return len(set(response))\n")
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": row["prompt"] + row["chosen"]} for row in world.pairs(0, 200)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(texts), "test": 0.3, "validation": 0.1}
    over = {"data": source, "prompt_tokens": [2, 4], "reward": f"{file}:letters"}
    finished = run(configured(tmp_path / "run", **over, steps=2), REINFORCE)
    assert finished.receipt["data"]["used"] > 50
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {len(row["prompt"].split()) for row in samples} == {2, 3, 4}


def test_prompts_are_those_of_the_batches(tmp_path: Path) -> None:
    config = configured(tmp_path / "run")
    method = REINFORCE(config)
    trees = [TokenTree((5, 6), ((7, 8), (9,)), "a"), TokenTree((5, 7), (), "b")]
    rollout = method.batch(trees, 3)
    assert [tree.prompt for tree in rollout.trees] == [(5, 6), (5, 7)]
    assert [len(tree.branches) for tree in rollout.trees] == [2, 2]
    again, later = method.batch(trees, 3), method.batch(trees, 4)
    assert rollout.trees == again.trees != later.trees
