"""`treeward recipes`, and `treeward recipes copy NAME [FILE]`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treeward.cli.help import PAGES
from treeward.cli.parse import parse
from treeward.cli.show import print_json
from treeward.errors import UserError
from treeward.runner import settings

EXPECT = "# Expect (shown by treeward recipes): "
"""Begins the comment line of a recipe that says what result to expect."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """List the recipes by command, or copy one."""
    words = parse(arguments, ("json",))
    if words.options:
        raise UserError(f"recipes does not take --{words.options[0][0]}; usage: treeward {PAGES[verb].usage}")
    if words.places:
        if words.places[0] != "copy" or len(words.places) not in (2, 3) or words.flags:
            raise UserError(f"recipes does not take {' '.join(words.places)!r}; usage: treeward {PAGES[verb].usage}")
        name = words.places[1]
        file = Path(words.places[2] if len(words.places) == 3 else f"{name}.yaml")
        copy(name, file)
        command = settings.recipe(name).get("command")
        print(f"{file}\nrun it with: treeward {command} {file}")
        return 0
    rows = [describe(name) for name in settings.recipes()]
    if words.flags:
        print_json({"recipes": rows})
        return 0
    for command in dict.fromkeys(str(row["command"]) for row in rows):
        print(command)
        for row in (row for row in rows if row["command"] == command):
            print(f"  {row['name']:<31} {row['model']} on {row['data']}")
            print(textwrap.fill(row["expect"], 96, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return 0


def describe(name: str) -> dict[str, str]:
    """A recipe's name, command, model, data, and what to expect of it."""
    text, values = settings.recipe_text(name), settings.recipe(name)
    expect = next((line.removeprefix(EXPECT) for line in text.splitlines() if line.startswith(EXPECT)), "")
    model, data = values.get("model", {}), values.get("data", {})
    return {
        "name": name,
        "command": str(values["command"]),
        "model": _model(model),
        "data": str(data.get("source", "data that you name with --data.source")),
        "expect": expect,
    }


def _model(model: Mapping[str, Any] | str) -> str:
    if isinstance(model, str):
        return model
    path = str(model.get("path", "a policy that you name with --model.path"))
    return f"{path} with random weights" if model.get("init") == "random" or path in ("world", "arithmetic") else path


def copy(name: str, file: Path) -> None:
    """Write a recipe's YAML to a new file.

    Raises:
        UserError: the recipe is unknown, or the file exists or does not end in .yaml.
    """
    text = settings.recipe_text(name)
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{str(file)!r} does not end in .yaml; commands know a recipe file by that")
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UserError(f"{str(file)!r} exists; name another file: treeward recipes copy {name} FILE.yaml") from None
    except OSError as problem:
        raise UserError(f"{str(file)!r} cannot be written ({problem.strerror}); name another file") from None
