"""Recipes and overrides: one road from text to a typed configuration."""

import pytest

from treeward.runner.inspect import InspectRun
from treeward.runner.options import RUNS, DPORun
from treeward.runner.pairs import PairsRun
from treeward.runner.settings import build, dump, merge, override, recipe, recipes


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_builds_and_survives_a_round_trip(name: str) -> None:
    values = recipe(name)
    cls = {**RUNS, "inspect": InspectRun, "pairs": PairsRun}[values.pop("command")]
    config = build(cls, values)
    assert build(cls, dump(config)) == config


def test_overrides_are_read_by_the_type_of_their_field() -> None:
    values = merge({}, override("data.source", "123"))
    values = merge(values, override("data.limit", "7"))
    values = merge(values, override("evaluation.scorer", "a : b"))
    values = merge(values, override("lr", "1e-4"))
    config = build(DPORun, values)
    assert (config.data.source, config.data.limit, config.evaluation.scorer, config.lr) == ("123", 7, "a : b", 1e-4)


def test_dashes_and_underscores_are_the_same() -> None:
    assert build(DPORun, merge({}, override("evaluate-every", "5"))).evaluate_every == 5


def test_a_changed_kind_drops_the_other_class_s_fields_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    base = {"loss": {"kind": "sigmoid", "flip": 0.1, "beta": 0.2}}
    merged = merge(base, override("loss.kind", "hinge"))
    assert type(build(DPORun, merged).loss).__name__ == "Hinge"
    assert "dropped beta, flip" in caplog.text


def test_values_are_checked_by_type() -> None:
    with pytest.raises(ValueError, match="epochs is 'many'"):
        build(DPORun, {"epochs": "many"})
    with pytest.raises(ValueError, match=r"model\.gradient_checkpointing is 'perhaps'"):
        build(DPORun, {"model": {"gradient_checkpointing": "perhaps"}})
    assert build(DPORun, {"model": {"gradient_checkpointing": "false"}}).model.gradient_checkpointing is False
    with pytest.raises(ValueError, match="loss is 5"):
        build(DPORun, {"loss": 5})


def test_a_recipe_that_is_not_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("r") / "bad.yaml"
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a mapping"):
        recipe(str(file))
    file.write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        recipe(str(file))
