"""Readings of reward models: what `DIR#READING` gives, against the formulas, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.cli.main import run as command
from treeward.errors import UserError
from treeward.losses import risk
from treeward.losses.heads import Attributes, Categorical, Scalar
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.rewards import models, scorers
from treeward.rewards.models import RunOptions, beats, entropic_over_members, par
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree

WORLD = ModelConfig(path="world", config={"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32})
ROLLOUT = [TokenTree((1, 20, 30), ((40, 41, 2), (50, 2))), TokenTree((1, 22), ((44, 45, 46, 2), (60, 61)))]
REFERENCE = [TokenTree((1, 20, 30), ((70, 2), (33, 34, 2))), TokenTree((1, 22), ((71, 2), (35, 36)))]


def random_head(head: Any, seed: int) -> RewardModel:
    model = RewardModel.from_config(WORLD, seed, head)
    generator = torch.Generator().manual_seed(seed)
    weight = model.packed.model.score.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator))  # type: ignore[arg-type, operator]
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """saved(head, seed=0): the directory of a reward model whose head has random weights."""

    def save(head: Any, seed: int = 0) -> Path:
        path = tmp_path / f"{type(head).__name__}-{seed}"
        random_head(head, seed).save(path)
        return path

    return save


@pytest.fixture
def rollout() -> Rollout:
    return Rollout(ROLLOUT, RewardModel.from_config(WORLD).tokenizer)


def options(rollout: Rollout) -> RunOptions:
    """Reference responses that are the same whenever a prompt is asked for."""
    by_prompt = {tree.prompt: tree for tree in REFERENCE}
    return RunOptions(
        kappa=4.0, responses=lambda prompts: Rollout([by_prompt[t.prompt] for t in prompts], rollout.tokenizer)
    )


@pytest.mark.parametrize(
    ("reading", "by_hand"),
    [
        ("mean-sd:0.5", lambda p: risk.mean_minus_sd(p, 0.5)),
        ("cvar:0.1", lambda p: risk.cvar(p, 0.1)),
        ("quantile:0.3", lambda p: risk.quantile(p, 0.3)),
        ("tail:7", lambda p: risk.tail(p, 7)),
        ("entropic:2", lambda p: risk.entropic(p, 2.0)),
        ("entropic", lambda p: risk.entropic(p, 4.0)),  # 1 / beta of the run
    ],
)
def test_a_risk_measure_is_that_of_the_distribution(
    reading: str, by_hand: Any, saved: Callable[..., Path], rollout: Rollout
) -> None:
    path = saved(Categorical(10))
    scores = scorers.find(f"{path}#{reading}", options(rollout))(rollout)
    expected = by_hand(RewardModel.load(path).distribution(rollout.trees).log())
    assert torch.allclose(scores, expected, atol=1e-4)
    assert expected.std() > 0.01 or reading.startswith("quantile")


def test_attributes_are_weighted_as_in_the_score(saved: Callable[..., Path], rollout: Rollout) -> None:
    path = saved(Attributes(("a", "b"), 5, weights=(1.0, 3.0)))
    scores = scorers.find(f"{path}#cvar:0.5")(rollout)
    by_attribute = risk.cvar(RewardModel.load(path).distribution(rollout.trees).log(), 0.5)
    assert torch.allclose(scores, by_attribute @ torch.tensor([1.0, 3.0]), atol=1e-4)


def test_beats_reference_is_the_probability_of_a_higher_score(saved: Callable[..., Path], rollout: Rollout) -> None:
    path = saved(Categorical(4))
    scores = scorers.find(f"{path}#beats-reference", options(rollout))(rollout)
    model = RewardModel.load(path)
    ours, theirs = (model.distribution(trees).double() for trees in (ROLLOUT, REFERENCE))
    for n, score in enumerate(scores.tolist()):
        pairs = [
            ours[n, i] * theirs[m, j] * (1.0 if i > j else 0.5 if i == j else 0.0)
            for m in (2 * (n // 2), 2 * (n // 2) + 1)
            for i in range(4)
            for j in range(4)
        ]
        assert score == pytest.approx(sum(pairs).item() / 2, abs=1e-5)  # type: ignore[union-attr]


def test_a_response_beats_an_equal_one_half_the_time_and_a_certain_loser_always() -> None:
    certain = torch.eye(3)[:, None].clamp(min=1e-9).log()
    assert beats(certain, certain[1:2])[:, 0].tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)


def test_par_is_the_centred_sigmoid(saved: Callable[..., Path], rollout: Rollout) -> None:
    path = saved(Scalar())
    scores = scorers.find(f"{path}#par", options(rollout))(rollout)
    model = RewardModel.load(path)
    ours, theirs = model.score(ROLLOUT), model.score(REFERENCE)
    expected = [torch.sigmoid(ours[n] - theirs[2 * (n // 2) : 2 * (n // 2) + 2]).mean().item() for n in range(4)]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert par(torch.tensor([0.0, 9.0]), torch.tensor([0.0])).tolist() == pytest.approx([0.5, 0.99988], abs=1e-4)


def test_reference_responses_are_scored_once_a_prompt(saved: Callable[..., Path], rollout: Rollout) -> None:
    asked: list[int] = []
    known = options(rollout)

    def responses(prompts: Any) -> Rollout:
        asked.append(len(prompts))
        assert known.responses is not None
        return known.responses(prompts)

    scorer = scorers.find(f"{saved(Scalar())}#par", RunOptions(responses=responses))
    assert scorer(rollout).tolist() == scorer(rollout).tolist()
    assert asked == [2]


@pytest.fixture
def ensemble(tmp_path: Path, saved: Callable[..., Path]) -> Path:
    """Three members in the layout of `treeward reward --members 3`."""
    path = tmp_path / "ensemble"
    for number in (1, 2, 3):
        random_head(Scalar(), number).save(path / f"member-{number}" / "model")
    facts = {"members": ["member-1", "member-2", "member-3"], "centres": [0.1, 0.2, 0.3], "scales": [1.0, 2.0, 4.0]}
    (path / "ensemble.json").write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize(
    ("reading", "by_hand"),
    [
        ("mean", lambda s: s.mean(0)),
        ("worst", lambda s: s.amin(0)),
        ("mean-spread:2", lambda s: s.mean(0) - 2 * s.std(0, correction=0)),
        ("entropic:3", lambda s: -torch.exp(-3 * s).mean(0).log() / 3),
    ],
)
def test_an_ensemble_combines_its_standardised_members(
    reading: str, by_hand: Any, ensemble: Path, rollout: Rollout
) -> None:
    scores = scorers.find(f"{ensemble}#{reading}")(rollout)
    members = torch.stack([RewardModel.load(ensemble / f"member-{n}" / "model").score(ROLLOUT) for n in (1, 2, 3)])
    standard = (members - torch.tensor([[0.1], [0.2], [0.3]])) / torch.tensor([[1.0], [2.0], [4.0]])
    assert torch.allclose(scores, by_hand(standard), atol=1e-5)
    assert standard.std(0).min() > 0.01


def test_the_entropic_reward_tends_to_the_mean_and_to_the_worst_member() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert entropic_over_members(scores, 1e-3).tolist() == pytest.approx([2.0, 0.5], abs=0.01)
    assert entropic_over_members(scores, 50.0).tolist() == pytest.approx([1.0, -1.0], abs=0.02)


@pytest.mark.parametrize(
    ("head", "reading", "named"),
    [
        (Categorical(5), "mean/sd", "divides by the predicted standard deviation"),
        (Categorical(5), "median", "there is no reading 'median'"),
        (Categorical(5), "cvar", "'cvar' needs a number, not '': write #cvar:0.25"),
        (Categorical(5), "cvar:many", "needs a number, not 'many'"),
        (Categorical(5), "cvar:1.5", "level is 1.5; it must be in"),
        (Categorical(5), "entropic", "without it, a run with a fixed kl.beta"),
        (Categorical(5), "beats-reference", "a reward of `treeward reinforce` only"),
        (Categorical(5), "beats-reference:3", "takes no number"),
        (Scalar(), "mean-sd:1", "has a scalar head"),
        (Scalar(), "par", "a reward of `treeward reinforce` only"),
    ],
)
def test_what_cannot_be_read_is_refused(head: Any, reading: str, named: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=named.replace("(", "\\(")):
        scorers.find(f"{saved(head)}#{reading}")


def test_an_advantage_divided_by_the_spread_of_the_head_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(["reinforce", "world-reinforce", "--model.path", "world", "--baseline.kind", "predictive-sd"]) == 2
    assert "makes the expected gradient depend on the baseline" in capsys.readouterr().err


def test_the_weight_of_a_reward_scales_its_risk_aversion() -> None:
    """w * r charged at beta is r charged at beta / w."""
    assert RunOptions(kappa=20.0).weighted(0.5).kappa == 10.0
    assert RunOptions(kappa=20.0).weighted(-1.0).kappa is None


def test_the_entropic_reward_is_that_of_the_worst_tilt_at_the_price_of_its_kl() -> None:
    """min over q of E_q[score] + beta KL(q, p), found by a search over tilts of a distribution."""
    beta, log_probs = 0.7, torch.tensor([0.1, 0.2, 0.3, 0.4]).double().log()
    scores = torch.arange(1, 5).double()
    tilted = [(log_probs - t * scores).log_softmax(0) for t in torch.linspace(0, 5, 5001)]
    values = [(q.exp() * scores).sum() + beta * (q.exp() * (q - log_probs)).sum() for q in tilted]
    assert risk.entropic(log_probs, 1 / beta).item() == pytest.approx(min(values).item(), abs=1e-4)  # type: ignore[type-var]
    assert math.isclose(tilted[0].exp().sum().item(), 1.0)


def test_every_reading_is_in_the_help_of_the_module() -> None:
    assert models.__doc__ is not None
    for reading in (*models.DISTRIBUTION_READINGS, *models.ENSEMBLE_READINGS, "par"):
        assert f"    {reading}" in models.__doc__
