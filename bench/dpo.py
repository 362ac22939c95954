"""The DPO bench: GPT-2 124M from random weights on pairs of harmless-base, ours and TRL's, batch 8, length 512.

First a check that both compute the same: three steps in fp32 from the same weights at a rate that moves them. Then each
side is timed. Both see the same batches in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from child import Task, ask
from records import PeerMode, Record, Setting, Speed, Unequal, record
from show import header, quiet, show, verdict

BATCH = 8
CHECK_STEPS = 3
TOLERANCE = 1e-3
COMPARED = ("loss", "logps/chosen", "logps/rejected")
REQUIRED_RATIO = {"fp32": 5.0, "bf16": 6.0}
REQUIRED_CACHED = 5.0
REQUIRED_MEMORY = 0.5
"""What is required against TRL's default mode."""


def bench(setting: Setting) -> list[Record]:
    """Check, measure and print.

    Raises:
        Unequal: a metric differs from TRL's by more than the tolerance.
    """
    ask(setting.ours, "dpo_ours.py", task(setting, "prepare"))
    check(setting)
    header(
        f"dpo: GPT-2 124M, {setting.pairs} pairs of harmless-base, batch {BATCH}, no gradient checkpointing", "pairs"
    )
    found = []
    for precision in setting.precisions:
        found += compare(setting, precision)
    return found


def task(setting: Setting, mode: str, precision: str = "fp32") -> Task:
    """A task over all pairs or, for the check, over three batches of them."""
    pairs, batch = setting.pairs, BATCH
    if mode == "check":
        batch = min(BATCH, pairs // CHECK_STEPS)
        pairs = CHECK_STEPS * batch
    return Task(
        mode=mode, data=str(setting.data), work=str(setting.work), pairs=pairs, batch_size=batch,
        threads=setting.threads, precision=precision,
    )  # fmt: skip


def check(setting: Setting) -> None:
    """Print how far each metric of three steps in fp32 lies from TRL's; raises `Unequal` beyond the tolerance."""
    asked = task(setting, "check")
    ours = ask(setting.ours, "dpo_ours.py", asked).steps
    theirs = ask(setting.peer, "dpo_trl.py", asked).steps
    if not len(ours) == len(theirs) == CHECK_STEPS:
        raise Unequal(f"the check takes {CHECK_STEPS} steps; ours took {len(ours)}, TRL's {len(theirs)}")
    print(f"equality, {CHECK_STEPS} steps of {asked.batch_size} pairs, fp32, lr 1e-3, dropout off: relative deviation")
    worst = 0.0
    for name in (*COMPARED, "grad_norm"):
        steps = 1 if name == "grad_norm" else CHECK_STEPS
        off = deviations([step[name] for step in ours[:steps]], [step[name] for step in theirs[:steps]])
        worst = max(worst, *off)
        values = ", ".join(f"{step[name]:.6g}" for step in theirs[:steps])
        print(f"  {name:16}{max(off):.1e}   by step {', '.join(f'{x:.1e}' for x in off)}   (TRL: {values})")
    if not worst <= TOLERANCE:
        raise Unequal(f"the largest relative deviation from TRL is {worst:.2e}, above {TOLERANCE}")


def deviations(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """|ours - theirs| / |theirs|, element by element; infinite where either is not a number."""
    off = [abs(a - b) / max(abs(b), 1e-30) for a, b in zip(ours, theirs, strict=True)]
    return [math.inf if math.isnan(x) else x for x in off]


def compare(setting: Setting, precision: str) -> list[Record]:
    """Time the three ways in one precision; one record a mode of TRL's.

    TRL precomputes the reference in its trainer's constructor. The record holds `train()` alone, against ours with the
    reference's log-probabilities in a store already; a line of the table counts TRL's reference too.
    """
    stored = ask(setting.ours, "dpo_ours.py", task(setting, "cached", precision))
    cached = Speed(setting.pairs, stored.seconds, stored.peak_gb, stored.others)
    answer = ask(setting.ours, "dpo_ours.py", task(setting, "time", precision))
    ours = Speed(setting.pairs, answer.seconds, answer.peak_gb, answer.others)
    show(precision, "treeward, reference counted", ours)
    show("", "treeward, reference stored", cached)
    found = []
    speeds = [ours]
    modes: tuple[PeerMode, ...] = ("default", "precomputed")
    for mode in modes:
        answer = ask(setting.peer, "dpo_trl.py", task(setting, mode, precision))
        theirs = Speed(setting.pairs, answer.seconds, answer.peak_gb, answer.others)
        own = ours if mode == "default" else cached
        found.append(record("dpo", precision, peer="trl", peer_mode=mode, ours=own, theirs=theirs))
        show("", "trl default" if mode == "default" else "trl precomputed, train() alone", theirs, own)
        if mode == "precomputed":
            whole = replace(theirs, seconds=answer.before + answer.seconds)
            show("", "trl precomputed, reference counted", whole, ours)
        speeds.append(theirs)
    verdict(found[0], REQUIRED_RATIO[precision], REQUIRED_MEMORY)
    verdict(found[1], REQUIRED_CACHED)
    quiet(*speeds, cached)
    return found
