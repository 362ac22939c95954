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
from treeward.data.prepare import DataConfig, Reading, Rows, absent, source_rows
from treeward.data.shapes import Purpose, pair_labelled, shaped
from treeward.data.splits import PARTS, Part, edges, part_at, unit
from treeward.errors import UserError
from treeward.trees.text import Tree

TEXTS = ("prompt", "chosen", "rejected", "response", "responses", "messages", "completion", "text", "response_1",
         "response_2", "answers")  # fmt: skip
"""The columns that hold texts."""
UNREAD = (formats.Dropped, ValueError)


class Again:
    """Trees that are read from their rows anew on each pass, those without a fault."""

    def __init__(self, rows: Rows, reading: Reading, read: formats.Reader) -> None:
        self._rows, self._reading, self._read = rows, reading, read
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __contains__(self, tree: object) -> bool:
        return any(tree == each for each in self)

    def __iter__(self) -> Iterator[Tree]:
        for row in self._rows:
            try:
                yield from self._reading.trees(self._reading.layout.row(row), self._read)
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
    layout: str = ""
    unread: tuple[str, ...] = ()

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
        UserError: the source, a column or the name of a split is wrong.
    """
    rows = source_rows(config)
    with rows.located():
        return _gathered(rows, config)


def _gathered(rows: Rows, config: DataConfig) -> Gathered:
    reading = _reading(rows, config)
    name, purpose = reading.format, reading.purpose
    found = Gathered(name, purpose, 0, layout=reading.layout.said, unread=reading.layout.unread)
    read = formats.reader(name, purpose, config.turns)
    again = Again(rows, reading, read)
    seen: set[bytes] = set()
    places, own_parts = array("d"), array("b")
    for number, raw in enumerate(rows):
        row = raw
        found.rows += 1
        try:
            row = reading.layout.row(raw)
            found.duplicates += _again(row, seen)
            trees = reading.trees(row, read)
        except KeyError as missing:
            raise sources.BadRow(number, absent(missing, raw)) from None
        except UNREAD as reason:
            _lose(found, row, reading.place(number + 1), read, reason)
            continue
        try:
            own = reading.part(row)
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
    if reading.joined:
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


def _reading(rows: Rows, config: DataConfig) -> Reading:
    """How these rows are read for what they could train: pairs if they can, else sft, else only prompts."""
    first = next(iter(rows))
    if config.format == "prompts" or set(first) <= {"prompt", "split", *config.ignore}:
        return Reading.of(rows, config, "prompts")
    reading = Reading.of(rows, config, "pairs")
    name = reading.format
    labels = (str(reading.layout.row(row).get("label")).lower() for row in rows)
    labelled = name == "text" and all(label in values.LABELS for label in labels)
    if labelled or name not in ("text", "messages", "completion"):
        return reading
    return Reading.of(rows, config, "sft")


def _again(row: sources.Row, seen: set[bytes]) -> bool:
    """Whether these texts, whatever their ratings, labels, ids and splits, stood in a row before."""
    texts = {key: row[key] for key in TEXTS if key in row}
    known = mark(repr(texts)) in seen
    seen.add(mark(repr(texts)))
    return known


def _lose(found: Gathered, row: sources.Row, place: str, read: Callable[..., list[Tree]], reason: Exception) -> None:
    """Count a row that gives no tree; its prompt still counts as a prompt."""
    if isinstance(reason, formats.Dropped):
        found.dropped[str(reason)] += 1
    else:
        found.dropped["unreadable"] += 1
        found.unreadable = found.unreadable or f"{place}: {reason}"
    try:
        found.groups |= {mark(tree.group) for tree in read(_answered(row))}
    except (*UNREAD, KeyError):
        return


def _answered(row: sources.Row) -> sources.Row:
    """The same prompt with two responses that will do."""
    chosen = row["response_1"] if "response_1" in row else row["chosen"]
    if "response_1" in row:
        row = {**row, "response_1": chosen, "response_2": chosen, "winner": 1}
        sides = ("response_1", "response_2")
        if not isinstance(chosen, str):
            return {**row, **{side: [*chosen[:-1], {"role": "assistant", "content": side}] for side in sides}}
        return {**row, **{side: side for side in sides}}
    if isinstance(chosen, str):
        head = chosen.rpartition(formats.TURN)[0] + formats.TURN if row.get("prompt") is None else ""
        return {**row, "chosen": f"{head} a", "rejected": f"{head} b"}
    if not isinstance(chosen, list):
        raise UserError("'chosen' is neither a text nor messages, so the row has no prompt")
    return {**row, **{side: [*chosen[:-1], {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}
