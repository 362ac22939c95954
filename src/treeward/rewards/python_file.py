"""A function in a Python file as a scorer: `file.py:name`.

The function takes one prompt and one response, both text, and returns one number; higher is better. It is called once a
response, in order.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.data.render import Tokenizer
from treeward.rewards import texts
from treeward.trees.tokens import TokenTree

SUFFIX = ".py:"


class PythonFile:
    """`name(prompt, response) -> float` of a Python file."""

    def __init__(self, function: Callable[[str, str], Any], name: str) -> None:
        self.function = function
        self.name = name

    @classmethod
    def load(cls, name: str) -> "PythonFile":
        """The function that `file.py:name` says.

        Raises:
            ValueError: there is no such file, it cannot be run, or it defines no such function.
        """
        file, _, function = name.rpartition(":")
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"scorer {name!r}: there is no file {file!r}; write it as FILE.py:FUNCTION")
        spec = importlib.util.spec_from_file_location(f"treeward_scorer_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as problem:  # a user's file may raise anything
            raise ValueError(f"scorer {name!r}: {file!r} cannot be run ({problem}); mend the file") from problem
        found = getattr(module, function, None)
        if not callable(found):
            raise ValueError(f"scorer {name!r}: {file!r} defines no function {function!r}; name one that it defines")
        return cls(found, name)

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        return torch.tensor([
            self._number(self.function(prompt, response), number, response)
            for number, (prompt, response) in enumerate(texts.pairs(trees, tokenizer))
        ], dtype=torch.float32)  # fmt: skip

    def _number(self, value: Any, row: int, response: str) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise texts.BadScore(self.name, repr(value), row, response) from None
