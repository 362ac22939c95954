"""The score bench: pairs scored by a GPT-2 124M reward model, ours and a `transformers` classification pipeline.

The pipeline is given whole texts, as its users do, at batch 1 and at batch 8; the scores must agree.
"""

from child import Answer, Task, ask
from records import PeerMode, Record, Setting, Speed, Unequal, record
from show import header, quiet, show, verdict

REQUIRED_RATIO = {1: 1.6, 8: 2.4}
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest difference of a score, relative to the largest score."""


def bench(setting: Setting) -> list[Record]:
    """Measure, compare the scores and print.

    Raises:
        Unequal: a score differs from the pipeline's by more than the tolerance.
    """
    ask(setting.ours, "score_ours.py", task(setting, "prepare", "fp32"))
    header(f"score: GPT-2 124M reward model, {setting.pairs} pairs of harmless-base", "pairs")
    return [found for precision in setting.precisions for found in compare(setting, precision)]


def task(setting: Setting, mode: str, precision: str, batch: int = 8) -> Task:
    """A task over all pairs."""
    return Task(
        mode=mode, data=str(setting.data), work=str(setting.work), pairs=setting.pairs, batch_size=batch,
        threads=setting.threads, precision=precision,
    )  # fmt: skip


def compare(setting: Setting, precision: str) -> list[Record]:
    """Time ours and the pipeline at both batch sizes in one precision."""
    answer = ask(setting.ours, "score_ours.py", task(setting, "time", precision))
    ours = speed(setting, answer)
    show(precision, "treeward", ours)
    print(f"{'':6}the layout's verification, once a process and not counted: {answer.before:.1f} s")
    found = []
    for batch, required in REQUIRED_RATIO.items():
        other = ask(setting.ours, "score_pipeline.py", task(setting, "time", precision, batch))
        theirs = speed(setting, other)
        off = deviation(answer, other)
        if not off <= TOLERANCE[precision]:
            raise Unequal(f"a {precision} score differs from the pipeline's by {off:.2e} of the largest")
        show("", f"transformers pipeline, batch {batch}", theirs, ours)
        mode: PeerMode = "default" if batch == 1 else "best"
        found.append(record("score", precision, peer="transformers", peer_mode=mode, ours=ours, theirs=theirs))
        verdict(found[-1], required)
        print(f"{'':6}largest difference of a score {off:.1e} of the largest score")
        quiet(ours, theirs)
    return found


def deviation(ours: Answer, theirs: Answer) -> float:
    """The largest difference of a score, relative to the largest score."""
    pairs = [(a["score"], b["score"]) for a, b in zip(ours.steps, theirs.steps, strict=True)]
    return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)


def speed(setting: Setting, answer: Answer) -> Speed:
    """The rate in pairs."""
    return Speed(setting.pairs, answer.seconds, answer.peak_gb, answer.others)
