"""The pairs that both sides train on: HH transcripts split at the last reply, tokenized, short enough.

Both environments import this; it knows transformers and neither treeward nor TRL. The ids it finds are what each side
must arrive at by its own way.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

TURN = "\n\nAssistant:"
SOURCE = "hh-rlhf/harmless-base/test.jsonl.gz"
TOKENIZER = "tokenizers/gpt2"
MAX_LENGTH = 512


@dataclass(frozen=True)
class Pair:
    """A prompt with two replies, as text and as ids; the replies' ids end in EOS, their text does not."""

    prompt: str
    chosen: str
    rejected: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def rows(self) -> tuple[list[int], list[int]]:
        """The ids of both sides, prompt and reply."""
        return self.prompt_ids + self.chosen_ids, self.prompt_ids + self.rejected_ids


def read(data: Path, count: int) -> list[Pair]:
    """The first `count` valid pairs, in the order of the file.

    Raises:
        ValueError: there are fewer.
    """
    tokenizer = gpt2_tokenizer(data)
    found: list[Pair] = []
    for texts in transcripts(data / SOURCE):
        prompt, chosen, rejected = (list(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
        end = [tokenizer.eos_token_id]
        pair = Pair(*texts, prompt, chosen + end, rejected + end)
        if max(map(len, pair.rows)) <= MAX_LENGTH:
            found.append(pair)
        if len(found) == count:
            return found
    raise ValueError(f"{data / SOURCE} has {len(found)} pairs within {MAX_LENGTH} tokens; {count} were asked for")


def transcripts(file: Path) -> Iterator[tuple[str, str, str]]:
    """Prompt, chosen and rejected reply; without pairs that are identical, differ in the prompt or lack a reply."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt, _, chosen = row["chosen"].rpartition(TURN)
            other, _, rejected = row["rejected"].rpartition(TURN)
            if prompt == other and chosen != rejected and chosen.strip() and rejected.strip():
                yield prompt + TURN, chosen, rejected


def gpt2_tokenizer(data: Path) -> Any:
    """The tokenizer of both sides."""
    return AutoTokenizer.from_pretrained(str(data / TOKENIZER))


def save(pairs: Sequence[Pair], work: Path) -> None:
    """Write the pairs where both sides find them."""
    (work / "pairs.json").write_text(json.dumps([asdict(pair) for pair in pairs]))


def load(work: Path, count: int) -> list[Pair]:
    """The first `count` of the pairs that `save` wrote."""
    return [Pair(**row) for row in json.loads((work / "pairs.json").read_text())[:count]]
