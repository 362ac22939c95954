"""Treeward's side of the sampling bench, one task a process. Modes: prepare (model and prompts for both), time,
uneven."""

import json
from pathlib import Path

import torch

from child import Answer, Stopwatch, Task, reply
from pairs import TOKENIZER, read
from treeward.models.device import PrecisionOption
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy, branch_logps
from treeward.models.sampler import DecodeSampler, Noise
from treeward.trees.tokens import TokenTree

NEW = 64
ENDS_EVERY = 16
"""One token in so many ends an uneven sample."""


def measure(task: Task) -> Answer:
    """Sample; a first, small call, which verifies the layout, stands apart; scoring is outside the clock."""
    torch.set_num_threads(task.threads)
    data, work = Path(task.data), Path(task.work)
    if task.mode.startswith("prepare"):
        prepare(data, work, task.pairs)
        return Answer(steps=[])
    precision: PrecisionOption = "bf16" if task.precision == "bf16" else "fp32"
    policy = Policy.load(str(work / "model"), precision=precision, device="cpu")
    prompts = [
        TokenTree(tuple(ids), (), str(n)) for n, ids in enumerate(json.loads((work / "prompts.json").read_text()))
    ]
    ends = json.loads((work / "ends.json").read_text()) if task.mode == "uneven" else []
    sampler = DecodeSampler(policy.packed, tuple(ends), NEW)
    with Stopwatch() as proof:
        sampler(prompts[:2], 2, Noise(1))
    with Stopwatch() as watch:
        trees = sampler(prompts, task.batch_size, Noise(0)).trees
    if task.mode == "uneven":
        lengths = [{"length": float(len(branch))} for tree in trees for branch in tree.branches]
        return Answer(seconds=watch.seconds, others=watch.others, before=proof.seconds, steps=lengths)
    assert all(len(branch) == NEW for tree in trees for branch in tree.branches), "a sample ended early"
    steps = [{"logp": logp} for logp in branch_logps(policy, trees).tolist()]
    return Answer(seconds=watch.seconds, others=watch.others, before=proof.seconds, steps=steps)


def prepare(data: Path, work: Path, count: int) -> None:
    """A GPT-2 of random weights wide enough that its next token is not uniform, and the first 8 tokens of dialogues."""
    gpt2 = ModelConfig(
        path=str(data / "model_configs/gpt2"), init="random", tokenizer=str(data / TOKENIZER), device="cpu",
        config={"initializer_range": 0.04},
    )  # fmt: skip
    policy = Policy.from_config(gpt2, seed=0)
    policy.save(work / "model")
    texts = [pair.prompt for pair in read(data, 4 * count)]
    ids = [policy.tokenizer(text, add_special_tokens=False).input_ids[:8] for text in texts]
    (work / "prompts.json").write_text(json.dumps([row for row in ids if len(row) == 8][:count]))
    (work / "ends.json").write_text(json.dumps(list(range(0, len(policy.tokenizer), ENDS_EVERY))))


if __name__ == "__main__":
    reply(measure)
