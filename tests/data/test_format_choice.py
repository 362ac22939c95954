"""Which format the columns mean, and which formats serve which purpose."""

from typing import Any

import pytest

from treeward.data.formats import FORMATS, detect, reader
from treeward.trees.text import Tree

TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: So."
SPOKEN = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]


@pytest.mark.parametrize(
    ("row", "purpose", "name"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "pairs", "preference"),
        ({"prompt": "p", "chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "pairs", "preference"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "pairs", "transcripts"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "sft", "transcripts"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "prompts", "transcripts"),
        ({"chosen": SPOKEN, "rejected": SPOKEN}, "pairs", "preference"),
        ({"messages": SPOKEN}, "sft", "messages"),
        ({"messages": SPOKEN}, "prompts", "messages"),
        ({"prompt": "p", "completion": "c"}, "sft", "completion"),
        ({"prompt": "p", "completion": "c"}, "prompts", "prompts"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "prompts", "prompts"),
        ({"text": "t", "label": 1}, "pairs", "text"),
        ({"text": "t"}, "sft", "text"),
        ({"id": 3, "text": "t", "extra": None}, "sft", "text"),
        ({"prompt": "p"}, "prompts", "prompts"),
    ],
)
def test_the_columns_tell_the_format(row: dict[str, Any], purpose: str, name: str) -> None:
    assert detect(row, row, purpose) == name


@pytest.mark.parametrize("purpose", ["pairs", "sft", "prompts"])
def test_unknown_columns_are_refused_with_those_found_and_those_that_would_do(purpose: str) -> None:
    with pytest.raises(ValueError, match="columns answer, question fit no format; use prompt/chosen/rejected"):
        detect({"question": "q", "answer": "a"}, {"question": "q", "answer": "a"}, purpose)


def test_a_prompt_alone_is_nothing_to_fine_tune_on() -> None:
    with pytest.raises(ValueError, match="fit no format"):
        detect({"prompt": "p"}, {"prompt": "p"}, "sft")


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
HH = {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT.replace("So.", "No.")}


@pytest.mark.parametrize(
    ("name", "purpose", "row", "trees"),
    [
        ("preference", "pairs", PAIR, [Tree("p", ["a", "b"])]),
        ("preference", "sft", PAIR, [Tree("p", ["a"])]),
        ("preference", "prompts", PAIR, [Tree("p")]),
        ("transcripts", "sft", HH, [Tree(TRANSCRIPT[:-4], [" So."])]),
        ("transcripts", "prompts", HH, [Tree(TRANSCRIPT[:-4])]),
        ("messages", "sft", {"messages": SPOKEN}, [Tree(SPOKEN[:3], ["So."])]),
        ("messages", "prompts", {"messages": SPOKEN}, [Tree(SPOKEN[:3])]),
        ("completion", "sft", {"prompt": "p", "completion": "c"}, [Tree("p", ["c"])]),
        ("completion", "prompts", {"prompt": "p", "completion": "c"}, [Tree("p")]),
        ("prompts", "prompts", {"prompt": "p"}, [Tree("p")]),
        ("text", "sft", {"text": "t"}, [Tree("", ["t"], group="t")]),
    ],
)
def test_a_reader_gives_what_its_purpose_needs(name: str, purpose: str, row: dict[str, Any], trees: list[Tree]) -> None:
    assert reader(name, purpose, "last")(row) == trees


@pytest.mark.parametrize(("name", "row"), [("transcripts", HH), ("messages", {"messages": SPOKEN})])
def test_all_turns_are_read_for_supervised_fine_tuning(name: str, row: dict[str, Any]) -> None:
    assert len(reader(name, "sft", "all")(row)) == 2


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("messages", "pairs"),
        ("transcripts", "pairs"),
        ("preference", "sft"),
        ("text", "sft"),
        ("messages", "prompts"),
        ("transcripts", "prompts"),
    ],
)
def test_all_turns_are_refused_where_they_mean_nothing(name: str, purpose: str) -> None:
    with pytest.raises(ValueError, match=r"data\.turns is 'all'"):
        reader(name, purpose, "all")


@pytest.mark.parametrize("name", ["messages", "completion", "prompts"])
def test_formats_without_pairs_are_refused_for_pairs(name: str) -> None:
    with pytest.raises(ValueError, match=f"data.format '{name}' has no pairs"):
        reader(name, "pairs", "last")


def test_prompts_alone_are_refused_for_supervised_fine_tuning() -> None:
    with pytest.raises(ValueError, match=r"data\.format"):
        reader("prompts", "sft", "last")


@pytest.mark.parametrize("purpose", ["pairs", "sft"])
def test_an_unknown_format_is_refused_with_the_known_ones(purpose: str) -> None:
    with pytest.raises(ValueError, match=r"data\.format is 'jsonl'; it may be answers, compared, completion, graded, "):
        reader("jsonl", purpose, "last")
    known = [
        "answers",
        "compared",
        "completion",
        "graded",
        "helpsteer",
        "labelled",
        "messages",
        "preference",
        "prompts",
        "text",
        "transcripts",
    ]
    assert sorted(FORMATS) == known
