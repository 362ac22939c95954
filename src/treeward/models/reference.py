"""Reference models: what log-ratios and KL are measured against.

By default a frozen copy of the policy as it was loaded. With LoRA adapters that start at zero it is the base model with
the adapters switched off, which is the same model bit for bit. It may also be another model that is named, or an
exponential moving average (EMA) that follows the policy step by step.

Log-probabilities of a frozen reference never change, so they are computed once. With a store on disk they are shared
between runs. Each time values are read from the store, a few are computed again to detect values from other weights.
"""

import copy
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from treeward.data.render import vocabulary_hash
from treeward.errors import UserError
from treeward.losses.logprobs import sum_by_branch
from treeward.models import loading
from treeward.models.loading import ModelConfig
from treeward.models.logp_store import STORE_FIX, LogpStore, default_path, key
from treeward.models.policy import Policy
from treeward.models.weights import fingerprint
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once

AUDITED = 8
"""Stored values that are computed again at each reading."""
AUDIT_LIMIT = {"fp32": 1e-4, "bf16": 1e-1}
"""Largest difference between a stored and a recomputed log-probability of a token, in nats."""


@dataclass(frozen=True)
class Frozen:
    """A reference model that does not change."""

    path: str | None = None
    """Another model as the reference. By default the policy as it was loaded (with LoRA, the base model)."""
    store: str = field(default="auto", repr=False)
    """Where its log-probabilities are kept for later runs: auto (the user's cache directory), off, or a file."""

    @property
    def is_start(self) -> bool:
        """Whether it is the policy as it was loaded."""
        return self.path is None

    def open(self) -> LogpStore | None:
        """The store, or None if it is off."""
        if self.store == "off":
            return None
        return LogpStore(default_path() if self.store == "auto" else Path(self.store))


@dataclass(frozen=True)
class EMA:
    """An exponential moving average of the policy (as in WARP, arXiv:2406.16768)."""

    rate: float = 0.01
    """mu: after each step the reference becomes (1 - mu) reference + mu policy. Two controls: 0 is a frozen reference,
    and with 1 it is the policy, so that the KL costs nothing."""

    is_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"reference.rate is {self.rate}; it is from 0 to 1 (0.01 is usual)")


AnyReference = Frozen | EMA

Logps = dict[TokenTree, Float[Tensor, "N"]]
"""By tree: the log-probability of each branch, in nats."""


@dataclass(frozen=True)
class Audit:
    """Stored values that were computed again: how many, the largest difference of a token in nats, and its limit."""

    entries: int
    deviation: float
    limit: float
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the largest difference is within the limit."""
        return self.deviation <= self.limit


class ReferenceModel:
    """A frozen model. `packed` runs it over forests.

    `hash` is a fingerprint of its weights; None where it cannot be taken (the base under adapters) or changes (EMA).
    """

    follows_policy: ClassVar[bool] = False

    def __init__(
        self, packed: TreeLM, policy: Policy, adapter: Any | None = None, store: LogpStore | None = None
    ) -> None:
        """Use `Policy.frozen_copy()` or `reference_for`. `policy` is where it was taken from, `adapter` what is
        switched off while it runs.
        """
        self.packed = packed
        self.store = store
        self._policy = policy
        self._adapter = adapter
        self.hash = fingerprint(packed) if adapter is None else None

    @classmethod
    def of(cls, policy: Policy, store: LogpStore | None = None) -> "ReferenceModel":
        """The policy as it is now: a frozen copy or, under adapters that have not trained yet, its base weights.

        Raises:
            UserError: the adapters are new and a base weight is trainable, so that the base would change.
        """
        if policy.adapter is None or not loading.adapter_is_new(policy.packed.model):
            return cls(_frozen(policy), policy, store=store)
        moving = [n for n, p in policy.packed.named_parameters() if p.requires_grad and "lora_" not in n]
        if moving:
            raise UserError(
                f"the reference is the policy with its adapter off, but {moving[0]!r} trains as well; freeze it"
            )
        return cls(policy.packed, policy, policy.adapter, store)

    def branch_logps(self, trees: Sequence[TokenTree], token_budget: int) -> Logps:
        """log pi_ref(response | prompt) of each tree's branches, from the store where it has them.

        Raises:
            UserError: a stored value differs from what the model gives now.
        """
        logps, audit = self.load_logps(trees, token_budget)
        if audit is not None and not audit.passed:
            raise UserError(audit.detail)
        return logps

    def load_logps(self, trees: Sequence[TokenTree], token_budget: int) -> tuple[Logps, Audit | None]:
        """`branch_logps` with the audit of the stored values (None without a store). A failed audit comes without
        values.
        """
        unique = list(dict.fromkeys(trees))
        if self.store is None:
            return self.compute_logps(unique, token_budget), None
        self.verify_layout(unique)
        keys, stored = self._read(self.store, unique)
        audit = self._audit(unique, keys, stored, token_budget)
        if not audit.passed:
            return {}, audit
        missing = {}
        for tree in unique:
            branches = [branch for branch, k in zip(tree.branches, keys[tree], strict=True) if k not in stored]
            if branches:
                missing[tree] = TokenTree(tree.prompt, tuple(branches), tree.group)
        computed = self.token_logps(list(dict.fromkeys(missing.values())), token_budget)
        identity = self.identity
        new = {
            key(identity, tree.prompt, branch): logps
            for tree, by_branch in computed.items()
            for branch, logps in zip(tree.branches, by_branch, strict=True)
        }
        if new:
            self.store.write(new)
        stored |= new
        return {tree: _sums([stored[k] for k in keys[tree]]) for tree in unique}, audit

    def compute_logps(self, trees: Sequence[TokenTree], token_budget: int) -> Logps:
        """`branch_logps` without the store: for trees that are seen once, or a reference that changes."""
        unique = list(dict.fromkeys(trees))
        self.verify_layout(unique)
        return {tree: _sums(parts) for tree, parts in self.token_logps(unique, token_budget).items()}

    def audit(self, trees: Sequence[TokenTree], token_budget: int) -> Audit | None:
        """Compute some of the stored values of these trees again; None without a store."""
        if self.store is None:
            return None
        unique = list(dict.fromkeys(trees))
        self.verify_layout(unique)
        return self._audit(unique, *self._read(self.store, unique), token_budget)

    @contextmanager
    def inference(self) -> Iterator[TreeLM]:
        """The packed model ready to run: no gradients, adapters off, in the layout that was verified for the policy."""
        policy = self._policy.packed
        self.packed.backend, self.packed.verified_path = policy.backend, policy.verified_path
        off: AbstractContextManager[Any] = nullcontext() if self._adapter is None else self._adapter.disable_adapter()
        with torch.no_grad(), off:
            yield self.packed

    @property
    def identity(self) -> str:
        """A hash of everything that its log-probabilities depend on besides the ids."""
        config: Any = self.packed.model.config
        facts = (
            self._weights_hash,
            config.to_json_string(use_diff=False),
            config._attn_implementation,
            self.packed.precision,
            self._policy.packed.backend,
            self.packed.device.type,
            torch.__version__,
            transformers.__version__,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @cached_property
    def _weights_hash(self) -> str:
        return self.hash or fingerprint(self.packed, without="lora_")

    def verify_layout(self, trees: Sequence[TokenTree]) -> None:
        """Verify the layout for these trees, unless that was done for the policy."""
        verify_once(self._policy.packed, trees)

    def token_logps(self, trees: Sequence[TokenTree], token_budget: int) -> dict[TokenTree, list[Tensor]]:
        """log pi_ref of each token of each tree's branches, on the CPU; the store is not used."""
        by_tree: dict[TokenTree, list[Tensor]] = {}
        with self.inference() as packed:
            for forest in packed.forests(list(trees), token_budget):
                lengths = [len(branch) for tree in forest.sources for branch in tree.branches]
                parts = iter(packed(forest).float().cpu().split(lengths))
                by_tree |= {tree: [next(parts) for _ in tree.branches] for tree in forest.sources}
        return by_tree

    def _read(
        self, store: LogpStore, trees: Sequence[TokenTree]
    ) -> tuple[dict[TokenTree, list[bytes]], dict[bytes, Tensor]]:
        """The store's key of each branch, and the stored values by key. A value of another length counts as missing."""
        identity = self.identity
        keys = {tree: [key(identity, tree.prompt, branch) for branch in tree.branches] for tree in trees}
        lengths = {k: len(b) for tree in trees for k, b in zip(keys[tree], tree.branches, strict=True)}
        return keys, {k: values for k, values in store.read(list(lengths)).items() if len(values) == lengths[k]}

    def _audit(
        self, trees: Sequence[TokenTree], keys: dict[TokenTree, list[bytes]], stored: dict[bytes, Tensor], budget: int
    ) -> Audit:
        """Compute a few stored values again, other ones each time; this changes no result."""
        assert self.store is not None
        branches = list({k: (t, n) for t in trees for n, k in enumerate(keys[t]) if k in stored}.values())
        drawn = random.SystemRandom().sample(branches, min(AUDITED, len(branches)))
        singles = [TokenTree(tree.prompt, (tree.branches[number],)) for tree, number in drawn]
        computed = self.token_logps(list(dict.fromkeys(singles)), budget)
        limit = AUDIT_LIMIT[self.packed.precision]
        audit = Audit(len(drawn), 0.0, limit, f"{len(drawn)} values of {self.store.path}")
        for (tree, number), single in zip(drawn, singles, strict=True):
            now, then = computed[single][0], stored[keys[tree][number]]
            deviation = (now - then).abs().nan_to_num(nan=math.inf).max().item()
            if deviation > audit.deviation:
                detail = (
                    f"the store {str(self.store.path)!r} has {then.sum():.4f} for branch {number} of "
                    f"{tree.group[:60]!r}, but the reference model gives {now.sum():.4f}; {STORE_FIX}"
                )
                audit = replace(audit, deviation=deviation, detail=audit.detail if deviation <= limit else detail)
        return audit


class EMAReference(ReferenceModel):
    """An exponential moving average of the policy: after each step reference <- (1 - rate) reference + rate policy."""

    follows_policy: ClassVar[bool] = True

    def __init__(self, policy: Policy, rate: float) -> None:
        if policy.adapter is not None:
            raise UserError(
                "reference.kind is 'ema', which averages all weights, but model.lora trains adapters only; use frozen"
            )
        super().__init__(_frozen(policy), policy)
        self.rate = rate
        self.hash = None

    def update(self) -> None:
        """One step towards the policy as it is now. Buffers are copied."""
        policy = self._policy.packed
        with torch.no_grad():
            for average, weight in zip(self.packed.parameters(), policy.parameters(), strict=True):
                average.lerp_(weight, self.rate)
            for buffer, new in zip(self.packed.buffers(), policy.buffers(), strict=True):
                buffer.copy_(new)


def reference_for(policy: Policy, config: AnyReference) -> ReferenceModel:
    """The reference model of a configuration, taken from the policy as it is now.

    Raises:
        UserError: the named model cannot be loaded or has another tokenizer, or the policy has adapters and the
            reference is an EMA.
    """
    if isinstance(config, EMA):
        return EMAReference(policy, config.rate)
    if config.path is None:
        return ReferenceModel.of(policy, config.open())
    # The vocabularies must be equal, and the policy's own tokenizer is checked (F09).
    packed = policy.packed
    other = Policy.trained(
        ModelConfig.of(
            config.path, {"precision": packed.precision, "device": packed.device.type, "any_tokenizer": True}
        )
    )
    if vocabulary_hash(other.tokenizer) != vocabulary_hash(policy.tokenizer):
        raise UserError(
            f"reference.path {config.path!r} has another tokenizer than the policy; name a model of the same family"
        )
    return ReferenceModel(other.packed.requires_grad_(False).eval(), other, store=config.open())


def _frozen(policy: Policy) -> TreeLM:
    """A copy that does not train."""
    return copy.deepcopy(policy.packed).requires_grad_(False).eval()


def _sums(parts: Sequence[Tensor]) -> Float[Tensor, "N"]:
    """Sums over each branch, added in the same order as the policy's, so that equal models give equal bits."""
    branch = torch.tensor([number for number, part in enumerate(parts) for _ in part])
    return sum_by_branch(torch.cat(list(parts)), branch, len(parts))
