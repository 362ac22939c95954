"""A policy's log-probabilities, and its reference model before and after the policy changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.errors import UserError
from treeward.models import loading
from treeward.models.loading import LoRA
from treeward.models.policy import Policy, branch_logps, token_logps
from treeward.models.reference import ReferenceModel
from treeward.models.weights import fingerprint
from treeward.trees.text import Response, Tree
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]


@pytest.fixture
def by_hand(tiny: Build, plain_logps: Build) -> Callable[..., list[float]]:
    """by_hand(trees, family, **changes): log-probabilities of branches, summed one plain row at a time."""

    def sums(trees: list[TokenTree], family: str = "llama", **changes: Any) -> list[float]:
        module = tiny(family, attention="eager", **changes)
        with torch.no_grad():
            return [
                plain_logps(module, TokenTree(tree.prompt, (branch,))).sum().item()
                for tree in trees
                for branch in tree.branches
            ]

    return sums


def adapted(policy: Policy, trained: bool = True) -> Policy:
    """The policy with low-rank adapters: new ones, which change nothing, or trained ones."""
    adapter = loading.add_lora(policy.packed.model, LoRA(r=4), "CAUSAL_LM")
    if trained:
        train(policy)
    return Policy(adapter, policy.tokenizer)


def train(policy: Policy) -> None:
    """Give the policy's adapters weights."""
    with torch.no_grad():
        draw = torch.Generator().manual_seed(7)
        for name, parameter in policy.packed.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "mamba"])
def test_branch_logps_are_sums_over_response_tokens(family: str, policy: Build, grow: Build, by_hand: Build) -> None:
    trees = grow(5, branches=3)
    assert branch_logps(policy(family), trees).tolist() == pytest.approx(by_hand(trees, family), abs=1e-4)


def test_branch_logps_come_in_order_however_they_are_packed(policy: Build, grow: Build, by_hand: Build) -> None:
    trees = [*grow(40, longest=30), *grow(40, branches=1, seed=1, longest=60)]
    assert sum(map(len, trees)) > 2 * policy().token_budget
    trees.append(trees[3])
    assert branch_logps(policy(), trees).tolist() == pytest.approx(by_hand(trees), abs=1e-3)


def test_text_is_rendered_and_its_end_token_scored(policy: Build, by_hand: Build) -> None:
    tree = Tree("w5 w6", [" w7 w8", Response(" w9", finished=False)])
    ids = TokenTree((5, 6), ((7, 8, 2), (9,)))
    assert branch_logps(policy(), [tree]).tolist() == pytest.approx(by_hand([ids]), abs=1e-5)


def test_token_logps_come_by_tree_and_branch(policy: Build, tiny: Build, grow: Build, plain_logps: Build) -> None:
    trees = [*grow(30, branches=3, longest=30), *grow(2, branches=1, seed=1)]
    trees.append(trees[0])
    logps, plain = token_logps(policy(), trees), tiny("llama", attention="eager")
    assert [[len(branch) for branch in tree] for tree in logps] == [[len(b) for b in tree.branches] for tree in trees]
    with torch.no_grad():
        for tree, branches in zip(trees, logps, strict=True):
            torch.testing.assert_close(torch.cat(branches), plain_logps(plain, tree).float(), rtol=0, atol=1e-5)


def test_branch_logps_of_no_trees(policy: Build) -> None:
    assert branch_logps(policy(), []).shape == (0,)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_path_beyond_the_positions_is_refused(family: str, policy: Build) -> None:
    with pytest.raises(UserError, match=r"tree 1 .* longer than the model's 256 positions"):
        branch_logps(policy(family), [TokenTree((3,), ((4,),)), TokenTree((3,) * 250, ((4,) * 7,))])


def test_branch_logps_keep_no_gradient(policy: Build, grow: Build) -> None:
    ours = policy()
    values = branch_logps(ours, grow(2))
    assert not values.requires_grad
    assert all(p.grad is None for p in ours.packed.parameters())


def test_a_saved_policy_gives_the_same_numbers(policy: Build, grow: Build, tmp_path: Path) -> None:
    ours, trees = policy(), grow(3)
    before = branch_logps(ours, trees)
    ours.save(tmp_path / "model")
    again = Policy.load(str(tmp_path / "model"), precision="fp32", device="cpu")
    assert torch.equal(branch_logps(again, trees), before)
    assert again.end_ids == (2,)


def test_the_world_policy_is_drawn_from_its_seed() -> None:
    prints = [fingerprint(Policy.load("world", seed=seed, device="cpu").packed) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_loading_random_weights_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    Policy.load("world", device="cpu")
    assert torch.rand(2).tolist() == expected


def test_a_reference_is_a_frozen_copy_that_shares_no_storage(policy: Build, grow: Build) -> None:
    ours, trees = policy(), grow(4)
    before = branch_logps(ours, trees)
    reference = ReferenceModel.of(ours)
    assert not {p.data_ptr() for p in ours.packed.parameters()} & {p.data_ptr() for p in reference.packed.parameters()}
    assert not any(p.requires_grad for p in reference.packed.parameters())
    assert all(p.requires_grad for p in ours.packed.parameters())
    assert not reference.packed.training
    hashed = reference.hash
    with torch.no_grad():
        for parameter in ours.packed.parameters():
            parameter.add_(0.1)
    assert fingerprint(reference.packed) == hashed != fingerprint(ours.packed)
    reference_logps = reference.branch_logps(trees, 64)
    assert torch.cat([reference_logps[tree] for tree in trees]).tolist() == pytest.approx(before.tolist(), abs=1e-4)
    assert not torch.allclose(branch_logps(ours, trees), before, atol=1e-2)


def test_reference_log_probs_come_by_tree_and_without_gradient(policy: Build, grow: Build, by_hand: Build) -> None:
    ours, trees = policy(), grow(9, branches=3)
    branch_logps(ours, trees)
    reference_logps = ReferenceModel.of(ours).branch_logps([*trees, trees[0]], 40)
    assert set(reference_logps) == set(trees)
    assert not any(values.requires_grad for values in reference_logps.values())
    assert torch.cat([reference_logps[tree] for tree in trees]).tolist() == pytest.approx(by_hand(trees), abs=1e-4)


def test_with_new_adapters_the_reference_is_the_base_model(policy: Build, grow: Build, by_hand: Build) -> None:
    trees = grow(5)
    ours = adapted(policy(), trained=False)
    reference = ReferenceModel.of(ours)
    assert reference.packed is ours.packed
    train(ours)
    moved = branch_logps(ours, trees)
    reference_logps = reference.branch_logps(trees, 64)
    assert torch.cat([reference_logps[tree] for tree in trees]).tolist() == pytest.approx(by_hand(trees), abs=1e-4)
    assert (moved - torch.tensor(by_hand(trees))).abs().max() > 0.1
    assert torch.equal(branch_logps(ours, trees), moved)
    assert reference.hash is None


def test_with_trained_adapters_the_reference_is_a_copy_of_the_whole(policy: Build, grow: Build) -> None:
    trees = grow(5)
    ours = adapted(policy())
    before = branch_logps(ours, trees)
    reference = ReferenceModel.of(ours)
    with torch.no_grad():
        for name, parameter in ours.packed.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2)
    reference_logps = reference.branch_logps(trees, 64)
    assert torch.cat([reference_logps[tree] for tree in trees]).tolist() == pytest.approx(before.tolist(), abs=1e-4)
    assert reference.hash is not None
    assert not {p.data_ptr() for p in ours.packed.parameters()} & {p.data_ptr() for p in reference.packed.parameters()}
    assert (branch_logps(ours, trees) - before).abs().max() > 0.1


def test_only_adapters_train_and_a_base_weight_that_trains_is_refused(policy: Build) -> None:
    ours = adapted(policy(), trained=False)
    names = [name for name, p in ours.packed.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    ours.packed.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"adapter off, but .*embed_tokens.* trains as well"):
        ReferenceModel.of(ours)


def test_every_end_of_the_generation_config_ends_a_response(policy: Build) -> None:
    ours = policy()
    for named, expected in (([2, 20, 33], (2, 20, 33)), ([20, 2], (2, 20)), (20, (2, 20)), (None, (2,))):
        ours.packed.model.generation_config.eos_token_id = named
        assert ours.end_ids == expected


def test_a_policy_with_adapters_is_saved_merged(policy: Build, grow: Build, tmp_path: Path) -> None:
    ours, trees = adapted(policy()), grow(3)
    before = branch_logps(ours, trees)
    ours.save(tmp_path / "model")
    merged = Policy.load(str(tmp_path / "model"), precision="fp32", device="cpu")
    assert branch_logps(merged, trees).tolist() == pytest.approx(before.tolist(), abs=1e-4)
    assert not any("lora" in name for name, _ in merged.packed.named_parameters())
    assert (tmp_path / "model" / "adapter" / "adapter_model.safetensors").exists()
    assert torch.equal(branch_logps(ours, trees), before)


def test_adapter_targets_that_do_not_exist_are_refused(policy: Build) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.targets \('nothing',\)"):
        loading.add_lora(policy().packed.model, LoRA(targets=("nothing",)), "CAUSAL_LM")
