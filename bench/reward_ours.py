"""Treeward's side of the reward bench, one task a process. Modes: prepare (pairs and weights for both), time."""

from pathlib import Path

import torch

from child import Answer, Stopwatch, Task, reply
from dpo_ours import in_file_order, rendered
from pairs import TOKENIZER, load, read, save
from treeward.methods.reward import RewardConfig, reward_steps
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.trees.verify import verify_once


def measure(task: Task) -> Answer:
    """Train on the task's pairs, one pass."""
    torch.set_num_threads(task.threads)
    data, work = Path(task.data), Path(task.work)
    gpt2 = ModelConfig(
        path=str(data / "model_configs/gpt2"), init="random", tokenizer=str(data / TOKENIZER),
        precision="bf16" if task.precision == "bf16" else "fp32", device="cpu",
    )  # fmt: skip
    model = RewardModel.from_config(gpt2, seed=0)
    if task.mode == "prepare":
        save(read(data, task.pairs), work)
        model.packed.model.save_pretrained(work / "weights")  # type: ignore[operator]
        return Answer(steps=[])
    config = RewardConfig(batch_size=task.batch_size, epochs=1, lr=1e-5)
    trees = in_file_order([rendered(pair, model.tokenizer) for pair in load(work, task.pairs)], config)
    verify_once(model.packed, trees)
    with Stopwatch() as watch:
        steps = [step.numbers() for step in reward_steps(model, trees, config)]
    accuracies = [{"accuracy": step["rewards/accuracies"]} for step in steps]
    return Answer(seconds=watch.seconds, others=watch.others, steps=accuracies)


if __name__ == "__main__":
    reply(measure)
