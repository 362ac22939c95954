"""`tw.warp` with scripted members: every merge and interpolation by hand; training that does not move the policy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import treeward as tw
from treeward.models.weights import snapshot

BuildPolicy = Callable[..., tw.Policy]


def step(policy: tw.Policy, name: str, size: float) -> None:
    """Move one parameter by a vector of this length along its first axis."""
    with torch.no_grad():
        dict(policy.packed.named_parameters())[name].view(-1)[0] += size


def names_of(policy: tw.Policy, count: int) -> list[str]:
    return [name for name, _ in policy.packed.named_parameters() if "layers" in name][:count]


def moved(end: dict[str, Tensor], start: dict[str, Tensor], name: str) -> float:
    return float((end[name] - start[name]).view(-1)[0])


def test_iterations_merge_and_interpolate_as_the_paper_says(policy: BuildPolicy) -> None:
    """One member an iteration, orthogonal task vectors: the share 1/2 has a quarter of the first, half the second."""
    model = policy()
    first, second = names_of(model, 2)
    seeds = []

    def train(policy: tw.Policy, reference: tw.ReferenceModel, seed: int) -> None:
        seeds.append(seed)
        assert isinstance(reference, tw.EMAReference)
        assert reference.rate == 0.2
        assert all(
            torch.equal(a, b) for a, b in zip(reference.packed.parameters(), policy.packed.parameters(), strict=True)
        )
        step(policy, first if seed == 7 else second, 1.0)

    before = snapshot(model.packed)
    ended = tw.warp(model, train, iterations=2, members=1, rate=0.2, eta=0.5, seed=7)
    assert seeds == [7, 8]
    assert moved(dict(ended.merged), before, first) == pytest.approx(0.5, abs=1e-6)
    assert moved(dict(ended.merged), before, second) == pytest.approx(1.0, abs=1e-6)
    assert all(torch.equal(tensor, ended.merged[name]) for name, tensor in snapshot(model.packed).items())
    half = snapshot(ended.load(0.5).packed)
    assert moved(half, before, first) == pytest.approx(0.25, abs=1e-6)
    assert moved(half, before, second) == pytest.approx(0.5, abs=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(ended.load(0.0).packed).items())


@pytest.mark.parametrize(("merge", "expected"), [("slerp", 0.5**0.5), ("balanced-slerp", 0.5**0.5), ("linear", 0.5)])
def test_members_begin_at_one_start_and_are_merged(policy: BuildPolicy, merge: Any, expected: float) -> None:
    model = policy()
    before = snapshot(model.packed)
    block = next(name for name in before if "layers" in name).rpartition(".self_attn")[0]
    names = [name for name in before if name.startswith(block)][:2]

    def train(policy: tw.Policy, reference: tw.ReferenceModel, seed: int) -> None:
        assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(policy.packed).items())
        step(policy, names[seed], 1.0)

    ended = tw.warp(model, train, iterations=1, members=2, merge=merge)
    for name in names:
        assert moved(dict(ended.merged), before, name) == pytest.approx(expected, abs=1e-6)
    group = next(group for group in ended.iterations[0] if group.name == block)
    assert group.angles == pytest.approx((90.0,), abs=1e-3)
    assert group.norms == pytest.approx((1.0, 1.0), abs=1e-6)


def test_reinforce_inside(policy: BuildPolicy) -> None:
    model = policy()
    before = snapshot(model.packed)
    prompts = [tw.TokenTree((5 + n, 6), (), str(n)) for n in range(4)]
    losses = []

    def reward(prompt: str, response: str, row: Any) -> float:
        return float(len(set(response.split())))

    def train(policy: tw.Policy, reference: tw.ReferenceModel, seed: int) -> None:
        config = tw.ReinforceConfig(
            steps=2, batch_size=4, samples=2, max_new_tokens=6, lr=1e-2, seed=seed, unfinished="keep"
        )
        losses.append(tw.reinforce(policy, prompts, reward, config, reference).metrics)

    ended = tw.warp(model, train, rate=0.5)
    assert len(losses) == 4
    assert losses[0] != losses[1]
    assert any(not torch.equal(tensor, before[name]) for name, tensor in ended.merged.items())


def test_training_that_does_not_move_the_policy_is_refused(policy: BuildPolicy) -> None:
    """F37: a training function that trains a copy."""
    with pytest.raises(tw.UserError, match=r"member 1 of iteration 1 is the start: its weights moved by 0 of"):
        tw.warp(policy(), lambda trained, reference, seed: step(policy(), names_of(trained, 1)[0], 1.0))
    with pytest.raises(tw.UserError, match="members is 0; it must be at least 1"):
        tw.warp(policy(), lambda *_: None, members=0)
    with pytest.raises(tw.UserError, match=r"eta is 1\.5; it must be from 0 to 1"):
        tw.warp(policy(), lambda *_: None, eta=1.5)
