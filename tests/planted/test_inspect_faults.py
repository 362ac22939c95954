"""Faults planted in files: `inspect` names each by its id, and has no remarks on clean files."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeward.data.inspect import inspect, read_contents
from treeward.data.prepare import DataConfig
from treeward.report.inspection import remarks

CLEAN: list[dict[str, Any]] = [
    {"prompt": f"w{n} w{n + 1}", "chosen": f"w{n} w9", "rejected": f"w{n} w8", "chosen_rating": 3.0,
     "rejected_rating": 2.0, "split": "train" if n < 33 else "test"}
    for n in range(3, 43)
]  # fmt: skip


def remark_ids(
    path: Path, rows: list[dict[str, Any]], tokenizer: Any, model: int | None = None, **named: Any
) -> set[str]:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(source=str(path / "rows.jsonl"), **named)
    facts = inspect(read_contents(config), {"tiny": tokenizer}, model).flat()
    return {line.partition(":")[0] for line in remarks(facts)}


def test_clean_pairs_have_no_remarks(tmp_path: Path, tiny_tokenizer: Any) -> None:
    assert remark_ids(tmp_path, CLEAN, tiny_tokenizer, model=64) == set()


def test_f04_training_prompts_in_the_given_test_split(tmp_path: Path, tiny_tokenizer: Any) -> None:
    leaked = [{**row, "chosen": "w50", "split": "test"} for row in CLEAN[:5]]
    assert remark_ids(tmp_path, [*CLEAN, *leaked], tiny_tokenizer) == {"F04"}


def test_f04_training_texts_in_the_given_test_split(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Labelled texts are their own groups, and are counted before they are paired."""
    clean = [{"text": f"w{n} w{n + 1}", "label": n % 2, "split": "train" if n < 33 else "test"} for n in range(3, 43)]
    assert remark_ids(tmp_path, clean, tiny_tokenizer) == set()
    assert remark_ids(tmp_path, [*clean, {**clean[0], "text": "W3  w4", "split": "test"}], tiny_tokenizer) == set()
    assert remark_ids(tmp_path, [*clean, {**clean[0], "split": "test"}], tiny_tokenizer) == {"F04"}


def test_f04_a_pair_with_both_labels(tmp_path: Path, tiny_tokenizer: Any) -> None:
    first = CLEAN[0]
    turned = {**first, "chosen": first["rejected"], "rejected": first["chosen"]}
    assert remark_ids(tmp_path, [*CLEAN, turned], tiny_tokenizer) == {"F04"}


def test_f04_a_repeated_row(tmp_path: Path, tiny_tokenizer: Any) -> None:
    assert remark_ids(tmp_path, [*CLEAN, CLEAN[0]], tiny_tokenizer) == {"F04"}


def test_f04_rated_responses_to_one_prompt_are_not_one_row(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rated = [{"prompt": row["prompt"], "response": row[side], "scores": score, "split": row["split"]}
             for row in CLEAN for side, score in (("chosen", 3), ("rejected", 2))]  # fmt: skip
    assert remark_ids(tmp_path, rated, tiny_tokenizer) == set()
    assert remark_ids(tmp_path, [*rated, rated[0]], tiny_tokenizer) == {"F04"}


def test_f05_ratings_against_the_order(tmp_path: Path, tiny_tokenizer: Any) -> None:
    turned = [{**row, "chosen_rating": 1.0} for row in CLEAN]
    assert remark_ids(tmp_path, turned, tiny_tokenizer) == {"F05"}


def test_f09_ids_beyond_the_embedding(tmp_path: Path, tiny_tokenizer: Any) -> None:
    assert remark_ids(tmp_path, CLEAN, tiny_tokenizer, model=60) == {"F09"}


def test_f10_rows_that_cannot_be_used(tmp_path: Path, tiny_tokenizer: Any) -> None:
    emptied = [{**row, "rejected": " "} if n % 2 else row for n, row in enumerate(CLEAN)]
    assert remark_ids(tmp_path, emptied, tiny_tokenizer) == {"F10"}


def test_f11_identical_in_the_data(tmp_path: Path, tiny_tokenizer: Any) -> None:
    same = [{**row, "rejected": row["chosen"]} if n % 2 else row for n, row in enumerate(CLEAN)]
    assert remark_ids(tmp_path, same, tiny_tokenizer) == {"F10", "F11"}


def test_f11_pairs_that_differ_only_after_the_limit(tmp_path: Path, tiny_tokenizer: Any) -> None:
    opening = " ".join(["w5"] * 64)
    late = [{**row, "chosen": f"{opening} w9", "rejected": f"{opening} w8"} for row in CLEAN]
    assert remark_ids(tmp_path, late, tiny_tokenizer, max_response=64) == {"F11"}
    assert remark_ids(tmp_path, late, tiny_tokenizer, max_response=66) == set()


def test_f12_a_prompt_longer_than_its_limit(tmp_path: Path, tiny_tokenizer: Any) -> None:
    filled = [{**row, "prompt": row["prompt"] + " w5" * 98} for row in CLEAN]
    assert remark_ids(tmp_path, filled, tiny_tokenizer, max_prompt=64) == {"F12"}
    assert remark_ids(tmp_path, filled, tiny_tokenizer, max_prompt=100) == set()


@pytest.mark.parametrize(("limit", "ids"), [(64, {"F13"}), (80, set())])
def test_f13_only_one_side_is_over_the_limit(limit: int, ids: set[str], tmp_path: Path, tiny_tokenizer: Any) -> None:
    uneven = [{**row, "rejected": row["rejected"] + " w7" * 70} for row in CLEAN]
    assert remark_ids(tmp_path, uneven, tiny_tokenizer, max_response=limit) == ids
