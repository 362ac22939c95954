"""Eight rows whose every figure was computed by hand, and sources of each format."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeward.data.inspect import Inspection, inspect, read_contents
from treeward.data.prepare import DataConfig

ROWS: list[dict[str, Any]] = [
    {"prompt": "w3 w4", "chosen": "w5 w6 w7", "rejected": "w5", "chosen_rating": 4, "rejected_rating": 2},
    {"prompt": "w3 w5", "chosen": "w8", "rejected": "w9 w10", "chosen_rating": 3, "rejected_rating": 3},
    {"prompt": "w4 w5 w6", "chosen": "w8 w9", "rejected": "w10 w11", "chosen_rating": 1, "rejected_rating": 2},
    {"prompt": "w3 w4", "chosen": "w5 w6 w7", "rejected": "w5", "chosen_rating": 4, "rejected_rating": 2},
    {"prompt": "w7", "chosen": "w8", "rejected": "w8", "chosen_rating": 1, "rejected_rating": 1},
    {"prompt": "w7", "chosen": "w8", "rejected": " ", "chosen_rating": 1, "rejected_rating": 0},
    {"prompt": " W4  w5 w6", "chosen": "w10 w11", "rejected": "w8 w9", "chosen_rating": 2, "rejected_rating": 1},
    {"prompt": None, "chosen": "w8", "rejected": "w9", "chosen_rating": 1, "rejected_rating": 0},
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path / "rows.jsonl")


def inspected(path: Path, rows: list[dict[str, Any]], tokenizer: Any = None, **named: Any) -> Inspection:
    config = DataConfig(**{"source": written(path, rows), "validation": 0.0, "test": 0.2, **named})
    return inspect(read_contents(config), {} if tokenizer is None else {"tiny": tokenizer})


def test_eight_rows_by_hand(tmp_path: Path, tiny_tokenizer: Any) -> None:
    figures = inspected(tmp_path, ROWS, tiny_tokenizer).flat()
    expected = {
        "rows": 8, "used": 5, "pairs": 5, "prompts": 4, "prompts_used": 3, "identical_pairs": 1,
        "differing_prompts": 0, "empty_responses": 1, "other_dropped": 1, "duplicates": 1, "contradictions": 1,
        "prompts_in_both_splits": 0, "held_out_leaked": 0, "own_split": False,
        "rated_pairs": 5, "ties": 1, "rating_disagreements": 1, "mean_rating_gap": 0.8, "rating_gap_median": 1.0,
        "rating_gap_max": 2.0, "prompt_mean": 2.4, "chosen_mean": 3.2, "rejected_mean": 2.6, "mean_length": 2.9,
        "whole_mean": 5.3, "share_under_64": 1.0, "share_64_127": 0.0, "share_over_127": 0.0,
        "longer_wins": 0.5, "longer_wins_n": 3, "longer_wins_characters": 0.5, "longer_wins_unequal_n": 2,
        "cut_responses_64": 0, "identical_at_64": 0,
    }  # fmt: skip
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    assert figures["longer_wins_unequal"] == 0.5
    assert figures["length_correlation"] == pytest.approx(7.5 / (9 * 9.5) ** 0.5)
    place = f"{tmp_path / 'rows.jsonl'}, row 8"
    assert figures["other_reasons"].startswith(f"1 unreadable; {place}: columns 'chosen' and 'rejected' are plain text")
    assert figures["train_rows"] + figures["test_rows"] == 5
    assert figures["validation_rows"] == 0
    assert [tokens["tokenizer"] for tokens in figures["tokens"]] == ["tiny"]


def test_wilson_of_one_and_a_half_in_three_prompts(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Won twice by the same prompt, lost and tied by one each."""
    figures = inspected(tmp_path, ROWS, tiny_tokenizer).flat()
    assert (figures["longer_wins_low"], figures["longer_wins_high"]) == pytest.approx((0.1253, 0.8747), abs=1e-4)


def test_pairs_alike_until_a_limit_become_identical(tmp_path: Path, tiny_tokenizer: Any) -> None:
    same = "w5 w6 w7"
    rows = [{"prompt": f"w{n + 3}", "chosen": f"{same} w8", "rejected": f"{same} w9 w9"} for n in range(5)]
    figures = inspected(tmp_path, rows, tiny_tokenizer, max_response=3).flat()
    assert figures["identical_at_3"] == 5
    assert figures["identical_at_64"] == 0
    figures = inspected(tmp_path, rows, tiny_tokenizer, max_response=4).flat()
    assert figures["identical_at_4"] == 0


def test_a_given_split_is_honoured_and_its_leaks_counted(tmp_path: Path, tiny_tokenizer: Any) -> None:
    row = {"chosen": "w8", "rejected": "w9"}
    rows = [{"prompt": f"w{n + 3}", **row, "split": "train" if n < 6 else "test"} for n in range(10)]
    clean = inspected(tmp_path, rows, tiny_tokenizer).flat()
    assert (clean["train_rows"], clean["test_rows"], clean["own_split"]) == (6, 4, True)
    assert clean["prompts_in_both_splits"] == 0
    leaking = [*rows, {"prompt": "W3 ", **row, "split": "test"}, {"prompt": "w4", **row, "split": "test"}]
    figures = inspected(tmp_path, leaking, tiny_tokenizer).flat()
    assert (figures["prompts_in_both_splits"], figures["held_out_leaked"]) == (2, 2)


def test_the_built_in_split_is_that_of_training(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from treeward.data.prepare import prepare

    rows = [{"prompt": f"w{n % 40} w{n // 40}", "chosen": "w8", "rejected": "w9"} for n in range(200)]
    config = DataConfig(source=written(tmp_path, rows), validation=0.1, test=0.2)
    figures = inspect(read_contents(config), {"tiny": tiny_tokenizer}).flat()
    trained = prepare(config, tiny_tokenizer, "pairs")
    for part, trees in trained.parts.items():
        assert figures[f"{part}_rows"] == len(trees) > 0


def test_exact_shares_are_those_of_training(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Rows with a split of their with_split stay there and do not count; the 201 others are cut at 20 % and 30 %."""
    from treeward.data.prepare import prepare

    rows = [{"prompt": f"w{n % 40} w{n // 40}", "chosen": "w8", "rejected": "w9"} for n in range(201)]
    with_split = [{**row, "prompt": f"with_split {n}", "split": "validation"} for n, row in enumerate(rows[:7])]
    config = DataConfig(source=written(tmp_path, [*rows, *with_split]), validation=0.1, test=0.2, shares="exact")
    figures = inspect(read_contents(config), {"tiny": tiny_tokenizer}).flat()
    trained = prepare(config, tiny_tokenizer, "pairs")
    assert {part: len(trees) for part, trees in trained.parts.items()} == {"train": 141, "validation": 27, "test": 40}
    assert (figures["train_rows"], figures["validation_rows"], figures["test_rows"]) == (141, 27, 40)


def test_labelled_text_is_paired_inside_its_split(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{"text": f"w{n} w{n + 1}", "label": n % 2} for n in range(3, 53)]
    both = [*rows, {"text": "w3 w4", "label": 0}]
    figures = inspected(tmp_path, both, tiny_tokenizer).flat()
    assert (figures["format"], figures["purpose"], figures["rows"], figures["used"]) == ("text", "pairs", 51, 51)
    assert figures["pairs"] <= 25
    assert figures["contradictions"] == 1
    assert (figures["duplicates"], figures["rated_pairs"], figures["mean_rating_gap"]) == (1, 0, None)


@pytest.mark.parametrize(
    ("row", "purpose", "missing"),
    [
        ({"prompt": "w3", "completion": "w4 w5"}, "sft", "chosen_mean"),
        ({"text": "w3 w4"}, "sft", "longer_wins"),
        ({"prompt": "w3 w4 w5"}, "prompts", "response_mean"),
    ],
)  # fmt: skip
def test_other_formats_have_fewer_figures(
    row: dict[str, Any], purpose: str, missing: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    figures = inspected(tmp_path, [row], tiny_tokenizer).flat()
    assert (figures["purpose"], figures["pairs"], figures["floor"]) == (purpose, None, None)
    assert figures["mean_length"] == 3
    assert missing not in figures


def test_messages_without_a_template_are_counted_as_their_text(tmp_path: Path, tiny_tokenizer: Any) -> None:
    spoken = [{"role": "user", "content": "w3 w4 w5"}]
    rows = [{"chosen": [*spoken, {"role": "assistant", "content": "w6"}],
             "rejected": [*spoken, {"role": "assistant", "content": "w7 w8"}]}]  # fmt: skip
    figures = inspected(tmp_path, rows, tiny_tokenizer).flat()
    assert figures["templated"] is False
    assert (figures["prompt_mean"], figures["chosen_mean"], figures["rejected_mean"]) == (3, 2, 3)


def test_ids_beyond_the_model(tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = DataConfig(source=written(tmp_path, ROWS[:2]), validation=0.0, test=0.2)
    figures = inspect(read_contents(config), {"tiny": tiny_tokenizer}, embedding_rows=10).flat()
    assert (figures["vocabulary"], figures["embedding_rows"], figures["ids_beyond_model"]) == (64, 10, 54)
    assert figures["tokens_beyond_model"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"good": "?", "bad": "!"}], "the columns bad, good fit no format"),
        ([{"prompt": "w3", "good": "w4", "bad": "w5"}], "fit no format"),
        ([{"prompt": "w3", "chosen": "w4", "rejected": "w5", "split": "elsewhere"}], "'elsewhere'"),
    ],
)  # fmt: skip
def test_wrong_columns_are_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_contents(DataConfig(source=written(tmp_path, rows)))
