"""Samples: from a policy by our own decoding loop, or from a script for tests.

Plain sampling at a temperature: top-k, top-p and penalties are left out, since the log-probability of a sample would
no longer be the policy's. The prompt is prefilled once for its K samples, where the cache can be repeated; the next
token is drawn by inverting the cumulative distribution. Sampled ids are kept, each with the log-probability that it was
drawn with; text is made only where someone reads it.

Letters: N rows, V vocabulary, L tokens of a branch, G prompts, W their padded width.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.logprobs import token_logps
from treeward.models.policy import Policy
from treeward.stats.intervals import Floats
from treeward.trees.forward import TreeLM
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import FAILURES, FEWEST, VALUE_LIMIT, out_of_memory, verify_once

log = logging.getLogger(__name__)

CACHES = ("past_key_values", "cache_params")
"""What public classes call the cache that they return and take."""
LOOK = 8
"""Tokens between two looks at whether all rows have ended, where a look makes the host wait for the device."""


@dataclass(frozen=True)
class Noise:
    """The numbers that samples are drawn with: a function of what they are drawn for, and of nothing else.

    Neither the batch, nor the order of the prompts, the layout or the number of processes has a part in them. `step` is
    the optimiser step of the weights that are sampled, `member` the number of the model among several.
    """

    seed: int
    member: int = 0
    step: int = 0

    def uniforms(self, row: str, sample: int, count: int) -> Floats:
        """`count` numbers in [0, 1), one a position, of the `sample`-th response to `row`; the first ones are the same
        whatever the count.

        Philox-4x64 under a key that is a hash of everything named (Salmon et al. 2011, "Parallel random numbers: as
        easy as 1, 2, 3"): the p-th number is the p-th output of the counter.
        """
        facts = repr(("treeward sampling", self.seed, self.member, self.step, row, sample))
        key = int.from_bytes(hashlib.sha256(facts.encode()).digest()[:16], "little")
        raw: Any = np.random.Philox(key=key).random_raw(count)
        return np.asarray((raw >> 11) * 2.0**-53, dtype=np.float64)


def row_ids(prompts: Sequence[TokenTree]) -> list[str]:
    """The name of each row that its noise hangs on: its group and its prompt's ids.

    Rows that are alike in both count through in the order of their standing, so that no two of one call share their
    noise. Whoever spreads such rows over several calls gives them groups of their own.
    """
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    names = []
    for tree in prompts:
        alike = tree.group, tree.prompt
        names.append(repr((*alike, seen[alike])))
        seen[alike] += 1
    return names


@runtime_checkable
class Sampler(Protocol):
    """Prompts in, trees with K branches out, in order."""

    def __call__(self, prompts: Sequence[TokenTree], samples: int, noise: Noise) -> Rollout: ...


@dataclass(frozen=True)
class DecodeSampler:
    """Samples from a policy. A response ends at an end token, which it keeps, or after `max_new_tokens`."""

    packed: TreeLM
    end_ids: tuple[int, ...]
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch: int = 128
    tokenizer: Tokenizer = None

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature)

    @classmethod
    def of(cls, policy: Policy, max_new_tokens: int = 64, temperature: float = 1.0) -> "DecodeSampler":
        """A sampler of the policy as it is at each call."""
        return cls(policy.packed, policy.end_ids, max_new_tokens, temperature, tokenizer=policy.tokenizer)

    def __call__(self, prompts: Sequence[TokenTree], samples: int, noise: Noise) -> Rollout:
        """K = `samples` branches for each prompt; `row_ids` says which noise belongs to which prompt.

        The layout is verified first, for paths as long as the longest sample may become, and the class's cache against
        a plain call. Prompts of different lengths are padded on the left, out of sight and with positions of their own,
        where the layout is the tree; for any other model, prompts of one length are decoded together.

        Raises:
            UserError: a sample might be longer than the model's positions, or the layout is not that of plain calls.
            FloatingPointError: the model's logits are not finite.
        """
        longest = max((len(tree.prompt) for tree in prompts), default=0) + self.max_new_tokens
        if self.packed.positions is not None and longest > self.packed.positions:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}: with the longest prompt that makes {longest} tokens, more "
                f"than the model's {self.packed.positions} positions; lower it or data.max_prompt"
            )
        if not prompts:
            return Rollout([], self.tokenizer, [], [])
        with torch.no_grad():
            verify_once(self.packed, self._probes([tree.prompt for tree in prompts]))
            self._find_cache(max((tree.prompt for tree in prompts), key=len))
        names = row_ids(prompts)
        done: dict[int, list[_Sampled]] = {}
        mixed = self.packed.backend == "tree" and bool(self.packed.cache)
        for places in _batches(prompts, max(1, self.batch // samples), mixed):
            uniforms = [noise.uniforms(names[p], k, self.max_new_tokens) for p in places for k in range(samples)]
            rows = self._decode([prompts[place].prompt for place in places], samples, np.stack(uniforms))
            done |= {place: rows[n * samples : (n + 1) * samples] for n, place in enumerate(places)}
        return Rollout(
            [
                TokenTree(tree.prompt, tuple(ids for ids, _, _ in done[n]), tree.group, row=tree.row)
                for n, tree in enumerate(prompts)
            ],
            self.tokenizer,
            [[logps for _, logps, _ in done[n]] for n in range(len(prompts))],
            [[drawn for _, _, drawn in done[n]] for n in range(len(prompts))],
        )

    def _probes(self, prompts: Sequence[tuple[int, ...]]) -> list[TokenTree]:
        """Trees of two branches made of the prompts' own ids; one of the longest prompt with the longest sample."""
        longest = max(prompts, key=len)
        sample = (longest * math.ceil(self.max_new_tokens / len(longest)))[: self.max_new_tokens]
        few = min(FEWEST, self.max_new_tokens)

        def start(ids: tuple[int, ...]) -> tuple[int, ...]:
            return (ids * few)[:few]

        return [
            TokenTree(longest, (sample, start(longest[::-1]))),
            *(TokenTree(prompt, (start(prompt), start(prompt[::-1]))) for prompt in prompts),
        ]

    def _find_cache(self, prompt: tuple[int, ...]) -> None:
        """Find out, once a model, by what name its class returns a cache that it takes again; "" where it has none that
        gives the numbers of a plain call: then each step runs the whole row.
        """
        if self.packed.cache is not None:
            return
        steps = 6
        prompt = prompt[: 32 if self.packed.positions is None else max(1, min(32, self.packed.positions - steps))]
        ids = torch.tensor([prompt + (prompt * steps)[:steps]], device=self.packed.device)
        precision, self.packed.precision = self.packed.precision, "fp32"
        reason = "it returns none"
        try:
            plain = self.packed.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            stepwise = _Decoding(self.packed, ids[:, : len(prompt)], _positions(ids[:, : len(prompt)]))
            logits = [stepwise.logits, *(stepwise.step(ids[:, n]) for n in range(len(prompt), ids.shape[1] - 1))]
            sides = [token_logps(side, ids[0, len(prompt) :]) for side in (plain, torch.cat(logits))]
            off = (sides[0] - sides[1]).abs().max().item()
            self.packed.cache, reason = stepwise.name, f"it is off by {off:.2g} nats"
            if not off <= VALUE_LIMIT:
                self.packed.cache = ""
        except FAILURES as problem:
            if out_of_memory(problem):
                raise
            self.packed.cache, reason = "", (str(problem).strip() or type(problem).__name__).splitlines()[0][:160]
        finally:
            self.packed.precision = precision
        if not self.packed.cache:
            log.info("%s is decoded without its cache, which is slower: %s", type(self.packed.model).__name__, reason)

    def _decode(
        self, prompts: Sequence[tuple[int, ...]], samples: int, uniforms: Float[np.ndarray, "N L"]
    ) -> list["_Sampled"]:
        """The rows of one batch, K of each prompt after one another; all their noise is given, so that the device never
        waits for it.
        """
        device = self.packed.device
        ends = torch.tensor(self.end_ids, device=device)
        shared = samples if self.packed.backend == "tree" and self.packed.cache else 1
        if shared == 1:
            prompts = [prompt for prompt in prompts for _ in range(samples)]
        noise = torch.from_numpy(uniforms).to(_wide(device)).to(device)
        columns: list[Tensor] = []
        logps: list[Tensor] = []
        drawn: list[Tensor] = []
        every = 1 if device.type == "cpu" else LOOK
        with torch.no_grad(), self.packed.products():
            decoding = _Decoding(self.packed, *_left_padded(prompts, device))
            decoding.repeat(shared)
            done = torch.zeros(len(noise), dtype=torch.bool, device=device)
            for place in range(self.max_new_tokens):
                logits = decoding.step(columns[-1]) if columns else decoding.logits
                columns.append(draw(logits, self.temperature, noise[:, place]))
                logps.append(token_logps(logits, columns[-1]))
                if self.temperature != 1:
                    drawn.append(token_logps(logits.float() / self.temperature, columns[-1]))
                done |= torch.isin(columns[-1], ends)
                if place % every == every - 1 or place == self.max_new_tokens - 1:
                    _check_finite(logps[-every:])
                    if bool(done.all()):
                        break
        policy = torch.stack(logps, 1).cpu()
        warped = torch.stack(drawn, 1).cpu() if drawn else policy
        rows = [_until_end(row, set(self.end_ids)) for row in torch.stack(columns, 1).tolist()]
        return [(ids, policy[n, : len(ids)], warped[n, : len(ids)]) for n, ids in enumerate(rows)]


_Sampled = tuple[tuple[int, ...], Tensor, Tensor]
"""The ids of a response, and by token the log-probability under the policy and under what was sampled from."""


class _Decoding:
    """Rows that are continued token by token: with the class's cache or, where it has none that is right, whole.

    `logits` are those after the prompt. Positions and masks are passed wherever the class takes them: some count them
    by themselves while decoding, others (Bamba) start at 0 again with every token.
    """

    def __init__(self, tree: TreeLM, rows: Int[Tensor, "G W"], places: dict[str, Tensor]) -> None:
        takes = signature(tree.model.forward).parameters
        self.model = tree.model
        self.rows = rows
        self.places = {name: value for name, value in places.items() if name in takes}
        self.last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.name = ""
        self.logits: Tensor
        if tree.cache == "":
            self.logits = self._whole()
            return
        out: Any = self.model(input_ids=rows, use_cache=True, **self.last, **self.places)
        self.logits = out.logits[:, -1]
        self.name = next((name for name in CACHES if name in takes and out.get(name) is not None), "")
        self.cache = out.get(self.name)

    def repeat(self, times: int) -> None:
        """Each row this many times, one after another."""
        if times > 1:
            self.cache.batch_repeat_interleave(times)
            self.places = {name: value.repeat_interleave(times, 0) for name, value in self.places.items()}
            self.logits = self.logits.repeat_interleave(times, 0)

    def step(self, chosen: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """The logits after one more token of each row."""
        if not self.name:
            self.rows = torch.cat([self.rows, chosen[:, None]], 1)
            return self._whole()
        self.places = _next_places(self.places)
        out: Any = self.model(input_ids=chosen[:, None], use_cache=True, **{self.name: self.cache}, **self.places)
        self.cache = out[self.name]
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def _whole(self) -> Float[Tensor, "N V"]:
        return self.model(input_ids=self.rows, use_cache=False, **self.last).logits[:, -1]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ScriptedSampler:
    """A sampler for tests: it answers each prompt (by its ids) with the branches of a script, in turn."""

    script: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]]
    tokenizer: Tokenizer = None

    def __call__(self, prompts: Sequence[TokenTree], samples: int, noise: Noise) -> Rollout:
        lines = [self.script[tree.prompt] for tree in prompts]
        trees = [
            TokenTree(tree.prompt, tuple(line[k % len(line)] for k in range(samples)), tree.group, row=tree.row)
            for tree, line in zip(prompts, lines, strict=True)
        ]
        return Rollout(trees, self.tokenizer)


def check_sampling(max_new_tokens: int, temperature: float) -> None:
    """Refuse settings under which nothing can be sampled.

    Raises:
        UserError: `max_new_tokens` is below 1, or `temperature` not above 0.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature is {temperature}; it must be above 0 (1 samples the policy itself)")


def draw(logits: Float[Tensor, "N V"], temperature: float, uniforms: Float[Tensor, "N"]) -> Int[Tensor, "N"]:
    """One token a row from softmax(logits / temperature): the first whose cumulative probability exceeds the row's
    uniform number, which lies in [0, 1].

    Probabilities are added up in float64, where the device has it: in float32 the tail of a wide vocabulary gets lost.
    A token of probability 0 is never drawn: it adds nothing to the sum, and the number sought stays below the whole.
    """
    cumulative = (logits.float() / temperature).softmax(1).cumsum(1, dtype=_wide(logits.device))
    whole = cumulative[:, -1:]
    sought = torch.minimum(uniforms.to(whole)[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, sought, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _wide(device: torch.device) -> torch.dtype:
    """float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def _check_finite(logps: Sequence[Float[Tensor, "N"]]) -> None:
    if not bool(torch.stack(list(logps)).isfinite().all()):
        raise FloatingPointError(
            "the policy's logits are NaN or infinite, so nothing can be sampled: its weights are broken, or products "
            "overflow (try model.precision fp32)"
        )


def _left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "G W"], dict[str, Tensor]]:
    """Prompts as rows with their positions and, for unequal lengths, the mask that hides the padding."""
    width = max(map(len, prompts))
    rows = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    if min(map(len, prompts)) == width:
        return rows, _positions(rows)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    return rows, {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def _positions(rows: Int[Tensor, "G W"]) -> dict[str, Tensor]:
    """The positions of rows without padding."""
    return {"position_ids": torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)}


def _next_places(places: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mask and positions of the next token, each where there is one."""
    found = {}
    if "attention_mask" in places:
        mask = places["attention_mask"]
        found["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    if "position_ids" in places:
        found["position_ids"] = places["position_ids"][:, -1:] + 1
    return found


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
