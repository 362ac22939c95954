"""Prepared data on disk: token trees with their texts by part, and what they were made with.

DIR/
  prepared.json       tokenizer, template, data options, account, rows by part
  train.jsonl  validation.jsonl  test.jsonl       one tree a line: ids, and the text they came from

`data.source=DIR` reads it back. The ids fit one tokenizer alone, so another is refused; so is an option that would have
made other trees.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from treeward.data.render import Account, end_id, vocabulary_hash
from treeward.data.splits import PARTS, Part
from treeward.errors import UserError
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree

FILE = "prepared.json"
SCHEMA = 1
BRANCHES = {"prompts": 0, "sft": 1, "pairs": 2, "ranked": 2, "graded": 2, "unpaired": 2}
"""Responses a tree has at most, by the purpose it was prepared for; pairs serve where single ones do."""

Facts = dict[str, Any]
DAMAGED = (json.JSONDecodeError, UnicodeDecodeError)
"""The kinds of ValueError that a damaged file gives; others are ours and say more."""
AGAIN = "prepare the data again with `treeward inspect --save`"


@runtime_checkable
class Made(Protocol):
    """What is kept beside the trees of prepared data."""

    account: Account
    format: str
    best_accuracy: float | None


@runtime_checkable
class Trees(Made, Protocol):
    """What is kept of prepared data."""

    parts: dict[Part, list[TokenTree]]
    texts: dict[Part, list[Tree]]


@dataclass
class Stored:
    """What was kept, read back."""

    parts: dict[Part, list[TokenTree]]
    texts: dict[Part, list[Tree]]
    account: Account
    format: str
    best_accuracy: float | None


def is_prepared(source: str) -> bool:
    """Whether this directory holds prepared data."""
    return (Path(source) / FILE).is_file()


def options(source: str) -> dict[str, Any]:
    """The data options that a directory of prepared data was made with."""
    made = json.loads((Path(source) / FILE).read_text(encoding="utf-8"))
    return dict(made["data"])


def save(path: Path, trees: Trees, tokenizer: Tokenizer, options: Mapping[str, Any], purpose: str) -> None:
    """Write to a new directory, whole or not at all. `options` are the data's, as a mapping.

    Raises:
        UserError: the directory exists.
    """
    with writing(path) as writer:
        for part in PARTS:
            writer.add(part, len(trees.parts[part]), lines(trees, part))
        writer.chats = chats(trees.texts)
        writer.close(trees, tokenizer, options, purpose)


@dataclass
class Writer:
    """Prepared data that is being written: lines as they come, then what they were made with."""

    place: Path
    files: dict[Part, TextIO]
    rows: Counter[Part]
    chats: bool = False

    def add(self, part: Part, rows: int, written: Iterator[str] | list[str]) -> None:
        """Append this many trees to a part."""
        self.files[part].writelines(written)
        self.rows[part] += rows

    def close(self, facts: "Made", tokenizer: Tokenizer, options: Mapping[str, Any], purpose: str) -> None:
        """Write what the trees were made with."""
        found = {
            "schema": SCHEMA, "purpose": purpose, "format": facts.format, **_made_with(self.chats, tokenizer),
            "data": dict(options), "account": vars(facts.account), "best_accuracy": facts.best_accuracy,
            "rows": {part: self.rows[part] for part in PARTS},
        }  # fmt: skip
        (self.place / FILE).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A writer to a new directory, which is there when the block has ended well, and not before.

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


def lines(trees: Trees, part: Part) -> Iterator[str]:
    """A part's lines."""
    return map(_line, trees.parts[part], trees.texts[part])


def chats(texts: Mapping[Part, list[Tree]]) -> bool:
    """Whether a prompt is made of messages: then the template decides its ids."""
    return any(isinstance(tree.prompt, tuple) for trees in texts.values() for tree in trees)


def load(
    source: str, options: Mapping[str, Any], defaults: Mapping[str, Any], tokenizer: Tokenizer, purpose: str
) -> Stored:
    """What `save` wrote; pairs also serve sft (the chosen response) and prompts, sft also serves prompts.

    `options` are the data's as asked for now; each must be its default or what was saved.

    Raises:
        UserError: another tokenizer or template, an option that differs, a purpose that these trees cannot serve, or a
            damaged directory.
    """
    try:
        facts = json.loads((Path(source) / FILE).read_text(encoding="utf-8"))
        _agree(source, options, defaults, facts["data"])
        made = facts["purpose"]
        if BRANCHES[made] < BRANCHES[purpose] or made == "unpaired" != purpose:
            raise UserError(f"data.source {source!r} was prepared for {made}, not {purpose}; {AGAIN}")
        read = {part: _part(source, part, facts["rows"][part]) for part in PARTS}
        losses: Facts = {k: Counter(v) if isinstance(v, dict) else v for k, v in facts["account"].items()}
        lengths = losses.get("response_lengths", {})
        losses["response_lengths"] = Counter({int(length): n for length, n in lengths.items()})
        account = Account(**losses)
    except (KeyError, OSError, TypeError, AttributeError, RecursionError, *DAMAGED) as problem:
        raise UserError(f"data.source {source!r} is damaged ({problem}); {AGAIN}") from None
    if made != purpose:
        read = {part: [_fewer(*pair, BRANCHES[purpose]) for pair in pairs] for part, pairs in read.items()}
    texts = {part: [text for _, text in pairs] for part, pairs in read.items()}
    _same_tokenizer(source, facts, _made_with(chats(texts), tokenizer))
    best = facts["best_accuracy"] if purpose == "pairs" else None
    return Stored({part: [ids for ids, _ in pairs] for part, pairs in read.items()}, texts, account,
                  facts["format"], best)  # fmt: skip


def _made_with(chats: bool, tokenizer: Tokenizer) -> Facts:
    """What decides the ids of these trees: the vocabulary, the end token, and for chats the template."""
    return {
        "tokenizer": str(getattr(tokenizer, "name_or_path", "")), "vocabulary": len(tokenizer.get_vocab()),
        "fingerprint": vocabulary_hash(tokenizer), "end": end_id(tokenizer, chats),
        "template": tokenizer.chat_template if chats else None,
    }  # fmt: skip


def _same_tokenizer(source: str, saved: Facts, ours: Facts) -> None:
    for key, what in (("fingerprint", "tokenizer"), ("end", "end token"), ("template", "chat template")):
        if saved[key] != ours[key]:
            raise UserError(
                f"data.source {source!r} was prepared with another {what}: that of {saved['tokenizer']!r} "
                f"({saved['vocabulary']} tokens), not {ours['tokenizer']!r} ({ours['vocabulary']}); use that one, or "
                f"{AGAIN}"
            )


def _agree(source: str, options: Mapping[str, Any], defaults: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for name, value in options.items():
        made = saved.get(name, defaults[name])
        if name != "source" and value != defaults[name] and json.loads(json.dumps(value)) != made:
            raise UserError(
                f"data.{name} is {value!r}, but data.source {source!r} was prepared with {made!r}; leave it out, or "
                f"{AGAIN}"
            )


def _part(source: str, part: Part, rows: int) -> list[tuple[TokenTree, Tree]]:
    with (Path(source) / f"{part}.jsonl").open(encoding="utf-8", newline="\n") as file:
        found = [_read(line) for line in file]
    if len(found) != rows:
        raise UserError(f"data.source {source!r} is damaged ({part}.jsonl has {len(found)} rows, not {rows}); {AGAIN}")
    return found


def _line(ids: TokenTree, text: Tree) -> str:
    kept = {field.name: getattr(ids, field.name) for field in fields(ids)}
    return f'{{"ids": {json.dumps(kept, ensure_ascii=False)}, "text": {text.to_json()}}}\n'


def _read(line: str) -> tuple[TokenTree, Tree]:
    row = json.loads(line)
    return TokenTree(**{name: _fixed(value) for name, value in row["ids"].items()}), Tree.from_json(
        json.dumps(row["text"])
    )


def _fixed(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if not isinstance(value, list):
        return value
    return tuple(map(_fixed, value)) if value and isinstance(value[0], list) else tuple(value)


def _fewer(ids: TokenTree, text: Tree, keep: int) -> tuple[TokenTree, Tree]:
    fewer = replace(ids, branches=ids.branches[:keep], ratings=ids.ratings[:keep])
    return fewer, replace(text, responses=text.responses[:keep])
