"""The page: written from files alone, self-contained, and honest about what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeward.report.figures import smoothed
from treeward.report.page import stage_facts, write_page

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
    assert "improved" in page
    assert "[0.4, 0.6] n=64" in page
    assert "judged by gold" in page
    assert "&lt;b&gt;p&lt;/b&gt;" in page
    assert page.count("<svg") == 2


def test_a_scorer_beside_another_metric_judges_nothing(tmp_path: Path) -> None:
    page = write_page(run_directory(tmp_path / "run", metric="accuracy")).read_text()
    assert "samples scored by gold" in page
    assert "judged by" not in page


def test_best_of_n_without_a_kl_says_why(tmp_path: Path) -> None:
    curve = [{"n": 1, "kl_bound": 0.0, "score": SIDE}]
    page = write_page(run_directory(tmp_path / "run", best_of_n={"curve": curve})).read_text()
    assert "KL was not measured, since the samples" in page


def test_a_failed_check_stands_at_the_top(tmp_path: Path) -> None:
    failed = [{"id": "I12", "guards": [], "name": "reload", "stage": "after", "passed": False, "value": 1.0,
               "limit": 0.0, "detail": "other weights"}]  # fmt: skip
    page = write_page(run_directory(tmp_path / "run", checks=failed, verdict="broken")).read_text()
    assert page.index("I12: reload other weights") < page.index("<svg")


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        stage_facts(tmp_path)


def test_smoothing_is_corrected_for_its_start() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([0.0, 1.0], keep=0.5) == pytest.approx([0.0, 2 / 3])
    assert smoothed([1.0, None]) == pytest.approx([1.0, 1.0])


def test_graded_runs_show_the_error_by_stated_spread(tmp_path: Path) -> None:
    rank = {"value": 0.25, "low": 0.125, "high": 0.375, "n": 41}
    levels = [
        {"x": 1.0, "y": 0.5, "low": 0.4, "high": 0.7, "n": 20},
        {"x": 2.0, "y": 0.9, "low": 0.7, "high": 1.1, "n": 21},
    ]
    graded = {"spearman": rank, "spread_ranks_error": rank, "spread_levels": levels, "pit_counts": [4, 4, 5, 3, 4] * 2}
    page = write_page(run_directory(tmp_path / "run", graded=graded)).read_text()
    assert page.count("<svg") == 3
    assert "rank correlation 0.25 [0.12, 0.38], 41 prompts" in page
    assert "PIT: flat" in page
    several = {**graded, "spread_ranks_error": {"value": None, "low": None, "high": None, "n": 41}}
    del several["pit_counts"]
    page = write_page(run_directory(tmp_path / "other", graded=several)).read_text()
    assert "none: one side is constant" in page
    assert "PIT: flat" not in page
