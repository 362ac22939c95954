"""The whole way from a source to token trees: read, format, split by group, pair, render, drop and count."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from treeward.data import formats, sources, store
from treeward.data.batched import token_trees
from treeward.data.render import Account, Tokenizer
from treeward.data.shapes import Purpose, pair_labelled, replace_responses, shaped
from treeward.data.splits import PARTS, Edges, Part, Shares, edges, named, part_at, unit
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

UNPAIRED = "text without a partner of the other label"
IDENTICAL = "identical after truncation"
"""Trees dropped because fewer than two branches differ, and branches dropped because a better one has their ids."""
REPEATED = "response that stands in its ranking twice"
"""Branches dropped because a better one has their text."""
VerdictPart = Literal["test", "validation", "half of validation"]
COMPARED = ("pairs", "ranked", "unpaired")
"""The purposes for which two branches with the same ids say nothing."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is, how it is read, split and cut."""

    source: str = "world"
    """A file (jsonl, jsonl.gz, json, parquet, csv), a directory (also one of `inspect --save`), a hub id, or `world`
    / `world-texts` (embedded)."""
    format: str = "auto"
    """preference, transcripts, graded, helpsteer, messages, completion, labelled, text, prompts; auto goes by the
    columns."""
    split: str | None = None
    """Read only this split of a source that has several, and part its rows anew; null reads all, each in its part. The
    rows of a single file are its `train`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Renames: {ours: theirs}, such as {prompt: instruction}; {subset: category} reports each category apart."""
    limit: int | None = None
    """Read only this many rows."""
    turns: Literal["last", "all"] = "last"
    """In sft on dialogues: train on the last assistant turn, or on each."""
    validation: float = 0.1
    """Share of the groups on which the best step is chosen; a `split` column in the data goes first."""
    test: float = 0.1
    """Share of the groups on which before and after are measured; a `split` column goes first. Without any, half of the
    validation groups serve, and the other half chooses the best step."""
    shares: Shares = "expected"
    """expected: each group falls by its own chance, and new rows move no old ones; exact: the parts have the nearest
    count of rows that cuts no group."""
    max_prompt: int = 512
    """Longest prompt in tokens; a longer one is cut on the left."""
    max_response: int = 512
    """Longest response in tokens, end token included; a longer one is cut on the right and gets no end token."""
    seed: int = 0
    """Seeds the splits, the pairing of labelled texts and the embedded world."""

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise ValueError(f"data.validation {self.validation} and data.test {self.test}: their sum must be below 1")
        for name in ("max_prompt", "max_response"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is {self.limit}; it must be at least 1")


@dataclass
class Prepared:
    """Token trees and the texts they came from, by part, in equal order; and the account of what was lost."""

    parts: dict[Part, list[TokenTree]]
    texts: dict[Part, list[Tree]]
    account: Account
    format: str
    best_accuracy: float | None = None
    verdict_on: VerdictPart = "test"
    """Which groups are measured before and after; `apart` decides."""

    @property
    def train(self) -> list[TokenTree]:
        """The trees to train on."""
        return self.parts["train"]

    @property
    def held_out(self) -> list[TokenTree]:
        """The trees to measure before and after on; after `apart` nothing is chosen on their groups."""
        return self.parts["test"]

    def apart(self, chooses: bool, seed: int) -> "Prepared":
        """The same trees, with a test part on whose groups nothing is chosen.

        `chooses`: the run compares several checkpoints on the validation part. A given test part stays; validation
        trees whose group is in it go. Without one the validation groups serve: half of them, by a hash of their own,
        become the test part, and all of them where nothing is chosen.
        """
        test = {tree.group for tree in self.parts["test"]}
        groups = {tree.group for tree in self.parts["validation"]}
        if test:
            shared = groups & test
            if not shared:
                return self
            log.info("%d validation groups stand in the test part too, which gives the verdict: they choose nothing",
                     len(shared))  # fmt: skip
            return self._moved(lambda part, group: None if part == "validation" and group in shared else part)
        judging = groups
        if chooses:
            ranked = sorted(groups, key=lambda group: unit(f"gives the verdict: {group}", seed))
            judging = set(ranked[: (len(ranked) + 1) // 2])
        found = self._moved(lambda part, group: "test" if part == "validation" and group in judging else part)
        return replace(found, verdict_on="half of validation" if chooses else "validation")

    def verdict_facts(self) -> dict[str, Any]:
        """`groups` that give the verdict, from which `part`; the checkpoint is chosen on `chosen_on` other groups."""
        groups, chosen_on = (len({tree.group for tree in self.parts[part]}) for part in ("test", "validation"))
        return {"groups": groups, "chosen_on": chosen_on, "part": self.verdict_on}

    def _moved(self, place: Callable[[Part, str], Part | None]) -> "Prepared":
        """Every tree in the part that `place` names for its part and group; None leaves it out."""
        parts: dict[Part, list[TokenTree]] = {part: [] for part in PARTS}
        texts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
        for part in PARTS:
            for tokens, text in zip(self.parts[part], self.texts[part], strict=True):
                to = place(part, tokens.group)
                if to is not None:
                    parts[to].append(tokens)
                    texts[to].append(text)
        return replace(self, parts=parts, texts=texts)


def prepare(config: DataConfig, tokenizer: Tokenizer, purpose: Purpose) -> Prepared:
    """Read `config.source` and render it for a purpose: "pairs" (two branches, chosen first), "ranked" (several, best
    first), "graded" (rated ones), "unpaired" (one with a label, or a pair), "sft" (one) or "prompts" (none).

    Raises:
        ValueError: the source, a column or a value is wrong, or nothing is left to train on.
    """
    if store.is_prepared(config.source):
        return Prepared(**vars(store.load(config.source, asdict(config), asdict(DataConfig()), tokenizer, purpose)))
    found = sources.rows(config.source, config.split, config.limit, config.seed)
    prepared = rendered(found, Reading.of(found[0], config, purpose), tokenizer)
    if not prepared.account.used:
        raise ValueError(f"data.source {config.source!r}: nothing is left of {lost(prepared.account, config)}")
    return prepared


def lost(account: Account, config: DataConfig) -> str:
    """The account, with the mend where the limit alone is to blame."""
    sorted_by_label = config.limit is not None and account.dropped[UNPAIRED] == account.rows
    more = f"; the first {config.limit} rows have one label only: raise data.limit, or mix the rows of the file"
    return f"{account}{more if sorted_by_label else ''}"


def unheld(account: Account) -> str:
    """What to do about data of which nothing is held out."""
    named_here = account.columns["split"]
    if not named_here:
        return "set data.test above 0"
    return (
        f"the data names the split of {named_here} of {account.rows} rows, none of them validation or test; part one "
        "split anew with --data.split train, or raise data.limit to reach the others; a file's own column 'split' must "
        "name held-out rows, or go"
    )


@dataclass(frozen=True)
class Reading:
    """How rows become trees: the configuration, the format by name, the purpose; the parts' ends if they are known."""

    config: DataConfig
    format: str
    purpose: Purpose
    ends: Edges | None = None

    @classmethod
    def of(cls, first: sources.Row, config: DataConfig, purpose: Purpose) -> "Reading":
        """The reading of data whose first row is this one.

        Raises:
            ValueError: the columns fit no format.
        """
        named_here = renamed(first, config.columns)
        known = config.format != "auto"
        return cls(config, config.format if known else formats.detect(named_here, named_here, purpose), purpose)

    @property
    def alone(self) -> bool:
        """Whether each row gives its trees by itself; labelled texts are paired and single ratings gathered."""
        paired = self.format == "text" and self.purpose in ("pairs", "ranked")
        return not paired and not (self.format in ("graded", "helpsteer") and self.purpose in formats.JUDGED)


def rendered(rows: Sequence[sources.Row], reading: Reading, tokenizer: Tokenizer, first: int = 0) -> Prepared:
    """These rows as texts and ids by part, with their account; `first` is the number of the first row.

    Raises:
        ValueError: a column or a value is wrong; the row is named.
    """
    config, purpose = reading.config, reading.purpose
    account = Account(rows=len(rows))
    found = [renamed(row, config.columns) for row in rows]
    texts = placed(_trees(found, formats.reader(reading.format, purpose, config.turns), account, first), reading)
    if reading.format == "text" and purpose in ("pairs", "ranked"):
        unpaired = {part: len(trees) for part, trees in texts.items()}
        texts = {part: pair_labelled(trees, config.seed) for part, trees in texts.items()}
        left = sum(unpaired.values()) - 2 * sum(map(len, texts.values()))
        if left:
            account.dropped[UNPAIRED] += left
    elif purpose in formats.JUDGED:
        texts = {part: shaped(trees, purpose, account.dropped) for part, trees in texts.items()}
    prepared = Prepared({}, {}, account, reading.format)
    for part in PARTS:
        _render(texts[part], part, prepared, config, tokenizer, purpose)
    best = [row["best_accuracy"] for row in found if "best_accuracy" in row]
    prepared.best_accuracy = sum(best) / len(best) if best and purpose == "pairs" else None
    account.used = sum(map(len, prepared.parts.values()))
    return prepared


def renamed(row: sources.Row, columns: dict[str, str]) -> sources.Row:
    """The row with our names beside the source's.

    Raises:
        ValueError: the source has no such column.
    """
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise ValueError(f"data.columns names {missing[0]!r}; the data has {', '.join(sorted(row))}")
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _trees(
    found: Iterable[sources.Row], read: formats.Reader, account: Account, first: int = 0
) -> list[tuple[Part | None, Tree]]:
    texts: list[tuple[Part | None, Tree]] = []
    for number, row in enumerate(found, first):
        try:
            trees = [annotated(tree, row, account) for tree in read(row)]
        except formats.Dropped as reason:
            account.dropped[str(reason)] += 1
            continue
        except KeyError as missing:
            raise ValueError(f"row {number} has no column {missing}; it has {', '.join(sorted(row))}") from None
        except ValueError as problem:
            raise ValueError(f"row {number}: {problem}") from None
        part = named(row["split"]) if row.get("split") else None
        if part is not None:
            account.columns["split"] += 1
        texts += [(part, tree) for tree in trees]
    return texts


def annotated(tree: Tree, row: sources.Row, account: Account) -> Tree:
    """The tree with the row's subset, weight and (of a pair) margin; weights and margins are counted.

    Raises:
        ValueError: a weight or margin is not a number.
    """
    subset, weight, margin = row.get("subset"), row.get("weight"), row.get("margin")
    found = replace(tree, subset=str(subset)) if subset else tree
    if weight is not None and float(weight) != 1:
        account.columns["weight"] += 1
        found = replace(found, weight=float(weight))
    if margin is not None and len(tree.responses) == 2:
        account.columns["margin"] += 1
        found = replace(found, margin=float(margin))
    return found


def placed(trees: Sequence[tuple[Part | None, Tree]], reading: Reading) -> dict[Part, list[Tree]]:
    """Trees by part: the one that their row names, else the one of their group."""
    config = reading.config
    places = {tree.group: unit(tree.group, config.seed) for _, tree in trees}
    free = [places[tree.group] for own, tree in trees if own is None]
    ends = reading.ends or edges(free, config.validation, config.test, config.shares)
    found: dict[Part, list[Tree]] = {part: [] for part in PARTS}
    for own, tree in trees:
        found[own or part_at(places[tree.group], ends)].append(tree)
    return found


def _render(
    texts: list[Tree], part: Part, prepared: Prepared, config: DataConfig, tokenizer: Tokenizer, purpose: Purpose
) -> None:
    kept: list[tuple[Tree, TokenTree]] = []
    rendered = token_trees(texts, tokenizer, config.max_prompt, config.max_response, prepared.account)
    for tree, tokens in zip(texts, rendered, strict=True):
        if purpose not in COMPARED or len(set(tokens.branches)) == len(tokens.branches):
            kept.append((tree, tokens))
        elif found := _distinct(tree, tokens, prepared.account):
            kept.append(found)
    prepared.texts[part] = [tree for tree, _ in kept]
    prepared.parts[part] = [tokens for _, tokens in kept]


def _distinct(tree: Tree, tokens: TokenTree, account: Account) -> tuple[Tree, TokenTree] | None:
    """The tree without the branches whose ids a better one has; None where fewer than two are left."""
    first: dict[tuple[int, ...], int] = {}
    for number, ids in enumerate(tokens.branches):
        first.setdefault(ids, number)
    if len(first) < 2:
        account.dropped[IDENTICAL] += 1
        return None
    lost = len(tokens.branches) - len(first)
    repeated = min(lost, len(tree.responses) - len({response.text for response in tree.responses}))
    account.cut += Counter({REPEATED: repeated, IDENTICAL: lost - repeated})
    keep = list(first.values())
    ratings = tuple(tokens.ratings[n] for n in keep) if tokens.ratings else ()
    return (
        replace_responses(tree, [tree.responses[n] for n in keep]),
        replace(tokens, branches=tuple(first), ratings=ratings),
    )
