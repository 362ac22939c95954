"""Objects from a user's Python file, named as `FILE.py:NAME`: losses, scorers, methods.

Loading runs the file. Whether a file may be run is decided before (`treeward.runner.settings.refuse_code`).
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from treeward.errors import UserError

MARK = ".py:"
"""What a text contains that names an object in a Python file."""


def load_name(text: str, field: str) -> Any:
    """Run `FILE.py` as a module of its own and return its object `NAME`; `text` is `FILE.py:NAME`.

    The module's name is made from the file's full path, so that two files called `loss.py` do not replace each other.
    Loading a file again runs it again.

    Args:
        text: `FILE.py:NAME`; the path may be relative or start with `~`.
        field: The configuration field that holds the text, for messages.

    Raises:
        UserError: The text has another form, there is no such file, the file raises an error when it is run, or it
            does not define the name.
    """
    if MARK not in text:
        raise UserError(f"{field} is {text!r}; write it as FILE.py:NAME")
    file, _, name = text.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{field} is {text!r}, but there is no file {file!r}; correct the path (FILE.py:NAME)")
    module_name = f"treeward_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{field} is {text!r}, but {file!r} is not a Python file; write it as FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # a user's file may raise anything
        del sys.modules[module_name]
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
        raise UserError(f"{field} is {text!r}, but {file!r} cannot be run ({reason}); correct the file") from problem
    if not hasattr(module, name):
        raise UserError(f"{field} is {text!r}, but {file!r} does not define {name!r}; name an object of that file")
    return getattr(module, name)
