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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

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
LEAVING_SHARE = 8
"""Rows leave the cache when one in so many has ended: each time what stays is copied."""
ROOM = 64
"""Tokens that a cache has room for each time it grows."""
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
        mixed_lengths = self.packed.backend == "tree" and bool(self.packed.cache_name)
        sampled: dict[int, list[_Sampled]] = {}
        for group in _groups(prompts, mixed_lengths):
            uniforms = [noise.uniforms(names[n], k, self.max_new_tokens) for n in group for k in range(samples)]
            rows = self._decode([prompts[n].prompt for n in group], samples, np.stack(uniforms))
            sampled |= {n: rows[i * samples : (i + 1) * samples] for i, n in enumerate(group)}
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
        """The K samples of each prompt, one after another.

        At most `batch` rows are decoded at a time. Where the cache can be cut and joined, rows that have ended leave it
        and waiting prompts take their place; elsewhere a batch is decoded to its end. All random numbers are given in
        advance, so that the device never waits for the host to draw them.
        """
        device = self.packed.device
        shared = self.packed.backend == "tree" and bool(self.packed.cache_name)
        samples_of_prefill = samples if shared else 1
        waiting = list(prompts) if shared else [prompt for prompt in prompts for _ in range(samples)]
        drawing = _Drawing(uniforms, self.temperature, self.end_ids, device)
        check_every = 1 if device.type == "cpu" else END_CHECK_TOKENS
        decoder: _Decoder | None = None
        active = torch.zeros(0, dtype=torch.long, device=device)
        last, begun, steps = active, 0, 0
        with torch.no_grad(), self.packed.autocast():
            while decoder is not None or begun < len(waiting):
                free = self.batch - len(active)
                fits = max(free // samples_of_prefill, 0 if len(active) else 1)
                if begun < len(waiting) and (
                    decoder is None or (decoder.flexible and fits and free >= self.batch // 4)
                ):
                    entering = waiting[begun : begun + fits]
                    new = _Decoder(self.packed, *_left_padded(entering, device))
                    new.repeat(samples_of_prefill)
                    first = begun * samples_of_prefill
                    rows = torch.arange(first, first + len(entering) * samples_of_prefill, device=device)
                    begun += len(entering)
                    last = torch.cat([last, drawing.take(new.logits, rows)])
                    active = torch.cat([active, rows])
                    decoder = new if decoder is None else decoder.joined(new)
                else:
                    assert decoder is not None
                    last = drawing.take(decoder.step(last), active)
                steps += 1
                if steps % check_every:
                    continue
                drawing.check_finite()
                going_on = (~drawing.done[active]).nonzero()[:, 0]
                if not len(going_on):
                    decoder, active, last = None, active[:0], last[:0]
                elif decoder.flexible and len(active) - len(going_on) >= max(1, len(active) // LEAVING_SHARE):
                    decoder.keep(going_on)
                    active, last = active[going_on], last[going_on]
        return drawing.samples()


_Sampled = tuple[tuple[int, ...], Tensor, Tensor]
"""The ids of a response, and the log-probability of each under the policy and under the distribution sampled from."""


class _Drawing:
    """The tokens drawn so far of all N rows, with their log-probabilities, and which rows are done."""

    def __init__(
        self, uniforms: Float[np.ndarray, "N L"], temperature: float, end_ids: Sequence[int], device: torch.device
    ) -> None:
        self.noise = torch.from_numpy(uniforms).to(_widest_float(device)).to(device)
        self.temperature = temperature
        self.ends = tuple(end_ids)
        self.end_ids = torch.tensor(self.ends, device=device)
        self.tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self.done = torch.zeros(len(uniforms), dtype=torch.bool, device=device)
        self.lengths = torch.zeros(len(uniforms), dtype=torch.long, device=device)
        self.logps: Tensor | None = None
        self.drawn_logps: Tensor | None = None

    def take(self, logits: Float[Tensor, "n V"], rows: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Draw the next token of these rows from their logits; rows that are done keep what they have."""
        place = self.lengths[rows].clamp(max=self.tokens.shape[1] - 1)
        drawn = draw(logits, self.temperature, self.noise[rows, place])
        logps = token_logps(logits, drawn)
        going_on = ~self.done[rows]
        self.tokens[rows, place] = torch.where(going_on, drawn, self.tokens[rows, place])
        self.logps = self._put(self.logps, rows, place, logps, going_on)
        if self.temperature != 1:
            warped = token_logps(logits.float() / self.temperature, drawn)
            self.drawn_logps = self._put(self.drawn_logps, rows, place, warped, going_on)
        self.lengths[rows] += going_on.long()
        self.done[rows] |= torch.isin(drawn, self.end_ids) | (self.lengths[rows] == self.tokens.shape[1])
        return drawn

    def _put(self, into: Tensor | None, rows: Tensor, place: Tensor, values: Tensor, where: Tensor) -> Tensor:
        into = torch.zeros(self.tokens.shape, dtype=values.dtype, device=values.device) if into is None else into
        into[rows, place] = torch.where(where, values, into[rows, place])
        return into

    def check_finite(self) -> None:
        """Refuse a policy whose log-probabilities are not finite."""
        if self.logps is not None and not bool(self.logps.isfinite().all()):
            raise FloatingPointError(
                "the policy's logits are NaN or infinite, so nothing can be sampled: its weights are broken, or matrix "
                "products overflow (try model.precision fp32)"
            )

    def samples(self) -> list["_Sampled"]:
        """All rows, each up to its first end token."""
        assert self.logps is not None
        logps = self.logps.cpu()
        drawn_logps = logps if self.drawn_logps is None else self.drawn_logps.cpu()
        lengths = self.lengths.tolist()
        return [
            (tuple(ids[:length]), logps[n, :length].clone(), drawn_logps[n, :length].clone())
            for n, (ids, length) in enumerate(zip(self.tokens.tolist(), lengths, strict=True))
        ]


class _Rows(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, with room for more tokens, so that a step does not copy what is there."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, layer: Any) -> "_Rows":
        """The same contents."""
        rows = cls()
        rows.lazy_initialization(layer.keys, layer.values)
        rows.keys, rows.values = layer.keys, layer.values
        return rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values behind those that are there."""
        width = self.keys.shape[2] + key_states.shape[2]
        if self.room is None or self.room[0].shape[2] < width:
            room = [old.new_empty((*old.shape[:2], width + ROOM, old.shape[3])) for old in (self.keys, self.values)]
            for new, old in zip(room, (self.keys, self.values), strict=True):
                new[:, :, : old.shape[2]] = old
            self.room = room[0], room[1]
        self.room[0][:, :, self.keys.shape[2] : width] = key_states
        self.room[1][:, :, self.keys.shape[2] : width] = value_states
        self.keys, self.values = (each[:, :, :width] for each in self.room)
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values become these."""
        self.keys, self.values, self.room = keys, values, None


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
        self.flexible = False
        self.logits: Tensor
        if packed.cache_name == "":
            self.logits = self._run_whole_rows()
            return
        out: Any = self.model(input_ids=rows, use_cache=True, **self.last_only, **self.mask_and_positions)
        self.logits = out.logits[:, -1]
        names = (name for name in CACHE_NAMES if name in parameters and out.get(name) is not None)
        self.cache_name = next(names, "")
        self.cache = out.get(self.cache_name)
        self.flexible = (
            packed.backend == "tree"
            and {"attention_mask", "position_ids"} <= parameters.keys()
            and isinstance(self.cache, DynamicCache)
            and all(type(layer) is DynamicLayer and layer.keys.ndim == 4 for layer in self.cache.layers)
        )
        """Whether rows can leave and join: a plain cache of keys and values, with mask and positions."""
        if self.flexible:
            self.cache.layers = [_Rows.of(layer) for layer in self.cache.layers]
            self.mask_and_positions.setdefault("attention_mask", torch.ones_like(rows))

    def keep(self, rows: Int[Tensor, "n"]) -> None:
        """Continue with these rows only, and drop what none of them attends to on the left."""
        self.mask_and_positions = {name: value[rows] for name, value in self.mask_and_positions.items()}
        mask = self.mask_and_positions["attention_mask"]
        unused = int(mask.long().argmax(1).min())
        self.mask_and_positions["attention_mask"] = mask[:, unused:]
        for layer in self.cache.layers:
            layer.replace(layer.keys[rows, :, unused:], layer.values[rows, :, unused:])

    def joined(self, other: "_Decoder") -> "_Decoder":
        """These rows and those of another decoder, the shorter ones padded on the left."""
        widths = [each.mask_and_positions["attention_mask"].shape[1] for each in (self, other)]
        missing = [max(widths) - width for width in widths]
        masks = [
            pad(each.mask_and_positions["attention_mask"], (count, 0))
            for each, count in zip((self, other), missing, strict=True)
        ]
        positions = [each.mask_and_positions["position_ids"][:, -1:] for each in (self, other)]
        self.mask_and_positions = {"attention_mask": torch.cat(masks), "position_ids": torch.cat(positions)}

        def stacked(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.cat([pad(ours, (0, 0, missing[0], 0)), pad(theirs, (0, 0, missing[1], 0))])

        for layer, new in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.replace(stacked(layer.keys, new.keys), stacked(layer.values, new.values))
        return self

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


def _groups(prompts: Sequence[TokenTree], mixed_lengths: bool) -> list[list[int]]:
    """The indices of the prompts that may be decoded together, shortest prompts first."""
    by_length: dict[int, list[int]] = {}
    for index, tree in sorted(enumerate(prompts), key=lambda item: len(item[1].prompt)):
        by_length.setdefault(0 if mixed_lengths else len(tree.prompt), []).append(index)
    return list(by_length.values())
