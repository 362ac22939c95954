"""Faults planted in models, masks and losses: the identity that guards against each must fail, and only then."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from treeward.algorithms.dpo import DPOConfig, PairPreference
from treeward.algorithms.loop import LoopConfig, Terms
from treeward.algorithms.reward import Judgement
from treeward.algorithms.state import TrainState
from treeward.maths.preference import PairScores, Sigmoid
from treeward.maths.reward import BradleyTerry
from treeward.models.anchor import Anchor
from treeward.models.weights import set_dropout, trainable
from treeward.proof import identities
from treeward.trees import attention, forward
from treeward.trees.forest import Forest
from treeward.trees.verify import compare, verified, verify


def objective(policy: Any, pairs: Any, loss: Any = None) -> PairPreference:
    verified(policy.tree, pairs)
    return PairPreference(policy.tree, loss or Sigmoid(), Anchor.of(policy).branch_logps(pairs, 1024))


def test_twins_are_silent(policy: Any, reward_model: Any, pairs: Any) -> None:
    found = [identities.layout(verify(policy.tree, pairs)), identities.layout(verify(reward_model.tree, pairs))]
    loss = objective(policy, pairs)
    ranking = Judgement(reward_model.tree, BradleyTerry())
    held = TrainState(policy.tree, LoopConfig().order(4), 4, LoopConfig()).parameters
    found += identities.passes(policy.tree, pairs) + identities.passes(reward_model.tree, pairs)
    found += identities.anchor_checks(policy.tree, Anchor.of(policy), pairs)
    found += [
        identities.accumulation(policy.tree, loss, pairs),
        identities.accumulation(reward_model.tree, ranking, pairs),
        identities.start_value(policy.tree, loss, pairs, Sigmoid().at_start()),
        identities.reached(policy.tree, loss, pairs, held)[0],
    ]
    assert [check.id for check in found if not check.passed] == []


def causal_only(forest: Forest) -> torch.Tensor:
    size = len(forest.tree)
    return torch.ones(size, size, dtype=torch.bool).tril()[None, None]


def test_f07_branches_that_see_each_other_fall_back_to_rows(
    policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "mask", causal_only)
    found = verify(policy.tree, pairs)
    assert found.backend == "rows"
    assert found.fallback is not None
    assert not compare(policy.tree, pairs, "tree", None).passed


def test_f03_prompt_tokens_in_the_sum(policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verified(policy.tree, pairs)
    honest = forward.TreeLM.logits

    def shifted(self: Any, forest: Forest) -> Any:
        return honest(self, replace(forest, predict_from=(forest.predict_from - 1).clamp(min=0)))

    monkeypatch.setattr(forward.TreeLM, "logits", shifted)
    assert not compare(policy.tree, pairs, "tree", None).passed


def test_f14_score_read_at_the_prompt(reward_model: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verified(reward_model.tree, pairs)
    honest = forward.TreeScorer.forward

    def early(self: Any, forest: Forest) -> Any:
        return honest(self, replace(forest, ends=forest.ends - 1))

    monkeypatch.setattr(forward.TreeScorer, "forward", early)
    assert not compare(reward_model.tree, pairs, "tree", None).passed


def test_f20_anchor_of_other_weights(policy: Any, pairs: Any) -> None:
    anchor = Anchor.of(policy)
    verified(policy.tree, pairs)
    with torch.no_grad():
        next(policy.tree.parameters()).add_(0.05)
    assert "I03" in failed(identities.anchor_checks(policy.tree, anchor, pairs))


def test_f23_anchor_that_shares_storage(policy: Any, pairs: Any) -> None:
    anchor = Anchor.of(policy)
    verified(policy.tree, pairs)
    anchor.tree.module.model.norm.weight = policy.tree.module.model.norm.weight
    assert "I15" in failed(identities.anchor_checks(policy.tree, anchor, pairs))


def test_f21_dropout_left_on(policy: Any, pairs: Any) -> None:
    verified(policy.tree, pairs)
    set_dropout(policy.tree, 0.1)
    policy.tree.train()
    assert "I07" in failed(identities.passes(policy.tree, pairs))


@dataclass(frozen=True)
class Twice(Sigmoid):
    """Beta applied twice, or a sum instead of a mean: losses that a user could write."""

    factor: float = 8.0

    def __call__(self, scores: PairScores) -> torch.Tensor:
        return self.factor * super().__call__(scores)


def test_f27_loss_of_wrong_scale(policy: Any, pairs: Any) -> None:
    loss = objective(policy, pairs, Twice(factor=8.0))
    assert not identities.start_value(policy.tree, loss, pairs, Sigmoid().at_start()).passed


def test_f19_and_f43_rows_that_are_coupled(reward_model: Any, pairs: Any) -> None:
    class Coupled(Judgement):
        def __call__(self, forest: Forest) -> Terms:
            terms = super().__call__(forest)
            return Terms(terms.values * len(terms.values), terms.metrics)

    verified(reward_model.tree, pairs)
    loss = Coupled(reward_model.tree, BradleyTerry())
    assert not identities.accumulation(reward_model.tree, loss, pairs).passed


def test_f44_detached_hidden_states(policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = objective(policy, pairs)
    held = [p for _, p in trainable(policy.tree)]
    layer = policy.tree.module.model.layers[1]
    honest = layer.forward
    monkeypatch.setattr(layer, "forward", lambda states, *rest, **named: honest(states.detach(), *rest, **named))
    check, missing = identities.reached(policy.tree, loss, pairs, held)
    assert not check.passed
    assert any("layers.0" in name for name in missing)


def test_f47_optimiser_of_a_copy(policy: Any, pairs: Any) -> None:
    import copy

    loss = objective(policy, pairs)
    held = [p for _, p in trainable(copy.deepcopy(policy.tree))]
    assert not identities.reached(policy.tree, loss, pairs, held)[0].passed


def test_f18_margins_that_ignore_the_order(pairs: Any) -> None:
    argmax_over_one_logit = identities.swapped(lambda trees: torch.ones(len(trees)), pairs)
    assert not argmax_over_one_logit.passed


def test_sliding_window_is_never_a_tree(tiny: Any) -> None:
    backend, reason = attention.rule(tiny("mistral"), longest_path=9)
    assert backend == "rows"
    assert "window of 8" in reason


def test_f42_config_is_the_default_range() -> None:
    from treeward.proof.rates import rate_check

    assert rate_check("dpo", 1e-3, 100, 124_000_000, random=False).passed is False
    assert rate_check("dpo", 1e-7, 10, 124_000_000, random=False).passed is False
    assert rate_check("dpo", 1e-5, 100, 124_000_000, random=False).passed is True
    assert DPOConfig().lr == 1e-6


def test_f09_weights_that_read_another_vocabulary(policy: Any, prepared: Any) -> None:
    from treeward.algorithms.sft import SFTConfig, sft

    for _ in sft(policy, prepared.train, SFTConfig(steps=8, lr=3e-3, batch_size=64)):
        pass
    assert identities.knows_vocabulary(policy.tree, prepared.train).passed
    order = torch.randperm(91, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.tree.module.get_input_embeddings().weight.copy_(policy.tree.module.get_input_embeddings().weight[order])
    assert not identities.knows_vocabulary(policy.tree, prepared.train).passed


def failed(checks: Any) -> list[str]:
    return [check.id for check in checks if check.passed is False]
