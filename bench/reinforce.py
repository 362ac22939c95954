"""The REINFORCE bench: one optimizer step of leave-one-out on 16 HH prompts (at most 256 tokens), K = 4, 64 new tokens.

GPT-2 124M from random weights, against TRL's RLOOTrainer: same prompts, same weights, same number of samples, the same
reward function, beta 0.05, no dropout. Of ours the second step is timed (the first verifies the layout), split into

    sampling    the responses
    scoring     the reward and all log-probabilities without gradient (TRL computes the policy's again, and the
                reference's; ours recorded the policy's while sampling)
    gradient    forward, backward and update

Sampling is random on both sides, so the samples differ; at these weights nearly none ends early.
"""

from child import Answer, Task, ask
from records import Record, Setting, Speed, record
from show import header, quiet, show, verdict

PROMPTS, SAMPLES = 16, 4
PARTS = ("sampling", "scoring", "gradient")
REQUIRED_RATIO, REQUIRED_GRADIENT = 2.0, 3.0


def bench(setting: Setting) -> list[Record]:
    """Measure and print."""
    ask(setting.ours, "reinforce_ours.py", task(setting, "prepare"))
    header(f"reinforce: GPT-2 124M, one step of {PROMPTS} prompts, K={SAMPLES}, 64 new tokens", "responses")
    ours, theirs = (ask(python, f"reinforce_{side}.py", task(setting, "time"))
                    for python, side in ((setting.ours, "ours"), (setting.peer, "trl")))  # fmt: skip
    speeds = [Speed(PROMPTS * SAMPLES, total(each), each.peak_gb, each.others) for each in (ours, theirs)]
    show("fp32", "treeward", speeds[0])
    show("", "TRL RLOOTrainer", speeds[1], speeds[0])
    found = record("reinforce", "fp32", peer="trl", peer_mode="default", ours=speeds[0], theirs=speeds[1])
    verdict(found, REQUIRED_RATIO)
    for part in PARTS:
        a, b = ours.steps[0][part], theirs.steps[0][part]
        required = f" (required {REQUIRED_GRADIENT:g}: {'met' if b / a >= REQUIRED_GRADIENT else 'MISSED'})"
        print(f"{'':6}{part:<9} {a:7.2f} s, TRL {b:7.2f} s, ratio {b / a:.2f}{required if part == 'gradient' else ''}")
    print(f"{'':6}mean length {ours.steps[0]['length']:.1f} tokens, TRL {theirs.steps[0]['length']:.1f}")
    for speed in speeds:
        quiet(speed, speed)
    return [found]


def total(answer: Answer) -> float:
    """Seconds of the whole step."""
    return sum(answer.steps[0][part] for part in PARTS)


def task(setting: Setting, mode: str) -> Task:
    """A task of one side."""
    return Task(
        mode=mode, data=str(setting.data), work=str(setting.work), pairs=2 * PROMPTS, batch_size=SAMPLES,
        threads=setting.threads,
    )  # fmt: skip
