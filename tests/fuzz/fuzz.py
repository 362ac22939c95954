"""Malformed files made from valid ones, and what every command must do with them: one line, exit code 2, no traceback.

`python tests/fuzz/fuzz.py --minutes 10 --seed 1` runs longer than the test does. A case is a function of its number and
the seed, so that `--seed S --case N` repeats one.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

Rows = list[dict[str, Any]]
PATIENCE = 60
"""Seconds after which a case counts as hung."""


@dataclass
class Case:
    """A command (words, or a function) on malformed files, and the expected result.

    `expected` is "read", "refused" or "any". The message of a refused case must contain each of `shown`, such as the
    file's name. A case that is read must give `rows`, or a prefix of them if `cut`.
    """

    label: str
    words: Sequence[str] | Callable[[], Any]
    expected: str = "any"
    shown: tuple[str, ...] = ()
    rows: Rows | None = None
    cut: bool = False


@dataclass
class Outcome:
    """The result of a case: "ok", or what was wrong, with details."""

    verdict: str
    detail: str = ""


def text_of(draw: random.Random, words: int = 5) -> str:
    return " ".join(draw.choice(("the", "plot", "is", "dull", "a", "film", "by", "team")) for _ in range(words))


def pairs(draw: random.Random, count: int = 12) -> Rows:
    return [{"prompt": f"{text_of(draw)} {n}", "chosen": f" good {text_of(draw)}", "rejected": f" bad {text_of(draw)}"}
            for n in range(count)]  # fmt: skip


def spoken_pairs(draw: random.Random, count: int = 12) -> Rows:
    prompt = [{"role": "user", "content": text_of(draw)}]
    return [{side: [*prompt, {"role": "assistant", "content": f"{side} {n} {text_of(draw)}"}]
             for side in ("chosen", "rejected")} for n in range(count)]  # fmt: skip


def completions(draw: random.Random, count: int = 12) -> Rows:
    return [{"prompt": f"{text_of(draw)} {n}", "completion": f" {text_of(draw)}", "label": n % 2 == 0}
            for n in range(count)]  # fmt: skip


def labelled(draw: random.Random, count: int = 12) -> Rows:
    return [{"text": f"{text_of(draw)} {n}", "label": n % 2} for n in range(count)]


def graded(draw: random.Random, count: int = 12) -> Rows:
    return [{"prompt": f"{text_of(draw)} {n}", "responses": [f" a {text_of(draw)}", f" b {text_of(draw)}"],
             "scores": [draw.randrange(5), 5.5]} for n in range(count)]  # fmt: skip


SHAPES: dict[str, tuple[Callable[..., Rows], tuple[str, ...], tuple[str, ...]]] = {
    "pairs": (pairs, ("prompt", "chosen", "rejected"), ("pairs", "sft", "unpaired", "prompts")),
    "spoken": (spoken_pairs, ("chosen", "rejected"), ("pairs", "sft")),
    "completions": (completions, ("prompt", "completion", "label"), ("unpaired", "sft")),
    "labelled": (labelled, ("text", "label"), ("pairs", "unpaired")),
    "graded": (graded, ("prompt", "responses", "scores"), ("ranked", "graded")),
}
"""By name: how rows are made, the columns that are read, and the purposes that read them; the first reads all."""

NO_TEXT: list[Any] = [
    5, -1.5, True, None, {}, [1, 2], {"a": 1}, ["x"], [["x"]], [{"role": "user"}], [{"role": 3, "content": "x"}],
    [{"role": "user", "content": None}], [{"role": "user", "content": ["x"]}], [{"type": "image_url", "image_url": {}}],
    [{"type": "text", "text": 5}], [None], 10**400, float("nan"), "\ud800", "a\udfff",
    [{"role": "user", "content": [{"type": "input_audio"}]}],
]  # fmt: skip
NO_NUMBER: list[Any] = ["x", "", "1_0", "nan", "inf", None, [], {}, [1], float("nan"), float("inf"), 10**400, "1e999"]
DOCUMENTS = [
    b"null", b"[]", b"{}", b"[null]", b"5", b'"text"', b"[[]]", b"[1, 2]", b"true", b"\n\n", b"\x00" * 64, b"{", b"[{",
    b'{"prompt": ', b"nan", b"[" * 100_000, b'{"a":' * 100_000, b"\xff" * 50, b"\xef\xbb\xbf", b"[{}]", b"{}\n{}",
    b'[{"prompt": "p", "chosen": "a", "rejected": "b"},]', b"1" * 5000,
]  # fmt: skip


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: Rows, **named: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), **named)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": jsonl, "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "jsonl.gz": lambda rows: gzip.compress(jsonl(rows)), "csv": as_csv, "parquet": as_parquet,
}  # fmt: skip


def harmless(draw: random.Random, folder: Path) -> Case:
    """The same rows, written in another way that is just as valid."""
    rows = pairs(draw)
    name, data = draw.choice([
        ("bom.jsonl", b"\xef\xbb\xbf" + jsonl(rows)), ("crlf.jsonl", jsonl(rows).replace(b"\n", b"\r\n")),
        ("blank.jsonl", b"\n" + jsonl(rows).replace(b"\n", b"\n \n")), ("noend.jsonl", jsonl(rows).rstrip()),
        ("bare.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()),
        ("lines.json", jsonl(rows)), ("tight.json", json.dumps(rows, separators=(",", ":")).encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(rows, indent=3).encode()),
        ("two.jsonl.gz", gzip.compress(jsonl(rows[:5])) + gzip.compress(jsonl(rows[5:]))),
        ("quoted.csv", as_csv(rows, quoting=csv.QUOTE_ALL)), ("bom.csv", b"\xef\xbb\xbf" + as_csv(rows)),
        ("crlf.csv", as_csv(rows, lineterminator="\r\n")), ("plain.csv.gz", gzip.compress(as_csv(rows))),
        ("plain.parquet", as_parquet(rows)), ("extra.jsonl", jsonl([row | {"more": draw.choice(NO_TEXT[:10])} for row in
                                                                    rows])),
    ])  # fmt: skip
    rows = rows if name != "extra.jsonl" else [json.loads(line) for line in data.splitlines()]
    (folder / name).write_bytes(data)
    return read(f"harmless {name}", folder / name, ("pairs",), "read", rows=rows)


def odd_texts(draw: random.Random, folder: Path) -> Case:
    """Texts that look like something else, which stay what they are."""
    rows = pairs(draw)
    for row in rows:
        row[draw.choice(("chosen", "rejected"))] = draw.choice(
            ("NA", "null", "007", "1e5", "true", '["a"]', '{"a": 1}', "nan", "1", "None", "2020-01-01", " x ", '"q"',
             "a\nb", "a\r\nb", "é\u2028x", "\U0001f600", "a,b;c\td", "\\ud800", "x" * 200_000)
        )  # fmt: skip
    kind = draw.choice(("jsonl", "json", "csv", "parquet", "jsonl.gz"))
    (folder / f"odd.{kind}").write_bytes(WRITERS[kind](rows))
    return read(f"odd texts in {kind}", folder / f"odd.{kind}", ("pairs",), "read", rows=rows)


def wrong_value(draw: random.Random, folder: Path) -> Case:
    """One value of another kind, in the first, a middle or the last row."""
    shape = draw.choice(list(SHAPES))
    make, columns, purposes = SHAPES[shape]
    rows = make(draw)
    number = draw.choice((0, len(rows) // 2, len(rows) - 1))
    column = draw.choice(columns)
    inner = column in ("responses", "scores") and draw.random() < 0.5
    value = draw.choice(NO_NUMBER if column in ("label", "scores") else NO_TEXT)
    rows[number][column] = [value, *rows[number][column][1:]] if inner else value
    kind = draw.choice(("jsonl", "json", "jsonl.gz"))
    file = folder / f"value.{kind}"
    file.write_bytes(WRITERS[kind](rows))
    # An empty label or list may mean "none"; nothing else may pass.
    unclear = value in ("", [], None) or (shape == "labelled" and number == 0)
    label = f"{shape} row {number + 1} {column} {str(value)[:30]!r} in {kind}"
    if draw.random() < 0.1:
        return Case(f"inspect {label}", ["inspect", str(file), "--out", str(folder / "out")], "any", (file.name,))
    shown = (file.name,) if unclear else (file.name, f"row {number + 1}")
    return read(label, file, purposes[:1], "any" if unclear else "refused", shown)


def wrong_row(draw: random.Random, folder: Path) -> Case:
    """A row that is no object, has a key twice, or too few or other keys."""
    rows = pairs(draw)
    lines = jsonl(rows).splitlines()
    number = draw.choice((0, 5, 11))
    deep = b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    lines[number] = draw.choice((
        b"null", b"[]", b"5", b'"x"', b"{}", b'{"prompt": "a"}', b'{"prompt": "a", "prompt": "b"}', b"{", b"}", b"\x00",
        b'{"prompt": "a" "b"}', lines[number] + b"x", lines[number][:-3], b"\xff\xfe",
        lines[number].replace(b"a", b"\x80"), deep, b'{"prompt": "\t"}', b'{"chosen": "\\ud800"}', lines[number] * 2,
        b'{"n": ' + b"1" * 5000 + b"}",
        lines[number][:-1] + b', "prompt": "again"}', lines[number][:-1] + b', "x": {"y": 1, "y": 2}}',
    ))  # fmt: skip
    (folder / "row.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    label = f"row {number + 1} is {lines[number][:40]!r}"
    first = number == 0 and lines[0] in (b"{}", b'{"prompt": "a"}', b"\xff\xfe")  # the file as a whole is refused
    return read(label, folder / "row.jsonl", ("pairs",), "refused", () if first else ("row.jsonl", f"row {number + 1}"))


def document(draw: random.Random, folder: Path) -> Case:
    """A file that is something else altogether."""
    data = draw.choice(DOCUMENTS)
    kind = draw.choice(("jsonl", "json", "csv", "parquet", "jsonl.gz"))
    zipped = kind.endswith("gz") and draw.random() < 0.5
    (folder / f"else.{kind}").write_bytes(gzip.compress(data) if zipped else data)
    return read(f"{data[:20]!r} as {kind}", folder / f"else.{kind}", ("pairs",), "refused")


def damaged(draw: random.Random, folder: Path) -> Case:
    """A valid file cut off, or with some bytes changed."""
    rows = pairs(draw)
    kind = draw.choice(list(WRITERS))
    data = bytearray(WRITERS[kind](rows))
    how = draw.choice(("cut", "flip", "insert", "utf-16", "tail"))
    if how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "flip":
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif how == "insert":
        data[draw.randrange(len(data)) : 0] = draw.choice((b"\x00", b"\xff", b"{", b'"', b",", b"\n", b"[" * 50))
    elif how == "utf-16":
        data = bytearray(bytes(data).decode("latin-1").encode("utf-16"))
    else:
        data += bytes(draw.randrange(256) for _ in range(draw.randint(1, 40)))
    file = folder / f"damaged.{kind}"
    file.write_bytes(data)
    expected = "refused" if how == "utf-16" or (how == "cut" and kind in ("json", "jsonl.gz", "parquet")) else "any"
    words = ("pairs",) if draw.random() < 0.9 else ()
    label = f"{kind} {how}"
    if not words:
        return Case(f"inspect {label}", ["inspect", str(file), "--out", str(folder / "out")], expected, (file.name,))
    whole = rows if how == "cut" and kind != "csv" else None
    return read(label, file, words, expected, (file.name,), whole, cut=True)


def table(draw: random.Random, folder: Path) -> Case:
    """CSV with a wrong delimiter, ragged rows or a broken header."""
    rows = pairs(draw)
    number = draw.choice((1, 6, 12))
    lines = as_csv(rows, lineterminator="\n").splitlines()
    how = draw.choice(("delimiter", "short", "long", "quote", "twice", "headless"))
    shown: tuple[str, ...] = ("t.csv", f"row {number}")
    if how == "delimiter":
        lines = as_csv(rows, lineterminator="\n", delimiter=draw.choice(";\t|")).splitlines()
        shown = ("t.csv",)
    elif how == "short":
        lines[number] = lines[number].rpartition(b",")[0]
    elif how == "long":
        lines[number] += b",more"
    elif how == "quote":
        lines[number] = b'"' + lines[number]
        shown = ("t.csv",)
    elif how == "twice":
        lines[0] = b"prompt,chosen,chosen"
        shown = ("t.csv",)
    else:
        del lines[0]
        shown = ()
    (folder / "t.csv").write_bytes(b"\n".join(lines) + b"\n")
    return read(f"csv {how}", folder / "t.csv", ("pairs",), "refused", shown)


def columns(draw: random.Random, folder: Path) -> Case:
    """Parquet whose columns have other types."""
    import datetime
    import decimal

    import pyarrow as pa
    from pyarrow import parquet

    rows = pairs(draw)
    made = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    odd = {
        "date": pa.array([datetime.date(2020, 1, 1)] * 12), "time": pa.array([datetime.datetime(2020, 1, 1)] * 12),
        "binary": pa.array([b"\xff\x00"] * 12), "decimal": pa.array([decimal.Decimal("1.5")] * 12),
        "null": pa.nulls(12), "struct": pa.array([{"a": 1}] * 12), "list": pa.array([["x"]] * 12),
        "number": pa.array([1.5] * 12), "far": pa.array([2**62] * 12, pa.timestamp("us")),
        "bool": pa.array([True] * 12), "map": pa.array([[("a", 1)]] * 12, pa.map_(pa.string(), pa.int64())),
    }  # fmt: skip
    same = {"dictionary": made["chosen"].dictionary_encode(), "large": made["chosen"].cast(pa.large_string())}
    kind = draw.choice([*odd, *same])
    where = draw.choice(("chosen", "rejected")) if kind in odd else "chosen"
    made[where] = odd[kind] if kind in odd else same[kind]
    parquet.write_table(pa.table(made), folder / "c.parquet")
    if kind in same:
        return read(f"parquet {kind}", folder / "c.parquet", ("pairs",), "read", rows=rows)
    # A column of nothing is twelve missing responses, which are counted together.
    place = "12 empty response" if kind == "null" else "row 1"
    return read(f"parquet {kind} as {where}", folder / "c.parquet", ("pairs",), "refused", ("c.parquet", place))


def directory(draw: random.Random, folder: Path) -> Case:
    """A directory with nothing, with mixed files, with a link outside, or a saved data set that is damaged."""
    rows = pairs(draw)
    place = folder / "place"
    place.mkdir()
    how = draw.choice(("empty", "mixed", "readme", "link", "unsplit", "saved", "escape", "state", "arrow"))
    expected = "refused"
    if how == "mixed":
        (place / "a.jsonl").write_bytes(jsonl(rows))
        (place / "b.csv").write_bytes(as_csv(rows))
    elif how == "readme":
        (place / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../outside.jsonl\n---\n")
        (folder / "outside.jsonl").write_bytes(jsonl(rows[:1]))
        (place / "rows.jsonl").write_bytes(jsonl(rows))
        expected = "read"
    elif how == "link":
        (folder / "outside.jsonl").write_bytes(jsonl(rows))
        (place / "train.jsonl").symlink_to(folder / "outside.jsonl")
    elif how == "unsplit":
        (place / "train.jsonl").write_bytes(jsonl(rows))
        (place / "more.jsonl").write_bytes(jsonl(rows))
    elif how != "empty":
        import datasets

        datasets.disable_progress_bars()
        place.rmdir()
        datasets.Dataset.from_list(rows).save_to_disk(str(place))
        if how == "saved":
            expected = "read"
        elif how == "escape":
            (folder / "outside.arrow").write_bytes((place / "data-00000-of-00001.arrow").read_bytes())
            (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../outside.arrow"}]}))
        elif how == "state":
            (place / "state.json").write_bytes(draw.choice((b"[]", b"null", b"{", b'{"_data_files": 3}', b"\xff")))
        else:
            file = place / "data-00000-of-00001.arrow"
            data = bytearray(file.read_bytes())
            for _ in range(8):
                data[draw.randrange(len(data))] = draw.randrange(256)
            file.write_bytes(data[: draw.choice((len(data), len(data) // 2))])
            expected = "any"
    whole = rows if expected == "read" else None
    return read(f"directory {how}", place, ("pairs",), expected, ("place",), whole)


def scored(draw: random.Random, folder: Path) -> Case:
    """`score` on a file with one bad row."""
    rows: Rows = [{"prompt": f"the plot is {n}", "response": "a dull film ."} for n in range(6)]
    number = draw.randrange(6)
    rows[number][draw.choice(("prompt", "response"))] = draw.choice([v for v in NO_TEXT if v is not None])
    (folder / "s.jsonl").write_bytes(jsonl(rows))
    words = ["score", "--model.path", str(fixtures() / "reward" / "model"), "--data", str(folder / "s.jsonl"),
             "--out", str(folder / "out.jsonl")]  # fmt: skip
    return Case(f"score row {number + 1}", words, "refused", ("s.jsonl", f"row {number + 1}"))


def model(draw: random.Random, folder: Path) -> Case:
    """`sample` or `score` with a model directory in which one file is damaged."""
    kind = draw.choice(("policy", "reward"))
    place = folder / "model"
    shutil.copytree(fixtures() / kind / "model", place)
    names = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
             "template", "bin", *(["treeward.json"] if kind == "reward" else [])]  # fmt: skip
    names = [name for name in names if (place / name).exists() or name in ("template", "bin")]
    name = draw.choice(names)
    expected = "any"
    if name == "model.safetensors":
        expected = _damage_tensors(draw, place / name)
        how = "tensors"
    elif name == "bin":
        (place / "model.safetensors").unlink()
        marker = folder / "ran"
        how, data = draw.choice([
            ("list", pickle.dumps([1, 2])), ("code", pickle.dumps(Runs(str(marker)))), ("bytes", draw.randbytes(200)),
            ("nothing", b""), ("zip", b"PK\x03\x04" + draw.randbytes(100)),
        ])  # fmt: skip
        (place / "pytorch_model.bin").write_bytes(data)
        expected = "refused"
    elif name == "template":
        how = draw.choice(("{% if", "{{ raise_exception('no') }}", "{{ messages[9].x.y }}", "{{ 1 + 'a' }}",
                           "{{ 1/0 }}", "{% for i in range(10**9) %}x{% endfor %}"))  # fmt: skip
        (place / "chat_template.jinja").write_text(how)
    else:
        how = _damage_json(draw, place / name)
    if kind == "policy":
        words = ["sample", "--model.path", str(place), "--data.source", str(fixtures() / "chats.jsonl"),
                 "--samples", "1", "--max-new-tokens", "2", "--data.validation", "0", "--data.test", "0"]  # fmt: skip
        if name != "template":
            words = [*words[:3], "--prompt", "the plot is", *words[5:9]]
    else:
        words = ["score", "--model.path", str(place), "--data", str(fixtures() / "chats.jsonl"), "--out",
                 str(folder / "out.jsonl")]  # fmt: skip
        if name != "template":
            words[4] = str(fixtures() / "plain.jsonl")
    return Case(f"{kind} {name}: {how}", words, expected)


class Runs:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def _damage_tensors(draw: random.Random, file: Path) -> str:
    data = bytearray(file.read_bytes())
    how = draw.choice(("cut", "length", "header", "empty", "lost"))
    size = int.from_bytes(data[:8], "little")
    if how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "length":
        data[:8] = draw.choice((0, 1, size + 7, 2**40, 2**63)).to_bytes(8, "little")
    elif how == "header":
        data[8 + draw.randrange(size)] = draw.choice(b'{}[]":,0x')
    elif how == "empty":
        data.clear()
    else:
        header = json.loads(data[8 : 8 + size])
        lost = draw.choice([name for name in header if name != "__metadata__"])
        header[f"{lost}.other"] = header.pop(lost)
        text = json.dumps(header).encode()
        data[: 8 + size] = len(text).to_bytes(8, "little") + text
    file.write_bytes(data)
    return "any" if how == "header" else "refused"


ODD: list[Any] = ["x", [], {}, None, -1, 0, 3, 1e30, True, [1], {"a": 1}, "", 2.5]


def _damage_json(draw: random.Random, file: Path) -> str:
    data = file.read_bytes()
    if draw.random() < 0.3:
        part = data[: draw.randrange(len(data))]
        new = draw.choice((b"[]", b"null", b"5", b"", b"{}", part, b"\xff\xfe", b"[" * 9999))
        file.write_bytes(new)
        return f"is {new[:12]!r}"
    value = json.loads(data)
    key = draw.choice(list(value))
    if draw.random() < 0.3:
        del value[key]
        how = f"without {key}"
    else:
        value[key] = draw.choice([odd for odd in ODD if key != "num_hidden_layers" or odd != 1e30])
        how = f"{key} = {value[key]!r}"
    file.write_text(json.dumps(value))
    return how


def recipe(draw: random.Random, folder: Path) -> Case:
    """A recipe that is no recipe."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{last}'] * 10)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    base = "command: dpo\nsteps: 3\nlr: 0.001\ndata:\n  source: world\nloss:\n  kind: sigmoid\n  beta: 0.1\n"
    good = [base, base.replace("0.1", "&b 0.1") + "seed: 1\n", "# only\n" + base]
    bad = [
        bomb, "- a\n- b\n", "null", "", "5", "a: [", "a:\tb", "steps: !!python/object/apply:os.system ['true']\n",
        "steps: 1\nsteps: 2\n", "data:\n  source: a\n  source: b\n", "1: 2\n", "? [a]\n: b\n", "a: &a [*a]\n", "\x00",
        "[" * 5000, "data: 5\n", "data: []\n", "loss: x\n", "steps: {}\n", "steps: [1]\n", "lr: x\n", "steps: 1.5\n",
        "steps: !!int x\n", "seed: !!timestamp x\n", "seed: !!binary x\n", "name: !!float x\n", "command: [dpo]\n",
        "loss:\n  kind: [1]\n", "loss:\n  kind:\n", "model:\n  config: 5\n", "data:\n  columns: [a]\n", "name: ../x\n",
        "name: /tmp/x\n", "name: ''\n", "evaluation:\n  scorer: evil.py:f\n", "evaluation:\n  judges: [evil.py:f]\n",
        "lr: .nan\n", "lr: .inf\n", "steps: -1\n", "out: 5\n",
        "skip_check: 5\n", "evaluation:\n  prompts: {a: b}\n", "a" * 5000 + ": 1\n", "steps: 2001-01-01\n", "*a", "%",
        "!x y", "data: &d {source: x}\nmodel: *d\n", "<<: 5\n", "--- 1\n--- 2\n",
    ]  # fmt: skip
    sound = draw.random() < 0.1
    text = draw.choice(good if sound else bad)
    file = folder / "r.yaml"
    file.write_bytes(text.encode() if draw.random() < 0.95 or sound else text.encode("utf-16"))
    code = "evil.py" in text or text.startswith("name: ")
    words = ["dpo", str(file), *([] if code else ["--print-config"])]
    return Case(f"recipe {text[:40]!r}", words, "read" if sound else "refused")


def scorer(draw: random.Random, folder: Path) -> Case:
    """A Python file as scorer that fails."""
    body = draw.choice((
        "raise RuntimeError('x')", "import nowhere_at_all", "def f(", "f = 5", "import sys; sys.exit(3)", "\x00",
        "def f(p, r): return 'x'", "def f(p, r): return '0.5'", "def f(p, r): return None",
        "def f(p, r): return float('nan')", "def f(p, r): return [1]", "def f(p, r): raise KeyError('x')",
        "def f(p): return 1", "def f(p, r): return 10**400", "def f(p, r): return r.nothing",
        "def f(p, r): return 1 + 2j", "1/0",
    ))  # fmt: skip
    (folder / "sc.py").write_text(body)

    def call() -> None:
        from treeward.data import world
        from treeward.rewards import scorers
        from treeward.trees.rollout import Rollout
        from treeward.trees.tokens import TokenTree

        trees = [TokenTree((5, 6), ((7, 8), (9, 2)))]
        scorers.find(f"{folder / 'sc.py'}:f")(Rollout(trees, world.tokenizer()))

    return Case(f"scorer {body!r}", call, "refused", ("sc.py",))


def read(
    label: str,
    file: Path,
    purposes: Sequence[str],
    expected: str,
    shown: tuple[str, ...] = (),
    rows: Rows | None = None,
    cut: bool = False,
) -> Case:
    """The case of reading a file for training."""

    def call() -> Rows:
        from treeward.data import sources, world
        from treeward.data.prepare import DataConfig, prepare

        rows = sources.read_rows(str(file))
        for purpose in purposes:
            prepare(DataConfig(source=str(file)), chat_tokenizer(world.tokenizer()), purpose)
        return rows

    return Case(label, call, expected, shown, rows, cut)


def chat_tokenizer(tokenizer: Any) -> Any:
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}"
    return tokenizer


_made: list[Path] = []


def fixtures() -> Path:
    """A tiny policy and a tiny reward model with weights, and files for them; made once."""
    if _made:
        return _made[0]
    import torch

    from treeward.models.loading import ModelConfig
    from treeward.models.policy import Policy
    from treeward.models.reward_model import RewardModel

    place = Path(tempfile.mkdtemp(prefix="treeward-fuzz-"))
    small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
             "num_key_value_heads": 2}  # fmt: skip
    Policy.from_config(ModelConfig(config=small)).save(place / "policy" / "model")
    judge = RewardModel.from_config(ModelConfig(path="world", config=small))
    torch.nn.init.normal_(judge.packed.model.score.weight, generator=torch.Generator().manual_seed(0))
    judge.save(place / "reward" / "model")
    plain = [{"prompt": "the plot is", "response": "dull ."}] * 2
    chats = [{"prompt": [{"role": "user", "content": "the plot is"}], "response": "dull ."}] * 2
    (place / "plain.jsonl").write_bytes(jsonl(plain))
    (place / "chats.jsonl").write_bytes(jsonl(chats))
    _made.append(place)
    return place


FAST = (harmless, odd_texts, wrong_value, wrong_value, wrong_row, document, damaged, damaged, table, recipe, scorer)
RISKY = (columns, directory, damaged)
SLOW = (model, model, model, scored)


def make(number: int, seed: int, folder: Path) -> tuple[Case, bool]:
    """The case of this number, and whether it may kill the process: those that libraries in other languages read."""
    draw = random.Random(f"{seed}/{number}")
    kinds = SLOW if number % 12 == 0 else RISKY if number % 4 == 0 else FAST
    return draw.choice(kinds)(draw, folder), kinds is not FAST


def run_case(case: Case, folder: Path) -> Outcome:
    """Run a case in this process and compare the result with what is expected."""
    errors, output = io.StringIO(), io.StringIO()
    result: Any = None
    code = 0
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
            if callable(case.words):
                try:
                    result = case.words()
                except (ValueError, FloatingPointError) as problem:
                    code = 2
                    print("treeward:", problem, file=errors)
            else:
                from treeward.cli.main import run

                code = run(list(case.words))
    except BaseException:  # noqa: BLE001
        return Outcome("traceback", traceback.format_exc().strip().splitlines()[-1][:200])
    if (folder / "ran").exists():
        return Outcome("ran code")
    if code == 2:
        return _refusal(case, errors.getvalue())
    if code not in (0, 3):
        return Outcome(f"exit code {code}", errors.getvalue()[-200:])
    if case.expected == "refused":
        return Outcome("accepted", output.getvalue()[-100:])
    if case.rows is not None and result != (case.rows[: len(result)] if case.cut else case.rows):
        return Outcome("other rows", f"{len(result)} rows of {len(case.rows)}")
    return Outcome("ok")


def _refusal(case: Case, message: str) -> Outcome:
    """Whether a refusal is one line, right, and says where."""
    lines = [line for line in message.splitlines() if line.startswith("treeward:")]
    alone = "\n" not in message.strip() if callable(case.words) else len(lines) == 1 or "FAILED" in message
    if not alone:
        return Outcome("not one line", message[-200:])
    if case.expected == "read":
        return Outcome("valid data refused", message[-200:])
    missing = [words for words in case.shown if not re.search(rf"{re.escape(words)}\b", message)]
    return Outcome("does not say where", f"{missing} not in {message[-250:]}") if missing else Outcome("ok")


def apart(case: Case, folder: Path) -> Outcome:
    """Run a case in a forked process, which may die or hang."""
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends[0])
        result = run_case(case, folder)
        os.write(ends[1], json.dumps([result.verdict, result.detail]).encode()[:60_000])
        os._exit(0)
    os.close(ends[1])
    data = b""
    late = time.monotonic() + PATIENCE
    while select.select([ends[0]], [], [], max(0, late - time.monotonic()))[0]:
        more = os.read(ends[0], 65536)
        if not more:
            break
        data += more
    else:
        os.kill(child, signal.SIGKILL)
    os.close(ends[0])
    _, status = os.waitpid(child, 0)
    if data:
        return Outcome(*json.loads(data))
    return Outcome("hung" if os.WTERMSIG(status) == signal.SIGKILL else "segfault", f"status {status}")


def trial(number: int, seed: int, always_apart: bool = False) -> tuple[Case, Outcome]:
    """Make and run the case of this number."""
    folder = Path(tempfile.mkdtemp(prefix="treeward-case-"))
    before = os.getcwd()
    try:
        case, risky = make(number, seed, folder)
        os.chdir(folder)
        return case, (apart if risky or always_apart else run_case)(case, folder)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run for some minutes; print what went wrong and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--cases", type=int, default=None, help="stop after this many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, default=None, help="run this one alone")
    parser.add_argument("--apart", action="store_true", help="every case in a process of its own")
    options = parser.parse_args()
    fixtures()
    counts: Counter[str] = Counter()
    end = time.monotonic() + 60 * options.minutes
    number = 0 if options.case is None else options.case
    while time.monotonic() < end and (options.cases is None or sum(counts.values()) < options.cases):
        case, outcome = trial(number, options.seed, options.apart)
        counts[outcome.verdict] += 1
        if outcome.verdict != "ok" or options.case is not None:
            print(f"case {number}: {outcome.verdict}: {case.label}: {outcome.detail}", flush=True)
        if options.case is not None:
            break
        number += 1
    print(f"seed {options.seed}, {sum(counts.values())} cases: {dict(counts)}")
    shutil.rmtree(fixtures(), ignore_errors=True)
    return 0 if set(counts) <= {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
