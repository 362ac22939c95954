"""First losses and second losses of the trainers, by hand from plain rows."""

import math
import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fixtures import BuildModel, BuildPolicy, Grow, PlainLogps
from treeward.errors import UserError
from treeward.losses.preference import AnyTerm, FromFile, Hinge, PairScores, Sigmoid, Sum
from treeward.losses.reward import AllPairs, BradleyTerry
from treeward.methods.dpo import DPOConfig, dpo_steps
from treeward.methods.reward import RewardConfig, reward_steps
from treeward.methods.sft import SFTConfig, sft_steps
from treeward.models import loading
from treeward.models.loading import LoRA, ModelConfig
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

LN2 = math.log(2)
LOSSES = [kind() for kind in typing.get_args(AnyTerm) if kind is not FromFile]
Build = Callable[..., Any]


@pytest.fixture
def sums(plain_logps: PlainLogps) -> Callable[..., torch.Tensor]:
    """sums(module, trees): log-probability of each branch, (trees, 2), one plain row at a time."""

    def compute(module: Any, trees: list[TokenTree]) -> torch.Tensor:
        with torch.no_grad():
            return torch.tensor(
                [[plain_logps(module, TokenTree(t.prompt, (b,))).sum().item() for b in t.branches] for t in trees]
            )

    return compute


def test_the_first_sft_loss_is_the_mean_over_tokens(
    policy: BuildPolicy, tiny: BuildModel, grow: Grow, plain_logps: PlainLogps
) -> None:
    trees = [*grow(6, branches=1, longest=20), *grow(3, branches=3, seed=1)]
    (step,) = sft_steps(policy(), trees, SFTConfig(steps=1, batch_size=9))
    plain = tiny("llama", attention="eager")
    with torch.no_grad():
        tokens = torch.cat([plain_logps(plain, tree) for tree in trees])
    assert step.numbers()["loss"] == pytest.approx(-tokens.mean().item(), abs=1e-5)
    by_branch = [-part.mean() for part in tokens.split([len(b) for t in trees for b in t.branches])]
    assert abs(step.numbers()["loss"] - torch.stack(by_branch).mean().item()) > 1e-3


def test_sft_weighs_every_token_of_a_tree(
    policy: BuildPolicy, tiny: BuildModel, grow: Grow, plain_logps: PlainLogps
) -> None:
    trees = [replace(t, weight=w) for t, w in zip(grow(3, branches=2), (0.0, 1.0, 3.0), strict=True)]
    (step,) = sft_steps(policy(), trees, SFTConfig(steps=1, batch_size=3))
    plain = tiny("llama", attention="eager")
    with torch.no_grad():
        values = [tree.weight * plain_logps(plain, tree) for tree in trees]
    assert step.numbers()["loss"] == pytest.approx(-torch.cat(values).mean().item(), abs=1e-5)


def test_sft_reads_text_and_scores_the_end_token(
    policy: BuildPolicy, tiny: BuildModel, plain_logps: PlainLogps
) -> None:
    (step,) = sft_steps(policy(), [Tree("w5 w6", [" w7"])], SFTConfig(steps=1))
    with torch.no_grad():
        expected = -plain_logps(tiny("llama"), TokenTree((5, 6), ((7, 2),))).mean().item()
    assert step.numbers()["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*LOSSES, Sigmoid(flip=0.1), Sum()], ids=repr)
@pytest.mark.parametrize("budget", [None, 40])
def test_the_first_dpo_loss_is_that_of_the_table(
    loss: Any, budget: int | None, policy: BuildPolicy, tiny: BuildModel, grow: Grow, sums: Build
) -> None:
    """Where it depends on log-probabilities, these are taken from plain rows."""
    trees = grow(9)
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=9, loss=loss, token_budget=budget))
    chosen, rejected = sums(tiny("llama", attention="eager"), trees).T
    m, n = (torch.tensor([len(tree.branches[side]) for tree in trees]) for side in (0, 1))
    start = PairScores(torch.zeros(9), torch.zeros(9), m, n, chosen, rejected)
    assert step.numbers()["loss"] == pytest.approx(loss.at_start(start), abs=1e-5, rel=1e-6)
    if loss.needs_reference:
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert step.numbers()[name] == pytest.approx(0.0, abs=1e-5)


def test_dpo_reports_the_policys_own_sums(policy: BuildPolicy, tiny: BuildModel, grow: Grow, sums: Build) -> None:
    trees = grow(7)
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=7))
    expected = sums(tiny("llama", attention="eager"), trees).mean(0).tolist()
    assert [step.numbers()["logps/chosen"], step.numbers()["logps/rejected"]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", [Sigmoid(beta=0.3), Hinge(beta=0.3)], ids=repr)
def test_later_dpo_losses_measure_against_the_start(
    loss: Any, policy: BuildPolicy, tiny: BuildModel, grow: Grow, sums: Build
) -> None:
    trees, ours, start = grow(8), policy(), tiny("llama", attention="eager")
    config = DPOConfig(steps=3, batch_size=5, lr=3e-3, warmup=0.0, loss=loss)
    run = dpo_steps(ours, trees, config)
    next(run)
    for index in (1, 2):
        used = config.batches(trees).batch(index)
        ratio = sums(ours.packed.model, used) - sums(start, used)
        margin = 0.3 * (ratio[:, 0] - ratio[:, 1])
        values = torch.nn.functional.softplus(-margin) if isinstance(loss, Sigmoid) else (1 - margin).clamp(min=0)
        metrics = next(run).numbers()
        assert margin.abs().max() > 0.05
        assert metrics["loss"] == pytest.approx(values.mean().item(), abs=1e-4)
        assert metrics["rewards/margins"] == pytest.approx(margin.mean().item(), abs=1e-4)
        assert metrics["rewards/chosen"] == pytest.approx(0.3 * ratio[:, 0].mean().item(), abs=1e-4)
        assert metrics["rewards/accuracies"] == pytest.approx((margin > 0).float().mean().item())


def test_dpo_pulls_the_first_branch_up_against_the_second(policy: BuildPolicy, grow: Grow) -> None:
    """After some steps on few pairs every margin is positive; with the branches exchanged, every one is negative."""
    trees = grow(4)
    config = DPOConfig(steps=12, batch_size=4, lr=1e-2, loss=Sigmoid(beta=0.1))
    *_, last = dpo_steps(policy(), trees, config)
    exchanged = [TokenTree(t.prompt, t.branches[::-1], t.group) for t in trees]
    *_, other = dpo_steps(policy(), exchanged, config)
    assert last.numbers()["rewards/accuracies"] == other.numbers()["rewards/accuracies"] == 1.0
    assert last.numbers()["logps/chosen"] - last.numbers()["logps/rejected"] > 5
    assert other.numbers()["logps/chosen"] - other.numbers()["logps/rejected"] > 5


def test_dpo_with_adapters_starts_at_the_table_and_leaves_the_base_alone(policy: BuildPolicy, grow: Grow) -> None:
    whole = policy()
    adapter = loading.add_lora(whole.packed.model, LoRA(r=4), "CAUSAL_LM")
    ours = Policy(adapter, whole.tokenizer)
    base = {name: p.detach().clone() for name, p in ours.packed.named_parameters() if "lora_" not in name}
    first, *_, last = dpo_steps(ours, grow(6), DPOConfig(steps=4, batch_size=6, lr=1e-2))
    assert first.numbers()["loss"] == pytest.approx(LN2, abs=1e-6)
    assert last.numbers()["rewards/margins"] > 0.05
    assert all(torch.equal(p, base[name]) for name, p in ours.packed.named_parameters() if name in base)


def test_a_reference_that_is_given_is_used(policy: BuildPolicy, tiny: BuildModel, grow: Grow, sums: Build) -> None:
    trees, ours = grow(5), policy()
    reference = ReferenceModel.of(policy(seed=1))
    (step,) = dpo_steps(ours, trees, DPOConfig(steps=1, batch_size=5), reference)
    ratio = sums(tiny("llama"), trees) - sums(tiny("llama", seed=1), trees)
    expected = torch.nn.functional.softplus(-0.1 * (ratio[:, 0] - ratio[:, 1])).mean().item()
    assert step.numbers()["loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - LN2) > 1e-3


def test_dpo_refuses_trees_that_are_no_pairs(policy: BuildPolicy, grow: Grow) -> None:
    with pytest.raises(UserError, match="two branches"):
        list(dpo_steps(policy(), grow(3, branches=3), DPOConfig(steps=1)))


def scorer() -> RewardModel:
    return RewardModel.from_config(ModelConfig(device="cpu"))


def test_the_first_reward_loss_is_ln_two_and_half_right(grow: Grow) -> None:
    (step,) = reward_steps(scorer(), grow(5), RewardConfig(steps=1, batch_size=5))
    assert step.numbers()["loss"] == pytest.approx(LN2, abs=1e-6)
    assert step.numbers()["nll"] == pytest.approx(LN2, abs=1e-6)
    assert step.numbers()["rewards/accuracies"] == 0.5


def test_the_first_reward_loss_under_a_margin_reads_the_rating_gaps() -> None:
    gaps = [0.2, 0.76, 1.0, 3.0]
    trees = [TokenTree((5, n), ((6,), (7, 8)), ratings=((1.0 + gap,), (1.0,))) for n, gap in enumerate(gaps, 10)]
    (step,) = reward_steps(scorer(), trees, RewardConfig(steps=1, batch_size=4, loss=BradleyTerry(margin=0.5)))
    expected = sum(math.log1p(math.exp(0.5 * min(gap, 1.0))) for gap in gaps) / 4
    assert step.numbers()["loss"] == pytest.approx(expected, abs=1e-6)
    assert step.numbers()["nll"] == pytest.approx(LN2, abs=1e-6)


def test_the_first_reward_loss_under_the_rows_own_margins_and_weights() -> None:
    cases: list[tuple[float | None, float]] = [(0.9, 1.0), (None, 2.0), (0.0, 0.5)]
    trees = [
        TokenTree((5, n), ((6,), (7, 8)), margin=margin, weight=weight) for n, (margin, weight) in enumerate(cases, 10)
    ]
    (step,) = reward_steps(scorer(), trees, RewardConfig(steps=1, batch_size=3, loss=BradleyTerry(margin=0.5)))
    soft = [math.log1p(math.exp(value)) for value in (0.9, 0.5, 0.0)]
    assert step.numbers()["loss"] == pytest.approx((soft[0] + 2 * soft[1] + 0.5 * soft[2]) / 3, abs=1e-6)
    assert step.numbers()["nll"] == pytest.approx(LN2, abs=1e-6)
    with pytest.raises(UserError, match=r"2 rows have a margin, but loss.kind AllPairs takes none"):
        next(reward_steps(scorer(), trees, RewardConfig(steps=1, loss=AllPairs())))


def test_the_first_step_turns_the_head_towards_the_chosen_ends(grow: Grow) -> None:
    """At a zero head the gradient is minus half the mean difference of the last hidden states."""
    model, trees = scorer(), grow(6)
    with torch.no_grad():
        ends = [
            [model.packed.backbone(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in tree.rows()]
            for tree in trees
        ]
    expected = -0.5 * torch.stack([chosen - rejected for chosen, rejected in ends]).mean(0)
    config = RewardConfig(steps=1, batch_size=6, lr=1e-2, warmup=0.0, schedule="constant_with_warmup")
    (step,) = reward_steps(model, trees, config)
    assert step.numbers()["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)
    moved = output_layer(model.packed.model).weight.detach()[0]
    clear = expected.abs() > 1e-4
    assert torch.equal(moved[clear].sign(), -expected[clear].sign())


def test_later_reward_losses_are_those_of_the_scores(grow: Grow) -> None:
    model, trees = scorer(), grow(8)
    config = RewardConfig(steps=2, batch_size=5, lr=1e-3, warmup=0.0, loss=BradleyTerry(centre=0.1))
    run = reward_steps(model, trees, config)
    next(run)
    scores = model.score(config.batches(trees).batch(1)).view(-1, 2)
    nll = torch.nn.functional.softplus(scores[:, 1] - scores[:, 0])
    metrics = next(run).numbers()
    assert metrics["nll"] == pytest.approx(nll.mean().item(), abs=1e-5)
    assert metrics["loss"] == pytest.approx((nll + 0.1 * scores.sum(1).square()).mean().item(), abs=1e-5)
    assert metrics["rewards/chosen"] == pytest.approx(scores[:, 0].mean().item(), abs=1e-5)
    assert metrics["rewards/margins"] == pytest.approx((scores[:, 0] - scores[:, 1]).mean().item(), abs=1e-5)
