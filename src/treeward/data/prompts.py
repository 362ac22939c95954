"""Prompts to sample from: those of the data or, of texts without prompts, their first tokens.

A prompt that stands in several parts is kept in the one that is held out furthest (test, validation, train), so that
what is made of it cannot leak.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from treeward.data import store
from treeward.data.prepare import DataConfig, Prepared, Reading, prepare, source_rows
from treeward.data.splits import PARTS, Part, unit
from treeward.errors import UserError
from treeward.trees.text import Prompt as Text
from treeward.trees.text import normalised
from treeward.trees.tokens import Tokenizer, decode


@dataclass(frozen=True)
class Prompt:
    """A prompt as text (or messages) and as the ids that sampling starts from, with its group and its part."""

    text: Text
    ids: tuple[int, ...]
    group: str
    split: Part


@dataclass(frozen=True)
class Opened:
    """Every prompt once; what was left out and why; how many were cut on the left at data.max_prompt, those left out
    among them; whether the data gave them, so that their answers should end; and how many stand in each part before a
    selection."""

    prompts: list[Prompt]
    dropped: Counter[str]
    cut: int
    given: bool
    parts: Counter[Part]


def openings(config: DataConfig, tokenizer: Tokenizer, tokens: tuple[int, int]) -> Opened:
    """The prompts of a source. `tokens` are the fewest and most of a text's first tokens; the number is drawn by the
    text and data.seed alone.

    Raises:
        UserError: the source cannot be read, or nothing is left.
    """
    data = None if _is_text(config) else prepare(config, tokenizer, "prompts")
    given = data is not None and data.format != "text"
    if data is not None and given:
        prompts, dropped, cut = _given(data), data.account.dropped, data.account.cut["prompt"]
    else:
        prompts, dropped = _first_tokens(config, tokenizer, tokens)
        cut = 0
    kept: dict[str, Prompt] = {}
    for prompt in sorted(prompts, key=lambda prompt: -PARTS.index(prompt.split)):
        dropped["repeated prompts"] += prompt.group in kept
        kept.setdefault(prompt.group, prompt)
    if not kept:
        raise UserError(f"data.source {config.source!r} leaves no prompt: {dict(dropped)}")
    left = [prompt for prompt in prompts if kept[prompt.group] is prompt]
    return Opened(left, +dropped, cut, given, Counter(prompt.split for prompt in left))


def drawn(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """This many prompts, those that come first by the hash of their names and the seed, in the order given."""
    first = {p.group for p in sorted(prompts, key=lambda prompt: unit(prompt.group, seed, "prompts"))[:count]}
    return [prompt for prompt in prompts if prompt.group in first]


def _is_text(config: DataConfig) -> bool:
    """Whether the rows are texts without prompts; prepared data says so itself."""
    if store.is_prepared(config.source):
        return False
    return Reading.of(source_rows(config), config, "prompts").format == "text"


def _given(data: Prepared) -> list[Prompt]:
    return [
        Prompt(text.prompt, ids.prompt, ids.group, part)
        for part in PARTS for text, ids in zip(data.texts[part], data.parts[part], strict=True)
    ]  # fmt: skip


def _first_tokens(
    config: DataConfig, tokenizer: Tokenizer, tokens: tuple[int, int]
) -> tuple[list[Prompt], Counter[str]]:
    low, high = tokens
    data = prepare(replace(config, max_response=max(config.max_response, high + 2)), tokenizer, "sft")
    found, dropped = [], data.account.dropped
    for part in PARTS:
        for tree in data.parts[part]:
            count = low + int(unit(tree.group, config.seed, "first tokens") * (high - low + 1))
            ids = tree.branches[0][:count]
            text = decode(ids, tokenizer)
            if len(tree.branches[0]) <= count + 1 or not text.strip():
                dropped["texts no longer than their opening"] += 1
                continue
            found.append(Prompt(text, tree.prompt + ids, normalised(text), part))
    return found, dropped
