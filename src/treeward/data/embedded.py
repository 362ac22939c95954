"""What comes with Treeward and needs no network: two data sets, each with a tokenizer and the plan of a small model.

`world` is film reviews with a known gold score (`data.world`), `arithmetic` is sums with known answers
(`data.arithmetic`).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from treeward.data import arithmetic, world
from treeward.errors import UserError

MODELS: dict[str, ModuleType] = {"world": world, "arithmetic": arithmetic}
"""The modules by their names in `model.path`; each has a `tokenizer`, a `vocabulary` and a `model_config`."""


def source(name: str) -> Callable[[int], list[dict[str, Any]]] | None:
    """The function that makes the rows of an embedded source from a seed, such as `world`, `world-texts` or
    `arithmetic` (`world:20000` for that many rows); None for any other source.

    Raises:
        UserError: the count is not a whole number above 0.
    """
    kind, colon, count = name.partition(":")
    model = model_of(name)
    if model is None:
        return None
    if colon and not (count.isdecimal() and int(count) > 0):
        raise UserError(f"data.source {name!r}: after the colon comes a number of rows, such as {kind}:2000")
    make = MODELS[model].KINDS[kind]
    return lambda seed: make(seed, *([int(count)] if colon else []))


def model_of(source: str) -> str | None:
    """The embedded model whose vocabulary an embedded source has; None for any other source."""
    kind = source.partition(":")[0]
    return next((name for name, module in MODELS.items() if kind in module.KINDS), None)
