"""Faults planted in models, masks and losses: the identity that guards against each must fail, and pass without it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers

from treeward.checks import identities
from treeward.data import world
from treeward.errors import UserError
from treeward.losses.preference import PairScores, Sigmoid
from treeward.losses.reward import BradleyTerry
from treeward.methods.dpo import DPO, DPOConfig, PairObjective
from treeward.methods.reward import RewardObjective
from treeward.methods.sft import SFTConfig, TokenNLL, sft_steps
from treeward.models import loading
from treeward.models.loading import LoRA
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.models.sampler import DecodeSampler, Noise
from treeward.models.weights import set_dropout, trainable
from treeward.training.loop import Loop
from treeward.training.objectives import Terms
from treeward.trees import attention, forward
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeModule
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import compare, verify, verify_once


def objective(policy: Any, pairs: Any, loss: Any = None) -> PairObjective:
    """DPO's objective against the policy as it is now, whose log-probabilities are computed."""
    verify_once(policy.packed, pairs)
    objective = PairObjective(loss or Sigmoid(), ReferenceModel.of(policy))
    objective.precompute(pairs, 1024)
    return objective


def test_clean_models_pass_all_checks(policy: Any, reward_model: Any, pairs: Any) -> None:
    checks = [identities.layout(verify(policy.packed, pairs)), identities.layout(verify(reward_model.packed, pairs))]
    loss = objective(policy, pairs)
    ranking = RewardObjective(BradleyTerry())
    optimised = Loop(policy, loss, lr=1e-5).parameters
    checks += identities.passes(policy.packed, pairs) + identities.passes(reward_model.packed, pairs)
    checks += identities.start_checks(policy.packed, ReferenceModel.of(policy), pairs)
    checks += [
        identities.accumulation(policy.packed, loss, pairs),
        identities.accumulation(reward_model.packed, ranking, pairs),
        identities.start_value(policy.packed, loss, pairs, Sigmoid().at_start()),
        identities.reached(policy.packed, loss, pairs, optimised)[0],
    ]
    assert [check.id for check in checks if not check.passed] == []


def causal_only(forest: Forest) -> torch.Tensor:
    size = len(forest.tree)
    return torch.ones(size, size, dtype=torch.bool).tril()[None, None]


def test_f07_branches_that_see_each_other_fall_back_to_rows(
    policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "mask", causal_only)
    verification = verify(policy.packed, pairs)
    assert verification.backend == "rows"
    assert verification.fallback is not None
    assert not compare(policy.packed, pairs, "tree", None).passed


def test_f03_prompt_tokens_in_the_sum(policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_once(policy.packed, pairs)
    original = forward.TreeLM.logits

    def shifted(self: Any, forest: Forest) -> Any:
        return original(self, replace(forest, predict_from=(forest.predict_from - 1).clamp(min=0)))

    monkeypatch.setattr(forward.TreeLM, "logits", shifted)
    assert not compare(policy.packed, pairs, "tree", None).passed


def test_f14_score_read_at_the_prompt(reward_model: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_once(reward_model.packed, pairs)
    original = forward.TreeScorer.forward

    def early(self: Any, forest: Forest) -> Any:
        return original(self, replace(forest, ends=forest.ends - 1))

    monkeypatch.setattr(forward.TreeScorer, "forward", early)
    assert not compare(reward_model.packed, pairs, "tree", None).passed


def test_f20_reference_of_other_weights(policy: Any, pairs: Any) -> None:
    reference = ReferenceModel.of(policy)
    verify_once(policy.packed, pairs)
    with torch.no_grad():
        next(policy.packed.parameters()).add_(0.05)
    assert "I03" in failed(identities.start_checks(policy.packed, reference, pairs))


def test_f23_reference_that_shares_storage(policy: Any, pairs: Any) -> None:
    reference = ReferenceModel.of(policy)
    verify_once(policy.packed, pairs)
    reference.packed.model.model.norm.weight = policy.packed.model.model.norm.weight
    assert "I15" in failed(identities.start_checks(policy.packed, reference, pairs))


@contextmanager
def in_train_mode(model: Any, dropout: bool = True) -> Iterator[None]:
    """A training step as most tools run it."""
    model.train()
    yield
    model.eval()


def test_f21_dropout_left_on(policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_once(policy.packed, pairs)
    set_dropout(policy.packed, 0.1)
    assert failed(identities.passes(policy.packed, pairs)) == []
    monkeypatch.setattr(TreeModule, "training_mode", in_train_mode)
    assert "I07" in failed(identities.passes(policy.packed, pairs))


NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "router jitter": ("MixtralConfig", {"router_jitter_noise": 0.1, "num_local_experts": 4}),
    "input jitter": ("PhimoeConfig", {"input_jitter_noise": 0.1, "num_local_experts": 4}),
    "layer drop": ("OPTConfig", {"layerdrop": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "dropout of the configuration": ("GPT2Config", {}),
}


def noisy(kind: str, pairs: Any) -> Any:
    """A policy of a class that is noisy in train mode, and the identities that a training step must keep.

    The noise comes from the global generator: it is seeded, since a draw may by chance be too small to be seen.
    """
    torch.manual_seed(0)
    name, changes = NOISY[kind]
    sizes = {
        "vocab_size": 91, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes | changes))
    policy = Policy(module, world.tokenizer())
    loss = objective(policy, pairs)
    return failed([
        *identities.passes(policy.packed, pairs), identities.start_value(policy.packed, loss, pairs,
        Sigmoid().at_start()),
    ]), policy, loss  # fmt: skip


@pytest.mark.parametrize("kind", NOISY)
def test_f64_noise_of_train_mode_other_than_dropout(kind: str, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean twin first: training runs in eval mode, and its first loss is ln 2."""
    checks, policy, loss = noisy(kind, pairs)
    assert checks == []
    first = Loop(policy, loss, lr=0.0, token_budget=1024).backward(pairs)
    assert first["loss"].item() == pytest.approx(math.log(2), abs=1e-6)
    monkeypatch.setattr(TreeModule, "training_mode", in_train_mode)
    assert noisy(kind, pairs)[0] == ["I04", "I07", "I02"]
    again = Loop(policy, loss, lr=0.0, token_budget=1024).backward(pairs)
    assert again["loss"].item() != pytest.approx(math.log(2), abs=1e-6)


def test_f65_a_trained_adapter_that_is_switched_off_is_not_the_start(policy: Any, pairs: Any) -> None:
    adapter = loading.add_lora(policy.packed.model, LoRA(r=4), "CAUSAL_LM")
    ours = Policy(adapter, policy.tokenizer)
    verify_once(ours.packed, pairs)
    assert failed(identities.start_checks(ours.packed, ReferenceModel.of(ours), pairs)) == []
    with torch.no_grad():
        for name, parameter in ours.packed.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    assert failed(identities.start_checks(ours.packed, ReferenceModel.of(ours), pairs)) == []
    switched_off = ReferenceModel(ours.packed, ours, adapter)
    assert failed(identities.start_checks(ours.packed, switched_off, pairs)) == ["I03"]


def beyond(trees: int) -> Any:
    """A mask that is right for the first trees of a forest; in later ones a branch sees the branches before it."""

    def token_trees(forest: Forest) -> torch.Tensor:
        correct = attention.mask(forest)
        same = forest.tree[:, None] == forest.tree[None, :]
        late = (forest.tree >= trees)[:, None]
        return correct | (torch.ones_like(same).tril() & same & late)[None, None]

    return token_trees


def test_f07_a_mask_that_is_wrong_beyond_the_first_trees(
    policy: Any, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify(policy.packed, prepared.train, 1024).backend == "tree"
    monkeypatch.setattr(forward, "mask", beyond(6))
    assert verify(policy.packed, prepared.train).backend == "tree", "three trees alone do not show it"
    verification = verify(policy.packed, prepared.train, 1024)
    assert verification.backend == "rows"
    assert "tree layout is off by" in (verification.fallback or "")


def test_f07_training_falls_back_where_the_mask_is_wrong_beyond_the_first_trees(
    policy: Any, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "mask", beyond(6))
    next(iter(sft_steps(policy, prepared.train, SFTConfig(steps=1, batch_size=64))))
    assert policy.packed.backend == "rows"


def test_f07_after_a_fallback_rows_stay_in_use(policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that mixes branches fails with these pairs; sampling verifies the layout again with its own trees."""
    monkeypatch.setattr(forward, "mask", causal_only)
    verify_once(policy.packed, pairs)
    assert policy.packed.backend == "rows"
    monkeypatch.undo()
    DecodeSampler.of(policy, 90)([TokenTree(pairs[0].prompt, (), "a")], 2, Noise(0))
    assert policy.packed.verified_path > 90
    assert verify(policy.packed, pairs[:2]).fallback is not None
    assert policy.packed.backend == "rows"


@pytest.mark.parametrize("new", [1, 2, 40])
def test_f07_verification_before_sampling_detects_a_mask_that_mixes_branches(
    new: int, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def siblings_seen(forest: Forest) -> torch.Tensor:
        return causal_only(forest) & (forest.tree[:, None] == forest.tree[None, :])

    monkeypatch.setattr(forward, "mask", siblings_seen)
    DecodeSampler.of(policy, new)([TokenTree((1, 5), (), "a"), TokenTree((1, 6, 7), (), "b")], 2, Noise(0))
    assert policy.packed.backend == "rows"


def test_f07_a_mask_that_mixes_branches_is_detected_with_one_response_a_prompt(
    policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [TokenTree(tree.prompt, tree.branches[:1], tree.group) for tree in pairs]
    monkeypatch.setattr(forward, "mask", lambda f: causal_only(f) & (f.tree[:, None] == f.tree[None, :]))
    assert verify(policy.packed, alone).backend == "rows"


@pytest.mark.parametrize(
    "problem", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_running_out_of_memory_is_not_a_failed_layout(
    problem: Exception, policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(forest: Forest) -> torch.Tensor:
        raise problem

    monkeypatch.setattr(forward, "mask", full)
    with pytest.raises(RuntimeError, match="memory"):
        verify(policy.packed, pairs)
    assert policy.packed.backend is None


@dataclass(frozen=True)
class Twice(Sigmoid):
    """Beta applied twice, or a sum instead of a mean: losses that a user could write."""

    factor: float = 8.0

    def __call__(self, scores: PairScores) -> torch.Tensor:
        return self.factor * super().__call__(scores)


def test_f27_loss_of_wrong_scale(policy: Any, pairs: Any) -> None:
    loss = objective(policy, pairs, Twice(factor=8.0))
    assert not identities.start_value(policy.packed, loss, pairs, Sigmoid().at_start()).passed


def test_f19_and_f43_rows_that_are_coupled(reward_model: Any, pairs: Any) -> None:
    class Coupled(RewardObjective):
        def __call__(self, model: TreeModule, forest: Forest) -> Terms:
            terms = super().__call__(model, forest)
            return Terms(terms.values * len(terms.values), terms.metrics)

    verify_once(reward_model.packed, pairs)
    loss = Coupled(BradleyTerry())
    assert not identities.accumulation(reward_model.packed, loss, pairs).passed


def test_f44_detached_hidden_states(policy: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = objective(policy, pairs)
    optimised = [p for _, p in trainable(policy.packed)]
    layer = policy.packed.model.model.layers[1]
    original = layer.forward
    monkeypatch.setattr(layer, "forward", lambda states, *rest, **named: original(states.detach(), *rest, **named))
    check, missing = identities.reached(policy.packed, loss, pairs, optimised)
    assert not check.passed
    assert any("layers.0" in name for name in missing)


def test_f47_i11_looks_at_the_optimizer_that_trains(policy: Any, pairs: Any) -> None:
    """A tensor that leaves the loop's optimizer after it was built: I11 names it as outside."""
    loss = objective(policy, pairs)
    loop = Loop(policy, loss, lr=1e-5)
    assert identities.reached(policy.packed, loss, pairs, loop.parameters)[0].passed
    del loop.optimizer.param_groups[0]["params"][0]
    check, missing = identities.reached(policy.packed, loss, pairs, loop.parameters)
    assert (check.passed, check.value, missing) == (False, 1, [])
    assert "the optimi" in check.detail


def test_f47_an_optimizer_of_a_copy_is_refused_by_the_loop(policy: Any) -> None:
    import copy

    optimizer = torch.optim.SGD(copy.deepcopy(policy.packed).parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"are not trainable weights of the model; build it from"):
        Loop(policy, TokenNLL(), optimizer=optimizer)


def test_f47_optimizer_of_a_copy(policy: Any, pairs: Any) -> None:
    import copy

    loss = objective(policy, pairs)
    optimised = [p for _, p in trainable(copy.deepcopy(policy.packed))]
    assert not identities.reached(policy.packed, loss, pairs, optimised)[0].passed


def test_f18_margins_that_ignore_the_order(pairs: Any) -> None:
    argmax_over_one_logit = identities.swapped(lambda trees: torch.ones(len(trees)), pairs)
    assert not argmax_over_one_logit.passed


def test_a_sliding_window_uses_rows(tiny: Any) -> None:
    backend, reason = attention.choose_backend(tiny("mistral"), longest_path=9)
    assert backend == "rows"
    assert "window of 8" in reason


def test_f42_rates_far_from_the_usual_one_fail() -> None:
    from treeward.checks.identities import rate_check

    assert rate_check(DPO.usual_lr, 1e-3, 100, 124_000_000, random=False).passed is False
    assert rate_check(DPO.usual_lr, 1e-7, 10, 124_000_000, random=False).passed is False
    assert rate_check(DPO.usual_lr, 1e-5, 100, 124_000_000, random=False).passed is True
    assert DPOConfig().lr == 1e-6


def test_f09_weights_that_read_another_vocabulary(policy: Any, prepared: Any) -> None:
    for _ in sft_steps(policy, prepared.train, SFTConfig(steps=8, lr=3e-3, batch_size=64)):
        pass
    assert identities.knows_vocabulary(policy.packed, prepared.train).passed
    order = torch.randperm(91, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.packed.model.get_input_embeddings().weight.copy_(
            policy.packed.model.get_input_embeddings().weight[order]
        )
    assert not identities.knows_vocabulary(policy.packed, prepared.train).passed


def test_f01_prompts_that_lost_their_start_token(policy: Any, prepared: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [tree.prompt for tree in prepared.train]
    bare = [prompt[1:] for prompt in prompts]
    identities.warn_missing_start_token(policy, bare)
    assert not caplog.messages, "random weights expect nothing"
    for _ in sft_steps(
        policy, [TokenTree((1,), (ids,), str(n)) for n, ids in enumerate(bare)], SFTConfig(steps=8, lr=3e-3)
    ):
        pass
    identities.warn_missing_start_token(policy, prompts)
    assert not caplog.messages
    identities.warn_missing_start_token(policy, bare)
    assert caplog.messages[0].startswith("prompts do not begin with the start token '<bos>', which the model expects")
    policy.tokenizer.bos_token = None
    policy.model.config.bos_token_id = None
    identities.warn_missing_start_token(policy, bare)
    assert len(caplog.messages) == 1, "nothing names a start token"


def failed(checks: Any) -> list[str]:
    return [check.id for check in checks if check.passed is False]
