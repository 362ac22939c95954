"""Recipes and overrides: plain mappings to typed configurations and back; unknown keys are refused with a nearest name.

The command line and YAML go the same way: an override is a dotted key and a YAML value, merged into the recipe, then
validated. A field whose type is a union of dataclasses takes its class from `kind`.
"""

import dataclasses
import difflib
import logging
import math
import re
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import pydantic
import yaml

from treeward.errors import UserError
from treeward.runner import trl_names

log = logging.getLogger(__name__)
Config = TypeVar("Config")


def recipe(name: str) -> dict[str, Any]:
    """The mapping of a recipe: a name from the package, or a YAML file.

    Raises:
        UserError: there is no such recipe, or the file is not a mapping; the nearest name is suggested.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"recipe {name!r} does not exist")
        return read_yaml(Path(name), f"recipe {name!r}")
    else:
        if name not in recipes():
            raise UserError(f"recipe {name!r} is unknown{_nearest(name, recipes())}; there are {', '.join(recipes())}")
        with resources.as_file(resources.files("treeward.recipes") / f"{name}.yaml") as path:
            return read_yaml(path, f"recipe {name!r}")


NODES, LEVELS = 10_000, 40
"""How many values a YAML file may hold with every alias written out, and how deep they may stand in one another."""


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags of Python; every key stands there once and is the text as written, also `0` and `true`;
    aliases only as far as `NODES`.
    """

    def construct_document(self, node: Any) -> Any:
        self._size(node, {}, 0)
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "it is no mapping", node.start_mark)
        self.flatten_mapping(node)
        other = next((key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)), None)
        if other is not None:
            raise yaml.constructor.ConstructorError(None, None, "a key is no text", other.start_mark)
        return {key.value: self.construct_object(value, deep) for key, value in node.value}

    def _size(self, node: Any, sizes: dict[int, int], level: int) -> int:
        """The values below a node with all aliases written out; `sizes` holds those that are known, 0 while open."""
        if id(node) in sizes and sizes[id(node)]:
            return sizes[id(node)]
        if id(node) in sizes or level > LEVELS:
            raise yaml.constructor.ConstructorError(None, None, "it is nested too deeply", node.start_mark)
        sizes[id(node)] = 0
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in below if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands there twice",
                                                        node.start_mark)  # fmt: skip
            below = [value for _, value in below]
        size = 1 + sum(self._size(each, sizes, level + 1) for each in below)
        if size > NODES:
            raise yaml.constructor.ConstructorError(None, None, f"its aliases stand for more than {NODES} values",
                                                    node.start_mark)  # fmt: skip
        sizes[id(node)] = size
        return size


def load_yaml(text: str) -> Any:
    """The plain value that a YAML text means: mappings with text keys, lists, texts, numbers, booleans, null, dates.

    Raises:
        UserError: it is no such YAML; in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as problem:
        # A tag such as !!int or !!timestamp before another text makes PyYAML fail in any of these ways.
        raise UserError(" ".join(str(problem).split())[:200] or type(problem).__name__) from None


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; `what` names it in messages.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise UserError(f"{what} is not YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} is not a mapping of keys to values")
    return value


def python_files(values: Any) -> list[str]:
    """The FILE.py:NAME texts in a mapping of settings, without those that the command line itself says."""
    if isinstance(values, Mapping):
        return [name for value in values.values() for name in python_files(value)]
    if isinstance(values, list | tuple):
        return [name for value in values for name in python_files(value)]
    return [values] if isinstance(values, str) and not isinstance(values, Raw) and ".py:" in values else []


def refuse_code(values: Mapping[str, Any], place: str) -> None:
    """Refuse settings that would run a Python file which only a recipe or a run directory names.

    Raises:
        UserError: there is one; the file and the two ways out are named.
    """
    for name in python_files(values):
        raise UserError(
            f"{place} would run the Python file {name!r}; look into it, then name it on this command line, or add "
            "--allow-code"
        )


def recipes() -> list[str]:
    """The names of the recipes in the package."""
    files = resources.files("treeward.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping. A changed `kind` drops the other class's fields, and says so."""
    merged = dict(base)
    for key, value in over.items():
        name = key.replace("-", "_")
        below = merged.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            if "kind" in value and value["kind"] != below.get("kind"):
                lost = sorted(set(below) - {"kind"})
                if lost:
                    log.warning("%s%s.kind is now %s: dropped %s", path, name, value["kind"], ", ".join(lost))
                below = {}
            merged[name] = merge(below, value, f"{path}{name}.")
        else:
            merged[name] = value
    return merged


class Raw(str):
    """The text of an override, not yet read: where a field holds text it is that text, else a YAML value."""

    def read(self, hint: Any) -> Any:
        """The value for a field of this type."""
        options = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
        if str in options and options <= {str, type(None)}:
            return None if type(None) in options and self == "null" else str(self)
        try:
            return load_yaml(self)
        except ValueError:
            return str(self)


class Repeated(tuple[Raw, ...]):
    """The texts of an option that was given several times, in order."""


def override(key: str, *texts: str) -> dict[str, Any]:
    """The mapping that `--a.b text` stands for, given once or several times. `--data FILE` is `--data.source FILE`."""
    if key == "data" and not texts[-1].lstrip().startswith("{"):
        key = "data.source"
    value: Any = Raw(texts[0]) if len(texts) == 1 else Repeated(map(Raw, texts))
    for part in reversed(key.split(".")):
        value = {part.replace("-", "_"): value}
    return value  # type: ignore[no-any-return]


class UnknownKey(UserError):
    """A key that no field has; `key` is its dotted name, `names` are the fields that stand at its place."""

    def __init__(self, key: str, names: Sequence[str]) -> None:
        self.key = key
        self.names = names
        super().__init__(key)


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """An instance of a config dataclass from a mapping.

    Raises:
        UserError: an unknown key (the nearest is named, or what TRL's name is here) or a value of the wrong type or
            range.
    """
    try:
        return _build(cls, values, "")
    except UnknownKey as problem:
        raise UserError(_unknown(problem, [key for key, _, _ in describe(cls)])) from None


def _unknown(problem: UnknownKey, keys: Sequence[str]) -> str:
    """The sentence about an unknown key: TRL's name for one of ours, a near name, or the same name in another group."""
    name = problem.key.rsplit(".", 1)[-1]
    theirs = trl_names.suggestion(name, [*keys, "resume"])
    if theirs is not None:
        return f"unknown key {problem.key!r}: {theirs}"
    near = _nearest(name, problem.names)
    if not near:
        same = [key for key in keys if key.rsplit(".", 1)[-1] == name]
        near = f", did you mean {same[0]!r}?" if same else ""
        if problem.key in keys:
            near = f" of this kind (another {problem.key.rpartition('.')[0]}.kind has it)"
    return f"unknown key {problem.key!r}{near}; known are {', '.join(problem.names)}"


def _build(cls: type[Config], values: Mapping[str, Any], path: str) -> Config:
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            raise UnknownKey(path + name, names)
        arguments[name] = _value(hints[name], value, path + name)
    return cls(**arguments)


def dump(config: Any) -> dict[str, Any]:
    """The mapping from which `build` makes an equal config; unions carry their `kind`."""
    hints = get_type_hints(type(config))
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        found[field.name] = _dumped(hints[field.name], value)
    return found


def _dumped(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        kind = {"kind": kind_of(type(value))} if len(_classes(hint)) > 1 else {}
        return {**kind, **dump(value)}
    if isinstance(value, tuple):
        return [_dumped(_item(hint), each) for each in value]
    return value


def describe(cls: type[Any], path: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every field, for help texts."""
    rows: list[tuple[str, str, str]] = []
    meanings = _meanings(cls)
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        classes = _classes(hints[field.name])
        if classes:
            if len(classes) > 1:
                rows.append((f"{path}{field.name}.kind", kind_of(classes[0]), " | ".join(map(kind_of, classes))))
            seen: set[str] = set()
            for each in classes:
                below = [row for row in describe(each, f"{path}{field.name}.") if row[0] not in seen]
                seen |= {row[0] for row in below}
                rows += below
        else:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            rows.append((path + field.name, str(default), meanings.get(field.name, "")))
    return rows


def kind_of(cls: type[Any]) -> str:
    """The name of a union's member in recipes and on the command line: HLGauss is hl-gauss."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def _value(hint: Any, value: Any, path: str) -> Any:
    classes, value = _classes(hint), _read(hint, value)
    if _classes(_item(hint)):
        if not isinstance(value, list | tuple):
            raise UserError(f"{path} is {value!r}; it is a list of groups of fields: [{{...}}, {{...}}]")
        return tuple(_value(_item(hint), each, f"{path}.{place}") for place, each in enumerate(value))
    if not classes:
        try:
            validated = pydantic.TypeAdapter(hint).validate_python(_read_below(value))
        except pydantic.ValidationError as problem:
            raise UserError(f"{path} is {value!r}: {problem.errors()[0]['msg'].lower()}") from None
        if isinstance(validated, float) and not math.isfinite(validated):
            raise UserError(f"{path} is {value!r}; it must be a finite number")
        return validated
    if value is None and type(None) in get_args(hint):
        return None
    if not isinstance(value, Mapping):
        first = "kind" if len(classes) > 1 else dataclasses.fields(classes[0])[0].name
        raise UserError(f"{path} is {value!r}; it is a group of fields: set {path}.{first} or another of them")
    if len(classes) == 1:
        return _build(classes[0], value, f"{path}.")
    kinds = {kind_of(cls): cls for cls in classes}
    kind = str(value.get("kind", kind_of(classes[0])))
    if kind not in kinds:
        for reasons in (getattr(cls, "refused", {}) for cls in classes):
            if kind in reasons:
                raise UserError(f"{path}.kind {kind!r} is not offered: {reasons[kind]}")
        raise UserError(f"{path}.kind is {kind!r}{_nearest(kind, list(kinds))}; it may be {', '.join(kinds)}")
    return _build(kinds[kind], {key: item for key, item in value.items() if key != "kind"}, f"{path}.")


def _read(hint: Any, value: Any) -> Any:
    """The value of an override for a field of this type; of one given several times the last, or all of a list."""
    if _item(hint) is str:
        return _texts(value)
    last = value[-1] if isinstance(value, Repeated) else value
    return last.read(hint) if isinstance(last, Raw) else last


def _texts(value: Any) -> Any:
    """The items of a list of texts: F48, `F48,F42`, [F48, F42], or the option repeated."""
    if isinstance(value, Repeated):
        return [item for raw in value for item in _texts(raw)]
    read = value.read(list) if isinstance(value, Raw) else value
    return [item.strip() for item in read.split(",") if item.strip()] if isinstance(read, str) else read


def _read_below(value: Any) -> Any:
    """A mapping's own values read, for fields that hold plain mappings."""
    if isinstance(value, Mapping):
        last = {key: item[-1] if isinstance(item, Repeated) else item for key, item in value.items()}
        return {key: item.read(object) if isinstance(item, Raw) else item for key, item in last.items()}
    return value


def _classes(hint: Any) -> list[type[Any]]:
    """The dataclasses that a field may hold: none for a plain value, several for a union."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]


def _item(hint: Any) -> Any:
    """What a tuple of one type holds; None for anything else."""
    inside = get_args(hint)
    return inside[0] if get_origin(hint) is tuple and len(inside) == 2 and inside[1] is Ellipsis else None


def _meanings(cls: type[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            for item in docstring_parser.parse_from_object(base).params:
                found[item.arg_name] = " ".join((item.description or "").split())
    return found


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f", did you mean {close[0]!r}?" if close else ""
