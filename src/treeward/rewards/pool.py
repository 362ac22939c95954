"""A user's reward function in a pool of processes, with a time limit for each call.

Each process runs the user's file once and keeps it. A call that takes too long is interrupted and becomes a failure
that names its time; a function that cannot be interrupted, or that ends its process, is given up a little later.

This module does not import torch, so that its processes start fast.
"""

import multiprocessing
import signal
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import Pool
from types import FrameType
from typing import Any

from treeward.plugins import load_name

START_SECONDS = 60.0
"""How much longer than its limit a call may take in all: the processes start, and imports of the user's file run."""


@dataclass(frozen=True)
class Answer:
    """What a call returned, or what went wrong with it, such as ", in line 3 of 'f.py' (KeyError: 'a')"."""

    value: Any = None
    problem: str = ""


@dataclass
class FunctionPool:
    """Calls of `FILE.py:FUNCTION` in `processes` processes, each within `timeout` seconds."""

    name: str
    processes: int
    timeout: float
    _pool: Pool | None = field(default=None, repr=False)

    def __call__(self, calls: Sequence[tuple[Any, ...]]) -> Iterator[Answer]:
        """The answer of each call, in order."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = context.Pool(self.processes, _start, (self.name, self.timeout))
            weakref.finalize(self, self._pool.terminate)
        waiting = [self._pool.apply_async(_call, (arguments,)) for arguments in calls]
        for call in waiting:
            try:
                yield call.get(self.timeout + START_SECONDS)
            except multiprocessing.TimeoutError:
                self.close()
                yield Answer(
                    problem=f": no answer within {self.timeout + START_SECONDS:g} s; it hangs, or its process ended"
                )
                return

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


class _TooLong(BaseException):
    """Not an Exception, so that a user's `except Exception` does not swallow it."""


_function: Any = None
_timeout = 0.0


def _start(name: str, timeout: float) -> None:
    """Run once in each process."""
    global _function, _timeout
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run
    signal.signal(signal.SIGALRM, _interrupt)
    _function, _timeout = load_name(name, "scorer"), timeout


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def _call(arguments: tuple[Any, ...]) -> Answer:
    signal.setitimer(signal.ITIMER_REAL, _timeout)
    try:
        value = _function(*arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return Answer(value if isinstance(value, int | float | str | None) else _number(value))
    except _TooLong:
        return Answer(problem=f": it took longer than reward_timeout {_timeout:g} s")
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a user's function may raise anything
        frame = traceback.extract_tb(problem.__traceback__)[-1]
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
        return Answer(problem=f", in line {frame.lineno} of {frame.filename!r} ({reason})")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _number(value: Any) -> Any:
    """A number from a user's type, such as a numpy or torch scalar; else its text, which is refused as a score."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return repr(value)
