"""Treeward's side of the REINFORCE bench, one task a process. Modes: prepare (prompts and weights for both), time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from child import Answer, Stopwatch, Task, reply
from pairs import TOKENIZER, read
from treeward.losses.advantages import LeaveOneOut
from treeward.losses.policy_gradient import InReward
from treeward.methods.reinforce import PolicyGradientObjective
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Noise
from treeward.rewards.scorers import as_scorer
from treeward.training.loop import Loop
from treeward.trees.tokens import TokenTree

LONGEST, NEW = 256, 64


def letters(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    """The reward of both sides: how often the letter e occurs."""
    return float(response.count("e"))


def measure(task: Task) -> Answer:
    """Two steps; the second is timed."""
    torch.set_num_threads(task.threads)
    data, work = Path(task.data), Path(task.work)
    if task.mode == "prepare":
        prepare(data, work, task.pairs)
        return Answer(steps=[])
    policy = Policy.load(str(work / "model"), precision="fp32", device="cpu")
    rows = json.loads((work / "prompts.json").read_text())
    half = len(rows) // 2
    trees = [TokenTree(tuple(row["ids"]), (), str(n)) for n, row in enumerate(rows)]
    reward = as_scorer(letters)
    sampler = DecodeSampler.of(policy, NEW)
    objective = PolicyGradientObjective(policy.frozen_copy(), LeaveOneOut(), kl=InReward(beta=0.05), unfinished="keep")
    loop = Loop(policy, objective, lr=1e-6)
    for batch in (trees[:half], trees[half:]):
        with Stopwatch() as sampling:
            rollout = sampler(batch, task.batch_size, Noise(0, step=loop.index + 1))
        with Stopwatch() as scoring:
            rollout = rollout.with_scores(reward(rollout).tolist())
            objective.training_trees(policy, rollout, loop.token_budget)
        with Stopwatch() as gradient:
            metrics = loop.step(rollout).numbers()
    parts = {"sampling": sampling.seconds, "scoring": scoring.seconds, "gradient": gradient.seconds}
    others = max(watch.others for watch in (sampling, scoring, gradient))
    return Answer(seconds=sum(parts.values()), others=others, steps=[{**parts, "length": metrics["length"]}])


def prepare(data: Path, work: Path, count: int) -> None:
    """A GPT-2 of random weights, and the first prompts of dialogues that are short enough."""
    gpt2 = ModelConfig(
        path=str(data / "model_configs/gpt2"), init="random", tokenizer=str(data / TOKENIZER), device="cpu",
        config={"initializer_range": 0.04},
    )  # fmt: skip
    Policy.from_config(gpt2, seed=0).save(work / "model")
    short = [pair for pair in read(data, 8 * count) if 32 <= len(pair.prompt_ids) <= LONGEST][:count]
    (work / "prompts.json").write_text(json.dumps([{"text": pair.prompt, "ids": pair.prompt_ids} for pair in short]))


if __name__ == "__main__":
    reply(measure)
