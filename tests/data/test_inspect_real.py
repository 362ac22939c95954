"""The shared files under inspection: what their README counted independently.

Prompts are groups here, capitals and white space apart, so helpful-rejection-sampled has 2,747 and not 2,748.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treeward.data.inspect import inspect, read_contents
from treeward.data.prepare import DataConfig

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("name", "counts", "longer", "floor"),
    [
        ("helpful-base", (2354, 2354, 2, 9, 4), 0.600, (0.61, 0.64)),
        ("harmless-base", (2312, 2310, 0, 5, 4), 0.445, (0.61, 0.62)),
        ("helpful-rejection-sampled", (2749, 2747, 32, 3, 0), 0.569, (0.56, 0.59)),
    ],
)
def test_hh(
    name: str,
    counts: tuple[int, ...],
    longer: float,
    floor: tuple[float, float],
    data_root: Path,
    real_tokenizer: Callable[[str], Any],
) -> None:
    config = DataConfig(source=str(data_root / "hh-rlhf" / name / "test.jsonl.gz"), validation=0.0, test=0.2)
    figures = inspect(read_contents(config), {"gpt2": real_tokenizer("gpt2")}).flat()
    names = ("rows", "prompts", "identical_pairs", "differing_prompts", "empty_responses")
    assert tuple(figures[key] for key in names) == counts
    assert (figures["duplicates"], figures["contradictions"], figures["prompts_in_both_splits"]) == (0, 0, 0)
    assert figures["longer_wins_characters_unequal"] == pytest.approx(longer, abs=0.003)
    assert figures["longer_wins_unequal"] == pytest.approx(longer, abs=0.01)
    for key in ("longer_wins", "longer_wins_characters"):
        assert abs(figures[key] - 0.5) < abs(figures[f"{key}_unequal"] - 0.5)
    assert floor[0] - 0.03 < figures["floor"] < floor[1] + 0.03


def test_graded_sentences(data_root: Path, real_tokenizer: Callable[[str], Any]) -> None:
    config = DataConfig(source=str(data_root / "graded" / "sf_binarized.jsonl.gz"), validation=0.0, test=0.2)
    tokenizer = real_tokenizer("smollm2-135m-instruct-rebuilt")
    figures = inspect(read_contents(config), {"smollm2": tokenizer}, embedding_rows=49152).flat()
    assert (figures["rows"], figures["used"], figures["rated_pairs"], figures["ties"]) == (835, 835, 835, 0)
    assert figures["rating_disagreements"] == 0
    assert figures["mean_rating_gap"] == pytest.approx(0.92, abs=0.005)
    assert figures["rating_gap_median"] == pytest.approx(0.80, abs=0.005)
    assert figures["longer_wins_characters"] == pytest.approx(0.51, abs=0.005)
    assert figures["floor"] == pytest.approx(0.60, abs=0.09)
    assert (figures["templated"], figures["ids_beyond_model"]) == (True, 0)
