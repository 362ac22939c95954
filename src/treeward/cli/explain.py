"""`treeward explain SLUG|ID`: what a check compares, why, and what to do when it fails."""

from collections.abc import Sequence

from treeward.checks.registry import REGISTRY, find, nearest
from treeward.errors import UserError

USAGE = """treeward explain SLUG|ID ...: what a check compares, why it matters, and what to do when it fails.
treeward explain: all checks, one a line."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print the named checks; without a name, list all.

    Raises:
        UserError: a name is no slug and no id; the nearest one is named.
    """
    if any(word in ("--help", "-h") for word in arguments):
        print(USAGE)
        return 0
    if not arguments:
        width = max(map(len, REGISTRY))
        for kind in REGISTRY.values():
            print(f"{kind.slug:<{width}}  {kind.id}  {kind.stage:<6}  {kind.name}")
        return 0
    entries = []
    for name in arguments:
        kinds = find(name)
        if not kinds:
            near = nearest(name, [*REGISTRY, *sorted({kind.id for kind in REGISTRY.values()})])
            hint = f", did you mean {near!r}?" if near else ""
            raise UserError(f"{name!r} is no slug or id of a check{hint}; `treeward explain` lists all checks")
        entries += [str(kind) for kind in kinds]
    print("\n\n\n".join(entries))
    return 0
