"""The tables that benches print. Standard library only."""

from records import Record, Speed

QUIET = 0.1
"""Processors that others may hold while a side is timed."""


def header(title: str, unit: str) -> None:
    """The title and the columns' names; `unit` is what the bench counts."""
    columns = f"{unit + '/s':>9}{'seconds':>9}{'others':>8}{'peak GB':>9}{'speed ratio':>13}{'memory ratio':>14}"
    print(f"\n{title}\n{'':6}{'side':36}{columns}", flush=True)


def show(precision: str, side: str, speed: Speed, ours: Speed | None = None) -> None:
    """One line of the table, with our ratios to a peer where `ours` is given."""
    ratios = f"{ours.per_s / speed.per_s:>13.2f}{ours.gb / speed.gb:>14.2f}" if ours else ""
    figures = f"{speed.per_s:>9.3f}{speed.seconds:>9.1f}{speed.others:>8.2f}{speed.gb:>9.2f}"
    print(f"{precision:6}{side:36}{figures}{ratios}", flush=True)


def verdict(found: Record, ratio: float, memory: float | None = None) -> None:
    """Whether a comparison meets what is required of it."""
    met = found.ratio >= ratio and (memory is None or found.memory_ratio <= memory)
    limits = f"at least {ratio:g} times" + (f", at most {memory:g} of its memory" if memory is not None else "")
    print(f"{'':6}required: {limits}: {'met' if met else 'MISSED'}", flush=True)


def quiet(*speeds: Speed) -> None:
    """Say so where other processes held the machine meanwhile."""
    noise = max(speed.others for speed in speeds)
    if noise > QUIET:
        print(f"{'':6}NOT QUIET: other processes held up to {noise:.2f} processors meanwhile; run it again alone")
