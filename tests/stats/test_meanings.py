"""Every figure that a receipt compares has a name and a line that says what it is."""

from treeward.stats.diversity import Pool, measured
from treeward.stats.formatting import FIGURES, label, meaning
from treeward.stats.tables import METRICS


def test_every_metric_is_named_and_explained() -> None:
    diversity = measured([Pool([[1, 2, 3]], ["a"])])
    assert {*METRICS, *diversity} <= set(FIGURES)
    assert all(said and not said.endswith(".") for words in FIGURES.values() for said in words)


def test_a_judge_is_called_by_its_own_name() -> None:
    assert label("judge:length") == "judge length"
    assert "never used" in meaning("judge:length")
    assert (label("new_figure"), meaning("new_figure")) == ("new_figure", "")
