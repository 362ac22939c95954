"""The rows of a source as an inspection counts them: trees by part, and what was wrong with the others.

Where rows stand alone no tree is kept: they are read again when they are needed, and a row leaves some hundred bytes of
hashes and numbers behind. Labelled texts and single ratings of one prompt are kept, since they are joined.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from treeward.data import formats, sources, values
from treeward.data.prepare import DataConfig, Reading, renamed
from treeward.data.shapes import Purpose, pair_labelled, shaped
from treeward.data.splits import PARTS, Part, edges, named, part_at, unit
from treeward.trees.text import Tree

TEXTS = ("prompt", "chosen", "rejected", "response", "responses", "messages", "completion", "text")
"""The columns that hold texts."""
UNREAD = (formats.Dropped, ValueError)


class Again:
    """Trees that are read from their rows anew on each pass, those without a fault."""

    def __init__(self, rows: Collection[sources.Row], columns: dict[str, str], read: formats.Reader) -> None:
        self._rows, self._columns, self._read = rows, columns, read
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __contains__(self, tree: object) -> bool:
        return any(tree == each for each in self)

    def __iter__(self) -> Iterator[Tree]:
        for row in self._rows:
            try:
                yield from self._read(renamed(row, self._columns))
            except UNREAD:
                continue


@dataclass
class Gathered:
    """The rows of a source as trees with the part of each, and what was wrong with the others.

    `groups` and `part_groups` hold marks of the groups' names, not the names.
    """

    format: str
    purpose: Purpose
    rows: int
    trees: Collection[Tree] = ()
    sides: Sequence[int] = ()
    part_groups: dict[Part, Counter[bytes]] = field(default_factory=dict)
    groups: set[bytes] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None
    duplicates: int = 0
    both_labels: int = 0
    own_split: bool = False

    def parted(self) -> Iterator[tuple[Part, Tree]]:
        """Every tree with its part."""
        return ((PARTS[side], tree) for side, tree in zip(self.sides, self.trees, strict=True))

    def keep(self, parts: dict[Part, list[Tree]]) -> None:
        """Hold these trees from now on."""
        self.trees = [tree for part in PARTS for tree in parts[part]]
        self.sides = array("b", (number for number, part in enumerate(PARTS) for _ in parts[part]))


def gather(config: DataConfig) -> Gathered:
    """Read `config.source`, count what is wrong with its rows, and split the rest by prompt.

    Raises:
        ValueError: the source, a column or the name of a split is wrong.
    """
    rows = sources.flow(config.source, config.split, config.limit, config.seed)
    with rows.located():
        return _gathered(rows, config)


def _gathered(rows: sources.Flow, config: DataConfig) -> Gathered:
    name, purpose = _kind(rows, config)
    found = Gathered(name, purpose, 0)
    read = formats.reader(name, purpose, config.turns)
    again = Again(rows, config.columns, read)
    seen: set[bytes] = set()
    places, own_parts = array("d"), array("b")
    for number, raw in enumerate(rows):
        row = renamed(raw, config.columns)
        found.rows += 1
        found.duplicates += _again(row, seen)
        try:
            trees = read(row)
        except KeyError as missing:
            raise sources.BadRow(number, f"it has no column {missing}; it has {', '.join(sorted(row))}") from None
        except UNREAD as reason:
            _lose(found, row, number, read, reason)
            continue
        try:
            own = named(row["split"]) if row.get("split") else None
        except ValueError as problem:
            raise sources.BadRow(number, str(problem)) from None
        found.own_split = found.own_split or own is not None
        found.groups |= {mark(tree.group) for tree in trees}
        places.extend(unit(tree.group, config.seed) for tree in trees)
        own_parts.extend([-1 if own is None else PARTS.index(own)] * len(trees))
    free = [place for place, own in zip(places, own_parts, strict=True) if own < 0]
    ends = edges(free, config.validation, config.test, config.shares)
    again.count = len(places)
    found.trees = again
    found.sides = array("b", (PARTS.index(part_at(place, ends)) if own < 0 else own
                              for place, own in zip(places, own_parts, strict=True)))  # fmt: skip
    found.part_groups = {part: Counter() for part in PARTS}
    for part, tree in found.parted():
        found.part_groups[part][mark(tree.group)] += 1
    if not Reading(config, name, purpose).alone:
        _join(found, config.seed)
    return found


def mark(text: str) -> bytes:
    """Sixteen bytes that stand for a text."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _join(found: Gathered, seed: int) -> None:
    """Hold all trees, and join those that belong together, inside their parts as training does."""
    parts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
    for part, tree in found.parted():
        parts[part].append(tree)
    if found.format == "text":
        labels: dict[str, set[float | None]] = {}
        for tree in (tree for trees in parts.values() for tree in trees):
            labels.setdefault(tree.responses[0].text, set()).add(tree.responses[0].score)
        found.both_labels = sum(len(said) > 1 for said in labels.values())
        found.keep({part: pair_labelled(trees, seed) for part, trees in parts.items()})
    else:
        found.keep({part: shaped(trees, "pairs", found.dropped) for part, trees in parts.items()})


def _kind(rows: Collection[sources.Row], config: DataConfig) -> tuple[str, Purpose]:
    """The format, and what these rows could train: pairs if they can, else sft, else only prompts."""
    first = renamed(next(iter(rows)), config.columns)
    name = config.format
    if name == "auto":
        name = formats.detect(first, first, "prompts" if set(first) <= {"prompt", "split"} else "pairs")
    if name == "prompts":
        return name, "prompts"
    labelled = name == "text" and all(_is_label(renamed(row, config.columns).get("label")) for row in rows)
    return name, "pairs" if labelled or name not in ("text", "messages", "completion") else "sft"


def _is_label(value: object) -> bool:
    try:
        return values.number(value, "label") in (0, 1)
    except ValueError:
        return False


def _again(row: sources.Row, seen: set[bytes]) -> bool:
    """Whether these texts, whatever their ratings, labels, ids and splits, stood in a row before."""
    texts = {key: row[key] for key in TEXTS if key in row}
    known = mark(repr(texts)) in seen
    seen.add(mark(repr(texts)))
    return known


def _lose(found: Gathered, row: sources.Row, number: int, read: Callable[..., list[Tree]], reason: Exception) -> None:
    """Count a row that gives no tree; its prompt still counts as a prompt."""
    if isinstance(reason, formats.Dropped):
        found.dropped[str(reason)] += 1
    else:
        found.dropped["unreadable"] += 1
        found.unreadable = found.unreadable or f"row {number + 1}: {reason}"
    try:
        found.groups |= {mark(tree.group) for tree in read(_answered(row))}
    except (*UNREAD, KeyError):
        return


def _answered(row: sources.Row) -> sources.Row:
    """The same prompt with two responses that will do."""
    chosen = row["chosen"]
    if isinstance(chosen, str):
        head = chosen.rpartition(formats.TURN)[0] + formats.TURN if row.get("prompt") is None else ""
        return {**row, "chosen": f"{head} a", "rejected": f"{head} b"}
    if not isinstance(chosen, list):
        raise ValueError("'chosen' is neither a text nor messages, so the row has no prompt")
    return {**row, **{side: [*chosen[:-1], {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}
