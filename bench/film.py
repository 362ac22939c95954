"""Film texts for the evidence on preference learning: what the language model reads, and what the two judges read.

`texts.jsonl`: snippets of rt_polarity and reviews cut into blocks of sentences, for the language model, with the split
of the text they come from. `reward.jsonl` and `judge.jsonl`: the labelled snippets in two halves by the hash of their
text, so that the judge has read no snippet that the reward model learned from. `prompts.jsonl`: texts whose first
tokens are prompts, 1,000 of the training part and 160 of the test part.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BLOCK = 420
"""Characters of a block of sentences, about 100 tokens of the small tokenizer."""
PROMPTS = {"train": 1000, "test": 160}
"""Texts of each part whose openings are prompts."""
SHARE = 5
"""One review in this many is read by the language model, to fit its training into half an hour on one core."""


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def blocks(review: str) -> Iterator[str]:
    """A review cut between its sentences into texts of about BLOCK characters."""
    block = ""
    for sentence in review.split("\n"):
        if block and len(block) + len(sentence) > BLOCK:
            yield block.strip()
            block = ""
        block += " " + sentence.strip()
    if block.strip():
        yield block.strip()


def half(text: str) -> int:
    """0 or 1, by the hash of the text."""
    return hashlib.sha256(f"half:{text}".encode()).digest()[0] % 2


def some(texts: Iterable[dict[str, Any]], part: str, count: int) -> list[dict[str, Any]]:
    """This many texts of a part, the first by the hash of their text."""
    found = [row for row in texts if row["split"] == part]
    return sorted(found, key=lambda row: hashlib.sha256(f"prompt:{row['text']}".encode()).digest())[:count]


def write(path: Path, found: Iterable[dict[str, Any]]) -> None:
    """A JSONL file, to a temporary name first."""
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    temporary.rename(path)


def prepare(data: Path, out: Path) -> None:
    """Write the files into `out`, unless they are there."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "prompts.jsonl").exists():
        return
    snippets = rows(data / "sentiment/rt_polarity.jsonl.gz")
    reviews = rows(data / "sentiment/movie_reviews.jsonl.gz")
    cut = [{"text": text, "split": row["split"]} for row in reviews[::SHARE] for text in blocks(row["text"])]
    found = [*({"text": row["text"], "split": row["split"]} for row in snippets), *cut]
    texts = {" ".join(row["text"].split()): row for row in reversed(found)}
    for number, name in enumerate(("reward", "judge")):
        kept = [row for row in snippets if half(row["text"]) == number]
        write(out / f"{name}.jsonl", ({"text": r["text"], "label": r["label"], "split": r["split"]} for r in kept))
    write(out / "texts.jsonl", texts.values())
    write(out / "prompts.jsonl", (row for part, count in PROMPTS.items() for row in some(texts.values(), part, count)))
