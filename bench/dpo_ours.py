"""Treeward's side of the DPO bench, one task a process.

Modes: prepare (pairs and weights for both), time, check, cached (the reference's log-probabilities are in a store),
sweep (three betas, one after another, with a store that is empty before the first).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from child import Answer, Stopwatch, Task, reply
from pairs import TOKENIZER, Pair, load, read, save
from treeward.data.render import token_tree
from treeward.losses.preference import Sigmoid
from treeward.methods.dpo import DPOConfig, dpo_steps
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reference import Frozen, reference_for
from treeward.training.batches import Batches
from treeward.training.loop import TrainingConfig
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import verify_once

BETAS = (0.05, 0.1, 0.5)
"""The points of a sweep."""


def measure(task: Task) -> Answer:
    """Train on the task's pairs; the time is that of the whole generator, the reference's log-probabilities
    included.
    """
    torch.set_num_threads(task.threads)
    data, work = Path(task.data), Path(task.work)
    gpt2 = ModelConfig(
        path=str(data / "model_configs/gpt2"), init="random", tokenizer=str(data / TOKENIZER),
        precision="bf16" if task.precision == "bf16" else "fp32", device="cpu",
    )  # fmt: skip
    if task.mode == "sweep":
        return swept(task, gpt2)
    policy = Policy.from_config(gpt2, seed=0)
    if task.mode == "prepare":
        save(read(data, task.pairs), work)
        policy.packed.model.save_pretrained(work / "weights")  # type: ignore[operator]
        return Answer(steps=[])
    store = Frozen(store=str(work / "reference.sqlite") if task.mode == "cached" else "off")
    config = DPOConfig(batch_size=task.batch_size, epochs=1, lr=1e-6, reference=store)
    if task.mode == "check":
        config = replace(config, lr=1e-3, schedule="constant_with_warmup", warmup=0.0)
    trees = in_file_order([rendered(pair, policy.tokenizer) for pair in load(work, task.pairs)], config)
    verify_once(policy.packed, trees)
    if task.mode == "cached":
        reference_for(policy, store).branch_logps(trees, policy.token_budget)
    with Stopwatch() as watch:
        steps = [step.numbers() for step in dpo_steps(policy, trees, config)]
    return Answer(seconds=watch.seconds, others=watch.others, steps=steps)


def swept(task: Task, gpt2: ModelConfig) -> Answer:
    """Three runs, each from the same weights; the time is that of their generators, the reference's one pass
    included.
    """
    store = Frozen(store=str(Path(task.work) / "sweep.sqlite"))
    Path(store.store).unlink(missing_ok=True)
    seconds = others = 0.0
    for beta in BETAS:
        policy = Policy.from_config(gpt2, seed=0)
        config = DPOConfig(batch_size=task.batch_size, epochs=1, lr=1e-6, loss=Sigmoid(beta), reference=store)
        pairs = load(Path(task.work), task.pairs)
        trees = in_file_order([rendered(pair, policy.tokenizer) for pair in pairs], config)
        verify_once(policy.packed, trees)
        with Stopwatch() as watch:
            deque(dpo_steps(policy, trees, config), 0)
        seconds, others = seconds + watch.seconds, max(others, watch.others)
    return Answer(seconds=seconds, others=others, steps=[])


def rendered(pair: Pair, tokenizer: Tokenizer) -> TokenTree:
    """The pair as our rendering has it; its ids must be those that both sides agreed on."""
    tree = token_tree(Tree(pair.prompt, [pair.chosen, pair.rejected]), tokenizer)
    if [list(row) for row in tree.rows()] != list(pair.rows) or len(tree.prompt) != len(pair.prompt_ids):
        raise ValueError(f"treeward's ids differ from the bench's: {pair.prompt[:80]!r}")
    return tree


def in_file_order(trees: Sequence[TokenTree], config: TrainingConfig) -> list[TokenTree]:
    """The trees placed so that the run, which shuffles by its seed, visits them in the order given."""
    batches: Batches[TokenTree] = config.batches(trees)
    visits = [row for index in range(batches.per_epoch) for row in batches.rows(index)]
    tree_of_row = dict(zip(visits, trees, strict=True))
    placed = [tree_of_row[row] for row in range(len(trees))]
    assert config.batches(placed).used_trees() == list(trees)
    return placed


if __name__ == "__main__":
    reply(measure)
