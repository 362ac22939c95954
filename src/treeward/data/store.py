"""Prepared data, in memory and on disk: token trees with their texts by part, and how they were made.

DIR/
  prepared.json       tokenizer, template, data options, account, rows by part
  train.jsonl  validation.jsonl  test.jsonl       one tree a line: ids, and their text

`data.source=DIR` reads it back. The ids fit one tokenizer alone, so another one is refused; so is an option that would
have made other trees.
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from treeward.data.account import Account
from treeward.data.formats import Purpose
from treeward.data.render import end_id, vocabulary_hash
from treeward.data.splits import PARTS, Part, unit
from treeward.errors import UserError
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree

log = logging.getLogger(__name__)

FILE = "prepared.json"
SCHEMA = 1
BRANCHES: Mapping[str, int] = {"prompts": 0, "sft": 1, "pairs": 2, "ranked": 2, "graded": 2, "unpaired": 2}
"""Responses a tree has at most, by the purpose it was prepared for; pairs serve where single ones do."""

Facts = dict[str, Any]
DAMAGED = (KeyError, OSError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError)
"""What reading a damaged directory raises."""
PREPARE_AGAIN = "prepare the data again with `treeward inspect --save`"

VerdictPart = Literal["test", "validation", "half of validation"]


@dataclass(frozen=True)
class Placed:
    """How many groups the split put into each part by chance, and the shares in the configuration."""

    groups: Counter[Part]
    shares: dict[Part, float]


@dataclass
class Prepared:
    """Token trees and their texts by part, in equal order, and the account of what was lost.

    `placed` counts the groups that the split put into each part by chance; it is not saved. `verdict_on` are the groups
    that are measured before and after training; `apart` decides.
    """

    parts: dict[Part, list[TokenTree]]
    texts: dict[Part, list[Tree]]
    account: Account
    format: str
    best_accuracy: float | None = None
    verdict_on: VerdictPart = "test"
    placed: Placed | None = field(default=None, compare=False)

    @property
    def train(self) -> list[TokenTree]:
        """The trees to train on."""
        return self.parts["train"]

    @property
    def held_out(self) -> list[TokenTree]:
        """The trees to measure before and after on; after `apart` no checkpoint is chosen on their groups."""
        return self.parts["test"]

    def apart(self, chooses: bool, seed: int) -> "Prepared":
        """The same trees, with a test part on whose groups no checkpoint is chosen.

        `chooses`: the run compares several checkpoints on the validation part. A test part in the data stays, and
        validation trees of its groups are removed. Without one, half of the validation groups, by a hash of their own,
        become the test part; all of them where no checkpoint is chosen.
        """
        test_groups = {tree.group for tree in self.parts["test"]}
        groups = {tree.group for tree in self.parts["validation"]}
        if test_groups:
            shared = groups & test_groups
            if not shared:
                return self
            log.info(
                "%d validation groups are in the test part too, which gives the verdict: they are left out of the "
                "choice of the checkpoint",
                len(shared),
            )
            return self._moved(lambda part, group: None if part == "validation" and group in shared else part)
        moved = groups
        if chooses:
            ranked = sorted(groups, key=lambda group: unit(group, seed, "verdict"))
            moved = set(ranked[: (len(ranked) + 1) // 2])
        prepared = self._moved(lambda part, group: "test" if part == "validation" and group in moved else part)
        return replace(prepared, verdict_on="half of validation" if chooses else "validation")

    def verdict_facts(self) -> dict[str, Any]:
        """`groups` that give the verdict, from which `part`; the checkpoint is chosen on `chosen_on` other groups."""
        groups, chosen_on = (len({tree.group for tree in self.parts[part]}) for part in ("test", "validation"))
        return {"groups": groups, "chosen_on": chosen_on, "part": self.verdict_on}

    def _moved(self, part_of: Callable[[Part, str], Part | None]) -> "Prepared":
        """Every tree in the part that `part_of` returns for its part and group; None leaves it out."""
        parts: dict[Part, list[TokenTree]] = {part: [] for part in PARTS}
        texts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
        for part in PARTS:
            for tokens, text in zip(self.parts[part], self.texts[part], strict=True):
                to = part_of(part, tokens.group)
                if to is not None:
                    parts[to].append(tokens)
                    texts[to].append(text)
        return replace(self, parts=parts, texts=texts)


def is_prepared(source: str) -> bool:
    """Whether this is a directory of prepared data."""
    return (Path(source) / FILE).is_file()


def options(source: str) -> dict[str, Any]:
    """The data options with which a directory of prepared data was made."""
    facts = json.loads((Path(source) / FILE).read_text(encoding="utf-8"))
    return dict(facts["data"])


@dataclass
class Writer:
    """Prepared data that is being written: lines as they are made, then how they were made."""

    place: Path
    files: dict[Part, TextIO]
    rows: Counter[Part]
    chats: bool = False

    def add(self, part: Part, lines: Iterable[str]) -> None:
        """Append trees to a part, one a line."""
        for line in lines:
            self.files[part].write(line)
            self.rows[part] += 1

    def close(
        self,
        account: Account,
        format: str,
        best_accuracy: float | None,
        tokenizer: Tokenizer,
        options: Mapping[str, Any],
        purpose: str,
    ) -> None:
        """Write how the trees were made."""
        facts = {
            "schema": SCHEMA, "purpose": purpose, "format": format, **_tokenizer_facts(self.chats, tokenizer),
            "data": dict(options), "account": vars(account), "best_accuracy": best_accuracy,
            "rows": {part: self.rows[part] for part in PARTS},
        }  # fmt: skip
        (self.place / FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A writer to a new directory, which appears when the block has ended without an error.

    Raises:
        UserError: the directory exists.
    """
    if path.exists():
        raise UserError(f"{str(path)!r} exists; prepared data is never overwritten: name another directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        with ExitStack() as stack:
            files: dict[Part, TextIO] = {
                part: stack.enter_context((temporary / f"{part}.jsonl").open("w", encoding="utf-8")) for part in PARTS
            }
            yield Writer(temporary, files, Counter())
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(path: Path, prepared: Prepared, tokenizer: Tokenizer, options: Mapping[str, Any], purpose: str) -> None:
    """Write to a new directory, whole or not at all. `options` are the fields of the data's configuration.

    Raises:
        UserError: the directory exists.
    """
    with writing(path) as writer:
        write_all(writer, prepared, tokenizer, options, purpose)


def write_all(
    writer: Writer, prepared: Prepared, tokenizer: Tokenizer, options: Mapping[str, Any], purpose: str
) -> None:
    """Write prepared data whole."""
    for part in PARTS:
        writer.add(part, lines(prepared, part))
    writer.chats = has_chats(prepared.texts)
    writer.close(prepared.account, prepared.format, prepared.best_accuracy, tokenizer, options, purpose)


def lines(prepared: Prepared, part: Part) -> Iterator[str]:
    """The lines of a part."""
    return map(_line, prepared.parts[part], prepared.texts[part])


def has_chats(texts: Mapping[Part, list[Tree]]) -> bool:
    """Whether a prompt is made of messages: then the template decides its ids."""
    return any(isinstance(tree.prompt, tuple) for trees in texts.values() for tree in trees)


def load(
    source: str, options: Mapping[str, Any], defaults: Mapping[str, Any], tokenizer: Tokenizer, purpose: Purpose
) -> Prepared:
    """What `save` wrote; pairs also serve sft (the chosen response) and prompts, sft also serves prompts.

    `options` are the fields of the present configuration; each must be its default or what was saved.

    Raises:
        UserError: another tokenizer or template, an option that differs, a purpose that these trees cannot serve, or a
            damaged directory.
    """
    try:
        facts = json.loads((Path(source) / FILE).read_text(encoding="utf-8"))
        _check_options(source, options, defaults, facts["data"])
        saved_purpose = facts["purpose"]
        if BRANCHES[saved_purpose] < BRANCHES[purpose] or saved_purpose == "unpaired" != purpose:
            raise UserError(f"data.source {source!r} was prepared for {saved_purpose}, not {purpose}; {PREPARE_AGAIN}")
        rows = {part: _read_part(source, part, facts["rows"][part]) for part in PARTS}
        losses: Facts = {k: Counter(v) if isinstance(v, dict) else v for k, v in facts["account"].items()}
        lengths = losses.get("response_lengths", {})
        losses["response_lengths"] = Counter({int(length): n for length, n in lengths.items()})
        account = Account(**losses)
    except DAMAGED as problem:
        raise UserError(f"data.source {source!r} is damaged ({problem}); {PREPARE_AGAIN}") from None
    if saved_purpose != purpose:
        rows = {part: [_fewer(*row, BRANCHES[purpose]) for row in trees] for part, trees in rows.items()}
    texts = {part: [text for _, text in trees] for part, trees in rows.items()}
    _check_tokenizer(source, facts, _tokenizer_facts(has_chats(texts), tokenizer))
    best = facts["best_accuracy"] if purpose == "pairs" else None
    return Prepared({part: [ids for ids, _ in trees] for part, trees in rows.items()}, texts, account,
                    facts["format"], best)  # fmt: skip


def _tokenizer_facts(chats: bool, tokenizer: Tokenizer) -> Facts:
    """What decides the ids of these trees: the vocabulary, the end token, and for chats the template."""
    return {
        "tokenizer": str(getattr(tokenizer, "name_or_path", "")), "vocabulary": len(tokenizer.get_vocab()),
        "fingerprint": vocabulary_hash(tokenizer), "end": end_id(tokenizer, chats),
        "template": tokenizer.chat_template if chats else None,
    }  # fmt: skip


def _check_tokenizer(source: str, saved: Facts, present: Facts) -> None:
    for key, what in (("fingerprint", "tokenizer"), ("end", "end token"), ("template", "chat template")):
        if saved[key] != present[key]:
            raise UserError(
                f"data.source {source!r} was prepared with another {what}: that of {saved['tokenizer']!r} "
                f"({saved['vocabulary']} tokens), not {present['tokenizer']!r} ({present['vocabulary']}); use that "
                f"one, or {PREPARE_AGAIN}"
            )


def _check_options(
    source: str, options: Mapping[str, Any], defaults: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    for name, value in options.items():
        saved_value = saved.get(name, defaults[name])
        if name != "source" and value != defaults[name] and json.loads(json.dumps(value)) != saved_value:
            raise UserError(
                f"data.{name} is {value!r}, but data.source {source!r} was prepared with {saved_value!r}; leave it "
                f"out, or {PREPARE_AGAIN}"
            )


def _read_part(source: str, part: Part, count: int) -> list[tuple[TokenTree, Tree]]:
    with (Path(source) / f"{part}.jsonl").open(encoding="utf-8", newline="\n") as file:
        rows = [_read_line(line) for line in file]
    if len(rows) != count:
        raise UserError(
            f"data.source {source!r} is damaged ({part}.jsonl has {len(rows)} rows, not {count}); {PREPARE_AGAIN}"
        )
    return rows


def _line(ids: TokenTree, text: Tree) -> str:
    """One tree as JSON. `row` is written with the text alone."""
    values = {field.name: getattr(ids, field.name) for field in fields(ids) if field.name != "row"}
    return f'{{"ids": {json.dumps(values, ensure_ascii=False)}, "text": {text.to_json()}}}\n'


def _read_line(line: str) -> tuple[TokenTree, Tree]:
    row = json.loads(line)
    text = Tree.from_json(json.dumps(row["text"]))
    ids = {name: _as_tuples(value) for name, value in row["ids"].items()}
    return TokenTree(**{**ids, "row": text.row}), text


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if not isinstance(value, list):
        return value
    return tuple(map(_as_tuples, value)) if value and isinstance(value[0], list) else tuple(value)


def _fewer(ids: TokenTree, text: Tree, count: int) -> tuple[TokenTree, Tree]:
    fewer = replace(ids, branches=ids.branches[:count], ratings=ids.ratings[:count])
    return fewer, replace(text, responses=text.responses[:count])
