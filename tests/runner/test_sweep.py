"""`--sweep`: the product of the axes, one run each, one store, one frontier."""

from pathlib import Path
from typing import Any

import pytest

from treeward.cli.main import run
from treeward.cli.parse import parse
from treeward.cli.training import show_sweep, with_seeds
from treeward.models.reference import ReferenceModel
from treeward.runner import sweep as job
from treeward.runner.run import Finished
from treeward.runner.sweep import Swept, axis, points, sweep

SHORT: dict[str, Any] = {
    "data": {"source": "world:300", "test": 0.2}, "steps": 2, "batch_size": 16, "lr": 1e-3, "require": "any",
    "skip_check": ["F48"],
    "model": {"config": {"num_hidden_layers": 1}, "device": "cpu"},
    "evaluation": {"prompts": 4, "samples": 2, "max_new_tokens": 8, "scorer": "gold"},
}  # fmt: skip

WORLD = ("--model.path", "world")


def test_points_are_the_product_in_order() -> None:
    sweep_points = points([axis("loss.beta=0.1, 0.5"), axis("seed=0,1")])
    assert list(sweep_points) == [
        "loss.beta=0.1,seed=0",
        "loss.beta=0.1,seed=1",
        "loss.beta=0.5,seed=0",
        "loss.beta=0.5,seed=1",
    ]
    assert sweep_points["loss.beta=0.5,seed=0"] == [("loss.beta", "0.5"), ("seed", "0")]


@pytest.mark.parametrize("text", ["loss.beta", "=1,2", "loss.beta=", "loss.beta=,"])
def test_what_is_no_axis_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not KEY=VALUE,VALUE"):
        axis(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("evaluation.judges=[a,b],[],[c]", ("[a,b]", "[]", "[c]")),
        (
            "loss.terms=[{weight: 1, loss: {kind: ipo}}, {weight: 2}], []",
            ("[{weight: 1, loss: {kind: ipo}}, {weight: 2}]", "[]"),
        ),
        ("x={a: [1, 2], b: 3},4", ("{a: [1, 2], b: 3}", "4")),
    ],
)
def test_a_comma_in_brackets_belongs_to_its_value(text: str, values: tuple[str, ...]) -> None:
    assert axis(text)[1] == values


@pytest.mark.parametrize(
    ("codes", "failed", "code"), [((0, 3), {}, 3), ((0, 4), {"c": "why"}, 2), ((0, 0), {"c": "why"}, 2), ((0,), {}, 0)]
)
def test_a_point_that_did_not_run_is_never_hidden(codes: tuple[int, ...], failed: dict[str, str], code: int) -> None:
    runs = {str(n): Finished(Path(), {}, each) for n, each in enumerate(codes)}
    assert Swept(Path(), runs, failed, None).exit_code == code


def test_runs_without_a_common_frontier_are_shown_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other seeds of the data, other prompts; the metric is the accuracy, and the samples are scored beside it."""
    short = SHORT | {"out": str(tmp_path / "s"), "evaluation": {**SHORT["evaluation"], "metric": "accuracy"}}
    finished = sweep("dpo", short, [axis("data.seed=0,1")])
    assert len(finished.runs) == 2
    assert [(r.receipt["metric"], r.receipt["scorer"]) for r in finished.runs.values()] == [("accuracy", "gold")] * 2
    assert "was measured on other prompts" in finished.no_frontier
    assert show_sweep(finished) == 0
    said = capsys.readouterr().out
    assert "data.seed=1: accuracy" in said
    assert "frontier   none: " in said


def test_every_point_is_a_run_and_the_store_serves_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, asked = ReferenceModel.token_logps, []

    def counted(self: ReferenceModel, given: Any, budget: int) -> Any:
        asked.append(sum(len(tree.branches) for tree in given))
        return computed(self, given, budget)

    monkeypatch.setattr(ReferenceModel, "token_logps", counted)
    kept = {"reference": {"store": str(tmp_path / "s.sqlite")}}
    finished = sweep("dpo", SHORT | kept | {"out": str(tmp_path / "s")}, [axis("loss.kind=sigmoid,ipo,hinge")])
    assert list(finished.runs) == ["loss.kind=sigmoid", "loss.kind=ipo", "loss.kind=hinge"]
    assert all((tmp_path / "s" / name / "receipt.json").exists() for name in finished.runs)
    assert finished.frontier is not None
    page = finished.frontier.read_text()
    assert all(name in page for name in finished.runs)
    assert finished.frontier.with_suffix(".png").exists()
    training = [n for n in asked if n > 8]
    assert training == [32 * 2], "two batches of 16 pairs, computed for the first point alone"
    assert finished.exit_code == 0


def test_a_wrong_point_is_found_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss.kind is 'sigmoyd', did you mean 'sigmoid'"):
        sweep("dpo", SHORT | {"out": str(tmp_path / "s")}, [axis("loss.kind=ipo,sigmoyd")])
    assert not (tmp_path / "s").exists()


def test_a_point_that_fails_its_checks_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["dpo", "--data.source", "world:300", "--data.test", "0.2", "--steps", "2", "--batch-size", "16",
             "--model.config.num_hidden_layers", "1", "--evaluation.prompts", "2", "--evaluation.samples", "2",
             "--evaluation.max-new-tokens", "4", "--require", "any", "--sweep", "lr=1e-3,10"]  # fmt: skip
    assert run(words) == 2
    said = capsys.readouterr().out
    assert "lr=10: not trained: learning-rate-usual (F42) FAILED" in said
    assert "lr=1e-3: accuracy" in said
    assert sorted(p.name for p in (tmp_path / "runs" / "dpo-sweep").iterdir()) == ["lr=1e-3"]


def test_a_value_that_is_a_path_names_one_directory(tmp_path: Path) -> None:
    assert list(points([axis("model.path=a/b,c")])) == ["model.path=a_b", "model.path=c"]
    with pytest.raises(ValueError, match=r"two points 'model.path=a_b'; give each value once"):
        points([axis("model.path=a/b,a_b")])


def test_a_later_point_that_cannot_run_is_told_and_a_first_one_stops_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", *WORLD, "--steps", "1", "--require", "any", "--data.test", "0.2", "--lr", "3e-3", "--skip-check",
             "[F42]", "--model.config.num_hidden_layers", "1", "--evaluation.prompts", "2",
             "--evaluation.max-new-tokens", "4"]  # fmt: skip
    there, missing = "data.source=world-texts:300", str(tmp_path / "none.jsonl")
    assert run([*words, "--out", str(tmp_path / "a"), "--sweep", f"{there},{missing}"]) == 2
    said = capsys.readouterr()
    assert "none.jsonl: not trained: data.source" in said.out
    assert "data.source=world-texts:300: nll" in said.out
    assert run([*words, "--out", str(tmp_path / "b"), "--sweep", f"data.source={missing},world-texts:300"]) == 2
    assert not (tmp_path / "b").exists()


def test_flags_for_one_run_are_refused() -> None:
    assert run(["dpo", "--sweep", "seed=0,1", "--dry-run"]) == 2
    assert job.axis("seed=0,1") == ("seed", ("0", "1"))


def test_seeds_are_a_sweep_over_seeds() -> None:
    words = parse(["world-reinforce", "--seeds", "3", "--seed", "5", "--sweep", "lr=1,2", "--lr", "3"], ())
    assert [option for option in with_seeds("reinforce", words).options if option[0] in ("seed", "seeds", "sweep")] == [
        ("sweep", "lr=1,2"),
        ("sweep", "seed=5,6,7"),
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--seeds", "1"], "--seeds is '1'"), (["--seeds", "two"], "--seeds is 'two'"),
     (["--seeds", "2", "--seed", "one"], "--seed is 'one'"),
     (["--seeds", "2", "--sweep", "seed=1,2"], "both name seeds")],
)  # fmt: skip
def test_seeds_that_cannot_be_are_one_line(words: list[str], named: str, capsys: Any) -> None:
    assert run(["reinforce", "world-reinforce", *words]) == 2
    assert named in capsys.readouterr().err
