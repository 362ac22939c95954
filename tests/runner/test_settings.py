"""Recipes and options: how text becomes a typed configuration, and which options a command has."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args, get_type_hints

import pytest

from treeward.cli.parse import CONFIGS, config_class
from treeward.losses.heads import AnyHead, Scalar
from treeward.methods import METHODS, find
from treeward.methods.dpo import DPORun
from treeward.methods.reinforce import ReinforceRun
from treeward.methods.reward import RewardRun
from treeward.runner import fields
from treeward.runner.inspect import InspectRun
from treeward.runner.merge import MergeRun
from treeward.runner.pairs import PairsRun
from treeward.runner.settings import build, dump, kind_of, merge, override, recipe, recipes
from treeward.runner.warp import WarpRun

RUNS = {name: find(name).Config for name in METHODS}
REQUIRED: dict[str, Any] = {"start": "a", "members": ("b", "c")}
"""Options of merge that have no usable default."""


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_builds_and_survives_a_round_trip(name: str) -> None:
    values = recipe(name)
    cls: Any = {**RUNS, "inspect": InspectRun, "pairs": PairsRun, "warp": WarpRun}[values.pop("command")]
    config = build(cls, values)
    assert build(cls, dump(config)) == config


def test_an_option_is_read_by_the_type_of_its_field() -> None:
    values = merge({}, override("data.source", "123"))
    values = merge(values, override("data.limit", "7"))
    values = merge(values, override("evaluation.scorer", "a : b"))
    values = merge(values, override("lr", "1e-4"))
    config = build(DPORun, values)
    assert (config.data.source, config.data.limit, config.evaluation.scorer, config.lr) == ("123", 7, "a : b", 1e-4)


def test_dashes_and_underscores_are_the_same() -> None:
    assert build(DPORun, merge({}, override("evaluate-every", "5"))).evaluate_every == 5


def test_a_changed_kind_drops_the_fields_of_the_other_class_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_recipe_that_is_no_mapping_or_no_yaml_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("r") / "bad.yaml"
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a mapping"):
        recipe(str(file))
    file.write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        recipe(str(file))


def members_of(hint: Any) -> list[type[Any]]:
    """The dataclasses that a field of this type may hold."""
    types = [hint] if isinstance(hint, type) else [member for member in get_args(hint) if isinstance(member, type)]
    return [member for member in types if dataclasses.is_dataclass(member)]


def runtime_rows(cls: type[Any], default: Any, path: str = "") -> dict[str, Any]:
    """Each option of a config class with its default, read from the classes themselves; of a union the default kind."""
    rows: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        members, value = members_of(hints[item.name]), getattr(default, item.name)
        if len(members) > 1:
            rows[f"{path}{item.name}.kind"] = None if value is None else kind_of(type(value))
        if members:
            group = members[0] if value is None else type(value)
            rows |= runtime_rows(group, group() if value is None else value, f"{path}{item.name}.")
        else:
            rows[path + item.name] = value
    return rows


@pytest.mark.parametrize("verb", CONFIGS)
def test_the_options_read_from_source_are_those_of_the_classes(verb: str) -> None:
    cls = config_class(verb)
    expected = runtime_rows(cls, MergeRun(**REQUIRED) if cls is MergeRun else cls())
    options = {option.key: option.default for option in fields.options(CONFIGS[verb])}
    assert options.keys() == expected.keys()
    assert list(fields.options(cls)) == list(fields.options(CONFIGS[verb]))
    for key, default in options.items():
        if cls is MergeRun and key in REQUIRED:
            continue
        value = None if key.endswith("evaluation.max_new_tokens") else expected[key]  # not set: filled in by the run
        text = None if value in (None, (), {}, "") else str(value).lower() if isinstance(value, bool) else str(value)
        assert default == text, key


def test_each_kind_of_loss_has_its_own_options_and_defaults() -> None:
    """Every member of every union of dpo: the options below it and their defaults are those of the class."""
    for union in ("loss", "divergence", "reference"):
        for cls in members_of(get_type_hints(DPORun)[union]):
            rows = {option.key: option for option in fields.options(CONFIGS["dpo"], {union: kind_of(cls)})}
            shown = {key.removeprefix(f"{union}."): row for key, row in rows.items() if key.startswith(f"{union}.")}
            assert list(shown) == ["kind", *(item.name for item in dataclasses.fields(cls))]
            for item in dataclasses.fields(cls):
                value = getattr(cls(), item.name)
                if not isinstance(value, tuple):
                    assert shown[item.name].default == (str(value) if value or value == 0 else None), (cls, item.name)
                assert shown[item.name].meaning


@pytest.mark.parametrize(("kind", "key", "default"), [
    ("sigmoid", "loss.beta", "0.1"), ("simpo", "loss.beta", "2.0"), ("robust", "loss.flip", "0.1"),
    ("sigmoid", "loss.flip", "0.0"),
])  # fmt: skip
def test_the_default_of_an_option_is_that_of_the_chosen_kind(kind: str, key: str, default: str) -> None:
    rows = {option.key: option for option in fields.options(CONFIGS["dpo"], {"loss": kind})}
    assert rows[key].default == default


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_option_of_every_kind_has_a_meaning_and_none_appears_twice(verb: str) -> None:
    rows = fields.options(CONFIGS[verb], every_kind=True)
    keys = [option.key for option in rows]
    assert len(set(keys)) == len(keys)
    assert [option.key for option in rows if not option.meaning] == []


@dataclass(frozen=True)
class Base:
    """Fields that a subclass inherits."""

    size: int = 3
    """The size."""
    limit: ClassVar[int] = 5


@dataclass(frozen=True)
class Other(Base):
    """A config class outside the package."""

    size: int = 4
    """Another size."""
    hidden: int = field(default=1, init=False)
    head: AnyHead = field(default_factory=Scalar)
    """A union from the package."""


def test_options_of_a_class_outside_the_package_and_of_one_made_while_running() -> None:
    made = dataclasses.make_dataclass("Made", [("extra", int, 0)], bases=(Other,), frozen=True)
    for cls in (Other, made):
        rows = {option.key: (option.default, option.meaning) for option in fields.options(cls)}
        assert rows == {"size": ("4", "Another size."), "head.kind": ("scalar", "A union from the package.")}


def test_a_group_by_its_former_name_is_answered_with_the_new_one() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'anchor\.kind': it is 'reference\.kind' now"):
        build(DPORun, merge({}, override("anchor.kind", "ema")))
    with pytest.raises(ValueError, match=r"unknown key 'anchor': it is 'reference' now"):
        build(DPORun, {"anchor": "frozen"})


def test_samples_of_the_evaluation_are_as_long_as_those_of_training() -> None:
    reinforce = {"reward": "length", "max_new_tokens": 200}
    assert build(ReinforceRun, reinforce).evaluation.max_new_tokens == 200
    assert build(ReinforceRun, {**reinforce, "evaluation": {"max_new_tokens": 50}}).evaluation.max_new_tokens == 50
    assert build(DPORun, {}).evaluation.max_new_tokens == 64
    assert build(RewardRun, {}).evaluation.max_new_tokens is None  # nothing is sampled from a reward model
