"""`treeward score`: every kind of row, in one run or stopped and continued, and accuracy against other scores."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.cli.main import run
from treeward.losses.heads import AnyHead, Categorical, Scalar
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.runner import score as job
from treeward.runner.score import ScoreData, ScoreRun, score
from treeward.trees.text import Tree

Build = Callable[..., Any]
ROWS: list[dict[str, Any]] = [
    {"prompt": "the plot is", "response": " good ."},
    {"prompt": "the plot is", "responses": [" good .", " very bad .", " dull ."]},
    {"prompt": "the cast is", "chosen": " good .", "rejected": " bad ."},
]


def saved(folder: Path, head: AnyHead | None = None, seed: int = 0) -> RewardModel:
    model = RewardModel.from_config(ModelConfig(device="cpu"), 0, head)
    with torch.no_grad():
        output_layer(model.packed.model).weight.normal_(generator=torch.Generator().manual_seed(seed))
    model.save(folder / "model")
    return model


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def plan(folder: Path, data: str, columns: dict[str, str] | None = None, **fields: Any) -> ScoreRun:
    return ScoreRun(
        model=ModelConfig(path=str(folder / "model"), device="cpu"), out=str(folder / "scores.jsonl"),
        data=ScoreData(source=data, columns=columns or {}), **fields,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_every_kind_of_row_gets_the_models_scores(name: str, tmp_path: Path) -> None:
    model = saved(tmp_path)
    result = score(plan(tmp_path, data=written(tmp_path / name, ROWS)))
    texts = [Tree("the plot is", [" good ."]), Tree("the plot is", [" good .", " very bad .", " dull ."]),
             Tree("the cast is", [" good .", " bad ."])]  # fmt: skip
    written_lines = lines(str(tmp_path / "scores.jsonl"))
    assert [line["row"] for line in written_lines] == [0, 1, 2]
    assert [value for line in written_lines for value in line["scores"]] == pytest.approx(
        model.score(texts).tolist(), abs=1e-5
    )
    assert (result.rows, result.responses, result.fresh) == (3, 6, 6)
    assert result.accuracy is not None
    assert result.accuracy.n == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "model", "scores.jsonl"])


def test_distributions_are_written_where_there_are_any(tmp_path: Path) -> None:
    model = saved(tmp_path, Categorical(4))
    score(plan(tmp_path, data=written(tmp_path / "rows.jsonl", ROWS)))
    first = lines(str(tmp_path / "scores.jsonl"))[0]
    assert sum(first["distributions"][0]) == pytest.approx(1.0, abs=1e-5)
    expected = model.distribution([Tree("the plot is", [" good ."])])[0].tolist()
    assert first["distributions"][0] == pytest.approx(expected, abs=1e-5)


def test_members_give_their_mean_and_their_spread(tmp_path: Path) -> None:
    models = [saved(tmp_path, Scalar(), 0), saved(tmp_path / "other", Scalar(), 1)]
    data = written(tmp_path / "rows.jsonl", ROWS[:1])
    score(plan(tmp_path, data=data, members=(str(tmp_path / "other" / "model"),)))
    a, b = (model.score([Tree("the plot is", [" good ."])]).item() for model in models)
    (line,) = lines(str(tmp_path / "scores.jsonl"))
    assert line["scores"] == pytest.approx([(a + b) / 2], abs=1e-5)
    assert line["spread"] == pytest.approx([abs(a - b) / 2], abs=1e-5)


def test_a_stopped_run_is_continued_and_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    data = written(tmp_path / "rows.jsonl", ROWS * 4)
    monkeypatch.setattr(job, "CHUNK", 3)
    score(plan(tmp_path, data=data))
    whole = (tmp_path / "scores.jsonl").read_text()
    (tmp_path / "scores.jsonl").unlink()
    score_chunk, calls = job._scored, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score_chunk(*arguments)

    monkeypatch.setattr(job, "_scored", failing)
    with pytest.raises(KeyboardInterrupt):
        score(plan(tmp_path, data=data))
    partial = tmp_path / ".scores.jsonl.partial"
    partial.write_text(partial.read_text() + '{"row": 6, "sco')
    monkeypatch.setattr(job, "_scored", score_chunk)
    result = score(plan(tmp_path, data=data))
    assert (tmp_path / "scores.jsonl").read_text() == whole
    assert (result.rows, result.fresh) == (12, 12)


def test_what_another_run_left_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    (tmp_path / ".scores.jsonl.partial").write_text('{"row": 0, "scores": [9]}\n')
    (tmp_path / ".scores.jsonl.claim").write_text('{"model": "another"}')
    with pytest.raises(ValueError, match="left by a run of another model or file"):
        score(plan(tmp_path, data=written(tmp_path / "rows.jsonl", ROWS)))


def test_accuracy_against_other_scores(tmp_path: Path) -> None:
    model = saved(tmp_path)
    data = written(tmp_path / "rows.jsonl", ROWS)
    order = model.score([Tree("the plot is", [" good .", " very bad .", " dull ."])]).argsort().argsort().tolist()
    against = [{"scores": [1]}, {"scores": order}, {"scores": [0, 0]}]
    result = score(plan(tmp_path, data=data, against=written(tmp_path / "other.jsonl", against)))
    assert result.accuracy is not None
    assert (result.accuracy.value, result.accuracy.n) == (1.0, 1), "three pairs of one prompt"


def test_the_command_prints_rate_and_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    data = written(tmp_path / "rows.jsonl", ROWS)
    out = str(tmp_path / "s.jsonl")
    words = ["score", "--model.path", str(tmp_path / "model"), "--data", data, "--out", out, "--model.device", "cpu"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "3 rows, 6 responses" in printed
    assert "accuracy" in printed
    assert run(words) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"prompt": "x", "text": "y"}], "row 1: it has the columns prompt, text; it needs response"),
        ([{"prompt": "the plot is", "response": ""}], "row 1: it has an empty response"),
        ([], "is empty"),
    ],
)
def test_bad_rows_are_named(rows: list[dict[str, Any]], named: str, tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=named):
        score(plan(tmp_path, data=written(tmp_path / "rows.jsonl", rows)))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    with pytest.raises(ValueError, match="row 2 is not JSON"):
        score(plan(tmp_path, data=str(tmp_path / "rows.jsonl")))


def test_a_model_without_a_trained_head_scores_nothing(tmp_path: Path) -> None:
    data = ScoreData(source=written(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(ValueError, match="has no trained head"):
        score(ScoreRun(data=data, out=str(tmp_path / "scores.jsonl")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def test_rows_of_text_alone_and_columns_by_other_names(tmp_path: Path) -> None:
    model = saved(tmp_path)
    rows = [{"text": "the plot is good .", "label": 1}, {"text": "the plot is bad .", "label": 0}]
    score(plan(tmp_path, data=written(tmp_path / "texts.jsonl", rows)))
    expected = model.score([Tree("", [str(row["text"])], group="") for row in rows]).tolist()
    assert [line["scores"][0] for line in lines(str(tmp_path / "scores.jsonl"))] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "scores.jsonl").unlink()
    renamed = [{"question": "", "answer": row["text"]} for row in rows]
    data = written(tmp_path / "renamed.jsonl", renamed)
    score(plan(tmp_path, data=data, columns={"prompt": "question", "response": "answer"}))
    assert [line["scores"][0] for line in lines(str(tmp_path / "scores.jsonl"))] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "scores.jsonl").unlink()
    with pytest.raises(ValueError, match=r"data\.columns names 'reply'; the data has answer, question"):
        score(plan(tmp_path, data=data, columns={"response": "reply"}))


def test_rows_with_empty_prompts_are_groups_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path)
    words = ("plot", "cast", "film")
    rows = [{"prompt": "", "chosen": f" good {word} .", "rejected": f" bad {word} ."} for word in words]
    result = score(plan(tmp_path, data=written(tmp_path / "rows.jsonl", rows)))
    assert result.accuracy is not None
    assert result.accuracy.n == 3


def test_rows_are_counted_from_1_as_editors_do(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"row 2: it has the columns odd; it needs .* rename with data\.columns"):
        score(plan(tmp_path, data=written(tmp_path / "rows.jsonl", [ROWS[0], {"odd": 1}])))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["model", "rows.jsonl"], "a call that scored nothing leaves nothing"
