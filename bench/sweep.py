"""The sweep bench: DPO with three betas on the same pairs, ours as one sweep and TRL's as three runs.

Ours computes the reference's log-probabilities once, for all betas, and that pass is counted. TRL's runs differ in
nothing that takes time, so one is measured and counted three times.
"""

from dataclasses import replace

from child import ask
from dpo import task
from records import Record, Setting, Speed, record
from show import header, quiet, show, verdict

RUNS = 3
REQUIRED_RATIO = 8.0


def bench(setting: Setting) -> list[Record]:
    """Measure and print."""
    ask(setting.ours, "dpo_ours.py", task(setting, "prepare"))
    header(f"sweep: three betas, GPT-2 124M, {setting.pairs} pairs of harmless-base, batch 8", "pairs")
    found = []
    for precision in setting.precisions:
        own = ask(setting.ours, "dpo_ours.py", task(setting, "sweep", precision))
        other = ask(setting.peer, "dpo_trl.py", task(setting, "default", precision))
        ours = Speed(RUNS * setting.pairs, own.seconds, own.peak_gb, own.others)
        one = Speed(setting.pairs, other.seconds, other.peak_gb, other.others)
        theirs = replace(one, count=RUNS * one.count, seconds=RUNS * one.seconds)
        show(precision, "treeward, one sweep", ours)
        show("", "trl default, one run three times", theirs, ours)
        found.append(record("sweep", precision, peer="trl", peer_mode="default", ours=ours, theirs=theirs))
        verdict(found[-1], REQUIRED_RATIO)
        quiet(ours, theirs)
    return found
