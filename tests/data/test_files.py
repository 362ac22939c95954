"""Values of local files stay what was written; what cannot be read is refused with its file and row."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from treeward.data import files, sources, world
from treeward.data.gather import gather
from treeward.data.prepare import DataConfig, prepare

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
    assert sources.rows(source) == rows
    with pytest.raises(ValueError, match=rf"rows.jsonl', row {number + 1}: column"):
        prepare(DataConfig(source=source), WORLD, "pairs")


def test_texts_that_look_like_numbers_or_json_stay_texts(tmp_path: Path) -> None:
    odd = ["NA", "007", "1e5", "null", '["a"]', "true", " x ", "nan", ""]
    rows = [{"prompt": f"p {n}", "chosen": text, "rejected": "b"} for n, text in enumerate(odd)]
    assert sources.rows(lines(tmp_path / "rows.jsonl", rows)) == rows
    quoted = ['"' + text.replace('"', '""') + '"' for text in odd]
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n" + "".join(f"p {n},{t},b\n" for n, t in
                                                                          enumerate(quoted)))  # fmt: skip
    assert sources.rows(str(tmp_path / "rows.csv")) == rows


def test_csv_numbers_are_read_where_a_column_needs_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"the {a} is dull .,{n % 2}\n" for n, a in
                                                           enumerate(world.ASPECT)))  # fmt: skip
    config = DataConfig(source=str(tmp_path / "t.csv"), validation=0, test=0)
    assert prepare(config, WORLD, "pairs").account.used == len(world.ASPECT) // 2
    assert gather(config).purpose == "pairs"
    (tmp_path / "r.csv").write_text("prompt,chosen,rejected,chosen_rating,rejected_rating\np, a, b,4.5,\nq, a, b,x,1\n")
    with pytest.raises(ValueError, match="row 2: column 'chosen_rating' is the text 'x', not a finite number"):
        prepare(DataConfig(source=str(tmp_path / "r.csv")), WORLD, "pairs")


def test_message_parts_are_read_as_their_texts_or_refused(tmp_path: Path) -> None:
    def said(*parts: dict[str, str]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "no ."}]}

    whole = said({"type": "text", "text": "is it "}, {"type": "text", "text": "dull ?"})
    read = prepare(DataConfig(source=lines(tmp_path / "m.jsonl", [whole] * 2), test=0, validation=0), _chats(), "sft")
    assert read.texts["train"][0].prompt == ({"role": "user", "content": "is it dull ?"},)
    image = said({"type": "image_url", "image_url": "x"})
    with pytest.raises(ValueError, match=r"m.jsonl', row 2: .*part of type 'image_url'"):
        prepare(DataConfig(source=lines(tmp_path / "m.jsonl", [whole, image])), _chats(), "sft")


def _chats() -> Any:
    tokenizer = world.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
    return tokenizer


def test_a_template_that_refuses_a_dialogue_is_told_in_one_line(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("name", "data", "said"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_files_are_refused_with_their_row(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}'.*{said}"):
        sources.rows(str(tmp_path / name))


def test_a_large_json_list_is_read_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 16)
    rows = pairs(40)
    for indent in (None, 2):
        (tmp_path / "rows.json").write_text(json.dumps(rows, indent=indent))
        assert sources.rows(str(tmp_path / "rows.json")) == rows


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
    assert sources.rows(str(place)) == pairs(3)
    (place / "more.jsonl").symlink_to(secret)
    with pytest.raises(ValueError, match=r"a link 'more\.jsonl' that leaves the directory"):
        sources.rows(str(place))


def test_a_saved_data_set_reads_its_own_files_alone(tmp_path: Path) -> None:
    datasets.Dataset.from_list(pairs(3)).save_to_disk(str(tmp_path / "saved"))
    datasets.Dataset.from_list(pairs(2)).save_to_disk(str(tmp_path / "other"))
    assert sources.rows(str(tmp_path / "saved")) == pairs(3)
    state = {"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]}
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="no plain name inside the directory"):
        sources.rows(str(tmp_path / "saved"))
