"""Prompts to sample from: those of the data or, of texts without prompts, their first tokens.

A prompt that is in several parts is kept in only one (test before validation before train), so that what is sampled
from it cannot leak into training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from treeward.data import store
from treeward.data.account import Account
from treeward.data.prepare import DataConfig, Reading, prepare, source_rows
from treeward.data.splits import PARTS, Part, unit
from treeward.data.store import Prepared
from treeward.errors import UserError
from treeward.trees.text import Prompt as Text
from treeward.trees.text import Tree, normalised
from treeward.trees.tokens import Tokenizer, TokenTree, decode

REPEATED = "repeated prompts"
"""The reason for which a prompt is left out that is there already."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text (or messages) and as the ids that sampling starts from, with its group and its part.

    `row` holds the data row's other columns, for scorers; it takes no part in equality.
    """

    text: Text
    ids: tuple[int, ...]
    group: str
    split: Part
    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Opened:
    """Every prompt of a source once.

    `dropped` counts the prompts left out, by reason; `cut` counts those cut on the left at data.max_prompt, the left
    out ones included. `from_data`: the prompts came from the data, so responses should reach EOS. `parts` counts the
    prompts of each part before a selection.
    """

    prompts: list[Prompt]
    dropped: Counter[str]
    cut: int
    from_data: bool
    parts: Counter[Part]


def openings(config: DataConfig, tokenizer: Tokenizer, tokens: tuple[int, int]) -> Opened:
    """The prompts of a source. `tokens` are the fewest and most of a text's first tokens; the number is drawn by the
    text and data.seed alone.

    Raises:
        UserError: the source cannot be read, or nothing is left.
    """
    data = None if _has_texts_only(config) else prepare(config, tokenizer, "prompts")
    from_data = data is not None and data.format != "text"
    if data is not None and from_data:
        prompts, dropped, cut = _given(data), data.account.dropped, data.account.cut["prompt"]
    else:
        prompts, dropped = _first_tokens(config, tokenizer, tokens)
        cut = 0
    first: dict[str, Prompt] = {}
    for prompt in sorted(prompts, key=lambda prompt: -PARTS.index(prompt.split)):
        dropped[REPEATED] += prompt.group in first
        first.setdefault(prompt.group, prompt)
    if not first:
        raise UserError(f"data.source {config.source!r} leaves no prompt: {dict(dropped)}")
    distinct = [prompt for prompt in prompts if first[prompt.group] is prompt]
    return Opened(distinct, +dropped, cut, from_data, Counter(prompt.split for prompt in distinct))


def prompt_range(prompt_tokens: int | tuple[int, int]) -> tuple[int, int]:
    """The fewest and most tokens of a prompt that is cut from a text, of the option `prompt_tokens`.

    Raises:
        UserError: they are not numbers from 1, in order.
    """
    low, high = prompt_tokens if isinstance(prompt_tokens, tuple) else (prompt_tokens, prompt_tokens)
    if not 1 <= low <= high:
        raise UserError(f"prompt_tokens is {prompt_tokens}; it is a number from 1, or [fewest, most]")
    return low, high


def prepare_prompts(config: DataConfig, tokenizer: Tokenizer, tokens: tuple[int, int]) -> Prepared:
    """The prompts of a source as trees without responses: those of the data or, of texts, their first tokens.

    Raises:
        UserError: the source cannot be read, or nothing is left.
    """
    if not _has_texts_only(config):
        data = prepare(config, tokenizer, "prompts")
        if data.format != "text":
            return data
    opened = openings(config, tokenizer, tokens)
    repeated = opened.dropped.pop(REPEATED, 0)  # several texts with one opening are no loss
    account = Account(
        rows=len(opened.prompts) + opened.dropped.total(),
        used=len(opened.prompts),
        dropped=opened.dropped,
        made="prompts",
        layout=f"the first {tokens[0]} to {tokens[1]} tokens of each text; {repeated} texts repeat an opening",
    )
    by_part = {part: [prompt for prompt in opened.prompts if prompt.split == part] for part in PARTS}
    return Prepared(
        {part: [TokenTree(p.ids, (), p.group, row=p.row) for p in prompts] for part, prompts in by_part.items()},
        {part: [Tree(p.text, (), p.group, row=p.row) for p in prompts] for part, prompts in by_part.items()},
        account,
        "text",
    )


def drawn(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """`count` prompts, chosen by the hash of their groups and the seed, in the order given; None for all."""
    first = {p.group for p in sorted(prompts, key=lambda prompt: unit(prompt.group, seed, "prompts"))[:count]}
    return [prompt for prompt in prompts if prompt.group in first]


def _has_texts_only(config: DataConfig) -> bool:
    """Whether the rows are texts without prompts; of prepared data `Prepared.format` tells."""
    if store.is_prepared(config.source):
        return False
    return Reading.of(source_rows(config), config, "prompts").format == "text"


def _given(data: Prepared) -> list[Prompt]:
    return [
        Prompt(text.prompt, ids.prompt, ids.group, part, text.row)
        for part in PARTS
        for text, ids in zip(data.texts[part], data.parts[part], strict=True)
    ]


def _first_tokens(
    config: DataConfig, tokenizer: Tokenizer, tokens: tuple[int, int]
) -> tuple[list[Prompt], Counter[str]]:
    low, high = tokens
    data = prepare(replace(config, max_response=max(config.max_response, high + 2)), tokenizer, "sft")
    prompts, dropped = [], data.account.dropped
    for part in PARTS:
        for tree in data.parts[part]:
            count = low + int(unit(tree.group, config.seed, "first tokens") * (high - low + 1))
            ids = tree.branches[0][:count]
            text = decode(ids, tokenizer)
            if len(tree.branches[0]) <= count + 1 or not text.strip():
                dropped["texts no longer than their opening"] += 1
                continue
            prompts.append(Prompt(text, tree.prompt + ids, normalised(text), part, tree.row))
    return prompts, dropped
