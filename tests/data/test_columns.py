"""Files as users bring them, each with known winners: read by themselves, or after pasting the line that is printed."""

import csv
import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treeward.cli.inspect import configured
from treeward.cli.parse import parse
from treeward.data import sources, world
from treeward.data.columns import layout
from treeward.data.formats import Row, as_messages
from treeward.data.inspect import inspect, read_contents
from treeward.data.prepare import DataConfig, prepare
from treeward.report.inspection import remarks

WORLD = world.tokenizer()
GOOD = "superb"
"""The word that only winners have."""

Rows = list[dict[str, Any]]
Make = Callable[[str, list[str], int], dict[str, Any]]


def rows_of(make: Make, winners: str = "12") -> Rows:
    """Sixty rows; `make(prompt, outputs, winner)` writes one, whose winner 1 or 2 (0: a tie) is drawn."""
    draw = random.Random(0)
    rows = []
    for number in range(60):
        winner = int(winners[number % len(winners)]) if number < 6 else int(draw.choice(winners))
        outputs = [f" the plot is {GOOD if side == winner else 'odd'} ." for side in (1, 2)]
        rows.append(make(f"film {number} :", outputs, winner))
    return rows


def written(folder: Path, rows: Rows, suffix: str = ".jsonl") -> str:
    path = folder / f"rows{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def accuracy(config: DataConfig) -> float:
    """How often the chosen side has the winners' word and the other has not; ties half."""
    texts = [tree for trees in prepare(config, WORLD, "pairs").texts.values() for tree in trees]
    assert len(texts) > 30
    right = [(GOOD in tree.responses[0].text) - (GOOD in tree.responses[1].text) for tree in texts]
    return sum(0.5 + value / 2 for value in right) / len(right)


def pasted(message: str, source: str) -> DataConfig:
    """The configuration of `treeward inspect SOURCE` with the options of a message, by the command line's parser."""
    options = [word for key in ("columns", "winner") for word in re.findall(rf"--data\.{key} '[^']+'", message)[:1]]
    return configured(parse(["inspect", source, *shlex.split(" ".join(options))][1:], ())).data


def turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def shared(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]


def majority(winner: int) -> dict[str, str]:
    """Three annotators, one of whom may differ."""
    other = {1: "2", 2: "1", 0: "2"}[winner]
    return dict(zip(("annotator1", "annotator2", "annotator3"), (str(winner), other, str(winner)), strict=True))


READ: dict[str, tuple[Make, str]] = {
    "chosen": (lambda p, o, w: {"id": p, "prompt": p, "chosen": o[w - 1], "rejected": o[2 - w]}, "12"),
    "alpaca 1/2": (lambda p, o, w: {"instruction": p, "input": "", "output_1": o[0], "output_2": o[1],
                                    "preference": w}, "12"),
    "0/1/2": (lambda p, o, w: {"prompt": p, "output_1": o[0], "output_2": o[1], "label": w}, "012"),
    "a/b/tie": (lambda p, o, w: {"question": p, "answer_a": o[0], "answer_b": o[1],
                                 "winner": ["tie", "a", "b"][w]}, "012"),
    "names": (lambda p, o, w: {"prompt": p, "output_1": o[0], "output_2": o[1], "better": f"output_{w}"}, "12"),
    "annotators": (lambda p, o, w: {"prompt": p, "response_1": o[0], "response_2": o[1], **majority(w)}, "012"),
    "arena": (lambda p, o, w: {"model_a": "x", "model_b": "y", "conversation_a": shared(p, o[0]),
                               "conversation_b": shared(p, o[1]),
                               "winner": ["tie (bothbad)", "model_a", "model_b"][w]}, "012"),
    "safe": (lambda p, o, w: {"prompt": p, "response_0": o[0], "response_1": o[1], "better_response_id": w - 1,
                              "safer_response_id": 0, "is_response_0_safe": True}, "12"),
    "shp": (lambda p, o, w: {"history": p, "human_ref_A": o[0], "human_ref_B": o[1], "labels": 2 - w, "score_A": 3,
                             "score_B": 4, "domain": "askfilm_train"}, "12"),
    "webgpt": (lambda p, o, w: {"question": {"dataset": "x", "full_text": p}, "answer_0": o[0], "answer_1": o[1],
                                "score_0": [0.0, 0.5, -0.5][w], "score_1": [0.0, -0.5, 0.5][w]}, "012"),
    "helpsteer": (lambda p, o, w: {"prompt": p, "response_1": o[0], "response_2": o[1],
                                   "preference_strength": [0, -2, 3][w]}, "012"),
    "nectar": (lambda p, o, w: {"prompt": p, "answers": [{"answer": o[0], "rank": w}, {"answer": o[1], "rank": 3 - w}],
                                "num_responses": 2}, "12"),
    "stack": (lambda p, o, w: {"qid": 1, "question": p, "response_j": o[w - 1], "response_k": o[2 - w]}, "12"),
    "ultra": (lambda p, o, w: {"prompt": p, "chosen": turns(p, o[w - 1]), "rejected": turns(p, o[2 - w]),
                               "score_chosen": 8.0, "score_rejected": 6.5}, "12"),
    "chosen as conversations": (lambda p, o, w: {"chosen": shared(p, o[w - 1]), "rejected": shared(p, o[2 - w])}, "12"),
    "conversation and sides": (lambda p, o, w: {"conversations": shared(p, "")[:1], "chosen": shared("", o[w - 1])[1],
                                                "rejected": shared("", o[2 - w])[1]}, "12"),
}  # fmt: skip
"""Layouts that are read by themselves, and the winners that each can name."""


MESSAGES = ("arena", "ultra", "chosen as conversations", "conversation and sides")


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WORLD, "chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}")


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize("kind", READ)
def test_a_layout_is_read_by_itself_with_the_right_winners(kind: str, tmp_path: Path) -> None:
    make, winners = READ[kind]
    rows = rows_of(make, winners)
    config = DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.2)
    data = prepare(config, WORLD, "pairs")
    assert accuracy(config) == 1.0
    ties = {reason: n for reason, n in data.account.dropped.items() if reason in ("tie", "nothing to rank")}
    assert sum(ties.values()) == 60 - data.account.used
    assert ("0" in winners) == bool(ties)
    contents = read_contents(config)
    assert contents.reading.layout.description == data.account.layout
    assert not [line for line in remarks(inspect(contents, {}).flat()) if "F10" in line]
    assert ("winner" in data.account.layout) == (data.format == "compared")


def test_the_description_tells_how_the_columns_were_read(tmp_path: Path) -> None:
    make, winners = READ["alpaca 1/2"]
    rows = [row | {"dataset": "films"} for row in rows_of(make, winners)]
    account = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "pairs").account
    assert account.layout == (
        "format compared: prompt is instruction + input; response_1 is output_1; response_2 is output_2; winner is "
        "preference; winner 1 means output_1, 2 means output_2, others are ties"
    )
    assert str(account).endswith("; columns not read: dataset")


@pytest.mark.parametrize("kind", ["alpaca 1/2", "0/1/2", "a/b/tie", "annotators"])
def test_csv_gives_winners_as_text(kind: str, tmp_path: Path) -> None:
    make, winners = READ[kind]
    rows = [{name: str(value) for name, value in row.items()} for row in rows_of(make, winners)]
    assert accuracy(DataConfig(source=written(tmp_path, rows, ".csv"))) == 1.0


MAPPED: dict[str, tuple[Make, str, dict[str, Any]]] = {
    "chosen is output_1": (READ["0/1/2"][0], "12", {"chosen": "output_1", "rejected": "output_2"}),
    "a side column": (lambda p, o, w: {"prompt": p, "chosen": o[0], "rejected": o[1], "label": w}, "12", {}),
    "annotators": (READ["annotators"][0], "12", {"chosen": "response_1", "rejected": "response_2"}),
    "model names": (lambda p, o, w: {"prompt": p, "chosen": o[0], "rejected": o[1], "who": f"model_{' ab'[w]}"},
                    "12", {}),
}  # fmt: skip
"""Files that stop, mapped so that a winner is left out; the printed line maps it."""


@pytest.mark.parametrize("kind", MAPPED)
def test_f61_a_winner_that_is_not_read_stops_with_the_line_to_paste(kind: str, tmp_path: Path) -> None:
    make, winners, columns = MAPPED[kind]
    source = written(tmp_path, rows_of(make, winners))
    with pytest.raises(ValueError, match=r"looks like a winner .*, but it is not read") as stopped:
        prepare(DataConfig(source=source, columns=columns), WORLD, "pairs")
    with pytest.raises(ValueError, match="looks like a winner"):
        read_contents(DataConfig(source=source, columns=columns))
    assert accuracy(pasted(str(stopped.value), source)) == 1.0
    ignored = re.findall(r"--data\.ignore '\[([^']+)\]'", str(stopped.value))[0].split(", ")
    assert accuracy(DataConfig(source=source, columns=columns, ignore=tuple(ignored))) < 0.8


@pytest.mark.parametrize(
    ("make", "second"),
    [
        (lambda p, o, w: {"prompt": p, "output_1": o[0], "output_2": o[1], "label": w - 1}, "'{0: 1, 1: 2}'"),
        (lambda p, o, w: {"prompt": p, "output_1": o[0], "output_2": o[1], "label": 2 - w}, "'{0: 2, 1: 1}'"),
        (lambda p, o, w: {"prompt": p, "answer_a": o[0], "answer_b": o[1], "winner": w == 1}, "'{false: 2, true: 1}'"),
    ],
)
def test_winner_values_of_unclear_meaning_are_refused_with_both_lines(make: Make, second: str, tmp_path: Path) -> None:
    source = written(tmp_path, rows_of(make))
    with pytest.raises(ValueError, match="do not name an output clearly; if") as stopped:
        prepare(DataConfig(source=source), WORLD, "pairs")
    options = re.findall(r"--data\.winner '[^']+'", str(stopped.value))
    assert len(options) == 2
    assert f"--data.winner {second}" in options
    accuracies = [accuracy(pasted(option, source)) for option in (f"--data.winner {second}", *options)]
    assert accuracies[0] == 1.0
    assert sorted(accuracies[1:]) == [0.0, 1.0]


def test_a_value_of_unknown_meaning_names_file_row_and_the_line(tmp_path: Path) -> None:
    rows = rows_of(READ["alpaca 1/2"][0])
    rows[4]["preference"] = 7
    source = written(tmp_path, rows)
    with pytest.raises(ValueError, match="where COLUMN is one of preference"):
        prepare(DataConfig(source=source), WORLD, "pairs")
    columns: dict[str, str | list[str]] = {"winner": "preference"}
    meaning = r"--data\.winner '\{1: 1, 2: 2, 7: \"\?\"\}'"
    with pytest.raises(ValueError, match=f"values 1, 2, 7 do not name an output clearly; add {meaning}"):
        prepare(DataConfig(source=source, columns=columns), WORLD, "pairs")
    with pytest.raises(ValueError, match=rf"rows\.jsonl', row 5: column 'preference' holds 7, .*{meaning}"):
        prepare(DataConfig(source=source, columns=columns, winner={1: 1, 2: 2}), WORLD, "pairs")
    assert accuracy(DataConfig(source=source, columns=columns, winner={1: 1, 2: 2, 7: "tie"})) == 1.0


def test_rows_without_a_winner_are_counted(tmp_path: Path) -> None:
    rows = rows_of(READ["alpaca 1/2"][0])
    rows[7]["preference"] = rows[9]["preference"] = None
    data = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert data.account.dropped == {"without a winner": 2}


def test_two_possible_winner_columns_are_refused(tmp_path: Path) -> None:
    rows = [row | {"label": 1} for row in rows_of(READ["alpaca 1/2"][0])]
    with pytest.raises(ValueError, match=r"two outputs: .*where COLUMN is one of preference, label"):
        prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert accuracy(DataConfig(source=written(tmp_path, rows), columns={"winner": "preference"})) == 1.0


def test_supervised_fine_tuning_takes_the_winner(tmp_path: Path) -> None:
    for kind in ("0/1/2", "webgpt", "nectar"):
        make, winners = READ[kind]
        data = prepare(DataConfig(source=written(tmp_path, rows_of(make, winners.replace("0", "")))), WORLD, "sft")
        texts = [tree for trees in data.texts.values() for tree in trees]
        assert len(texts) == 60
        assert all(len(tree.responses) == 1 and GOOD in tree.responses[0].text for tree in texts)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "the plot is", "answer": " good ."}, "prompt is question; completion is answer"),
        ({"instruction": "the plot is", "input": "", "output": " good ."},
         "prompt is instruction + input; completion is output"),
        ({"system": "be brief", "question": "the plot is", "response": " good ."},
         "prompt is system + question; completion is response"),
        ({"prompt": "the plot is", "response": " good .", "rating": 4}, "completion is response"),
        ({"conversations": shared("the plot is", " good .")}, "messages is conversations"),
        ({"sentence": "the plot is good ."}, "text is sentence"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("chatting")
def test_single_responses_are_read_by_their_names(row: Row, message: str, tmp_path: Path) -> None:
    data = prepare(DataConfig(source=written(tmp_path, [dict(row)])), WORLD, "sft")
    (tree,) = [tree for trees in data.texts.values() for tree in trees]
    assert tree.responses[0].text in (" good .", "the plot is good .")
    assert data.account.layout.endswith(message)


def test_ratings_of_single_responses_are_read_by_their_names(tmp_path: Path) -> None:
    rows = [{"prompt": f"film {n} :", "response": f" {word} .", "rating": score}
            for n in range(40) for word, score in ((GOOD, 5), ("odd", 2))]  # fmt: skip
    data = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert data.account.layout == "format graded: scores is rating"
    assert accuracy(DataConfig(source=written(tmp_path, rows))) == 1.0


ORDINARY = {
    "id": lambda n: n, "category": lambda n: "ab"[n % 2], "turns": lambda n: 1 + n % 2, "length": lambda n: n % 3,
    "is_safe": lambda n: n % 2, "source": lambda n: f"set {n % 3}", "difficulty": lambda n: 1 + n % 2,
    "quality": lambda n: 1 + n % 5, "label_model": lambda n: "gpt", "environment": lambda n: ["dev", "test"][n % 2],
}  # fmt: skip


def test_f61_twin_ordinary_columns_are_listed_and_stop_nothing(tmp_path: Path) -> None:
    rows = [row | {name: of(n) for name, of in ORDINARY.items()} for n, row in enumerate(rows_of(READ["chosen"][0]))]
    for purpose in ("pairs", "sft", "unpaired", "ranked"):
        columns = layout(rows, purpose)
        assert columns.format == "preference"
        assert set(columns.unread) == set(ORDINARY)


def test_f61_a_split_that_is_not_read_stops_with_the_line_to_paste(tmp_path: Path) -> None:
    rows = [row | {"partition": "train" if n < 50 else "test"} for n, row in enumerate(rows_of(READ["chosen"][0]))]
    source = written(tmp_path, rows)
    with pytest.raises(ValueError, match=r"'partition' looks like a split \(test, train\)") as stopped:
        prepare(DataConfig(source=source), WORLD, "pairs")
    data = prepare(pasted(str(stopped.value), source), WORLD, "pairs")
    assert {part: len(trees) for part, trees in data.parts.items()} == {"train": 50, "validation": 0, "test": 10}
    assert "partition" not in data.account.unread
    for config in (DataConfig(source=source, ignore=("partition",)), DataConfig(source=source, splits="ignore")):
        assert prepare(config, WORLD, "pairs").account.columns["split"] == 0


def test_what_is_mapped_must_be_there_and_be_read(tmp_path: Path) -> None:
    source = written(tmp_path, rows_of(READ["chosen"][0]))
    for columns, message in (
        ({"chosn": "chosen"}, "maps 'chosn', which no format reads, did you mean 'chosen'"),
        ({"label": "id"}, "maps 'label', but format 'preference' does not read it"),
        ({"chosen": ["chosen", "rejected"]}, "maps 'chosen' to several columns"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(DataConfig(source=source, columns=columns), WORLD, "pairs")
    with pytest.raises(ValueError, match=r"data\.ignore names 'nothing'; the data has chosen, id"):
        prepare(DataConfig(source=source, ignore=("nothing",)), WORLD, "pairs")
    with pytest.raises(ValueError, match=r"data\.winner explains .*, but none is mapped"):
        prepare(DataConfig(source=source, winner={"a": 1}), WORLD, "pairs")
    with pytest.raises(ValueError, match=r"data\.winner says 'a' means 'best'; it means 1, 2 or tie"):
        DataConfig(winner={"a": "best"})


def test_other_columns_of_a_row_stay_with_the_tree(tmp_path: Path) -> None:
    row = {"question": "the plot is", "answer": " good .", "tests": ["a"], "level": 3}
    config = DataConfig(source=written(tmp_path, [row]), validation=0.0, test=0.0)
    assert [tree.row for tree in prepare(config, WORLD, "sft").texts["train"]] == [{"tests": ["a"], "level": 3}]
    (tree,) = prepare(config, WORLD, "prompts").texts["train"]
    assert tree.row == {"answer": " good .", "tests": ["a"], "level": 3}
    assert type(tree).from_json(tree.to_json()) == tree


def test_messages_are_read_in_every_form_or_refused() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "the plot"}, {"type": "text", "text": " is"}]}]
    assert as_messages(parts, "messages") == [{"role": "user", "content": "the plot is"}]
    assert [turn["role"] for turn in as_messages(shared("a", "b"), "chosen")] == ["user", "assistant"]
    for value, message in (
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1' has a part of type 'image_url'"),
        ([{"role": "user", "content": None}], "message 1' is null"),
        ([{"content": "a"}], "message 1' has no role"),
        ("text", "'messages' is the text 'text', not a list of messages"),
        (["text"], "message 1' is the text 'text', not a message"),
    ):
        with pytest.raises(ValueError, match=message):
            as_messages(value, "messages")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("chosen", float("nan"), "'chosen' is NaN, a missing value"), ("chosen", 5, "'chosen' is the number 5, not"),
     ("chosen_rating", float("nan"), "'chosen_rating' is NaN"), ("prompt", 5, "'prompt' is the number 5"),
     ("rejected", {"a": 1}, "message 1' has no role")],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_with_file_and_row(
    column: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row | {"chosen_rating": 1.0} for row in rows_of(READ["chosen"][0])]
    rows[2][column] = value
    source = sources.SourceRows("given", {"train": [sources.Shard("", lambda: rows)]})
    monkeypatch.setattr(sources, "open_source", lambda *given: source)
    with pytest.raises(ValueError, match=rf"^data\.source 'given', row 3: .*{message}"):
        prepare(DataConfig(source="given"), WORLD, "pairs")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "message"),
    [("hh-rlhf/helpful-base/test.jsonl.gz", "format transcripts"), ("graded/sf_binarized.jsonl.gz", "format pr"),
     ("sentiment/rt_polarity.jsonl.gz", "format text"), ("sentiment/movie_reviews.jsonl.gz", "format text"),
     ("text/stories.jsonl.gz", "format text"), ("polite/instruction-data-with-preference.json", "instruction + input")],
)  # fmt: skip
def test_f61_twin_real_files_stop_nowhere(name: str, message: str, data_root: Path) -> None:
    rows = sources.read_rows(str(data_root / name), None, 3000)
    for purpose in ("pairs", "sft", "prompts", "unpaired"):
        assert message in layout(rows, purpose).description
