"""Prepared data written as it comes: the same trees as those made in memory, by one process or several."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from treeward.data import sources, streamed, world
from treeward.data.prepare import DataConfig, Reading, prepare
from treeward.data.streamed import prepare_to

WORLD = world.tokenizer()


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path / "rows.jsonl")


def pairs(n: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"prompt": f"the {a} is", "chosen": f" very {j} .", "rejected": " bad .", "split": None}
        for a in world.ASPECT for j in world.ADJECTIVE
    ][:n]  # fmt: skip
    rows[3]["chosen"] = " "
    rows[5]["rejected"] = rows[5]["chosen"]
    rows[7]["split"] = "validation"
    return rows


@pytest.mark.parametrize("shares", ["expected", "exact"])
def test_chunks_on_disk_are_what_is_made_in_memory(
    shares: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "CHUNK", 7)
    config = DataConfig(source=written(tmp_path, pairs(60)), shares=shares, test=0.2, max_response=4)
    account = prepare_to(tmp_path / "kept", config, WORLD, "pairs")
    assert prepare(DataConfig(source=str(tmp_path / "kept")), WORLD, "pairs") == prepare(config, WORLD, "pairs")
    assert (account.rows, account.dropped) == (60, {"empty response": 1, "identical pair": 1})


def test_two_processes_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "CHUNK", 20)
    config = DataConfig(limit=90)
    for n in (1, 2):
        prepare_to(tmp_path / str(n), config, WORLD, "pairs", n)
    for file in sorted((tmp_path / "1").iterdir()):
        if file.suffix == ".jsonl":
            assert file.read_text() == (tmp_path / "2" / file.name).read_text()
    facts = [json.loads((tmp_path / str(n) / "prepared.json").read_text()) for n in (1, 2)]
    assert facts[0] == facts[1]
    assert facts[0]["best_accuracy"] == pytest.approx(prepare(config, WORLD, "pairs").best_accuracy)


def test_joined_rows_are_prepared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "CHUNK", 2)
    rows = [{"text": f"the {a} is {j} .", "label": n % 2} for a in world.ASPECT for n, j in enumerate(world.ADJECTIVE)]
    config = DataConfig(source=written(tmp_path, rows), format="text")
    prepare_to(tmp_path / "kept", config, WORLD, "pairs")
    assert prepare(DataConfig(source=str(tmp_path / "kept")), WORLD, "pairs") == prepare(config, WORLD, "pairs")


def test_rows_are_read_no_further_than_the_processes_can_hold() -> None:
    """With endless rows: two processes hold `WAITING` chunks each, and one more is handed out before one is taken."""
    rows = tuple(sources.rows("world:3"))
    renderer = streamed.Renderer(Reading.of(rows, DataConfig(), "pairs"), WORLD)
    asked: list[int] = []

    def chunks() -> Iterator[streamed.Chunk]:
        for n in count():
            asked.append(n)
            yield n, rows

    done = streamed._done(renderer, chunks(), 2)
    for n in range(4):
        assert next(done).account.rows == 3
        assert len(asked) == n + 1 + 2 * streamed.WAITING
    done.close()  # type: ignore[attr-defined]


def test_a_bad_row_in_a_later_chunk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "CHUNK", 7)
    rows = [{**row, "split": "elsewhere" if n == 23 else None} for n, row in enumerate(pairs(40))]
    with pytest.raises(ValueError, match=r"rows.jsonl', row 24: .*elsewhere"):
        prepare_to(tmp_path / "kept", DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    with pytest.raises(ValueError, match="processes is 0"):
        prepare_to(tmp_path / "kept", DataConfig(), WORLD, "pairs", 0)


def test_a_flow_reads_anew_and_stops_at_its_limit(tmp_path: Path) -> None:
    source = written(tmp_path, [{"prompt": str(n)} for n in range(10)])
    for limit, n in ((None, 10), (4, 4), (7, 7), (30, 10)):
        found = sources.flow(source, limit=limit)
        assert len(found) == n
        for _ in range(2):
            assert [row["prompt"] for row in found] == [str(n) for n in range(n)]


def test_a_limit_that_leaves_one_label_says_so(tmp_path: Path) -> None:
    rows = [{"text": f"the plot is {j} .", "label": int(n < 10)} for n, j in enumerate(world.ADJECTIVE)]
    with pytest.raises(ValueError, match=r"the first 8 rows have one label only: raise data\.limit"):
        prepare(DataConfig(source=written(tmp_path, rows), limit=8), WORLD, "pairs")
