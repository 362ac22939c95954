"""A verifiable reward: a story must contain two words that its opening suggests but does not have.

    python examples/story_words.py words.jsonl '<s>'        # writes 324 openings, each with its two words
    treeward reinforce examples/stories-words.yaml --allow-code --model.path stories260k

The model is any one that writes short stories, such as karpathy/tinyllamas stories260K in the layout of Hugging Face.
Its stories begin with the start token `<s>`, which its tokenizer does not add to plain text, so the prompts have it;
leave it out for a tokenizer that adds its own. The reward says nothing about a good end; look at `ended` and the KL
beside the score. docs/stories.md has what came of it.
"""

import itertools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("Lily", "Tom", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim")
OPENINGS = (
    " Once upon a time, {name} went to the {place}.",
    " One day, {name} and dad went to the {place}.",
    " One morning, {name} and mom went to the {place}.",
    " {name} was very happy. {name} wanted to go to the {place}.",
    " It was a nice day. {name} walked to the {place}.",
    " {name} woke up early. {name} ran to the {place}.",
)
WORDS = {
    "park": ("friends", "fun"),
    "beach": ("play", "home"),
    "forest": ("tree", "found"),
    "zoo": ("big", "scared"),
    "store": ("toy", "new"),
    "garden": ("help", "together"),
}
"""Places and the two words that a story about each must contain."""


def prompts(start: str = "") -> list[dict[str, Any]]:
    """All openings, each with its two words, after a start token."""
    return [
        {"prompt": start + opening.format(name=name, place=place), "words": list(WORDS[place])}
        for opening, name, place in itertools.product(OPENINGS, NAMES, WORDS)
    ]


def contained(response: str, row: Mapping[str, Any]) -> int:
    """How many of the row's two words the story contains, as whole words, in any case, singular or with an s."""
    return sum(re.search(rf"\b{word}s?\b", response, re.IGNORECASE) is not None for word in row["words"])


def contains_both(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    """1 if the story contains both words, else 0: the share of stories that do what was asked."""
    return float(contained(response, row) == 2)


def share_contained(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    """0, 1/2 or 1: a reward that is less sparse."""
    return contained(response, row) / 2


def main(path: str, start: str = "") -> None:
    """Write the openings to a new file."""
    rows = prompts(start)
    with Path(path).open("x", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{path}: {len(rows)} openings")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["words.jsonl"])
