"""Every figure of a receipt has a label and a meaning."""

from treeward.stats.diversity import Pool, measure
from treeward.stats.formatting import FIGURES, label, meaning
from treeward.stats.tables import METRICS


def test_every_metric_is_named_and_explained() -> None:
    diversity = measure([Pool([[1, 2, 3]], ["a"])])
    assert {*METRICS, *diversity} <= set(FIGURES)
    assert all(text and not text.endswith(".") for texts in FIGURES.values() for text in texts)


def test_a_judge_is_called_by_its_own_name() -> None:
    assert label("judge:length") == "judge length"
    assert "never used" in meaning("judge:length")
    assert (label("new_figure"), meaning("new_figure")) == ("new_figure", "")
