"""A check: what was measured, its limit, and whether it passed. What each one means is in `checks.registry`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from treeward.checks.registry import REGISTRY, Stage, nearest
from treeward.errors import ChecksFailed, UserError

ACCEPTED = "accepted by --skip-check"


@dataclass(frozen=True)
class Check:
    """One entry of a receipt's `checks`; `result` and `below` make it.

    `passed` is None where the check does not apply or the user accepted its failure.
    """

    id: str
    slug: str
    guards: tuple[str, ...]
    name: str
    stage: Stage
    passed: bool | None
    value: float | None = None
    limit: float | None = None
    detail: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it failed and the user accepted the risk."""
        return self.passed is None and self.detail.startswith(ACCEPTED)

    def facts(self) -> dict[str, Any]:
        """The entry in a receipt."""
        return asdict(self)

    def __str__(self) -> str:
        state = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        value = "" if self.value is None else f" {self.value:.3g}"
        limit = "" if self.limit is None else f" (limit {self.limit:.3g})"
        return f"{self.slug} ({self.id}) {state}: {self.name}{value}{limit}{'; ' if self.detail else ''}{self.detail}"


def result(
    slug: str,
    *,
    passed: bool | None,
    value: float | None = None,
    limit: float | None = None,
    detail: str = "",
    fix: str = "",
    stage: Stage | None = None,
) -> Check:
    """The result of a registered check. `stage` is the registered one unless given.

    The detail of a failed check ends with `fix`: what to do in this case, or by default what the registry says.
    """
    kind = REGISTRY[slug]
    if passed is False:
        detail = "; ".join(text for text in (detail, fix or kind.fix) if text)
    return Check(kind.id, slug, kind.guards, kind.name, stage or kind.stage, passed, value, limit, detail)


def below(slug: str, value: float, limit: float, *, detail: str = "", fix: str = "") -> Check:
    """The result of a check that passes where the value does not exceed its limit. NaN fails."""
    passed = not math.isnan(value) and value <= limit
    return result(slug, passed=passed, value=value, limit=limit, detail=detail, fix=fix)


def require(
    checks: Sequence[Check], accepted: Iterable[str] | None = None, *, more_to_come: bool = False
) -> list[Check]:
    """The checks, with those that failed and were accepted marked as skipped.

    Args:
        checks: results of checks.
        accepted: slugs and ids of the checks whose failure the user accepts; None where no failure can be accepted.
        more_to_come: other checks run later, so a slug or id that names none of these is no error yet.

    Raises:
        ChecksFailed: a check that was not accepted failed; all such are reported together.
        UserError: an accepted slug or id names no check that ran.
    """
    names = set(accepted or ())
    ran = {name for check in checks for name in (check.slug, check.id)}
    unknown = sorted(names - ran)
    if unknown and not more_to_come:
        near = nearest(unknown[0], sorted(ran))
        hint = f", did you mean {near!r}?" if near else ""
        raise UserError(
            f"skip_check {unknown[0]!r} names no check of this run{hint}; `treeward explain` lists all checks"
        )
    failed = [check for check in checks if check.passed is False]
    refused = [check for check in failed if not names & {check.slug, check.id}]
    if refused:
        raise ChecksFailed(refused, acceptable=accepted is not None)
    return [
        replace(check, passed=None, detail=f"{ACCEPTED}; {check.detail}") if check.passed is False else check
        for check in checks
    ]
