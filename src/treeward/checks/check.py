"""A check: what was looked at, what was found, what the limit is, and which known failure it guards against.

Ids I01 to I17 are identities, F01 to F60 failures. `passed` is None for a check that does not apply.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Literal

from treeward.errors import UserError

ACCEPTED = "accepted by --skip-check"
Stage = Literal["before", "during", "after"]


@dataclass(frozen=True)
class Check:
    """One entry of a receipt's `checks`."""

    id: str
    name: str
    passed: bool | None
    guards: tuple[str, ...] = ()
    stage: Stage = "before"
    value: float | None = None
    limit: float | None = None
    detail: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it failed and the user accepted the risk."""
        return self.passed is None and self.detail.startswith(ACCEPTED)

    def facts(self) -> dict[str, Any]:
        """As it stands in a receipt."""
        return asdict(self)

    def __str__(self) -> str:
        state = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        measured = "" if self.value is None else f" {self.value:.3g}"
        limit = "" if self.limit is None else f" (limit {self.limit:.3g})"
        return f"{self.id} {state}: {self.name}{measured}{limit}{'; ' if self.detail else ''}{self.detail}"


def below(
    check_id: str,
    name: str,
    value: float,
    limit: float,
    guards: Sequence[str] = (),
    stage: Stage = "before",
    detail: str = "",
) -> Check:
    """A check that a measured value does not exceed its limit; NaN does."""
    passed = not math.isnan(value) and value <= limit
    return Check(check_id, name, passed, tuple(guards), stage, value, limit, detail)


class ChecksFailed(Exception):
    """Checks failed before the first step. `checks` holds those that failed; nothing was trained or written.

    `acceptable` says whether naming their ids in `skip_check` accepts them: some faults leave nothing to train.
    """

    def __init__(self, checks: Sequence[Check], acceptable: bool = True) -> None:
        self.checks = tuple(checks)
        self.acceptable = acceptable
        super().__init__("; ".join(str(check) for check in self.checks))


def require(checks: Sequence[Check], accepted: Sequence[str] | None = None) -> list[Check]:
    """The checks, those accepted by id marked as skipped if they failed; None where none can be accepted.

    Raises:
        ChecksFailed: a check that was not accepted failed; all such are reported together.
        UserError: an accepted id names no check that ran.
    """
    accepted_ids = accepted or ()
    ids = sorted({check.id for check in checks})
    unknown = sorted(set(accepted_ids) - set(ids))
    if unknown:
        close = get_close_matches(unknown[0].upper(), ids, 1, 0.5)
        nearest = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"skip_check {unknown[0]!r} names no check of this run{nearest}; there are {', '.join(ids)}")
    failed = [check for check in checks if check.passed is False and check.id not in accepted_ids]
    if failed:
        raise ChecksFailed(failed, accepted is not None)
    return [
        check if check.passed is not False
        else Check(**{**asdict(check), "passed": None, "detail": f"{ACCEPTED}; {check.detail}"})
        for check in checks
    ]  # fmt: skip
