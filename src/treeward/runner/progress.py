"""Progress of a long loop: a bar with rate, time left and figures on a terminal, one line now and then without one."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
console = Console(stderr=True)
QUIET_SECONDS = 20.0


def follow(
    items: Iterable[Item], total: int, what: str, start: int = 0, figures: Mapping[str, float] | None = None
) -> Iterator[Item]:
    """Pass `items` on while showing how far they are, and the `figures` (loss, metric) as the caller keeps them."""
    shown = figures if figures is not None else {}
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[said]}"),
        )  # fmt: skip
        begun = time.monotonic()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, completed=start, rate="", said="")
            for done, item in enumerate(items, 1):
                yield item
                rate = done / max(1e-9, time.monotonic() - begun)
                bar.update(task, advance=1, rate=f"{rate:.2g}/s", said=words(shown))
        return
    said = begun = time.monotonic()
    for done, item in enumerate(items, start + 1):
        yield item
        now = time.monotonic()
        if now - said > QUIET_SECONDS:
            said = now
            rate = (done - start) / (now - begun)
            left = f"{rate:.2g}/s, {(total - done) / rate:.0f} s left"
            more = f"; {words(shown)}" if shown else ""
            console.print(f"{what}: {done}/{total}, {left}{more}", highlight=False, soft_wrap=True)


def words(figures: Mapping[str, float]) -> str:
    """Figures in a line: "loss 0.612, validation accuracy 0.58"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


class Interrupted(Exception):
    """Ctrl-C was pressed; the state was saved after a whole step. The argument says how to resume."""


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Within this, the first Ctrl-C only leaves a mark, to be looked at between two steps; a second one interrupts."""
    pressed: list[bool] = []

    def mark(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before = signal.signal(signal.SIGINT, mark)
    except ValueError:
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
