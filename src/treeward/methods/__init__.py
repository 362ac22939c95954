"""Training methods. Everything particular to a method is in its one file; METHODS names them.

A new method is one file here and one line below, or any file that is named on the command line:
`treeward train --method file.py:NAME`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from treeward.errors import UserError
from treeward.plugins import load_name

if TYPE_CHECKING:
    from treeward.methods.method import Method

METHODS: dict[str, str] = {
    "sft": "treeward.methods.sft:SFT",
    "reward": "treeward.methods.reward:Reward",
    "dpo": "treeward.methods.dpo:DPO",
    "reinforce": "treeward.methods.reinforce:REINFORCE",
}
"""The methods by command: module:class. They are imported when they are used, so that `--help` stays fast."""


def find(name: str) -> "type[Method]":
    """The method of a command, or the one that `file.py:NAME` defines.

    Raises:
        UserError: there is no such method, or the name is not a subclass of `treeward.Method`.
    """
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    if ".py:" not in name:
        raise UserError(f"method is {name!r}; it may be {', '.join(METHODS)}, or FILE.py:NAME")
    from treeward.methods.method import Method  # noqa: PLC0415 - imports torch

    method = load_name(name, "method")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method {name!r} is {method!r:.80}; it must be a subclass of treeward.Method")
    method.name = name
    return method
