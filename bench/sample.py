"""The sampling bench: K = 8 samples for each of 16 prompts of 8 tokens, 64 new tokens each, GPT-2 124M.

Ours against `transformers.generate` with plain sampling at the same batch of 128 rows; no sample may end early on
either side, so both draw the same number of tokens. Both must draw from one distribution: the mean log-probability of
their tokens under the model may differ by no more than four standard errors.
"""

import math
from statistics import fmean, stdev

from child import Answer, Task, ask
from records import Record, Setting, Speed, Unequal, record
from show import header, quiet, show, verdict

PROMPTS, SAMPLES, NEW = 16, 8, 64
REQUIRED_RATIO = {"fp32": 1.35, "bf16": 1.5}
UNEVEN_PROMPTS, REQUIRED_UNEVEN = 64, 2.5
ERRORS = 4.0


def bench(setting: Setting) -> list[Record]:
    """Measure, compare the samples and print.

    Raises:
        Unequal: the samples' mean log-probabilities lie too far apart.
    """
    ask(setting.ours, "sample_ours.py", task(setting, "prepare", "fp32"))
    header(f"sample: GPT-2 124M, {PROMPTS} prompts of 8 tokens, K={SAMPLES}, {NEW} new tokens", "tokens")
    return [found for precision in setting.precisions for found in compare(setting, precision)]


def uneven(setting: Setting) -> list[Record]:
    """Samples of uneven lengths: end tokens are chosen so that a sample has a quarter of the longest on average.

    512 rows at a batch of 128: ours in one call, in which waiting prompts take the place of rows that have ended;
    generate in four calls. The lengths of both sides may differ by no more than four standard errors.
    """
    ask(setting.ours, "sample_ours.py", task(setting, "prepare-uneven", "fp32"))
    header(f"sample-uneven: GPT-2 124M, {UNEVEN_PROMPTS} prompts, K={SAMPLES}, at most {NEW} new tokens", "tokens")
    answers = [ask(setting.ours, f"sample_{side}.py", task(setting, "uneven", "fp32")) for side in ("ours", "peer")]
    lengths = [[step["length"] for step in answer.steps] for answer in answers]
    means = [fmean(each) for each in lengths]
    apart = abs(means[0] - means[1]) / math.sqrt(sum(stdev(each) ** 2 / len(each) for each in lengths))
    if not apart <= ERRORS:
        raise Unequal(f"the samples' mean lengths lie {apart:.1f} standard errors apart")
    ours, theirs = (Speed(int(sum(each)), a.seconds, a.peak_gb, a.others)
                    for each, a in zip(lengths, answers, strict=True))  # fmt: skip
    show("fp32", "treeward", ours)
    show("", "transformers generate", theirs, ours)
    found = record("sample-uneven", "fp32", peer="transformers", peer_mode="default", ours=ours, theirs=theirs)
    verdict(found, REQUIRED_UNEVEN)
    print(f"{'':6}mean length {means[0]:.1f} and {means[1]:.1f} tokens of at most {NEW}")
    quiet(ours, theirs)
    return [found]


def task(setting: Setting, mode: str, precision: str) -> Task:
    """A task of one side."""
    prompts = UNEVEN_PROMPTS if "uneven" in mode else PROMPTS
    return Task(
        mode=mode, data=str(setting.data), work=str(setting.work), pairs=prompts, batch_size=SAMPLES,
        threads=setting.threads, precision=precision,
    )  # fmt: skip


def compare(setting: Setting, precision: str) -> list[Record]:
    """Time both sides in one precision."""
    answers = [ask(setting.ours, f"sample_{side}.py", task(setting, "time", precision)) for side in ("ours", "peer")]
    ours, theirs = (Speed(PROMPTS * SAMPLES * NEW, a.seconds, a.peak_gb, a.others) for a in answers)
    apart = errors_apart(*answers)
    if not apart <= ERRORS:
        raise Unequal(f"the samples' mean log-probabilities lie {apart:.1f} standard errors apart in {precision}")
    show(precision, "treeward", ours)
    show("", "transformers generate", theirs, ours)
    found = record("sample", precision, peer="transformers", peer_mode="default", ours=ours, theirs=theirs)
    verdict(found, REQUIRED_RATIO[precision])
    print(f"{'':6}mean log-probability of the samples: {apart:.1f} standard errors apart")
    quiet(ours, theirs)
    return [found]


def errors_apart(ours: Answer, theirs: Answer) -> float:
    """How many standard errors the means of the samples' log-probabilities lie apart."""
    a, b = ([step["logp"] for step in answer.steps] for answer in (ours, theirs))
    return abs(fmean(a) - fmean(b)) / math.sqrt(stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b))
