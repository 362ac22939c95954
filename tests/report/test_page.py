"""The page of a run: written from its files, self-contained; what is missing is left out or named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from treeward.losses.heads import AnyHead, Attributes, Categorical, Logistic, Ordinal, Scalar
from treeward.methods.reward import loss_for
from treeward.report.figures import smoothed
from treeward.report.page import stage_facts, why, write_page
from treeward.runner.settings import kind_of

SIDE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 64, "constant": False}
DIFFERENCE = {"value": 0.1, "low": 0.05, "high": 0.15, "p": 0.001, "test": "t", "minimum_detectable": 0.02}
FACTS = {"higher_is_better": True, "before": SIDE, "after": SIDE, "difference": DIFFERENCE}


def run_directory(path: Path, **over: Any) -> Path:
    receipt = {
        "schema": 1, "command": "dpo", "verdict": "improved", "reason": "score rose", "metric": "score",
        "scorer": "gold", **FACTS, "metrics": {"kl": FACTS}, "data": {"rows": 5, "used": 4},
        "checks": [{"id": "I05", "guards": [], "name": "tree equals rows", "stage": "before", "passed": True,
                    "value": 1e-7, "limit": 1e-4, "detail": ""}],
        "movement": {"relative_update": 0.01}, **over,
    }  # fmt: skip
    path.mkdir()
    (path / "receipt.json").write_text(json.dumps(receipt))
    rows = [{"step": n, "loss": 1 / n, "grad_norm": 1.0, "validation/score": 0.1, "validation/kl": 0.2} for n in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"prompt": "<b>p</b>", "before": "x", "after": "y", "score_before": 0.0, "score_after": 0.5, "kl": 1.0}]
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return path


def test_page_shows_verdict_interval_and_samples_escaped(tmp_path: Path) -> None:
    page = write_page(run_directory(tmp_path / "run")).read_text()
    assert '<span class="verdict improved">improved</span>' in page
    assert "<b>0.50</b> <small>[0.40, 0.60]</small>" in page
    assert "Change <b>+0.100</b> <small>[+0.050, +0.150]</small>, n=64, p=0.001" in page
    assert "<dt>samples scored by</dt><dd>gold</dd>" in page
    assert "&lt;b&gt;p&lt;/b&gt;" in page
    assert page.count("<svg") == 3


CONFIG = {
    "command": "dpo", "lr": 1e-5, "schedule": "linear", "warmup": 0.1, "epochs": 2.0, "steps": None, "batch_size": 32,
    "seed": 7, "loss": {"kind": "sigmoid", "beta": 0.1, "clip": None}, "divergence": {"kind": "js"},
    "model": {"path": "/models/small", "lora": {"r": 16}}, "data": {"source": "pairs.jsonl"},
}  # fmt: skip


def test_what_was_run_is_at_the_top(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", seconds=90.0)
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    environment = {"started": "2026-03-01T12:30:00+00:00", "device": "cpu", "precision": "fp32", "layout": "tree"}
    (path / "environment.json").write_text(json.dumps(environment))
    page = write_page(path).read_text()
    assert stage_facts(path)["about"] == {
        "command": "treeward dpo, seed 7", "model": "/models/small, LoRA of rank 16",
        "data": "pairs.jsonl, 4 of 5 rows used", "loss": "sigmoid, beta 0.1, divergence js",
        "learning rate": "1e-05, linear, 10% warm-up", "steps": "2, 2 epochs", "batch": "32 prompts a step",
        "samples scored by": "gold", "machine": "cpu, fp32, layout tree",
        "date": "2026-03-01 12:30:00 UTC, 1.5 minutes",
    }  # fmt: skip
    assert page.index("pairs.jsonl") < page.index("Held-out metrics")


def test_the_part_that_gave_the_verdict_is_named(tmp_path: Path) -> None:
    part = {"part": "validation", "groups": 40, "chosen_on": 38}
    path = run_directory(tmp_path / "run", data={"rows": 5, "used": 4, "verdict": part})
    assert stage_facts(path)["about"]["held out"] == \
        "40 groups (prompts) in the validation part, 38 others chose the checkpoint"  # fmt: skip


@pytest.mark.parametrize("head", [Scalar(), Categorical(), Ordinal(), Logistic(), Attributes(("a",))], ids=str)
def test_a_default_loss_is_the_one_that_trains(head: AnyHead, tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", command="reward")
    kind = kind_of(type(head))
    config = {"command": "reward", "loss": None, "head": {"kind": kind}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert stage_facts(path)["about"]["loss"] == f"{kind_of(type(loss_for(head)))}, head {kind}"


def test_every_metric_has_its_meaning_and_n(tmp_path: Path) -> None:
    page = write_page(run_directory(tmp_path / "run", metrics={"kl": FACTS, "judge:length": FACTS})).read_text()
    assert "how far the model has moved from its start" in page
    assert "a judge that training never used" in page
    table = page[page.index("Held-out metrics") : page.index("</table>", page.index("Held-out metrics"))]
    assert table.count("n=64") == table.count("<tr") - 1 == 3


def test_an_unreliable_interval_has_a_warning(tmp_path: Path) -> None:
    unreliable = {**FACTS, "after": {**SIDE, "reliable": False}}
    assert "interval unreliable" in write_page(run_directory(tmp_path / "a", metrics={"kl": unreliable})).read_text()
    reliable = {**FACTS, "after": {**SIDE, "reliable": True}}
    assert "interval unreliable" not in write_page(run_directory(tmp_path / "b", metrics={"kl": reliable})).read_text()


def test_few_prompts_show_few_digits_and_no_small_p(tmp_path: Path) -> None:
    few = {"value": 0.51234, "low": 0.1234, "high": 0.9012, "n": 5}
    change = {**DIFFERENCE, "p": 1e-6, "value": 0.31234, "low": 0.0123, "high": 0.6124}
    page = write_page(run_directory(tmp_path / "run", before=few, after=few, difference=change)).read_text()
    assert "<b>0.51</b> <small>[0.12, 0.90]</small>" in page
    assert "p&lt;0.063" in page
    assert "51234" not in page


def test_accepted_checks_are_named(tmp_path: Path) -> None:
    check = {"guards": [], "name": "held-out groups", "stage": "before", "value": 5, "limit": 30}
    checks = [
        {**check, "id": "F48", "passed": None, "detail": "accepted by --skip-check; too few"},
        {**check, "id": "F23", "passed": None, "detail": ""},
    ]
    page = write_page(run_directory(tmp_path / "run", checks=checks)).read_text()
    assert "1 failed check accepted: F48" in page
    assert "2 checks: 0 failed, 1 accepted: F48, 1 skipped" in page


@pytest.mark.parametrize(
    ("reason", "rest"),
    [
        ("nll 4.5 -> 1.9, change -2.6 [-2.7, -2.5], n=567", ""),
        (
            "score 0.1 -> 0.2, change +0.1 [+0.05, +0.2], n=64, by gold alone",
            "scored by gold only: no judge that training never used has scored these samples",
        ),
        ("kl 0 -> 1, change +1 [+1, +2], n=9; this n shows differences from 3", "this n shows differences from 3"),
        ("I12 FAILED: reload", "I12 FAILED: reload"),
    ],
)
def test_the_reason_without_the_numbers_of_the_main_metric(reason: str, rest: str) -> None:
    assert why(reason) == rest


def test_calibration_error_is_shown_beside_that_of_exact_probabilities(tmp_path: Path) -> None:
    ece = {"value": 0.012, "plug_in": 0.061, "expected_if_exact": 0.055, "p": 0.31, "n": 412}
    points = [{"confidence": 0.6, "accuracy": 0.7, "low": 0.5, "high": 0.8, "n": 44}]
    calibration = {"ece": ece, "reliability": points}
    page = write_page(run_directory(tmp_path / "run", calibration=calibration)).read_text()
    assert "exactly right probabilities would show 0.055" in page
    assert "p=0.31, n=412" in page


def test_best_of_n_without_a_kl_has_the_reason(tmp_path: Path) -> None:
    curve = [{"n": 1, "kl_bound": 0.0, "score": SIDE}]
    page = write_page(run_directory(tmp_path / "run", best_of_n={"curve": curve})).read_text()
    assert "KL was not measured, since the samples" in page


def test_a_failed_check_is_at_the_top(tmp_path: Path) -> None:
    failed = [{"id": "I12", "guards": [], "name": "reload", "stage": "after", "passed": False, "value": 1.0,
               "limit": 0.0, "detail": "other weights"}]  # fmt: skip
    page = write_page(run_directory(tmp_path / "run", checks=failed, verdict="broken")).read_text()
    assert page.index("Failed check I12: reload. other weights") < page.index("<svg")


def test_checks_are_shown_with_their_slug_where_the_receipt_has_it(tmp_path: Path) -> None:
    check = {"id": "I05", "slug": "layout-equals-rows", "guards": [], "name": "layout", "stage": "before",
             "passed": False, "value": 1.0, "limit": 0.1, "detail": ""}  # fmt: skip
    page = write_page(run_directory(tmp_path / "run", checks=[check])).read_text()
    assert "Failed check I05 layout-equals-rows: layout" in page
    assert "<b>I05</b><small>layout-equals-rows</small>" in page
    del check["slug"]
    page = write_page(run_directory(tmp_path / "older", checks=[check])).read_text()
    assert "Failed check I05: layout" in page
    assert "<b>I05</b></td>" in page


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        stage_facts(tmp_path)


def test_smoothing_has_bias_correction() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([0.0, 1.0], keep=0.5) == pytest.approx([0.0, 2 / 3])
    assert smoothed([1.0, None]) == pytest.approx([1.0, 1.0])


def test_graded_runs_show_the_error_by_predicted_spread(tmp_path: Path) -> None:
    rank = {"value": 0.25, "low": 0.125, "high": 0.375, "n": 41}
    levels = [
        {"x": 1.0, "y": 0.5, "low": 0.4, "high": 0.7, "n": 20},
        {"x": 2.0, "y": 0.9, "low": 0.7, "high": 1.1, "n": 21},
    ]
    graded = {"spearman": rank, "spread_ranks_error": rank, "spread_levels": levels, "pit_counts": [4, 4, 5, 3, 4] * 2}
    page = write_page(run_directory(tmp_path / "run", graded=graded)).read_text()
    assert page.count("<svg") == 5
    assert "rank correlation 0.25 [0.12, 0.38], n=41" in page
    assert "PIT: flat" in page
    several = {**graded, "spread_ranks_error": {"value": None, "low": None, "high": None, "n": 41}}
    del several["pit_counts"]
    page = write_page(run_directory(tmp_path / "other", graded=several)).read_text()
    assert "none: one side is constant" in page
    assert "PIT: flat" not in page
