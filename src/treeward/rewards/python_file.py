"""A function in a Python file as a scorer: `file.py:name`.

The function takes one prompt and one response, both text, and returns one number; higher is better. It is called once a
response, in order.
"""

import importlib.util
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.rewards import texts
from treeward.trees.tokens import Tokenizer, TokenTree

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
            UserError: there is no such file, it cannot be run, or it defines no such function.
        """
        file, _, function = name.rpartition(":")
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"scorer {name!r}: there is no file {file!r}; write it as FILE.py:FUNCTION")
        spec = importlib.util.spec_from_file_location(f"treeward_scorer_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as problem:  # a user's file may raise anything
            said = " ".join(f"{type(problem).__name__}: {problem}".split())
            raise UserError(f"scorer {name!r}: {file!r} cannot be run ({said[:200]}); correct the file") from problem
        found = getattr(module, function, None)
        if not callable(found):
            raise UserError(f"scorer {name!r}: {file!r} defines no function {function!r}; name one that it defines")
        return cls(found, name)

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        return torch.tensor([
            self._number(prompt, response, number)
            for number, (prompt, response) in enumerate(texts.pairs(trees, tokenizer), 1)
        ], dtype=torch.float32)  # fmt: skip

    def _number(self, prompt: str, response: str, row: int) -> float:
        """The score of one response; `row` counts from 1."""
        try:
            value = self.function(prompt, response)
        except (Exception, SystemExit) as problem:  # a user's function may raise anything
            frames = traceback.extract_tb(problem.__traceback__)
            said = " ".join(f"{type(problem).__name__}: {problem}".split())
            raise texts.BadScore(
                f"scorer {self.name!r} failed for response {row}, {response[:60]!r}, in line {frames[-1].lineno} of "
                f"{frames[-1].filename!r} ({said[:200]})"
            ) from problem
        try:
            if not isinstance(value, str | bytes):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise texts.BadScore.of(self.name, f"{value!r:.80}", row, response)
