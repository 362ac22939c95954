"""The shared files as they are: counts that were taken independently (README of the data)."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treeward.data import sources
from treeward.data.formats import Dropped, detect, preference, transcripts
from treeward.data.prepare import DataConfig, prepare
from treeward.data.world import tokenizer as world_tokenizer

pytestmark = pytest.mark.data


def hh(root: Path, name: str) -> list[dict[str, Any]]:
    return sources.read_rows(str(root / "hh-rlhf" / name / "test.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "rows", "identical", "differ", "empty", "prompts"),
    [
        ("helpful-base", 2354, 2, 9, 4, 2354),
        ("harmless-base", 2312, 0, 5, 4, 2310),
        ("helpful-rejection-sampled", 2749, 32, 3, 0, 2748),
    ],
)
def test_hh_counts(
    name: str, rows: int, *, identical: int, differ: int, empty: int, prompts: int, data_root: Path
) -> None:
    dialogues = hh(data_root, name)
    assert len(dialogues) == rows
    assert detect(dialogues[0], dialogues[0], "pairs") == "transcripts"
    dropped: Counter[str] = Counter()
    trees = []
    for row in dialogues:
        try:
            trees += transcripts(row)
        except Dropped as reason:
            dropped[str(reason)] += 1
    expected = {"identical pair": identical, "prompts differ": differ, "empty response": empty}
    assert dropped == {reason: n for reason, n in expected.items() if n}
    assert len(trees) == rows - identical - differ - empty
    assert len({row["chosen"].rpartition("Assistant:")[0] for row in dialogues}) == prompts
    assert all(tree.prompt.endswith("\n\nAssistant:") for tree in trees)
    assert all(row["chosen"].startswith("\n\nHuman:") for row in dialogues)


def test_hh_prompts_lie_on_one_side_each(data_root: Path) -> None:
    config = DataConfig(source=str(data_root / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"), validation=0.2, test=0.2)
    data = prepare(config, world_tokenizer(), "prompts")
    groups = [{tree.group for tree in part} for part in data.parts.values()]
    assert sum(map(len, groups)) == len(groups[0] | groups[1] | groups[2])
    assert all(len(side) > 300 for side in groups)


def test_the_helpsteer_like_file_is_read_as_rated_messages(data_root: Path) -> None:
    rows = sources.read_rows(str(data_root / "graded" / "sf_binarized.jsonl.gz"))
    assert len(rows) == 835
    assert detect(rows[0], rows[0], "pairs") == "preference"
    trees = [tree for row in rows for tree in preference(row)]
    gaps = [tree.responses[0].score - tree.responses[1].score for tree in trees]  # type: ignore[operator]
    assert len(trees) == 835
    assert min(gaps) == pytest.approx(0.13, abs=0.005)
    assert sum(gaps) / len(gaps) == pytest.approx(0.92, abs=0.005)
    assert all(len(tree.prompt) == 1 and tree.prompt[0]["role"] == "user" for tree in trees)  # type: ignore[index]


def test_the_polite_file_is_read_after_renaming(data_root: Path) -> None:
    source = str(data_root / "polite" / "instruction-data-with-preference.json")
    config = DataConfig(source=source, columns={"prompt": "instruction"})
    data = prepare(config, world_tokenizer(), "pairs")
    assert data.account.rows == 1100
    assert data.account.dropped["identical pair"] == 6


def test_labelled_reviews_keep_their_own_split_and_are_paired_once(
    data_root: Path, real_tokenizer: Callable[[str], Any]
) -> None:
    source = str(data_root / "sentiment" / "rt_polarity.jsonl.gz")
    data = prepare(DataConfig(source=source), real_tokenizer("gpt2"), "pairs")
    positive = {"train": 4188, "validation": 586, "test": 557}
    negative = {"train": 4252, "validation": 564, "test": 515}
    label = {row["text"]: row["label"] for row in sources.read_rows(source)}
    for part, trees in data.texts.items():
        assert len(trees) == min(positive[part], negative[part])
        chosen, rejected = ([tree.responses[side].text for tree in trees] for side in (0, 1))
        assert len({*chosen, *rejected}) == 2 * len(trees)
        assert {label[text] for text in chosen} == {1}
        assert {label[text] for text in rejected} == {0}
    assert data.account.dropped == {"text without a partner of the other label": 64 + 22 + 42}


def test_stories_keep_their_books_together_by_their_split_column(data_root: Path) -> None:
    data = prepare(DataConfig(source=str(data_root / "text" / "stories.jsonl.gz")), world_tokenizer(), "sft")
    assert {part: len(trees) for part, trees in data.parts.items()} == {"train": 658, "validation": 130, "test": 87}
