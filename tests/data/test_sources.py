"""Files, folders and the world as rows: values stay what was written; errors are one line that names file and row."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from treeward.data import sources, world
from treeward.data.inspect import read_contents
from treeward.data.prepare import DataConfig, prepare

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
    assert sources.read_rows(str(tmp_path / name)) == (as_texts(ROWS) if write is as_csv else ROWS)


@pytest.mark.parametrize(("name", "write"), KINDS[:4])
def test_a_changed_file_is_read_anew(name: str, write: Write, tmp_path: Path) -> None:
    """No cache may answer for a file that has changed under the same name."""
    write(tmp_path / name, ROWS)
    assert sources.read_rows(str(tmp_path / name)) == ROWS
    (tmp_path / name).unlink()
    write(tmp_path / name, ROWS[1:])
    assert sources.read_rows(str(tmp_path / name)) == ROWS[1:]


def test_messages_survive_reading(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    as_gzip(tmp_path / "m.jsonl.gz", rows)
    assert sources.read_rows(str(tmp_path / "m.jsonl.gz")) == rows


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "r.jsonl", ROWS)
    assert sources.read_rows(str(tmp_path / "r.jsonl"), limit=1) == ROWS[:1]


def saved_with_splits(tmp_path: Path) -> str:
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "parts"))
    return str(tmp_path / "parts")


def test_splits_are_kept_as_a_column(tmp_path: Path) -> None:
    rows_read = sources.read_rows(saved_with_splits(tmp_path))
    assert [row["split"] for row in rows_read] == ["train", "train", "test"]
    assert {k: v for k, v in rows_read[2].items() if k != "split"} == ROWS[0]


def test_one_split_can_be_read_alone(tmp_path: Path) -> None:
    assert sources.read_rows(saved_with_splits(tmp_path), split="test") == ROWS[:1]


def test_a_folder_of_files_named_by_split_keeps_them(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "train.jsonl", ROWS)
    as_jsonl(tmp_path / "test.jsonl", ROWS[1:])
    assert [row["split"] for row in sources.read_rows(str(tmp_path))] == ["train", "train", "test"]


@pytest.mark.parametrize("kind", ["saved", "file", "world"])
def test_a_split_that_is_not_there_is_refused(kind: str, tmp_path: Path) -> None:
    as_jsonl(tmp_path / "r.jsonl", ROWS)
    source = {"saved": saved_with_splits(tmp_path), "file": str(tmp_path / "r.jsonl"), "world": "world"}[kind]
    with pytest.raises(ValueError, match="split 'nowhere'") as caught:
        sources.read_rows(source, split="nowhere")
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
        sources.read_rows(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"ends in '\.txt'; jsonl, jsonl\.gz, json, parquet and csv are read"):
        sources.read_rows(str(tmp_path / "x.txt"))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        sources.read_rows(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "source",
    [
        "missing.jsonl", "./missing", "/nowhere/missing.parquet", "~/missing", "a/b/c", "nowhere/missing.csv",
        "nowhere/missing.jsonl.gz", "nowhere/missing.csv.gz",
    ],
)  # fmt: skip
def test_a_missing_file_is_an_error_and_is_never_looked_up_on_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*arguments: Any, **named: Any) -> Any:
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr(sources, "hub_shards", reached)
    with pytest.raises(ValueError, match="does not exist") as caught:
        sources.read_rows(source)
    assert repr(source) in str(caught.value)


def test_a_hub_id_without_a_network_is_one_line_with_a_fix() -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing' cannot be read .* give a local file") as e:
        sources.read_rows("nobody/nothing")
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_the_world_needs_no_file() -> None:
    assert sources.read_rows("world", limit=2, seed=3) == sources.read_rows("world", seed=3)[:2]
    assert sources.read_rows("world", limit=2, seed=3) != sources.read_rows("world", limit=2, seed=4)
    assert set(sources.read_rows("world-texts", limit=1)[0]) == {"prompt", "completion"}


WORLD = world.tokenizer()


def pairs(count: int = 9) -> list[dict[str, Any]]:
    return [{"prompt": f"the plot {n} is", "chosen": f" good {n} .", "rejected": f" bad {n} ."} for n in range(count)]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("number", [0, 4, 8])
@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}, True])
def test_one_value_that_is_no_text_is_refused_and_no_other_text_is_rewritten(
    number: int, value: Any, tmp_path: Path
) -> None:
    rows = pairs()
    rows[number]["chosen"] = value
    source = lines(tmp_path / "rows.jsonl", rows)
    assert sources.read_rows(source) == rows
    with pytest.raises(ValueError, match=rf"rows.jsonl', row {number + 1}: column"):
        prepare(DataConfig(source=source), WORLD, "pairs")


def test_texts_that_look_like_numbers_or_json_stay_texts(tmp_path: Path) -> None:
    odd = ["NA", "007", "1e5", "null", '["a"]', "true", " x ", "nan", ""]
    rows = [{"prompt": f"p {n}", "chosen": text, "rejected": "b"} for n, text in enumerate(odd)]
    assert sources.read_rows(lines(tmp_path / "rows.jsonl", rows)) == rows
    quoted = ['"' + text.replace('"', '""') + '"' for text in odd]
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n" + "".join(f"p {n},{t},b\n" for n, t in
                                                                          enumerate(quoted)))  # fmt: skip
    assert sources.read_rows(str(tmp_path / "rows.csv")) == rows


def test_csv_numbers_are_read_where_a_column_needs_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"the {a} is dull .,{n % 2}\n" for n, a in
                                                           enumerate(world.ASPECT)))  # fmt: skip
    config = DataConfig(source=str(tmp_path / "t.csv"), validation=0, test=0)
    assert prepare(config, WORLD, "pairs").account.used == len(world.ASPECT) // 2
    assert read_contents(config).purpose == "pairs"
    (tmp_path / "r.csv").write_text("prompt,chosen,rejected,chosen_rating,rejected_rating\np, a, b,4.5,\nq, a, b,x,1\n")
    with pytest.raises(ValueError, match="row 2: column 'chosen_rating' is the text 'x', not a finite number"):
        prepare(DataConfig(source=str(tmp_path / "r.csv")), WORLD, "pairs")


def test_message_parts_are_read_as_their_texts_or_refused(tmp_path: Path) -> None:
    def message(*parts: dict[str, str]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "no ."}]}

    whole = message({"type": "text", "text": "is it "}, {"type": "text", "text": "dull ?"})
    read = prepare(DataConfig(source=lines(tmp_path / "m.jsonl", [whole] * 2), test=0, validation=0), _chats(), "sft")
    assert read.texts["train"][0].prompt == ({"role": "user", "content": "is it dull ?"},)
    image = message({"type": "image_url", "image_url": "x"})
    with pytest.raises(ValueError, match=r"m.jsonl', row 2: .*part of type 'image_url'"):
        prepare(DataConfig(source=lines(tmp_path / "m.jsonl", [whole, image])), _chats(), "sft")


def _chats() -> Any:
    tokenizer = world.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
    return tokenizer


def test_a_template_that_refuses_a_dialogue_is_one_line(tmp_path: Path) -> None:
    tokenizer = _chats()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    row = {"messages": [{"role": "user", "content": "is it ?"}, {"role": "assistant", "content": "no ."}]}
    with pytest.raises(ValueError, match=r"template cannot render .*'is it \?' \(roles must alternate\)"):
        prepare(DataConfig(source=lines(tmp_path / "m.jsonl", [row])), tokenizer, "sft")


Make = Callable[[bytes], bytes]
BROKEN: list[tuple[str, bytes, str]] = [
    ("null.jsonl", b"null\n", "row 1 is null, not an object"),
    ("null.json", b"null", "holds no list of objects"),
    ("twice.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', "row 2 has the key 'a' twice"),
    ("half.json", b'[{"a": "x"}, {"a": "\\ud800"}]', "row 2 holds half of a surrogate pair"),
    ("deep.jsonl", b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}", "row 1 is nested more than 64 levels"),
    ("bottomless.jsonl", b'{"a": 1}\n' + b"[" * 99_999, "row 2 is nested more than 64 levels"),
    ("wide.jsonl", '{"a": 1}\n'.encode("utf-16"), "is UTF-16"),
    ("latin.jsonl", b'{"a": 1}\n\n{"a": "\xe9"}\n', "row 2 is not UTF-8"),
    ("long.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "row 1 holds a number that cannot be read"),
    ("blank.jsonl", b'{"a": 1}\n\n{\n', r"row 2 is not JSON: .* \(line 3\)"),
    ("open.json", b'[{"a": 1}', "row 1 ends after this row without the closing"),
    ("short.csv", b"a,b\n1,2\n3\n", "row 2 has 1 fields, but the header has 2"),
    ("twice.csv", b"a,a\n1,2\n", "has the column 'a' twice"),
    ("semicolon.csv", b"a;b\n1;2\n", "has ';' between its columns"),
    ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-6], "is not a whole gzip file"),
    ("no.parquet", b"PAR1 no", "is not readable as parquet"),
]


@pytest.mark.parametrize(("name", "data", "message"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_files_are_refused_with_their_row(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}'.*{message}"):
        sources.read_rows(str(tmp_path / name))


def test_a_large_json_list_is_read_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 16)
    rows = pairs(40)
    for indent in (None, 2):
        (tmp_path / "rows.json").write_text(json.dumps(rows, indent=indent))
        assert sources.read_rows(str(tmp_path / "rows.json")) == rows


def test_a_row_is_counted_in_its_own_file(tmp_path: Path) -> None:
    bad = pairs(5)
    bad[3]["rejected"] = 7
    lines(tmp_path / "train.jsonl", pairs(6))
    lines(tmp_path / "test.jsonl", bad)
    with pytest.raises(ValueError, match=r"'test.jsonl', row 4: column 'rejected' is the number 7"):
        prepare(DataConfig(source=str(tmp_path)), WORLD, "pairs")


def test_a_directory_reads_its_own_files_alone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    secret = lines(tmp_path / "secret.jsonl", pairs(1))
    (place / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../secret.jsonl\n---\n")
    lines(place / "rows.jsonl", pairs(3))
    assert sources.read_rows(str(place)) == pairs(3)
    (place / "more.jsonl").symlink_to(secret)
    with pytest.raises(ValueError, match=r"a link 'more\.jsonl' that leaves the directory"):
        sources.read_rows(str(place))


def test_a_saved_data_set_reads_its_own_files_alone(tmp_path: Path) -> None:
    datasets.Dataset.from_list(pairs(3)).save_to_disk(str(tmp_path / "saved"))
    datasets.Dataset.from_list(pairs(2)).save_to_disk(str(tmp_path / "other"))
    assert sources.read_rows(str(tmp_path / "saved")) == pairs(3)
    state = {"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]}
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="no plain name inside the directory"):
        sources.read_rows(str(tmp_path / "saved"))
