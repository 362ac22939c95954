"""Configuration: from YAML recipes and command-line options to config dataclasses, and back.

How a mapping becomes a dataclass:

1. `recipe` reads a YAML file into nested mappings: {"lr": 1e-6, "loss": {"kind": "ipo", "beta": 0.3}}.
2. `override` makes such a mapping of an option: --loss.beta 0.2 is {"loss": {"beta": OptionText("0.2")}}.
3. `merge` lays the second on the first. A changed `kind` drops the fields of the class that was there.
4. `build(cls, values)` walks the fields of `cls`. A dataclass field takes a mapping and is built in the same way; of a
   union of dataclasses, `kind` names the class (the first one by default); any other field is validated by pydantic.
5. The text of an option is read only in step 4, by the type of its field: text stays text, anything else is YAML.
6. An unknown key is refused; the message names the nearest key, or ours for a name of TRL or of an older version.

`dump` is the way back: `build(type(config), dump(config)) == config`.
"""

import dataclasses
import difflib
import logging
import math
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic
import yaml

from treeward.errors import UserError
from treeward.runner import fields, trl_names

log = logging.getLogger(__name__)
Config = TypeVar("Config")
RENAMED_KEYS = {"anchor": "reference"}
"""Groups of options by their name in older versions, and their name now."""


def recipes() -> list[str]:
    """The names of the recipes in the package."""
    files = resources.files("treeward.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe, comments included: a name from the package, or a YAML file.

    Raises:
        UserError: there is no such recipe (the nearest name is suggested), or the file cannot be read.
    """
    if not name.endswith((".yaml", ".yml")):
        if name not in recipes():
            raise UserError(f"recipe {name!r} is unknown{_nearest(name, recipes())}; there are {', '.join(recipes())}")
        return (resources.files("treeward.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    if not Path(name).is_file():
        raise UserError(f"recipe {name!r} does not exist")
    return _read_text(Path(name), f"recipe {name!r}")


def recipe(name: str) -> dict[str, Any]:
    """The mapping of a recipe: a name from the package, or a YAML file.

    Raises:
        UserError: as `recipe_text`, or the YAML is not a mapping.
    """
    return _mapping(recipe_text(name), f"recipe {name!r}")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file; `what` names the file in messages.

    Raises:
        UserError: the file cannot be read, or is not a mapping.
    """
    return _mapping(_read_text(path, what), what)


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as problem:
        raise UserError(f"{what} is not YAML: {' '.join(str(problem).split())}") from None


def _mapping(text: str, what: str) -> dict[str, Any]:
    try:
        values = load_yaml(text)
    except UserError as problem:
        raise UserError(f"{what} is not YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{what} is not a mapping of keys to values")
    return values


class OptionText(str):
    """The value of a command-line option as the user typed it; `build` reads it by the type of its field."""

    def read(self, hint: Any) -> Any:
        """The value for a field of this type: the text itself for a text field, otherwise a YAML value."""
        members = set(get_args(hint)) if _is_union(hint) else {hint}
        if str in members and members <= {str, type(None)}:
            return None if type(None) in members and self == "null" else str(self)
        try:
            return load_yaml(self)
        except UserError:
            return str(self)


class RepeatedOption(tuple[OptionText, ...]):
    """The texts of an option that was given several times, in order."""


def override(key: str, *texts: str) -> dict[str, Any]:
    """The mapping of the option `--a.b text`, given once or several times. `--data FILE` means `--data.source FILE`,
    and `--loss FILE.py:NAME` means `--loss.kind from-file --loss.function FILE.py:NAME`.
    """
    if key == "data" and not texts[-1].lstrip().startswith("{"):
        key = "data.source"
    value: Any = OptionText(texts[0]) if len(texts) == 1 else RepeatedOption(map(OptionText, texts))
    if key == "loss" and ".py:" in texts[-1] and not texts[-1].lstrip().startswith("{"):
        value = {"kind": "from-file", "function": OptionText(texts[-1])}
    for part in reversed(key.split(".")):
        value = {part.replace("-", "_"): value}
    return value  # type: ignore[no-any-return]


def last_value(value: Any) -> Any:
    """The value of an option, of a repeated one the last."""
    return value[-1] if isinstance(value, RepeatedOption) else value


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping.

    Where `over` changes a `kind`, the fields that `base` gives for the former kind are dropped, with a warning.
    """
    merged = dict(base)
    for key, value in over.items():
        name = key.replace("-", "_")
        below = merged.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            if "kind" in value and value["kind"] != below.get("kind"):
                dropped = sorted(set(below) - {"kind"})
                if dropped:
                    log.warning("%s%s.kind is now %s: dropped %s", path, name, value["kind"], ", ".join(dropped))
                below = {}
            merged[name] = merge(below, value, f"{path}{name}.")
        else:
            merged[name] = value
    return merged


def python_files(values: Any) -> list[str]:
    """The FILE.py:NAME texts in a mapping, without those that were typed on the command line."""
    if isinstance(values, Mapping):
        return [name for value in values.values() for name in python_files(value)]
    if isinstance(values, list | tuple):
        return [name for value in values for name in python_files(value)]
    return [values] if isinstance(values, str) and not isinstance(values, OptionText) and ".py:" in values else []


def refuse_code(values: Mapping[str, Any], place: str) -> None:
    """Refuse a recipe or a run directory (`place`) that would run a Python file.

    Raises:
        UserError: it names such a file; the message names the file and the two ways to allow it.
    """
    for name in python_files(values):
        raise UserError(
            f"{place} would run the Python file {name!r}; look into it, then name it on this command line, or add "
            "--allow-code"
        )


class UnknownKey(UserError):
    """A key that is no field. `key` is its dotted name; `names` are the fields of the class where it was given."""

    def __init__(self, key: str, names: Sequence[str]) -> None:
        self.key = key
        self.names = names
        super().__init__(key)


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """An instance of a config dataclass from a mapping.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        return _build_class(cls, values, "")
    except UnknownKey as problem:
        raise UserError(_unknown_key_message(problem, fields.keys(cls))) from None


def _build_class(cls: type[Config], values: Mapping[str, Any], path: str) -> Config:
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            raise UnknownKey(path + _with_nested_key(name, value), names)
        arguments[name] = _convert(hints[name], value, path + name)
    return cls(**arguments)


def _with_nested_key(name: str, value: Any) -> str:
    """`anchor.kind` for the renamed group {"anchor": {"kind": ...}}; any other key as it is."""
    nested = next(iter(value), None) if name in RENAMED_KEYS and isinstance(value, Mapping) else None
    return name if nested is None else f"{name}.{nested}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    """The value of a field of this type, checked; `path` is the field's dotted key."""
    members, value = _dataclasses_in(hint), _read_option(hint, value)
    item = _item_type(hint)
    if _dataclasses_in(item):
        if not isinstance(value, list | tuple):
            raise UserError(f"{path} is {value!r}; it is a list of groups of fields: [{{...}}, {{...}}]")
        return tuple(_convert(item, entry, f"{path}.{place}") for place, entry in enumerate(value))
    if not members:
        return _convert_plain(hint, value, path)
    if value is None and type(None) in get_args(hint):
        return None
    by_text = next((cls for cls in members if hasattr(cls, "takes_text")), None)
    if by_text is not None and isinstance(value, str) and ".py:" in value:
        value = {"kind": kind_of(by_text), by_text.takes_text: value}
    if not isinstance(value, Mapping):
        first = "kind" if len(members) > 1 else dataclasses.fields(members[0])[0].name
        raise UserError(f"{path} is {value!r}; it is a group of fields: set {path}.{first} or another of them")
    if len(members) == 1:
        return _build_class(members[0], value, f"{path}.")
    return _build_member(members, value, path)


def _convert_plain(hint: Any, value: Any, path: str) -> Any:
    """The value of a field that is no group, validated by pydantic."""
    try:
        validated = pydantic.TypeAdapter(hint).validate_python(_read_mapping_values(value))
    except pydantic.ValidationError as problem:
        raise UserError(f"{path} is {value!r}: {problem.errors()[0]['msg'].lower()}") from None
    if isinstance(validated, float) and not math.isfinite(validated):
        raise UserError(f"{path} is {value!r}; it must be a finite number")
    return validated


def _build_member(members: Sequence[type[Any]], values: Mapping[str, Any], path: str) -> Any:
    """The member of a union that `kind` names, by default the first."""
    by_kind = {kind_of(cls): cls for cls in members}
    kind = str(values.get("kind", kind_of(members[0])))
    if kind not in by_kind:
        reasons = getattr(members[0], "not_offered", {})  # every member of a union has the same
        if kind in reasons:
            raise UserError(f"{path}.kind {kind!r} is not offered: {reasons[kind]}")
        raise UserError(f"{path}.kind is {kind!r}{_nearest(kind, list(by_kind))}; it may be {', '.join(by_kind)}")
    return _build_class(by_kind[kind], {key: value for key, value in values.items() if key != "kind"}, f"{path}.")


def _read_option(hint: Any, value: Any) -> Any:
    """The text of an option as a value of this type; other values unchanged. A repeated option fills a list of texts,
    for any other type its last text counts.
    """
    if _item_type(hint) is str:
        return _list_of_texts(value)
    last = last_value(value)
    return last.read(hint) if isinstance(last, OptionText) else last


def _list_of_texts(value: Any) -> Any:
    """The items of a list of texts: F48, `F48,F42`, [F48, F42], or the option repeated."""
    if isinstance(value, RepeatedOption):
        return [item for text in value for item in _list_of_texts(text)]
    items = value.read(list) if isinstance(value, OptionText) else value
    return [item.strip() for item in items.split(",") if item.strip()] if isinstance(items, str) else items


def _read_mapping_values(value: Any) -> Any:
    """A mapping with the texts of options in it read as YAML, for fields that are plain mappings."""
    if isinstance(value, Mapping):
        last = {key: last_value(item) for key, item in value.items()}
        return {key: item.read(object) if isinstance(item, OptionText) else item for key, item in last.items()}
    return value


def _unknown_key_message(problem: UnknownKey, keys: Sequence[str]) -> str:
    """What to do about an unknown key. `keys` are all dotted keys of the command.

    Tried in this order: a group with a new name, a name of TRL, a near name in the same class, the same name in another
    group or kind.
    """
    group, _, rest = problem.key.partition(".")
    if group in RENAMED_KEYS:
        new = ".".join(filter(None, (RENAMED_KEYS[group], rest)))
        return f"unknown key {problem.key!r}: it is {new!r} now"
    name = problem.key.rsplit(".", 1)[-1]
    hint = trl_names.suggestion(name, [*keys, "resume"])
    if hint is not None:
        return f"unknown key {problem.key!r}: {hint}"
    near = _nearest(name, problem.names)
    if not near:
        namesakes = [key for key in keys if key.rsplit(".", 1)[-1] == name]
        near = f", did you mean {namesakes[0]!r}?" if namesakes else ""
        if problem.key in keys:
            near = f" of this kind (another {problem.key.rpartition('.')[0]}.kind has it)"
    return f"unknown key {problem.key!r}{near}; known are {', '.join(problem.names)}"


def dump(config: Any) -> dict[str, Any]:
    """The mapping from which `build` makes an equal config; members of unions carry their `kind`."""
    hints = get_type_hints(type(config))
    return {
        field.name: _dump_value(hints[field.name], getattr(config, field.name)) for field in dataclasses.fields(config)
    }


def _dump_value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        kind = {"kind": kind_of(type(value))} if len(_dataclasses_in(hint)) > 1 else {}
        return {**kind, **dump(value)}
    if isinstance(value, tuple):
        return [_dump_value(_item_type(hint), item) for item in value]
    return value


def kind_of(cls: type[Any]) -> str:
    """The name of a union's member in recipes and options: HLGauss is hl-gauss."""
    return fields.kind_name(cls.__name__)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _dataclasses_in(hint: Any) -> list[type[Any]]:
    """The dataclasses that a field of this type may hold: none for a plain value, several for a union."""
    members = get_args(hint) if _is_union(hint) else (hint,)
    return [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]


def _item_type(hint: Any) -> Any:
    """X for a field of type tuple[X, ...]; None for any other type."""
    inside = get_args(hint)
    return inside[0] if get_origin(hint) is tuple and len(inside) == 2 and inside[1] is Ellipsis else None


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f", did you mean {close[0]!r}?" if close else ""


MAX_VALUES, MAX_DEPTH = 10_000, 40
"""How many values a YAML file may have with every alias written out, and how deeply they may be nested."""


class _Loader(yaml.SafeLoader):
    """Plain YAML: no Python tags, no key twice, every key as the text that was written (also `0` and `true`), and
    aliases only as far as `MAX_VALUES`.
    """

    def construct_document(self, node: Any) -> Any:
        self._count_values(node, {}, 0)
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "it is no mapping", node.start_mark)
        self.flatten_mapping(node)
        bad_key = next((key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)), None)
        if bad_key is not None:
            raise yaml.constructor.ConstructorError(None, None, "a key is no text", bad_key.start_mark)
        return {key.value: self.construct_object(value, deep) for key, value in node.value}

    def _count_values(self, node: Any, counts: dict[int, int], depth: int) -> int:
        """The values below a node with all aliases written out. `counts` are those of nodes counted before, and 0 for
        a node that is being counted: an alias that leads back to it never ends.
        """
        if counts.get(id(node)):
            return counts[id(node)]
        if id(node) in counts or depth > MAX_DEPTH:
            raise yaml.constructor.ConstructorError(None, None, "it is nested too deeply", node.start_mark)
        counts[id(node)] = 0
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in below if isinstance(key, yaml.ScalarNode)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                problem = f"the key {twice!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            below = [value for _, value in below]
        count = 1 + sum(self._count_values(value, counts, depth + 1) for value in below)
        if count > MAX_VALUES:
            problem = f"with its aliases written out it has more than {MAX_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        counts[id(node)] = count
        return count


def load_yaml(text: str) -> Any:
    """The plain value of a YAML text: mappings with text keys, lists, texts, numbers, booleans, null, dates.

    Raises:
        UserError: it is no such YAML; in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as problem:
        # PyYAML raises any of these for a tag such as !!int or !!timestamp before another text.
        raise UserError(" ".join(str(problem).split())[:200] or type(problem).__name__) from None
