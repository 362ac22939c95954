"""The options of a command: each field of its config classes with its default and its meaning.

They are read from the source files and nothing is imported, so `treeward dpo --help` needs neither torch nor
transformers. (The meaning of a field is the string below it, which Python drops when it runs the file: it can only be
read from the source.) `treeward.runner.settings` turns values into the classes themselves; a test compares the two.

A field holds a plain value, or a group: a dataclass, or a union of dataclasses of which `kind` chooses one.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import treeward

PACKAGE = Path(treeward.__file__).parent
Annotation = ast.expr
Default = ast.expr | None


@dataclass(frozen=True)
class Option:
    """One option: its dotted key, its default as text (None where it is null or empty) and its meaning.

    `kinds` are the members of a union, for its `.kind` option; `choices` the values of a Literal. `owner` is the module
    of the class with this field.
    """

    key: str
    default: str | None
    meaning: str
    kinds: tuple[str, ...] = ()
    owner: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """The classes, assigned names and imports of a source file. An import is (module, name); name "" is the module."""

    name: str
    classes: Mapping[str, ast.ClassDef]
    values: Mapping[str, ast.expr]
    imports: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """A class in its module."""

    node: ast.ClassDef
    module: Module


@dataclass(frozen=True)
class Field:
    """A field in the class that declares it (`module` is that of the default, which a subclass may replace)."""

    name: str
    annotation: Annotation
    default: Default
    meaning: str
    module: Module


def options(config: type[Any] | str, kinds: Mapping[str, str] | None = None, every_kind: bool = False) -> list[Option]:
    """Every option of a config class, given as a class or as "module:Class".

    Args:
        config: a dataclass; "treeward.methods.dpo:DPO.Config" is read without importing it.
        kinds: the chosen member of a union by its dotted key, such as {"loss": "simpo"}; else the field's default.
        every_kind: the options of all members of each union, those with one key once.
    """
    reader = _Reader(kinds or {}, every_kind)
    rows = [row for source in _sources(config) for row in reader.group(source, "", {})]
    return list({row.key: row for row in reversed(rows)}.values())[::-1]


def keys(config: type[Any] | str) -> list[str]:
    """The dotted keys that a config class accepts, over all kinds of its unions."""
    return [option.key for option in options(config, every_kind=True)]


def meaning_of(config: type[Any] | str) -> str:
    """The first line of the class's docstring."""
    docstring = ast.get_docstring(_sources(config)[-1].node) or ""
    return docstring.partition("\n")[0]


def kind_name(class_name: str) -> str:
    """The name of a union's member in recipes and options: HLGauss is hl-gauss."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", class_name).lower()


@dataclass(frozen=True)
class _Reader:
    """Lists the options of a class and of the groups in it."""

    kinds: Mapping[str, str]
    every_kind: bool

    def group(self, source: Source, path: str, defaults: Mapping[str, tuple[ast.expr, Module]]) -> Iterator[Option]:
        """The options of a class whose keys begin with `path`; `defaults` replace its own."""
        for field in _fields(source).values():
            default, module = defaults.get(field.name, (field.default, field.module))
            members = _members(field.annotation, field.module)
            if members:
                yield from self.union(field, members, f"{path}{field.name}", _factory(default), module)
            elif _is_field(default):
                owner, choices = field.module.name, tuple(_choices(field.annotation, field.module))
                text = _text(default, module)
                yield Option(f"{path}{field.name}", text, field.meaning, owner=owner, choices=choices)

    def union(
        self, field: Field, members: list[Source], path: str, default: Default, module: Module
    ) -> Iterator[Option]:
        """The options of a field that holds a group: its kind, if there are several, and the fields of that kind."""
        names = {kind_name(member.node.name): member for member in members}
        class_name, arguments = _constructed(default, module)
        usual = kind_name(class_name) if class_name and kind_name(class_name) in names else next(iter(names))
        if len(names) > 1:
            shown = None if _is_null(default) else usual
            yield Option(f"{path}.kind", shown, field.meaning, tuple(names), field.module.name)
        chosen = self.kinds.get(path, usual)
        if chosen not in names:
            chosen = usual
        for kind, member in names.items():
            if self.every_kind or kind == chosen:
                yield from self.group(member, f"{path}.", arguments if kind == usual else {})


def _sources(config: type[Any] | str) -> list[Source]:
    """The source of a config class; of one that was made while running, that of its bases, the first base last."""
    if isinstance(config, str):
        module_name, _, class_name = config.partition(":")
        module = _module(module_name, None)
        class_name, _, attribute = class_name.partition(".")
        return [
            _class_in(module.classes[class_name], attribute, module)
            if attribute
            else Source(module.classes[class_name], module)
        ]
    module = _module(config.__module__, inspect.getsourcefile(config))
    if config.__name__ in module.classes:
        return [Source(module.classes[config.__name__], module)]
    return [source for base in reversed(config.__bases__) if base is not object for source in _sources(base)]


def _class_in(method: ast.ClassDef, attribute: str, module: Module) -> Source:
    """The class that a class attribute names, as in `Config = DPORun`."""
    for node in method.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute:
            target = _look_up(ast.unparse(node.value), module)
            assert target is not None
            assert isinstance(target[0], ast.ClassDef)
            return Source(target[0], target[1])
    raise LookupError(f"{method.name} has no {attribute}")


@cache
def _module(name: str, path: str | None) -> Module:
    """A module's definitions. Without a path it is one of this package."""
    if path is None:
        place = PACKAGE.joinpath(*name.split(".")[1:])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    else:
        file = Path(path)
    classes: dict[str, ast.ClassDef] = {}
    values: dict[str, ast.expr] = {}
    imports: dict[str, tuple[str, str]] = {}
    body = ast.parse(file.read_text(encoding="utf-8")).body
    # The public names of the package are imported under `if TYPE_CHECKING`.
    for node in (inner for outer in body for inner in (outer.body if isinstance(outer, ast.If) else [outer])):
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            values[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.asname: (alias.name, "") for alias in node.names if alias.asname}
    return Module(name, classes, values, imports)


def _look_up(name: str, module: Module) -> tuple[ast.ClassDef | ast.expr, Module] | None:
    """The class or the value that a name stands for; None where it comes from outside this package."""
    if name in module.classes:
        return module.classes[name], module
    if name in module.values:
        return module.values[name], module
    origin, imported = module.imports.get(name, ("", ""))
    if not imported or origin.split(".")[0] != treeward.__name__ or _is_package_member(origin, imported):
        return None
    return _look_up(imported, _module(origin, None))


def _look_up_attribute(node: ast.Attribute, module: Module) -> tuple[ast.ClassDef | ast.expr, Module] | None:
    """What `module.Name` stands for."""
    if not isinstance(node.value, ast.Name):
        return None
    origin, imported = module.imports.get(node.value.id, ("", ""))
    name = f"{origin}.{imported}" if imported else origin
    return _look_up(node.attr, _module(name, None)) if name.split(".")[0] == treeward.__name__ else None


def _is_package_member(package: str, name: str) -> bool:
    """Whether `from package import name` imports a module."""
    place = PACKAGE.joinpath(*package.split(".")[1:])
    return (place / name).is_dir() or (place / f"{name}.py").is_file()


def _members(annotation: Annotation, module: Module) -> list[Source]:
    """The dataclasses that a field of this type may hold; none for a plain value."""
    if isinstance(annotation, ast.BinOp):
        return _members(annotation.left, module) + _members(annotation.right, module)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _members(ast.parse(annotation.value, mode="eval").body, module)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Union", "Optional", "Annotated"):
        inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return [member for item in inside for member in _members(item, module)]
    target = None
    if isinstance(annotation, ast.Name):
        target = _look_up(annotation.id, module)
    elif isinstance(annotation, ast.Attribute):
        target = _look_up_attribute(annotation, module)
    if target is None:
        return []
    node, home = target
    if not isinstance(node, ast.ClassDef):
        return _members(node, home)
    return [Source(node, home)] if any("dataclass" in ast.unparse(line) for line in node.decorator_list) else []


def _choices(annotation: Annotation, module: Module) -> list[str]:
    """The values of a Literal, also inside a union such as Literal["a", "b"] | None; none for other types."""
    if isinstance(annotation, ast.BinOp):
        return _choices(annotation.left, module) + _choices(annotation.right, module)
    if isinstance(annotation, ast.Name) and (target := _look_up(annotation.id, module)):
        node, home = target
        return [] if isinstance(node, ast.ClassDef) else _choices(node, home)
    if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value) != "Literal":
        return []
    values = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return [str(value.value) for value in values if isinstance(value, ast.Constant)]


def _fields(source: Source) -> dict[str, Field]:
    """The fields of a class and its bases, in the order of the dataclass."""
    fields: dict[str, Field] = {}
    for base in reversed(source.node.bases):
        definition = _look_up(base.id, source.module) if isinstance(base, ast.Name) else None
        if isinstance(base, ast.Attribute):
            definition = _look_up_attribute(base, source.module)
        if definition is not None and isinstance(definition[0], ast.ClassDef):
            fields |= _fields(Source(definition[0], definition[1]))
    body = source.node.body
    for node, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        meaning = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            meaning = " ".join(below.value.value.split())
        name = node.target.id
        fields[name] = Field(name, node.annotation, node.value, meaning, source.module)
    return fields


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _is_call_of_field(default: Default) -> bool:
    return isinstance(default, ast.Call) and ast.unparse(default.func) in ("field", "dataclasses.field")


def _is_field(default: Default) -> bool:
    """Whether a field with this default is an argument of its class."""
    if not isinstance(default, ast.Call) or not _is_call_of_field(default):
        return True
    argument = _keyword(default, "init")
    return not (isinstance(argument, ast.Constant) and argument.value is False)


def _is_null(default: Default) -> bool:
    return isinstance(default, ast.Constant) and default.value is None


def _factory(default: Default) -> Default:
    """The value of a default: of `field(default_factory=Class)` the class, of a lambda what it returns."""
    if isinstance(default, ast.Call) and _is_call_of_field(default):
        default = _keyword(default, "default_factory") or _keyword(default, "default")
    return default.body if isinstance(default, ast.Lambda) else default


def _constructed(default: Default, module: Module) -> tuple[str | None, dict[str, tuple[ast.expr, Module]]]:
    """The class that a default constructs, and the arguments that it is given by name."""
    if isinstance(default, ast.Call):
        arguments = {word.arg: (word.value, module) for word in default.keywords if word.arg is not None}
        return ast.unparse(default.func).rsplit(".", 1)[-1], arguments
    if isinstance(default, ast.Name | ast.Attribute):
        return ast.unparse(default).rsplit(".", 1)[-1], {}
    return None, {}


def _text(default: Default, module: Module) -> str | None:
    """A plain default as YAML would write it; None for null and for what is empty."""
    value = _factory(default)
    if isinstance(value, ast.Name) and (target := _look_up(value.id, module)) and isinstance(target[0], ast.expr):
        return _text(target[0], target[1])
    if value is None or ast.unparse(value) in ("dict", "list", "tuple"):
        return None
    try:
        plain = ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)
    if plain is None or plain in ((), [], {}, ""):
        return None
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
