"""Sampling: the distribution, the cache, the ends, the order; against plain calls without a cache."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats

from treeward.models.sampler import DecodeSampler, ScriptedSampler, draw
from treeward.trees import verify
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verified

FAMILIES = ["gpt2", "llama", "qwen3", "phi3", "neox", "mistral", "gemma3", "mamba"]
Build = Callable[..., Any]
END = 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompts(*ids: tuple[int, ...]) -> list[TokenTree]:
    """Trees without branches."""
    return [TokenTree(row, (), f"prompt {n}") for n, row in enumerate(ids)]


def agree(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The p value of these counts under these probabilities; bins that expect fewer than 5 are joined."""
    expected = probabilities * counts.sum() / probabilities.sum()
    rare = expected < 5
    seen, hoped = counts[~rare].tolist(), expected[~rare].tolist()
    if rare.any():
        seen, hoped = [*seen, counts[rare].sum().item()], [*hoped, expected[rare].sum().item()]
    return float(stats.chisquare(seen, hoped).pvalue)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draw_follows_the_softmax(temperature: float) -> None:
    logits = torch.tensor([0.3, -1.2, 0.0, 2.0, 1.1, -0.4])
    tokens = draw(logits.expand(20_000, 6), temperature, seeded(1))
    assert agree(torch.bincount(tokens, minlength=6), (logits / temperature).double().softmax(0)) > 0.01


def test_draw_at_another_temperature_is_told_apart() -> None:
    logits = torch.tensor([0.3, -1.2, 0.0, 2.0, 1.1, -0.4])
    tokens = draw(logits.expand(20_000, 6), 1.2, seeded(1))
    assert agree(torch.bincount(tokens, minlength=6), logits.double().softmax(0)) < 1e-6


def test_draw_takes_each_row_from_its_own_distribution_and_never_an_impossible_token() -> None:
    logits = torch.full((3, 4), -math.inf)
    logits[0, 0] = logits[1, 3] = logits[2, 1] = logits[2, 2] = 0.0
    for seed in range(50):
        first, second, third = draw(logits, 1.0, seeded(seed)).tolist()
        assert (first, second) == (0, 3)
        assert third in (1, 2)


def test_a_uniform_number_of_zero_picks_no_impossible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(*size))
    assert draw(torch.tensor([[-math.inf, -math.inf, 0.0, 1.0]]), 1.0, seeded()).tolist() == [2]


@pytest.mark.parametrize("row", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_that_are_no_distribution_are_refused(row: list[float]) -> None:
    with pytest.raises(FloatingPointError, match="logits are NaN or infinite"):
        draw(torch.tensor([[0.0, 1.0, 2.0], row]), 1.0, seeded())


def test_draw_uses_its_generator_alone() -> None:
    logits = torch.zeros(100, 50)
    torch.manual_seed(0)
    first = draw(logits, 1.0, seeded(4)).tolist()
    torch.manual_seed(1)
    assert draw(logits, 1.0, seeded(4)).tolist() == first
    assert draw(logits, 1.0, seeded(5)).tolist() != first


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_first_and_second_tokens_follow_the_enumerated_distribution(family: str, tiny: Build) -> None:
    module, prompt = tiny(family), (5, 9, 30, 17)
    found = DecodeSampler(TreeLM(module), (END,), max_new_tokens=2)(prompts(prompt), 20_000, seeded(2))[0].branches
    with torch.no_grad():
        first = module(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(0)
        second = module(input_ids=torch.tensor([[*prompt, t] for t in range(64)])).logits[:, -1].double().softmax(1)
    assert agree(torch.bincount(torch.tensor([branch[0] for branch in found]), minlength=64), first) > 0.01
    going = torch.tensor([n for n in range(64) if n != END])
    marginal = (first[going, None] * second[going]).sum(0)
    after = torch.tensor([branch[1] for branch in found if branch[0] != END])
    assert agree(torch.bincount(after, minlength=64), marginal) > 0.01
    joint = first[going, None] * second[going] / first[going].sum()
    logps = [(first[b[0]] * second[b[0], b[1]] / first[going].sum()).log().item() for b in found if b[0] != END]
    mean = (joint * joint.log()).sum().item()
    spread = ((joint * joint.log().square()).sum().item() - mean**2) ** 0.5
    assert abs(sum(logps) / len(logps) - mean) < 4 * spread / len(logps) ** 0.5


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_is_decoding_without_one(family: str, samples: int, tiny: Build) -> None:
    """At a temperature near 0 each step is the argmax, so a wrong cache, position or window shows."""
    module, rows = tiny(family), [(5, 9, 30, 17), (7, 8, 9, 10, 11, 12, 13, 14, 15, 16), (40, 41, 42, 43)]
    found = DecodeSampler(TreeLM(module), (END,), max_new_tokens=20, temperature=1e-5)(
        prompts(*rows), samples, seeded()
    )
    for row, tree in zip(rows, found, strict=True):
        ids = list(row)
        with torch.no_grad():
            while len(ids) < len(row) + 20 and ids[-1] != END:
                ids.append(int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert tree.branches == (tuple(ids[len(row) :]),) * samples


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3", "neox"])
def test_prompts_of_mixed_lengths_are_decoded_together_as_they_are_alone(
    family: str, samples: int, tiny: Build
) -> None:
    rows = [(5, 9, 30, 17), (7,), (7, 8, 9, 10, 11, 12, 13, 14, 15, 16), (40, 41, 42, 43), (3, 60)]
    alone, together = TreeLM(tiny(family), backend="rows"), TreeLM(tiny(family))
    found = [
        DecodeSampler(m, (END,), 15, temperature=1e-5)(prompts(*rows), samples, seeded()) for m in (alone, together)
    ]
    assert (alone.backend, together.backend) == ("rows", "tree")
    assert found[0] == found[1]
    assert [tree.prompt for tree in found[1]] == rows


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_samples_do_not_depend_on_what_was_verified_before(family: str, tiny: Build, grow: Build) -> None:
    rows = prompts((5, 9, 30, 17), (7,), (40, 41, 42), (3, 60))
    fresh, known = TreeLM(tiny(family)), TreeLM(tiny(family))
    verified(known, grow(3))
    first, second = (DecodeSampler(m, (END,), 12)(rows, 3, seeded()) for m in (fresh, known))
    assert first == second


def test_prompts_are_prefilled_once_for_their_samples_and_verified_once(
    tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, widths, calls = TreeLM(tiny("llama")), [], []
    model.module.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].shape) if named.get("use_cache") else None,
        with_kwargs=True,
    )
    honest = verify.verify
    monkeypatch.setattr(verify, "verify", lambda *given: calls.append(1) or honest(*given))
    sampler = DecodeSampler(model, (), max_new_tokens=3)
    for _ in range(2):
        sampler(prompts((5, 9, 30, 17), (7,), (40, 41)), 4, seeded())
    assert widths == [(3, 4), (12, 1), (12, 1)] * 2
    assert calls == [1]
    sampler(prompts((5,) * 9), 4, seeded())
    assert calls == [1, 1]


def test_sampling_within_training_keeps_the_gradients_verified(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"))
    verified(model, grow(3, longest=4))
    DecodeSampler(model, (END,), max_new_tokens=30)(prompts((5, 9)), 2, seeded())
    assert model.verified_gradients
    assert model.verified_path >= 32


def test_samples_keep_the_order_the_group_and_the_number_asked_for(tiny: Build) -> None:
    rows = prompts((3,), (4, 5, 6), (7,), (8, 9), (10, 11, 12), (13,), (14, 15))
    found = DecodeSampler(TreeLM(tiny("llama")), (END,), max_new_tokens=3, batch=4)(rows, 3, seeded())
    assert [tree.prompt for tree in found] == [tree.prompt for tree in rows]
    assert [tree.group for tree in found] == [tree.group for tree in rows]
    assert {len(tree.branches) for tree in found} == {3}


def test_every_response_stops_at_its_first_end_or_at_the_limit(tiny: Build) -> None:
    ends = (2, 20, 33)
    (tree,) = DecodeSampler(TreeLM(tiny("llama")), ends, max_new_tokens=12)(prompts((3, 4)), 200, seeded())
    stopped = [branch for branch in tree.branches if branch[-1] in ends]
    assert 20 < len(stopped) < 200
    assert {branch[-1] for branch in stopped} == set(ends)
    assert not any(token in ends for branch in tree.branches for token in branch[:-1])
    assert all(len(branch) == 12 for branch in tree.branches if branch[-1] not in ends)


def test_the_samples_of_a_prompt_differ_and_depend_on_the_seed(tiny: Build) -> None:
    sampler = DecodeSampler(TreeLM(tiny("gpt2")), (END,), max_new_tokens=8)
    first = sampler(prompts((3, 4), (5, 6)), 4, seeded(1))
    assert first == sampler(prompts((3, 4), (5, 6)), 4, seeded(1))
    assert first != sampler(prompts((3, 4), (5, 6)), 4, seeded(2))
    assert len(set(first[0].branches)) > 1


def test_equal_prompts_get_samples_of_their_own(tiny: Build) -> None:
    found = DecodeSampler(TreeLM(tiny("llama")), (END,), max_new_tokens=8)(prompts((3, 4), (3, 4)), 1, seeded())
    assert found[0].branches != found[1].branches


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float, tiny: Build) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature}"):
        DecodeSampler(TreeLM(tiny("llama")), (END,), temperature=temperature)


def test_samples_of_no_token_are_refused(tiny: Build) -> None:
    with pytest.raises(ValueError, match="max_new_tokens is 0; it must be at least 1"):
        DecodeSampler(TreeLM(tiny("llama")), (END,), max_new_tokens=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampling_beyond_the_models_positions_is_refused(family: str, tiny: Build) -> None:
    long = tuple(range(3, 63)) * 4
    sampler = DecodeSampler(TreeLM(tiny(family)), (), max_new_tokens=30)
    with pytest.raises(ValueError, match="positions"):
        sampler(prompts(long), 1, seeded())


def test_sampling_leaves_no_gradients(tiny: Build) -> None:
    model = TreeLM(tiny("llama"))
    DecodeSampler(model, (END,), max_new_tokens=3)(prompts((3,)), 2, seeded())
    assert all(p.grad is None for p in model.parameters())


def test_the_sampler_of_a_policy_follows_its_weights(policy: Build) -> None:
    ours = policy()
    sampler = DecodeSampler.of(ours, max_new_tokens=1)
    with torch.no_grad():
        head = ours.tree.module.get_output_embeddings().weight
        final = ours.tree.module(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True).hidden_states[-1][0, -1]
        head.zero_()
        head[50] = 40 * final / final.square().sum()
    assert sampler.end_ids == (END,)
    assert {b for tree in sampler(prompts((3, 4)), 20, seeded()) for b in tree.branches} == {(50,)}


def test_the_scripted_sampler_answers_in_turn() -> None:
    script = {(1,): [(5,), (6, 7)], (2, 3): [(8,)]}
    found = ScriptedSampler(script)(prompts((2, 3), (1,)), 3, seeded())
    assert [tree.branches for tree in found] == [((8,), (8,), (8,)), ((5,), (6, 7), (5,))]
    assert [tree.group for tree in found] == ["prompt 0", "prompt 1"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_left_padding_hides_nothing_and_shifts_nothing(family: str, tiny: Any) -> None:
    """The logits that each padded prompt is continued with are those of the prompt alone, also a step later."""
    from treeward.models.sampler import _left_padded, _next_places

    module = tiny(family)
    prompts = [(5, 6, 7, 8, 9), (11, 12), (13, 14, 15)]
    rows, places = _left_padded(prompts, torch.device("cpu"))
    with torch.no_grad():
        out = module(input_ids=rows, use_cache=True, **places)
        later = module(
            input_ids=torch.tensor([[3], [3], [3]]), past_key_values=out.past_key_values, **_next_places(places)
        )
        for number, prompt in enumerate(prompts):
            alone = module(input_ids=torch.tensor([prompt])).logits[0, -1]
            assert torch.allclose(out.logits[number, -1], alone, atol=1e-5)
            alone = module(input_ids=torch.tensor([(*prompt, 3)])).logits[0, -1]
            assert torch.allclose(later.logits[number, -1], alone, atol=1e-5)
