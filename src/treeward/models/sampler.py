"""Samples: from a policy by our own decoding loop, or from a script for tests.

Plain sampling at a temperature: top-k, top-p and penalties are left out, since the log-probability of a sample would
no longer be the policy's. The prompt is prefilled once for its K samples, where the cache can be repeated; the next
token is drawn by inverting the cumulative distribution. Sampled ids are kept; text is made only where someone reads it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treeward.models.policy import Policy
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verified


@runtime_checkable
class Sampler(Protocol):
    """Prompts in, trees with K branches out, in order."""

    def __call__(self, prompts: Sequence[TokenTree], samples: int, generator: torch.Generator) -> list[TokenTree]: ...


@dataclass(frozen=True)
class DecodeSampler:
    """Samples from a policy. A response ends at an end token, which it keeps, or after `max_new_tokens`."""

    tree: TreeLM
    end_ids: tuple[int, ...]
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch: int = 128

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature)

    @classmethod
    def of(cls, policy: Policy, max_new_tokens: int = 64, temperature: float = 1.0) -> "DecodeSampler":
        """A sampler of the policy as it is at each call."""
        return cls(policy.tree, policy.end_ids, max_new_tokens, temperature)

    def __call__(self, prompts: Sequence[TokenTree], samples: int, generator: torch.Generator) -> list[TokenTree]:
        """K = `samples` branches for each prompt.

        The layout is verified first, for paths as long as the longest sample may become. Prompts of different lengths
        are padded on the left, out of sight and with positions of their own, where it is the tree; for any other model,
        prompts of one length are decoded together.

        Raises:
            ValueError: a sample might be longer than the model's positions, or the layout is not that of plain calls.
            FloatingPointError: the model's logits are not finite.
        """
        longest = max((len(tree.prompt) for tree in prompts), default=0) + self.max_new_tokens
        if self.tree.positions is not None and longest > self.tree.positions:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens}: with the longest prompt that makes {longest} tokens, more "
                f"than the model's {self.tree.positions} positions; lower it or data.max_prompt"
            )
        with torch.no_grad():
            verified(self.tree, self._probes([tree.prompt for tree in prompts]))
        found: dict[int, TokenTree] = {}
        for places in _batches(prompts, max(1, self.batch // samples), mixed=self.tree.backend == "tree"):
            responses = self._decode([prompts[place].prompt for place in places], samples, generator)
            for number, place in enumerate(places):
                branches = responses[number * samples : (number + 1) * samples]
                found[place] = TokenTree(prompts[place].prompt, tuple(branches), prompts[place].group)
        return [found[place] for place in range(len(prompts))]

    def _probes(self, prompts: Sequence[tuple[int, ...]]) -> list[TokenTree]:
        """Trees of two branches made of the prompts' own ids; one of the longest prompt with the longest sample."""
        if not prompts:
            return []
        longest = max(prompts, key=len)
        sample = (longest * math.ceil(self.max_new_tokens / len(longest)))[: self.max_new_tokens]
        return [TokenTree(longest, (sample, longest[:1])), *(TokenTree(p, (p[:1], p[-1:])) for p in prompts)]

    @property
    def _last_only(self) -> dict[str, int]:
        """Only the last position's logits, for classes that can leave the others out."""
        return {"logits_to_keep": 1} if "logits_to_keep" in signature(self.tree.module.forward).parameters else {}

    def _decode(
        self, prompts: Sequence[tuple[int, ...]], samples: int, generator: torch.Generator
    ) -> list[tuple[int, ...]]:
        ends = torch.tensor(self.end_ids, device=self.tree.device)
        shared = self.tree.backend == "tree"
        if not shared:
            prompts = [prompt for prompt in prompts for _ in range(samples)]
        rows, places = _left_padded(prompts, self.tree.device)
        with torch.no_grad(), self.tree.products():
            out: Any = self.tree.module(input_ids=rows, use_cache=True, **self._last_only, **places)
            name = "past_key_values" if "past_key_values" in out else "cache_params"
            cache = out[name]
            repeats = samples if shared else 1
            if repeats > 1:
                cache.batch_repeat_interleave(repeats)
                places = {key: value.repeat_interleave(repeats, 0) for key, value in places.items()}
            chosen = draw(out.logits[:, -1].repeat_interleave(repeats, 0), self.temperature, generator)
            columns = [chosen]
            done = torch.isin(chosen, ends)
            while len(columns) < self.max_new_tokens and not bool(done.all()):
                places = _next_places(places)
                out = self.tree.module(input_ids=chosen[:, None], use_cache=True, **{name: cache}, **places)
                chosen = draw(out.logits[:, -1], self.temperature, generator)
                columns.append(chosen)
                done |= torch.isin(chosen, ends)
        ended = set(self.end_ids)
        return [_until_end(row, ended) for row in torch.stack(columns, 1).tolist()]


@dataclass(frozen=True)
class ScriptedSampler:
    """A sampler for tests: it answers each prompt (by its ids) with the branches of a script, in turn."""

    script: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]]

    def __call__(self, prompts: Sequence[TokenTree], samples: int, generator: torch.Generator) -> list[TokenTree]:
        lines = [self.script[tree.prompt] for tree in prompts]
        return [
            TokenTree(tree.prompt, tuple(line[k % len(line)] for k in range(samples)), tree.group)
            for tree, line in zip(prompts, lines, strict=True)
        ]


def check_sampling(max_new_tokens: int, temperature: float) -> None:
    """Refuse settings under which nothing can be sampled.

    Raises:
        ValueError: `max_new_tokens` is below 1, or `temperature` not above 0.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (1 samples the policy itself)")


def draw(logits: Float[Tensor, "N V"], temperature: float, generator: torch.Generator) -> Int[Tensor, "N"]:
    """One token a row from softmax(logits / temperature), by inverse-CDF search with one uniform number a row.

    Raises:
        FloatingPointError: the logits of a row are no distribution.
    """
    cumulative = (logits.float() / temperature).softmax(1).cumsum(1)
    if not bool(cumulative[:, -1].isfinite().all()):
        raise FloatingPointError(
            "the policy's logits are NaN or infinite, so nothing can be sampled: its weights are broken, or products "
            "overflow (try model.precision fp32)"
        )
    uniform = torch.rand(len(logits), 1, generator=generator).to(logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "G W"], dict[str, Tensor]]:
    """Prompts as rows, and for unequal lengths the mask and positions that hide the padding; nothing for equal ones."""
    width = max(map(len, prompts))
    rows = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    if min(map(len, prompts)) == width:
        return rows, {}
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    return rows, {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def _next_places(places: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mask and positions of the next token, where there are any."""
    if not places:
        return places
    mask = places["attention_mask"]
    return {
        "attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], 1),
        "position_ids": places["position_ids"][:, -1:] + 1,
    }


def _batches(prompts: Sequence[TokenTree], size: int, mixed: bool) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = {}
    for place, tree in sorted(enumerate(prompts), key=lambda item: len(item[1].prompt)):
        by_length.setdefault(0 if mixed else len(tree.prompt), []).append(place)
    for places in by_length.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _until_end(row: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    for place, token in enumerate(row):
        if token in ends:
            return tuple(row[: place + 1])
    return tuple(row)
