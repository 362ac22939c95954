"""Files, folders and the world as rows; and one-line errors that name the place."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from treeward.data import hub, sources

ROWS = [{"prompt": "Où?", "chosen": "a, b", "rating": 1.5}, {"prompt": 'say "x"', "chosen": "c\nd", "rating": 2.0}]


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows))


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def as_texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: str(value) for name, value in row.items()} for row in rows]


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_saved(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))


def as_folder(path: Path, rows: list[dict[str, Any]]) -> None:
    path.mkdir()
    as_jsonl(path / "rows.jsonl", rows)


Write = Callable[[Path, list[dict[str, Any]]], None]
KINDS: list[tuple[str, Write]] = [
    ("rows.jsonl", as_jsonl),
    ("rows.jsonl.gz", as_gzip),
    ("rows.json", as_json),
    ("rows.parquet", as_parquet),
    ("rows.csv", as_csv),
    ("saved", as_saved),
    ("folder", as_folder),
]


@pytest.mark.parametrize(("name", "write"), KINDS)
def test_every_kind_of_file_gives_the_rows_as_they_were(name: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS)
    assert sources.rows(str(tmp_path / name)) == (as_texts(ROWS) if write is as_csv else ROWS)


@pytest.mark.parametrize(("name", "write"), KINDS[:4])
def test_a_changed_file_is_read_anew(name: str, write: Write, tmp_path: Path) -> None:
    """No cache may answer for a file that has changed under the same name."""
    write(tmp_path / name, ROWS)
    assert sources.rows(str(tmp_path / name)) == ROWS
    (tmp_path / name).unlink()
    write(tmp_path / name, ROWS[1:])
    assert sources.rows(str(tmp_path / name)) == ROWS[1:]


def test_messages_survive_reading(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    as_gzip(tmp_path / "m.jsonl.gz", rows)
    assert sources.rows(str(tmp_path / "m.jsonl.gz")) == rows


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "r.jsonl", ROWS)
    assert sources.rows(str(tmp_path / "r.jsonl"), limit=1) == ROWS[:1]


def saved_with_splits(tmp_path: Path) -> str:
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "parts"))
    return str(tmp_path / "parts")


def test_splits_are_kept_as_a_column(tmp_path: Path) -> None:
    found = sources.rows(saved_with_splits(tmp_path))
    assert [row["split"] for row in found] == ["train", "train", "test"]
    assert {k: v for k, v in found[2].items() if k != "split"} == ROWS[0]


def test_one_split_can_be_read_alone(tmp_path: Path) -> None:
    assert sources.rows(saved_with_splits(tmp_path), split="test") == ROWS[:1]


def test_a_folder_of_files_named_by_split_keeps_them(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "train.jsonl", ROWS)
    as_jsonl(tmp_path / "test.jsonl", ROWS[1:])
    assert [row["split"] for row in sources.rows(str(tmp_path))] == ["train", "train", "test"]


@pytest.mark.parametrize("kind", ["saved", "file", "world"])
def test_a_split_that_is_not_there_is_refused(kind: str, tmp_path: Path) -> None:
    as_jsonl(tmp_path / "r.jsonl", ROWS)
    source = {"saved": saved_with_splits(tmp_path), "file": str(tmp_path / "r.jsonl"), "world": "world"}[kind]
    with pytest.raises(ValueError, match="split 'nowhere'") as caught:
        sources.rows(source, split="nowhere")
    assert source in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jsonl", b""),
        ("blank.jsonl", b"\n\n"),
        ("empty.json", b"[]"),
        ("header.csv", b"prompt,chosen\n"),
        ("broken.jsonl", b'{"prompt": "p"\n{'),
        ("broken.jsonl.gz", b"no gzip"),
        ("broken.parquet", b"no parquet"),
        ("text.txt", b"hello"),
        ("table.xlsx", b"hello"),
        ("noending", b"hello"),
    ],
)
def test_files_that_hold_no_rows_are_refused_in_one_line_that_names_them(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.source") as caught:
        sources.rows(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"ends in '\.txt'; jsonl, jsonl\.gz, json, parquet and csv are read"):
        sources.rows(str(tmp_path / "x.txt"))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        sources.rows(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "source",
    [
        "missing.jsonl", "./missing", "/nowhere/missing.parquet", "~/missing", "a/b/c", "nowhere/missing.csv",
        "nowhere/missing.jsonl.gz", "nowhere/missing.csv.gz",
    ],
)  # fmt: skip
def test_a_missing_file_is_said_to_be_missing_and_never_looked_for_on_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*arguments: Any, **named: Any) -> Any:
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr(hub, "pieces", reached)
    with pytest.raises(ValueError, match="does not exist") as caught:
        sources.rows(source)
    assert repr(source) in str(caught.value)


def test_a_hub_id_without_a_network_is_one_line_with_a_mend() -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing' cannot be read .* give a local file") as e:
        sources.rows("nobody/nothing")
    assert "\n" not in str(e.value)


def test_the_world_needs_no_file() -> None:
    assert sources.rows("world", limit=2, seed=3) == sources.rows("world", seed=3)[:2]
    assert sources.rows("world", limit=2, seed=3) != sources.rows("world", limit=2, seed=4)
    assert set(sources.rows("world-texts", limit=1)[0]) == {"prompt", "completion"}
