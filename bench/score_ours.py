"""Treeward's side of the score bench, one task a process. Modes: prepare (pairs and a model for both), time."""

from pathlib import Path

import torch

from child import Answer, Stopwatch, Task, reply
from pairs import TOKENIZER, load, read, save
from treeward.models.device import PrecisionOption
from treeward.models.loading import ModelConfig
from treeward.models.policy import tokenized
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.trees.text import Tree
from treeward.trees.verify import verify_once


def measure(task: Task) -> Answer:
    """Score the task's pairs from text, rendering counted; the layout's verification, once a process, stands apart."""
    torch.set_num_threads(task.threads)
    data, work = Path(task.data), Path(task.work)
    precision: PrecisionOption = "bf16" if task.precision == "bf16" else "fp32"
    if task.mode == "prepare":
        save(read(data, task.pairs), work)
        gpt2 = ModelConfig(
            path=str(data / "model_configs/gpt2"), init="random", tokenizer=str(data / TOKENIZER), device="cpu"
        )
        model = RewardModel.from_config(gpt2, seed=0)
        with torch.no_grad():
            output_layer(model.packed.model).weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
        model.save(work / "model")
        return Answer(steps=[])
    model = RewardModel.load(str(work / "model"), precision=precision, device="cpu")
    trees = [Tree(pair.prompt, [pair.chosen, pair.rejected]) for pair in load(work, task.pairs)]
    with Stopwatch() as proof, torch.no_grad():
        verify_once(model.packed, tokenized(trees, model.tokenizer))
    with Stopwatch() as watch:
        scores = model.score(trees).tolist()
    steps = [{"score": score} for score in scores]
    return Answer(seconds=watch.seconds, others=watch.others, before=proof.seconds, steps=steps)


if __name__ == "__main__":
    reply(measure)
