"""The errors that users see."""

from collections.abc import Sequence
from typing import Any


class UserError(ValueError):
    """Something that the user can correct: it names the field, its value and the fix.

    The command line prints it in one line and exits with code 2. Any other exception is a fault of Treeward: it keeps
    its traceback, and the exit code is 1.
    """


class ChecksFailed(Exception):
    """Checks failed before the first step; nothing was trained or written.

    `checks` holds the failed ones (`checks.check.Check`). `acceptable`: the failure can be accepted by naming their
    slugs or ids in `skip_check`; it is False for faults after which nothing could be trained.
    """

    def __init__(self, checks: Sequence[Any], acceptable: bool = True) -> None:
        self.checks = tuple(checks)
        self.acceptable = acceptable
        super().__init__("; ".join(str(check) for check in self.checks))
