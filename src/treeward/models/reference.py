"""The reference: the model that log-ratios and KL are measured against, at any moment.

A frozen copy of the policy as it was loaded or, with an adapter that starts at zero, the same weights with the adapter
switched off: in both cases what the policy was before the first step, bit for bit. A policy whose adapter was trained
before is copied, since the adapter is part of the start. Or another model that is named; or a moving average of the
policy (EMA), which follows it step by step.

Log-probabilities of a reference that cannot move are computed once; with a store they outlive the run. Of those read
from a store, eight are computed again at every reading, so that numbers of other weights cannot pass.
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
from treeward.models import adapters
from treeward.models.logp_store import MEND, LogpStore, default_path, key
from treeward.models.policy import Policy
from treeward.models.weights import fingerprint
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once

AUDITED = 8
"""Stored entries that are computed again at a reading."""
AUDIT_LIMIT = {"fp32": 1e-4, "bf16": 1e-1}
"""Largest deviation of a token's log-probability, in nats, between a stored value and one computed now."""


@dataclass(frozen=True)
class Frozen:
    """A model that stands still."""

    path: str | None = None
    """Another model as the reference; by default the policy as it was loaded, with new LoRA adapters the base model."""
    store: str = field(default="auto", repr=False)
    """Where its log-probabilities are kept for other runs: auto (the user's cache directory), off, or a file."""

    @property
    def is_start(self) -> bool:
        """Whether it is the policy as it was loaded."""
        return self.path is None

    def open(self) -> LogpStore | None:
        """The store that is named, or none."""
        if self.store == "off":
            return None
        return LogpStore(default_path() if self.store == "auto" else Path(self.store))


@dataclass(frozen=True)
class EMA:
    """An exponential moving average of the policy, which follows it (WARP's reference, arXiv:2406.16768)."""

    rate: float = 0.01
    """mu: after each step the reference becomes (1 - mu) reference + mu policy."""

    is_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"reference.rate is {self.rate}; it lies between 0 and 1 (0.01 is usual)")


AnyReference = Frozen | EMA

Keys = dict[TokenTree, list[bytes]]
"""The store's key of each branch of a tree."""


@dataclass(frozen=True)
class Audit:
    """Stored values computed again: how many, the largest deviation of a token in nats and its limit, in words."""

    entries: int
    deviation: float
    limit: float
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the largest deviation keeps the limit."""
        return self.deviation <= self.limit


class ReferenceModel:
    """A reference. `hash` fingerprints its weights (None where it cannot or may change: adapters, EMA)."""

    def __init__(
        self, tree: TreeLM, policy: Policy, adapter: Any | None = None, store: LogpStore | None = None,
    ) -> None:  # fmt: skip
        self.packed = tree
        self.store = store
        self._policy = policy
        self._adapter = adapter
        self.hash = fingerprint(tree) if adapter is None else None

    @classmethod
    def of(cls, policy: Policy, store: LogpStore | None = None) -> "ReferenceModel":
        """The policy as it stands: its base weights where it has an adapter that does nothing yet, else a frozen copy.

        Raises:
            UserError: the policy has a new adapter and a base weight is trainable, so that the base would move.
        """
        if policy.adapter is None or not adapters.does_nothing(policy.packed.model):
            return cls(_frozen(policy), policy, store=store)
        moving = [n for n, p in policy.packed.named_parameters() if p.requires_grad and "lora_" not in n]
        if moving:
            raise UserError(f"the reference is the policy with its adapter off, but {moving[0]!r} trains as well")
        return cls(policy.packed, policy, policy.adapter, store)

    @cached_property
    def _weights(self) -> str:
        return self.hash or fingerprint(self.packed, without="lora_")

    @property
    def identity(self) -> str:
        """Everything that its log-probabilities depend on, beside the ids."""
        config: Any = self.packed.model.config
        facts = (
            self._weights, config.to_json_string(use_diff=False), config._attn_implementation, self.packed.precision,
            self._policy.packed.backend, self.packed.device.type, torch.__version__, transformers.__version__,
        )  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def verify_once(self, trees: Sequence[TokenTree]) -> None:
        """Verify the layout for these trees, unless that has been done for the policy it was taken from."""
        verify_once(self._policy.packed, trees)

    @contextmanager
    def model(self) -> Iterator[TreeLM]:
        """The reference's forward pass, without gradients, in the layout that was verified for the policy."""
        self.packed.backend, self.packed.verified_path = self._policy.packed.backend, self._policy.packed.verified_path
        off: AbstractContextManager[Any] = nullcontext() if self._adapter is None else self._adapter.disable_adapter()
        with torch.no_grad(), off:
            yield self.packed

    def branch_logps(self, trees: Sequence[TokenTree], token_budget: int) -> dict[TokenTree, Float[Tensor, "N"]]:
        """log reference(response | prompt) of each tree's branches, from the store where they are there.

        Raises:
            UserError: a value of the store is not what the reference gives now.
        """
        unique = list(dict.fromkeys(trees))
        if self.store is None:
            return self.computed_logps(unique, token_budget)
        self.verify_once(unique)
        keys, known = self._stored(self.store, unique)
        found = self._audited(unique, keys, known, token_budget)
        if not found.passed:
            raise UserError(f"F22: {found.detail}")
        missing = {
            tree: TokenTree(tree.prompt, left, tree.group) for tree in unique
            if (left := tuple(b for b, k in zip(tree.branches, keys[tree], strict=True) if k not in known))
        }  # fmt: skip
        fresh = self._computed(list(dict.fromkeys(missing.values())), token_budget)
        identity = self.identity
        new = {
            key(identity, left.prompt, branch): values
            for left, parts in fresh.items() for branch, values in zip(left.branches, parts, strict=True)
        }  # fmt: skip
        if new:
            self.store.write(new)
        known |= new
        return {tree: _sums([known[k] for k in keys[tree]]) for tree in unique}

    def audit(self, trees: Sequence[TokenTree], token_budget: int) -> Audit | None:
        """Compute some of the values that are stored of these trees again; None without a store."""
        if self.store is None:
            return None
        unique = list(dict.fromkeys(trees))
        self.verify_once(unique)
        return self._audited(unique, *self._stored(self.store, unique), token_budget)

    def computed_logps(self, trees: Sequence[TokenTree], token_budget: int) -> dict[TokenTree, Float[Tensor, "N"]]:
        """The same without the store: for trees that are seen once, or a reference that moves."""
        unique = list(dict.fromkeys(trees))
        self.verify_once(unique)
        return {tree: _sums(parts) for tree, parts in self._computed(unique, token_budget).items()}

    def _computed(self, trees: Sequence[TokenTree], token_budget: int) -> dict[TokenTree, list[Tensor]]:
        """Per-token log-probabilities of each branch, on the CPU."""
        found: dict[TokenTree, list[Tensor]] = {}
        with self.model() as tree:
            for forest in tree.forests(list(trees), token_budget):
                lengths = [len(branch) for source in forest.sources for branch in source.branches]
                parts = iter(tree(forest).float().cpu().split(lengths))
                found |= {source: [next(parts) for _ in source.branches] for source in forest.sources}
        return found

    def _stored(self, store: LogpStore, trees: Sequence[TokenTree]) -> tuple[Keys, dict[bytes, Tensor]]:
        """The keys of each tree's branches, and what the store has; a value of another length counts as missing."""
        identity = self.identity
        keys = {tree: [key(identity, tree.prompt, branch) for branch in tree.branches] for tree in trees}
        lengths = {k: len(b) for tree in trees for k, b in zip(keys[tree], tree.branches, strict=True)}
        return keys, {k: values for k, values in store.read(list(lengths)).items() if len(values) == lengths[k]}

    def _audited(self, trees: Sequence[TokenTree], keys: Keys, known: dict[bytes, Tensor], budget: int) -> Audit:
        """Compute some of the stored values again, other ones each time: that changes no result."""
        assert self.store is not None
        stored = list({k: (t, n) for t in trees for n, k in enumerate(keys[t]) if k in known}.values())
        drawn = random.SystemRandom().sample(stored, min(AUDITED, len(stored)))
        alone = [TokenTree(tree.prompt, (tree.branches[number],)) for tree, number in drawn]
        again = self._computed(list(dict.fromkeys(alone)), budget)
        found = Audit(len(drawn), 0.0, AUDIT_LIMIT[self.packed.precision], f"{len(drawn)} values of {self.store.path}")
        for (tree, number), single in zip(drawn, alone, strict=True):
            now, then = again[single][0], known[keys[tree][number]]
            off = (now - then).abs().nan_to_num(nan=math.inf).max().item()
            if off > found.deviation:
                detail = (
                    f"the store {str(self.store.path)!r} holds {then.sum():.4f} for branch {number} of "
                    f"{tree.group[:60]!r}, the reference gives {now.sum():.4f}; {MEND}"
                )
                found = replace(found, deviation=off, detail=found.detail if off <= found.limit else detail)
        return found


class EMAReference(ReferenceModel):
    """An exponential moving average of the policy: reference <- (1 - rate) reference + rate policy, after each step."""

    def __init__(self, policy: Policy, rate: float) -> None:
        if policy.adapter is not None:
            raise UserError(
                "reference.kind is 'ema', which follows all weights, but model.lora trains an adapter alone"
            )
        super().__init__(_frozen(policy), policy)
        self.rate = rate
        self.hash = None

    def follow(self) -> None:
        """One step towards the policy as it is now."""
        with torch.no_grad():
            for own, other in zip(self.packed.parameters(), self._policy.packed.parameters(), strict=True):
                own.lerp_(other, self.rate)


def reference_for(policy: Policy, asked: AnyReference) -> ReferenceModel:
    """The reference that a configuration asks for, taken from the policy as it stands.

    Raises:
        UserError: another model is named that cannot be loaded or has another tokenizer; the policy has an adapter
            and an EMA is asked for.
    """
    if isinstance(asked, EMA):
        return EMAReference(policy, asked.rate)
    if asked.path is None:
        return ReferenceModel.of(policy, asked.open())
    # Its vocabulary must be the policy's, whose F09 is checked.
    other = Policy.load(
        asked.path, precision=policy.packed.precision, device=policy.packed.device.type, any_tokenizer=True
    )  # fmt: skip
    if vocabulary_hash(other.tokenizer) != vocabulary_hash(policy.tokenizer):
        raise UserError(f"reference.path {asked.path!r} has another tokenizer than the policy; name one of its family")
    return ReferenceModel(other.packed.requires_grad_(False).eval(), other, store=asked.open())


def _frozen(policy: Policy) -> TreeLM:
    """A copy that does not train."""
    return copy.deepcopy(policy.packed).requires_grad_(False).eval()


def _sums(parts: Sequence[Tensor]) -> Float[Tensor, "N"]:
    """Sums over each branch, added as the policy's are, so that equal models give equal bits."""
    branch = torch.tensor([number for number, part in enumerate(parts) for _ in part])
    return sum_by_branch(torch.cat(list(parts)), branch, len(parts))
