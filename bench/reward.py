"""The reward bench: GPT-2 124M from random weights on pairs of harmless-base, ours and TRL's RewardTrainer, batch 8.

Equality is of accuracies: after one pass both are measured on the pairs they trained on, with Wilson's interval.
"""

from child import Task, ask
from records import Record, Setting, Speed, record
from show import header, quiet, show, verdict

BATCH = 8
REQUIRED_RATIO = {"fp32": 3.0, "bf16": 2.0}
REQUIRED_MEMORY = 0.6


def bench(setting: Setting) -> list[Record]:
    """Measure and print."""
    ask(setting.ours, "reward_ours.py", task(setting, "prepare", "fp32"))
    header(
        f"reward: GPT-2 124M, {setting.pairs} pairs of harmless-base, batch {BATCH}, no gradient checkpointing", "pairs"
    )
    return [compare(setting, precision) for precision in setting.precisions]


def task(setting: Setting, mode: str, precision: str) -> Task:
    """A task over all pairs."""
    return Task(
        mode=mode, data=str(setting.data), work=str(setting.work), pairs=setting.pairs, batch_size=BATCH,
        threads=setting.threads, precision=precision,
    )  # fmt: skip


def compare(setting: Setting, precision: str) -> Record:
    """Time both sides in one precision, and print their training accuracies."""
    speeds, right = [], []
    for python, script in ((setting.ours, "reward_ours.py"), (setting.peer, "reward_trl.py")):
        answer = ask(python, script, task(setting, "time", precision))
        speeds.append(Speed(setting.pairs, answer.seconds, answer.peak_gb, answer.others))
        right.append(sum(step["accuracy"] for step in answer.steps) / len(answer.steps))
    ours, theirs = speeds
    show(precision, "treeward", ours)
    show("", "trl RewardTrainer", theirs, ours)
    found = record("reward", precision, peer="trl", peer_mode="default", ours=ours, theirs=theirs)
    verdict(found, REQUIRED_RATIO[precision], REQUIRED_MEMORY)
    half = 1.96 * (0.25 / setting.pairs) ** 0.5
    print(
        f"{'':6}accuracy in training: {right[0]:.3f} and {right[1]:.3f}, each +-{half:.3f} at most (n={setting.pairs})"
    )
    quiet(*speeds)
    return found
