"""Sampling, against plain calls without a cache: distribution, cache, ends and order."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from treeward.errors import UserError
from treeward.models.sampler import DecodeSampler, Noise, ScriptedSampler, draw, row_ids
from treeward.trees import verify
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once

FAMILIES = ["gpt2", "llama", "qwen3", "phi3", "neox", "mistral", "gemma3", "mamba"]
Build = Callable[..., Any]
END = 2
FIRST = [0.5736124325254156, 0.0659016298232078, 0.33652088240300837]


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    """Numbers in [0, 1), one a row."""
    return torch.from_numpy(Noise(seed).uniforms("test", 0, count))


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
    tokens = draw(logits.expand(20_000, 6), temperature, uniforms(20_000, 1))
    assert agree(torch.bincount(tokens, minlength=6), (logits / temperature).double().softmax(0)) > 0.01


def test_draw_at_another_temperature_is_told_apart() -> None:
    logits = torch.tensor([0.3, -1.2, 0.0, 2.0, 1.1, -0.4])
    tokens = draw(logits.expand(20_000, 6), 1.2, uniforms(20_000, 1))
    assert agree(torch.bincount(tokens, minlength=6), logits.double().softmax(0)) < 1e-6


def test_draw_takes_each_row_from_its_own_distribution_and_never_an_impossible_token() -> None:
    logits = torch.full((3, 4), -math.inf)
    logits[0, 0] = logits[1, 3] = logits[2, 1] = logits[2, 2] = 0.0
    for seed in range(50):
        first, second, third = draw(logits, 1.0, uniforms(3, seed)).tolist()
        assert (first, second) == (0, 3)
        assert third in (1, 2)


@pytest.mark.parametrize(("number", "token"), [(0.0, 2), (0.5, 3), (1 - 2**-53, 3), (1.0, 3)])
def test_no_uniform_number_picks_an_impossible_token(number: float, token: int) -> None:
    """Neither 0 nor 1 (which no generator gives) picks one of the tokens of probability 0 on both sides."""
    logits = torch.tensor([[-math.inf, -math.inf, 0.0, 1.0, -math.inf, -math.inf]])
    assert draw(logits, 1.0, torch.tensor([number], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_tokens_are_never_drawn_at_the_ends(dtype: torch.dtype) -> None:
    """Many rows whose sums of probabilities round to both sides of 1; noise of 0, of 1 and next to it."""
    logits = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, :5] = logits[:, -5:] = -math.inf
    for number in (0.0, 1.0, 1 - 2.0**-24, 1 - 2.0**-53):
        tokens = draw(logits, 1.0, torch.full((2000,), number, dtype=dtype))
        assert 5 <= int(tokens.min()) <= int(tokens.max()) <= 34


def test_the_tail_of_a_wide_vocabulary_is_drawn() -> None:
    """Of 50,000 tokens one has nearly all of the probability, the others 1e-9 each: added up in float32, they add
    nothing to it."""
    logits = torch.full((1, 50_000), math.log(1e-9))
    logits[0, 0] = 0.0
    share = 49_999e-9 / (1 + 49_999e-9)
    for wanted in (1, 20_000, 49_999):
        number = 1 - share + share * (wanted - 0.5) / 49_999
        token = int(draw(logits, 1.0, torch.tensor([number], dtype=torch.float64)))
        assert abs(token - wanted) <= 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("steps", [1, 3])
def test_logits_that_are_no_distribution_are_refused(value: float, steps: int, tiny: Build) -> None:
    model = TreeLM(tiny("llama"))
    sampler = DecodeSampler(model, (), max_new_tokens=4)
    sampler(prompts((3, 4)), 1, Noise(0))
    seen: list[int] = []

    def broken(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return logits if len(seen) < steps else logits.index_fill(-1, torch.tensor([9]), value)

    model.model.get_output_embeddings().register_forward_hook(broken)
    with pytest.raises(FloatingPointError, match="logits are NaN or infinite"):
        sampler(prompts((3, 4)), 1, Noise(0))
    assert len(seen) == steps


def test_drawing_moves_no_generator_and_uses_none(tiny: Build) -> None:
    sampler = DecodeSampler(TreeLM(tiny("llama")), (), max_new_tokens=6)
    torch.manual_seed(0)
    first = sampler(prompts((3, 4)), 4, Noise(4)).trees
    torch.manual_seed(1)
    expected = torch.get_rng_state()
    assert sampler(prompts((3, 4)), 4, Noise(4)).trees == first
    assert torch.equal(torch.get_rng_state(), expected)


def test_noise_depends_on_everything_that_is_named_and_on_its_place_alone() -> None:
    first = Noise(1).uniforms("row", 0, 64)
    assert (Noise(1).uniforms("row", 0, 7) == first[:7]).all()
    others = [
        *(noise.uniforms("row", 0, 64) for noise in (Noise(2), Noise(1, member=1), Noise(1, step=1))),
        Noise(1).uniforms("other", 0, 64), Noise(1).uniforms("row", 1, 64), first[1:],
    ]  # fmt: skip
    assert all((first[: len(other)] != other).all() for other in others)
    assert first.min() >= 0
    assert first.max() < 1


def test_noise_is_uniform_and_independent_over_rows_samples_and_positions() -> None:
    numbers = np.array([[Noise(0).uniforms(f"row {n}", k, 50) for k in range(4)] for n in range(200)])
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.01
    ranks = numbers.reshape(800, 50)
    for a, b in ((ranks[:, 0], ranks[:, 1]), (numbers[:, 0, 3], numbers[:, 1, 3]), (ranks[:-1, 5], ranks[1:, 5])):
        assert abs(stats.spearmanr(a, b).statistic) < 4 / len(a) ** 0.5


def test_the_first_numbers_are_known() -> None:
    """Fixed values, because the samples of a seed must not change with the version of numpy."""
    assert Noise(0).uniforms("row", 0, 3).tolist() == FIRST


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_first_and_second_tokens_follow_the_enumerated_distribution(family: str, tiny: Build) -> None:
    module, prompt = tiny(family), (5, 9, 30, 17)
    branches = (
        DecodeSampler(TreeLM(module), (END,), max_new_tokens=2)(prompts(prompt), 20_000, Noise(2)).trees[0].branches
    )
    with torch.no_grad():
        first = module(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(0)
        second = module(input_ids=torch.tensor([[*prompt, t] for t in range(64)])).logits[:, -1].double().softmax(1)
    assert agree(torch.bincount(torch.tensor([branch[0] for branch in branches]), minlength=64), first) > 0.01
    going = torch.tensor([n for n in range(64) if n != END])
    marginal = (first[going, None] * second[going]).sum(0)
    after = torch.tensor([branch[1] for branch in branches if branch[0] != END])
    assert agree(torch.bincount(after, minlength=64), marginal) > 0.01
    joint = first[going, None] * second[going] / first[going].sum()
    logps = [(first[b[0]] * second[b[0], b[1]] / first[going].sum()).log().item() for b in branches if b[0] != END]
    mean = (joint * joint.log()).sum().item()
    spread = ((joint * joint.log().square()).sum().item() - mean**2) ** 0.5
    assert abs(sum(logps) / len(logps) - mean) < 4 * spread / len(logps) ** 0.5


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_equals_decoding_without_one(family: str, samples: int, tiny: Build) -> None:
    """At a temperature near 0 each step is the argmax, so a wrong cache, position or window shows."""
    module, rows = tiny(family), [(5, 9, 30, 17), (7, 8, 9, 10, 11, 12, 13, 14, 15, 16), (40, 41, 42, 43)]
    sampler = DecodeSampler(TreeLM(module), (END,), max_new_tokens=20, temperature=1e-5)
    trees = sampler(prompts(*rows), samples, Noise(0)).trees
    for row, tree in zip(rows, trees, strict=True):
        ids = list(row)
        with torch.no_grad():
            while len(ids) < len(row) + 20 and ids[-1] != END:
                ids.append(int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert tree.branches == (tuple(ids[len(row) :]),) * samples


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3", "neox"])
def test_prompts_of_mixed_lengths_give_the_same_samples_together_and_alone(
    family: str, samples: int, tiny: Build
) -> None:
    rows = [(5, 9, 30, 17), (7,), (7, 8, 9, 10, 11, 12, 13, 14, 15, 16), (40, 41, 42, 43), (3, 60)]
    alone, together = TreeLM(tiny(family), backend="rows"), TreeLM(tiny(family))
    trees = [
        DecodeSampler(m, (END,), 15, temperature=1e-5)(prompts(*rows), samples, Noise(0)).trees
        for m in (alone, together)
    ]
    assert (alone.backend, together.backend) == ("rows", "tree")
    assert trees[0] == trees[1]
    assert [tree.prompt for tree in trees[1]] == rows


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_samples_do_not_depend_on_what_was_verified_before(family: str, tiny: Build, grow: Build) -> None:
    rows = prompts((5, 9, 30, 17), (7,), (40, 41, 42), (3, 60))
    fresh, verified = TreeLM(tiny(family)), TreeLM(tiny(family))
    verify_once(verified, grow(3))
    first, second = (DecodeSampler(m, (END,), 12)(rows, 3, Noise(0)).trees for m in (fresh, verified))
    assert first == second


def test_prompts_are_prefilled_once_for_their_samples_and_verified_once(
    tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, widths, calls = TreeLM(tiny("llama")), [], []
    model.model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].shape) if named.get("use_cache") else None,
        with_kwargs=True,
    )
    honest = verify.verify
    monkeypatch.setattr(verify, "verify", lambda *given: calls.append(1) or honest(*given))
    sampler = DecodeSampler(model, (), max_new_tokens=3)
    for _ in range(2):
        sampler(prompts((5, 9, 30, 17), (7,), (40, 41)), 4, Noise(0))
    assert widths[-6:] == [(3, 4), (12, 1), (12, 1)] * 2
    assert all(rows == 1 for rows, _ in widths[:-6]), "the class's cache is looked at once, on one row"
    assert model.cache_name == "past_key_values"
    assert calls == [1]
    sampler(prompts((5,) * 9), 4, Noise(0))
    assert calls == [1, 1]


def test_sampling_within_training_keeps_the_gradients_verified(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"))
    verify_once(model, grow(3, longest=4))
    DecodeSampler(model, (END,), max_new_tokens=30)(prompts((5, 9)), 2, Noise(0))
    assert model.verified_gradients
    assert model.verified_path >= 32


def test_samples_keep_order_group_and_number(tiny: Build) -> None:
    rows = prompts((3,), (4, 5, 6), (7,), (8, 9), (10, 11, 12), (13,), (14, 15))
    trees = DecodeSampler(TreeLM(tiny("llama")), (END,), max_new_tokens=3, batch=4)(rows, 3, Noise(0)).trees
    assert [tree.prompt for tree in trees] == [tree.prompt for tree in rows]
    assert [tree.group for tree in trees] == [tree.group for tree in rows]
    assert {len(tree.branches) for tree in trees} == {3}


def test_every_response_stops_at_its_first_end_or_at_the_limit(tiny: Build) -> None:
    ends = (2, 20, 33)
    (tree,) = DecodeSampler(TreeLM(tiny("llama")), ends, max_new_tokens=12)(prompts((3, 4)), 200, Noise(0)).trees
    stopped = [branch for branch in tree.branches if branch[-1] in ends]
    assert 20 < len(stopped) < 200
    assert {branch[-1] for branch in stopped} == set(ends)
    assert not any(token in ends for branch in tree.branches for token in branch[:-1])
    assert all(len(branch) == 12 for branch in tree.branches if branch[-1] not in ends)


def test_the_samples_of_a_prompt_differ_and_depend_on_the_seed(tiny: Build) -> None:
    sampler = DecodeSampler(TreeLM(tiny("gpt2")), (END,), max_new_tokens=8)
    first = sampler(prompts((3, 4), (5, 6)), 4, Noise(1)).trees
    assert first == sampler(prompts((3, 4), (5, 6)), 4, Noise(1)).trees
    assert first != sampler(prompts((3, 4), (5, 6)), 4, Noise(2)).trees
    assert len(set(first[0].branches)) > 1


@pytest.mark.parametrize("groups", [("a", "b"), ("a", "a")])
def test_equal_prompts_get_samples_of_their_own(groups: tuple[str, str], tiny: Build) -> None:
    rows = [TokenTree((3, 4), (), group) for group in groups]
    trees = DecodeSampler(TreeLM(tiny("llama")), (END,), max_new_tokens=8)(rows, 1, Noise(0)).trees
    assert trees[0].branches != trees[1].branches
    assert len(set(row_ids(rows))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_samples_do_not_depend_on_the_batch_the_order_or_the_layout(family: str, tiny: Build) -> None:
    """In float64, so that rounding changes no draw."""
    rows = prompts((5, 9, 30, 17), (7,), (40, 41, 42), (3, 60), (8, 8), (5, 9, 30, 17))
    module = tiny(family).double()
    first = DecodeSampler(TreeLM(module), (END,), 12)(rows, 3, Noise(7)).trees
    assert len({tree.branches for tree in first}) == len(rows)
    for batch in (1, 4, 7, 18):
        assert DecodeSampler(TreeLM(module), (END,), 12, batch=batch)(rows, 3, Noise(7)).trees == first
    assert DecodeSampler(TreeLM(module, backend="rows"), (END,), 12)(rows, 3, Noise(7)).trees == first
    sampler = DecodeSampler(TreeLM(module), (END,), 12)
    assert sampler(rows[::-1], 3, Noise(7)).trees == first[::-1]
    assert [sampler([row], 3, Noise(7)).trees[0] for row in rows] == first
    shares = [sampler(rows[rank::2], 3, Noise(7)).trees for rank in (0, 1)]
    assert [shares[n % 2][n // 2] for n in range(len(rows))] == first
    fewer = sampler(rows, 2, Noise(7)).trees
    assert [tree.branches for tree in fewer] == [tree.branches[:2] for tree in first]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_tokens_log_probability_is_recorded(temperature: float, tiny: Build) -> None:
    module = tiny("llama")
    rollout = DecodeSampler(TreeLM(module), (END,), 12, temperature)(prompts((5, 9, 30), (7,)), 4, Noise(0))
    assert rollout.logps is not None
    assert rollout.drawn_logps is not None
    for tree, logps, drawn in zip(rollout.trees, rollout.logps, rollout.drawn_logps, strict=True):
        for branch, of_policy, of_drawn in zip(tree.branches, logps, drawn, strict=True):
            with torch.no_grad():
                logits = module(input_ids=torch.tensor([tree.prompt + branch])).logits[0, len(tree.prompt) - 1 : -1]
            at = torch.arange(len(branch)), torch.tensor(branch)
            torch.testing.assert_close(of_policy, logits.log_softmax(1)[at], rtol=0, atol=2e-5)
            torch.testing.assert_close(of_drawn, (logits / temperature).log_softmax(1)[at], rtol=0, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float, tiny: Build) -> None:
    with pytest.raises(UserError, match=f"temperature is {temperature}"):
        DecodeSampler(TreeLM(tiny("llama")), (END,), temperature=temperature)


def test_samples_of_no_token_are_refused(tiny: Build) -> None:
    with pytest.raises(UserError, match="max_new_tokens is 0; it must be at least 1"):
        DecodeSampler(TreeLM(tiny("llama")), (END,), max_new_tokens=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampling_beyond_the_models_positions_is_refused(family: str, tiny: Build) -> None:
    long = tuple(range(3, 63)) * 4
    sampler = DecodeSampler(TreeLM(tiny(family)), (), max_new_tokens=30)
    with pytest.raises(UserError, match="positions"):
        sampler(prompts(long), 1, Noise(0))


def test_sampling_leaves_no_gradients(tiny: Build) -> None:
    model = TreeLM(tiny("llama"))
    DecodeSampler(model, (END,), max_new_tokens=3)(prompts((3,)), 2, Noise(0))
    assert all(p.grad is None for p in model.parameters())


def test_the_sampler_of_a_policy_follows_its_weights(policy: Build) -> None:
    ours = policy()
    sampler = DecodeSampler.of(ours, max_new_tokens=1)
    with torch.no_grad():
        head = ours.packed.model.get_output_embeddings().weight
        final = ours.packed.model(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True).hidden_states[-1][0, -1]
        head.zero_()
        head[50] = 40 * final / final.square().sum()
    assert sampler.end_ids == (END,)
    assert {b for tree in sampler(prompts((3, 4)), 20, Noise(0)).trees for b in tree.branches} == {(50,)}


def test_the_scripted_sampler_answers_in_turn() -> None:
    script = {(1,): [(5,), (6, 7)], (2, 3): [(8,)]}
    trees = ScriptedSampler(script)(prompts((2, 3), (1,)), 3, Noise(0)).trees
    assert [tree.branches for tree in trees] == [((8,), (8,), (8,)), ((5,), (6, 7), (5,))]
    assert [tree.group for tree in trees] == ["prompt 0", "prompt 1"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_left_padding_hides_nothing_and_shifts_nothing(family: str, tiny: Any) -> None:
    """The next logits of each padded prompt are those of the prompt alone, and so are those one step later."""
    from treeward.models.sampler import _left_padded, _next_mask_and_positions

    module = tiny(family)
    prompts = [(5, 6, 7, 8, 9), (11, 12), (13, 14, 15)]
    rows, mask_and_positions = _left_padded(prompts, torch.device("cpu"))
    with torch.no_grad():
        out = module(input_ids=rows, use_cache=True, **mask_and_positions)
        later = module(
            input_ids=torch.tensor([[3], [3], [3]]),
            past_key_values=out.past_key_values,
            **_next_mask_and_positions(mask_and_positions),
        )
        for number, prompt in enumerate(prompts):
            alone = module(input_ids=torch.tensor([prompt])).logits[0, -1]
            assert torch.allclose(out.logits[number, -1], alone, atol=1e-5)
            alone = module(input_ids=torch.tensor([(*prompt, 3)])).logits[0, -1]
            assert torch.allclose(later.logits[number, -1], alone, atol=1e-5)


def raise_in_steps(model: TreeLM, error: BaseException) -> None:
    """Let the public model raise `error` when it continues from a cache."""

    def hook(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if named.get("past_key_values") is not None:
            raise error

    model.model.register_forward_pre_hook(hook, with_kwargs=True)


def test_a_cache_that_fails_is_logged_and_not_used(tiny: Build, caplog: pytest.LogCaptureFixture) -> None:
    model = TreeLM(tiny("llama"))
    expected = DecodeSampler(TreeLM(tiny("llama")), (END,), 5, temperature=1e-5)(prompts((5, 9)), 2, Noise(0))
    raise_in_steps(model, RuntimeError("this cache is read-only\nsecond line"))
    with caplog.at_level("INFO", logger="treeward"):
        rollout = DecodeSampler(model, (END,), 5, temperature=1e-5)(prompts((5, 9)), 2, Noise(0))
    assert rollout.trees == expected.trees
    assert model.cache_name == ""
    assert "LlamaForCausalLM is decoded without its cache, which is slower: this cache is read-only" in caplog.messages


def test_out_of_memory_never_means_that_a_cache_fails(tiny: Build) -> None:
    model = TreeLM(tiny("llama"))
    raise_in_steps(model, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        DecodeSampler(model, (END,), 5)(prompts((5, 9)), 2, Noise(0))
    assert model.cache_name is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_rows_leave_and_enter_the_batch_and_every_sample_stays_the_same(family: str, tiny: Build) -> None:
    """In float64 the ids are equal whatever the batch; so are the log-probabilities up to rounding."""
    packed = TreeLM(tiny(family).double())
    trees = prompts(*((5, *range(6, 6 + n % 7)) for n in range(24)))
    ends = (2, *range(3, 12))

    def sampled(batch: int) -> tuple[Any, int]:
        rows = 0

        def count(module: Any, arguments: Any, named: Any) -> None:
            nonlocal rows
            rows += named["input_ids"].shape[0]

        hook = packed.model.register_forward_pre_hook(count, with_kwargs=True)
        rollout = DecodeSampler(packed, ends, 24, batch=batch)(trees, 3, Noise(0))
        hook.remove()
        return rollout, rows

    DecodeSampler(packed, ends, 24)(trees[:2], 1, Noise(0))  # what is verified once
    whole, rows_whole = sampled(72)
    lengths = [len(branch) for tree in whole.trees for branch in tree.branches]
    assert min(lengths) == 1
    assert max(lengths) == 24
    assert rows_whole < 0.75 * 72 * 24  # rows left
    for batch in (6, 10, 16):
        rollout, rows = sampled(batch)
        assert rollout.trees == whole.trees
        assert rows < 1.35 * sum(lengths)  # the batch stayed full
        for ours, theirs in zip(rollout.logps, whole.logps, strict=True):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_rows_that_have_ended_change_nothing_for_the_others(tiny: Build) -> None:
    """With fewer end tokens the first tokens of every sample are the same."""
    packed = TreeLM(tiny("llama").double())
    trees = prompts((5, 6, 7), (5, 8), (9,), (10, 11, 12, 13))
    many, none = (DecodeSampler(packed, ends, 16)(trees, 8, Noise(3)) for ends in (tuple(range(20)), ()))
    cut = 0
    for short, long in zip(many.trees, none.trees, strict=True):
        for a, b in zip(short.branches, long.branches, strict=True):
            assert b[: len(a)] == a
            cut += len(b) - len(a)
    assert cut > 100
