"""Progress of a long loop: on a terminal a bar with rate, time left and figures, elsewhere one line now and then.

A `Reporter` is told about a run as it goes: the terminal, or whatever is passed in (a tracker, a recorder in tests).
"""

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TypeVar, runtime_checkable

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
console = Console(stderr=True)
QUIET_SECONDS = 20.0
"""Seconds between two lines where there is no terminal."""
REDRAW_SECONDS = 2.0
"""Seconds between two pictures of a table on a terminal."""


def follow(
    items: Iterable[Item], total: int, what: str, start: int = 0, figures: Mapping[str, float] | None = None
) -> Iterator[Item]:
    """Yield `items` and show how many of `total` are done, `start` of them before this call.

    `figures` (loss, metric) are shown too; the caller updates the mapping as it goes.
    """
    shown = figures if figures is not None else {}
    begun = time.monotonic()
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, completed=start, rate="", figures="")
            for done, item in enumerate(items, 1):
                yield item
                rate = done / max(1e-9, time.monotonic() - begun)
                bar.update(task, advance=1, rate=f"{rate:.2g}/s", figures=figures_line(shown))
        return
    last_line = begun
    for done, item in enumerate(items, start + 1):
        yield item
        now = time.monotonic()
        if now - last_line > QUIET_SECONDS:
            last_line = now
            rate = (done - start) / (now - begun)
            left = f"{rate:.2g}/s, {(total - done) / rate:.0f} s left"
            more = f"; {figures_line(shown)}" if shown else ""
            console.print(f"{what}: {done}/{total}, {left}{more}", highlight=False, soft_wrap=True)


@contextmanager
def redrawn(draw: Callable[[], RenderableType], line: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Yield a function that is called now and then while other processes work.

    On a terminal it shows `draw` anew, every `REDRAW_SECONDS`, and the last picture is removed at the end. Elsewhere it
    prints `line` every `QUIET_SECONDS`.
    """
    last = time.monotonic()

    def due(seconds: float) -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return False
        last = now
        return True

    if console.is_terminal:
        with Live(draw(), console=console, auto_refresh=False, transient=True) as picture:
            yield lambda: picture.update(draw(), refresh=True) if due(REDRAW_SECONDS) else None
    else:
        yield lambda: console.print(line(), highlight=False, soft_wrap=True) if due(QUIET_SECONDS) else None


def figures_line(figures: Mapping[str, float]) -> str:
    """Figures in a line: "loss 0.612, validation accuracy 0.58"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


class Interrupted(Exception):
    """The user pressed Ctrl-C, and the state after the last whole step is saved. The message says how to resume."""


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Inside, the first Ctrl-C only makes the yielded list non-empty, for the loop to see; the second one interrupts.

    Outside the main thread, where Python allows no signal handlers, the list stays empty.
    """
    pressed: list[bool] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    try:
        former = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not the main thread
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, former)


@runtime_checkable
class Reporter(Protocol):
    """Follows a run."""

    def progress(
        self, items: Iterable[Item], total: int, what: str, done: int = 0, figures: Mapping[str, float] | None = None
    ) -> Iterator[Item]:
        """Pass `items` on and show how far they are; `figures` are updated by the run (loss, validation metric)."""
        ...

    def step(self, index: int, metrics: Mapping[str, float]) -> None:
        """After each optimizer step: its number and metrics, validation metrics among them."""
        ...


class TerminalReporter:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def progress(
        self, items: Iterable[Item], total: int, what: str, done: int = 0, figures: Mapping[str, float] | None = None
    ) -> Iterator[Item]:
        return follow(items, total, what, done, figures)

    def step(self, index: int, metrics: Mapping[str, float]) -> None:
        """The progress bar shows the figures."""
