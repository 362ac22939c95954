"""Sampling: from a policy by our own decoding loop, or from a script for tests.

Tokens are sampled from softmax(logits / temperature). There is no top-k, top-p or penalty, because the log-probability
of a sample would no longer be the policy's. The prompt is prefilled once for its K samples where the cache can be
repeated. The next token is drawn by inverting the cumulative distribution. A sample is its ids, with the
log-probability of each; text is decoded only where it is needed.

Letters: N rows, V vocabulary, L tokens of a branch, G prompts, W their padded width, K samples a prompt.
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
from treeward.trees.verify import (
    CALL_ERRORS,
    PROBE_TOKENS,
    VALUE_LIMIT,
    first_line,
    is_out_of_memory,
    verify_once,
)

log = logging.getLogger(__name__)

CACHE_NAMES = ("past_key_values", "cache_params")
"""The names under which public classes return and take their cache."""
END_CHECK_TOKENS = 8
"""Tokens between two checks whether all rows have ended, since on a GPU each check makes the host wait for the device.
On the CPU every token is checked."""
CACHE_TEST_TOKENS = 6
"""Tokens that are decoded to compare a cache with a plain call."""


@dataclass(frozen=True)
class Noise:
    """The random numbers of samples, as a function of seed, member, step, prompt, sample index and position only.

    They do not depend on the batch, the order of the prompts, the layout or the number of processes. `step` is the
    optimizer step of the weights that are sampled, `member` the number of the model among several.
    """

    seed: int
    member: int = 0
    step: int = 0

    def uniforms(self, row: str, sample: int, count: int) -> Floats:
        """`count` numbers in [0, 1), one a position, for the `sample`-th response to `row`. A larger count only adds
        numbers at the end.

        Philox-4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with a hash of all arguments as
        its key: the p-th number is the p-th output of the counter.
        """
        facts = repr(("treeward sampling", self.seed, self.member, self.step, row, sample))
        key = int.from_bytes(hashlib.sha256(facts.encode()).digest()[:16], "little")
        raw: Any = np.random.Philox(key=key).random_raw(count)
        return np.asarray((raw >> 11) * 2.0**-53, dtype=np.float64)


def row_ids(prompts: Sequence[TokenTree]) -> list[str]:
    """The names by which `Noise` tells prompts apart: group, ids of the prompt, and a count of equal ones before.

    So equal prompts of one call get noise of their own. Equal prompts in several calls get the same noise unless their
    groups differ.
    """
    counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
    names = []
    for tree in prompts:
        key = tree.group, tree.prompt
        names.append(repr((*key, counts[key])))
        counts[key] += 1
    return names


@runtime_checkable
class Sampler(Protocol):
    """Samples K = `samples` branches for each prompt, in order."""

    def __call__(self, prompts: Sequence[TokenTree], samples: int, noise: Noise) -> Rollout: ...


@runtime_checkable
class SyncedSampler(Sampler, Protocol):
    """A sampler with weights of its own, such as another engine: it must be given the policy's before each rollout."""

    def sync(self, policy: Policy) -> None:
        """Take over the policy's weights."""
        ...

    def logps(self, trees: Sequence[TokenTree]) -> Sequence[Sequence[Float[Tensor, "_"]]]:
        """log pi of each token of each tree's branches under its weights, to compare with the policy's."""
        ...


@dataclass(frozen=True)
class DecodeSampler:
    """Samples from a policy.

    A response ends with the first of `end_ids`, or after `max_new_tokens`. `batch` is the number of rows that are
    decoded at a time.
    """

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
        """A sampler of this policy; every call uses its weights at that time."""
        return cls(policy.packed, policy.end_ids, max_new_tokens, temperature, tokenizer=policy.tokenizer)

    def __call__(self, prompts: Sequence[TokenTree], samples: int, noise: Noise) -> Rollout:
        """Sample K = `samples` branches for each prompt, with the noise of `row_ids(prompts)`.

        The layout is verified first, for paths as long as the longest possible sample, and the class's cache is
        compared with a plain call. In the tree layout prompts of different lengths are decoded together, padded on the
        left with the padding masked; in any other layout only prompts of equal length are.

        Raises:
            UserError: a sample might be longer than the model's positions, or the layout deviates from plain calls.
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
            self._detect_cache(max((tree.prompt for tree in prompts), key=len))
        names = row_ids(prompts)
        sampled: dict[int, list[_Sampled]] = {}
        mixed_lengths = self.packed.backend == "tree" and bool(self.packed.cache_name)
        for batch in _batches(prompts, max(1, self.batch // samples), mixed_lengths):
            uniforms = [noise.uniforms(names[n], k, self.max_new_tokens) for n in batch for k in range(samples)]
            rows = self._decode([prompts[n].prompt for n in batch], samples, np.stack(uniforms))
            sampled |= {n: rows[i * samples : (i + 1) * samples] for i, n in enumerate(batch)}
        return Rollout(
            [
                TokenTree(tree.prompt, tuple(ids for ids, _, _ in sampled[n]), tree.group, row=tree.row)
                for n, tree in enumerate(prompts)
            ],
            self.tokenizer,
            [[logps for _, logps, _ in sampled[n]] for n in range(len(prompts))],
            [[drawn_logps for _, _, drawn_logps in sampled[n]] for n in range(len(prompts))],
            finished=[[ids[-1] in self.end_ids for ids, _, _ in sampled[n]] for n in range(len(prompts))],
        )

    def _probes(self, prompts: Sequence[tuple[int, ...]]) -> list[TokenTree]:
        """Trees of two branches made of the prompts' own ids, one of them with the longest path that may be sampled."""
        longest = max(prompts, key=len)
        sample = (longest * math.ceil(self.max_new_tokens / len(longest)))[: self.max_new_tokens]
        length = min(PROBE_TOKENS, self.max_new_tokens)

        def first_ids(ids: tuple[int, ...]) -> tuple[int, ...]:
            return (ids * length)[:length]

        return [
            TokenTree(longest, (sample, first_ids(longest[::-1]))),
            *(TokenTree(prompt, (first_ids(prompt), first_ids(prompt[::-1]))) for prompt in prompts),
        ]

    def _detect_cache(self, prompt: tuple[int, ...]) -> None:
        """Set `cache_name` once for each model: the name of a cache that gives the numbers of a plain call, else "".

        Without such a cache each step of decoding runs the whole row again.
        """
        if self.packed.cache_name is not None:
            return
        positions, steps = self.packed.positions, CACHE_TEST_TOKENS
        prompt = prompt[: 32 if positions is None else max(1, min(32, positions - steps))]
        ids = torch.tensor([prompt + (prompt * steps)[:steps]], device=self.packed.device)
        precision, self.packed.precision = self.packed.precision, "fp32"
        reason = "it returns none"
        try:
            plain = self.packed.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            decoder = _Decoder(self.packed, ids[:, : len(prompt)], _positions(ids[:, : len(prompt)]))
            stepwise = [decoder.logits, *(decoder.step(ids[:, n]) for n in range(len(prompt), ids.shape[1] - 1))]
            logps = [token_logps(logits, ids[0, len(prompt) :]) for logits in (plain, torch.cat(stepwise))]
            deviation = (logps[0] - logps[1]).abs().max().item()
            self.packed.cache_name, reason = decoder.cache_name, f"it is off by {deviation:.2g} nats"
            if not deviation <= VALUE_LIMIT:
                self.packed.cache_name = ""
        except CALL_ERRORS as problem:
            if is_out_of_memory(problem):
                raise
            self.packed.cache_name, reason = "", first_line(problem)
        finally:
            self.packed.precision = precision
        if not self.packed.cache_name:
            log.info("%s is decoded without its cache, which is slower: %s", type(self.packed.model).__name__, reason)

    def _decode(
        self, prompts: Sequence[tuple[int, ...]], samples: int, uniforms: Float[np.ndarray, "N L"]
    ) -> list["_Sampled"]:
        """The K samples of each prompt of one batch, one after another.

        All random numbers are given in advance, so that the device never waits for the host to draw them.
        """
        device = self.packed.device
        end_ids = torch.tensor(self.end_ids, device=device)
        repeats = samples if self.packed.backend == "tree" and self.packed.cache_name else 1
        if repeats == 1:
            prompts = [prompt for prompt in prompts for _ in range(samples)]
        noise = torch.from_numpy(uniforms).to(_widest_float(device)).to(device)
        tokens: list[Tensor] = []
        logps: list[Tensor] = []
        drawn_logps: list[Tensor] = []
        check_every = 1 if device.type == "cpu" else END_CHECK_TOKENS
        with torch.no_grad(), self.packed.autocast():
            decoder = _Decoder(self.packed, *_left_padded(prompts, device))
            decoder.repeat(repeats)
            ended = torch.zeros(len(noise), dtype=torch.bool, device=device)
            for position in range(self.max_new_tokens):
                logits = decoder.step(tokens[-1]) if tokens else decoder.logits
                tokens.append(draw(logits, self.temperature, noise[:, position]))
                logps.append(token_logps(logits, tokens[-1]))
                if self.temperature != 1:
                    drawn_logps.append(token_logps(logits.float() / self.temperature, tokens[-1]))
                ended |= torch.isin(tokens[-1], end_ids)
                if position % check_every == check_every - 1 or position == self.max_new_tokens - 1:
                    _check_finite(logps[-check_every:])
                    if bool(ended.all()):
                        break
        of_policy = torch.stack(logps, 1).cpu()
        of_drawn = torch.stack(drawn_logps, 1).cpu() if drawn_logps else of_policy
        rows = [_until_end(row, set(self.end_ids)) for row in torch.stack(tokens, 1).tolist()]
        return [(ids, of_policy[n, : len(ids)], of_drawn[n, : len(ids)]) for n, ids in enumerate(rows)]


_Sampled = tuple[tuple[int, ...], Tensor, Tensor]
"""The ids of a response, and the log-probability of each under the policy and under the distribution sampled from."""


class _Decoder:
    """Rows that are continued token by token: with the class's cache, or by running the whole row where it has none.

    `logits` are those after the prompt. Mask and positions are passed wherever the class takes them: some classes count
    positions by themselves while decoding, others (Bamba) restart at 0 with every token.
    """

    def __init__(self, packed: TreeLM, rows: Int[Tensor, "G W"], mask_and_positions: dict[str, Tensor]) -> None:
        parameters = signature(packed.model.forward).parameters
        self.model = packed.model
        self.rows = rows
        self.mask_and_positions = {name: value for name, value in mask_and_positions.items() if name in parameters}
        self.last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.cache_name = ""
        self.logits: Tensor
        if packed.cache_name == "":
            self.logits = self._run_whole_rows()
            return
        out: Any = self.model(input_ids=rows, use_cache=True, **self.last_only, **self.mask_and_positions)
        self.logits = out.logits[:, -1]
        names = (name for name in CACHE_NAMES if name in parameters and out.get(name) is not None)
        self.cache_name = next(names, "")
        self.cache = out.get(self.cache_name)

    def repeat(self, times: int) -> None:
        """Repeat each row this many times, the copies one after another."""
        if times > 1:
            self.cache.batch_repeat_interleave(times)
            self.mask_and_positions = {
                name: value.repeat_interleave(times, 0) for name, value in self.mask_and_positions.items()
            }
            self.logits = self.logits.repeat_interleave(times, 0)

    def step(self, tokens: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """The logits after one more token of each row."""
        if not self.cache_name:
            self.rows = torch.cat([self.rows, tokens[:, None]], 1)
            return self._run_whole_rows()
        self.mask_and_positions = _next_mask_and_positions(self.mask_and_positions)
        cache = {self.cache_name: self.cache}
        out: Any = self.model(input_ids=tokens[:, None], use_cache=True, **cache, **self.mask_and_positions)
        self.cache = out[self.cache_name]
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def _run_whole_rows(self) -> Float[Tensor, "N V"]:
        out: Any = self.model(input_ids=self.rows, use_cache=False, **self.last_only)
        return out.logits[:, -1]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ScriptedSampler:
    """A sampler for tests: it answers each prompt with the branches that `script` has for its ids, in turn."""

    script: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]]
    tokenizer: Tokenizer = None

    def __call__(self, prompts: Sequence[TokenTree], samples: int, noise: Noise) -> Rollout:
        answers = [self.script[tree.prompt] for tree in prompts]
        trees = [
            TokenTree(tree.prompt, tuple(branches[k % len(branches)] for k in range(samples)), tree.group, row=tree.row)
            for tree, branches in zip(prompts, answers, strict=True)
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
    uniform number in [0, 1].

    Probabilities are added in float64 where the device has it; in float32 the tail of a large vocabulary is lost. A
    token of probability 0 is never drawn: it adds nothing to the sum, and the target is below the total.
    """
    cumulative = (logits.float() / temperature).softmax(1).cumsum(1, dtype=_widest_float(logits.device))
    total = cumulative[:, -1:]
    target = torch.minimum(uniforms.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _widest_float(device: torch.device) -> torch.dtype:
    """float64, except on MPS, which does not have it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _check_finite(logps: Sequence[Float[Tensor, "N"]]) -> None:
    if not bool(torch.stack(list(logps)).isfinite().all()):
        raise FloatingPointError(
            "the policy's logits are NaN or infinite, so nothing can be sampled: its weights are broken, or matrix "
            "products overflow (try model.precision fp32)"
        )


def _left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "G W"], dict[str, Tensor]]:
    """Prompts as rows, their positions and, where lengths differ, the mask of the padding on the left."""
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


def _next_mask_and_positions(current: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mask and position of the next token, each if it is in `current`."""
    following = {}
    if "attention_mask" in current:
        mask = current["attention_mask"]
        following["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    if "position_ids" in current:
        following["position_ids"] = current["position_ids"][:, -1:] + 1
    return following


def _batches(prompts: Sequence[TokenTree], size: int, mixed_lengths: bool) -> Iterator[list[int]]:
    """The indices of the prompts that are decoded together, shortest prompts first."""
    by_length: dict[int, list[int]] = {}
    for index, tree in sorted(enumerate(prompts), key=lambda item: len(item[1].prompt)):
        by_length.setdefault(0 if mixed_lengths else len(tree.prompt), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _until_end(row: Sequence[int], end_ids: set[int]) -> tuple[int, ...]:
    """The row up to its first end token, which is included."""
    for index, token in enumerate(row):
        if token in end_ids:
            return tuple(row[: index + 1])
    return tuple(row)
