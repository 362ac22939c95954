"""Two processes train the model that one trains: sums over ranks, also where a rank's share is empty."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from treeward.losses.preference import KTO, Sigmoid
from treeward.methods.dpo import DPOConfig, dpo_steps
from treeward.methods.sft import SFTConfig, sft_steps
from treeward.models.policy import Policy
from treeward.trees.tokens import TokenTree


def setting() -> tuple[Policy, list[TokenTree]]:
    """A tiny policy and 11 pairs: batches of 5, 5 and 1, so that the second of two ranks once has nothing to do."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=0.3,
        )
    )  # fmt: skip
    chance = random.Random(1)
    parts = [tuple(chance.choices(range(3, 64), k=chance.randint(1, 9))) for _ in range(33)]
    trees = [TokenTree(parts[n], (parts[n + 1], parts[n + 2])) for n in range(0, 33, 3)]
    return Policy(module.double(), None), trees


def train(kind: str) -> dict[str, Any]:
    """Metrics and final weights of four steps, and where every gradient was clear of rounding (Adam divides by it)."""
    policy, trees = setting()
    clear = [torch.ones_like(p, dtype=torch.bool) for p in policy.packed.parameters()]

    def keep(optimizer: Any, *_: Any) -> None:
        for clear_gradient, p in zip(clear, optimizer.param_groups[0]["params"], strict=True):
            clear_gradient.logical_and_(p.grad.abs() > 1e-6)

    handle = register_optimizer_step_pre_hook(keep)
    shared: dict[str, Any] = {"steps": 4, "batch_size": 5, "lr": 1e-4}
    loss = KTO(beta=0.2) if kind == "kto" else Sigmoid()
    run = (
        sft_steps(policy, trees, SFTConfig(**shared))
        if kind == "sft"
        else dpo_steps(policy, trees, DPOConfig(loss=loss, **shared))
    )
    metrics = [step.numbers() for step in run]
    handle.remove()
    weights = {n: p.detach() for n, p in policy.packed.named_parameters()}
    return {"metrics": metrics, "weights": weights, "clear": dict(zip(weights, clear, strict=True))}


def work(rank: int, world: int, folder: str) -> None:
    """One of several processes."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for kind in ("sft", "dpo", "kto"):
        torch.save(train(kind), f"{folder}/{kind}-{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left their results."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (2, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_two_processes_train_the_model_that_one_trains(kind: str, together: Path) -> None:
    alone = train(kind)
    start = dict(setting()[0].packed.named_parameters())
    for rank in (0, 1):
        theirs = torch.load(together / f"{kind}-{rank}.pt", weights_only=True)
        for number, (a, b) in enumerate(zip(alone["metrics"], theirs["metrics"], strict=True)):
            if number == 0:  # at policy = reference the sign of a margin is rounding
                a.pop("rewards/accuracies", None)
                b.pop("rewards/accuracies", None)
            assert b == pytest.approx(a, rel=1e-5, abs=1e-6)
        for name, weight in alone["weights"].items():
            clear = alone["clear"][name]
            torch.testing.assert_close(theirs["weights"][name][clear], weight[clear], rtol=0, atol=1e-6)
            assert (theirs["weights"][name] - weight).abs().max() <= 8e-4
            assert not torch.equal(weight, start[name])


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_the_ranks_agree_bit_for_bit(kind: str, together: Path) -> None:
    first, second = (torch.load(together / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["metrics"] == second["metrics"]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
