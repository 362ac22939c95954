"""Merging by closed forms: ends, equal and opposite task vectors, lengths, angles, order; and what cannot be merged."""

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from treeward.errors import UserError
from treeward.merging import Merged, average, balanced_slerp, lerp, linear, slerp

ZERO = {"w": torch.zeros(6)}


def model(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor([*values, *[0.0] * (6 - len(values))])}


def random_model(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(40, 7, generator=noise)
        for name in (
            "model.embed.weight",
            "model.layers.0.a.weight",
            "model.layers.0.b.weight",
            "model.layers.1.a.weight",
        )
    }


def moved(start: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    return {name: start[name] + vector for name, vector in random_model(seed, 0.01).items()}


def length(merged: Merged) -> float:
    return float(merged.weights["w"].norm())


# Spherical interpolation


def test_task_vectors_at_a_right_angle_and_unequal_lengths() -> None:
    ends = [model(3.0), model(0.0, 4.0)]
    assert length(slerp(ZERO, ends)) == pytest.approx(3.535534, abs=1e-6)
    assert length(linear(ZERO, ends)) == pytest.approx(2.5)


@pytest.mark.parametrize("degrees", [5.0, 40.0, 60.0, 90.0, 120.0, 175.0])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_equal_lengths_are_kept_and_the_angle_is_divided(degrees: float, share: float) -> None:
    angle = math.radians(degrees)
    merged = slerp(ZERO, [model(2.0), model(2 * math.cos(angle), 2 * math.sin(angle))], weight=share)
    x, y = merged.weights["w"][:2].tolist()
    assert length(merged) == pytest.approx(2.0, abs=1e-6)
    assert math.atan2(y, x) == pytest.approx(share * angle, abs=1e-6)
    assert merged.angles["w"] == pytest.approx((degrees,), abs=1e-5)
    assert merged.norms["w"] == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("degrees", [60.0, 90.0])
def test_the_mean_is_shorter_by_the_cosine_of_half_the_angle(degrees: float) -> None:
    angle = math.radians(degrees)
    ends = [model(1.0), model(math.cos(angle), math.sin(angle))]
    assert length(linear(ZERO, ends)) / length(slerp(ZERO, ends)) == pytest.approx(math.cos(angle / 2))


def test_the_ends_are_the_members_bit_for_bit() -> None:
    start = random_model(0)
    members = [moved(start, 1), moved(start, 2)]
    for share, member in zip((0.0, 1.0), members, strict=True):
        merged = slerp(start, members, weight=share).weights
        assert all(torch.equal(merged[name], member[name]) for name in start)


def test_equal_members_give_the_member_and_are_reported_as_linear() -> None:
    start = random_model(0)
    member = moved(start, 1)
    merged = slerp(start, [member, member, member])
    assert all(torch.equal(merged.weights[name], member[name]) for name in start)
    assert all(group.fallback for group in merged.groups)
    assert merged.angles["model.layers.0"] == pytest.approx((0.0, 0.0, 0.0), abs=1e-5)


def test_opposite_task_vectors_cancel_and_are_reported() -> None:
    merged = slerp(ZERO, [model(1.0), model(-1.0)])
    assert length(merged) == 0.0
    assert merged.groups[0].fallback
    assert merged.angles["w"] == pytest.approx((180.0,))


def test_a_member_that_did_not_move_is_interpolated_linearly() -> None:
    merged = slerp(ZERO, [model(1.0), ZERO])
    assert merged.weights["w"][0] == 0.5
    assert math.isnan(merged.angles["w"][0])
    assert merged.groups[0].fallback


@pytest.mark.parametrize(
    ("members", "weights"),
    [
        (3, [0.612372, 0.612372, 0.5]),
        (4, [0.566, 0.566, 0.462, 0.383]),
        (5, [0.538, 0.538, 0.439, 0.364, 0.309]),
    ],
)
def test_the_sequential_rule_on_orthonormal_task_vectors(members: int, weights: list[float]) -> None:
    merged = slerp(ZERO, [{"w": torch.eye(6)[number]} for number in range(members)])
    assert merged.weights["w"][:members].tolist() == pytest.approx(weights, abs=5e-4)
    assert length(merged) == pytest.approx(1.0)
    assert merged.groups[0].coefficients == pytest.approx(merged.weights["w"][:members].tolist())


def test_the_order_of_three_members_matters_only_to_the_sequential_rule() -> None:
    start = random_model(0)
    members = [moved(start, seed) for seed in (1, 2, 3)]
    name = "model.layers.0.a.weight"
    for rule, least, most in ((slerp, 1e-4, 1.0), (balanced_slerp, 0.0, 1e-7)):
        merged = [rule(start, [members[n] for n in order]).weights[name] for order in permutations(range(3))]
        largest = max(float((a - merged[0]).abs().max()) for a in merged)
        assert least <= largest <= most


@pytest.mark.parametrize("degrees", [10.0, 60.0, 90.0, 130.0])
def test_the_balanced_rule_for_two_is_slerp_at_one_half(degrees: float) -> None:
    angle = math.radians(degrees)
    ends = [model(1.5), model(0.4 * math.cos(angle), 0.4 * math.sin(angle))]
    assert torch.allclose(balanced_slerp(ZERO, ends).weights["w"], slerp(ZERO, ends).weights["w"], atol=1e-7)


def test_the_balanced_rule_on_orthonormal_task_vectors_and_where_they_cancel() -> None:
    merged = balanced_slerp(ZERO, [{"w": torch.eye(6)[number]} for number in range(4)])
    assert merged.weights["w"][:4].tolist() == pytest.approx([0.5] * 4)
    triangle = [model(math.cos(a), math.sin(a)) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    cancelled = balanced_slerp(ZERO, triangle)
    assert length(cancelled) == pytest.approx(0.0, abs=1e-6)
    assert cancelled.groups[0].fallback


def test_full_weights_are_nearly_parallel_and_task_vectors_are_not() -> None:
    start = {"w": torch.randn(5000, generator=torch.Generator().manual_seed(0))}
    members = [
        {"w": start["w"] + 0.01 * torch.randn(5000, generator=torch.Generator().manual_seed(seed))} for seed in (1, 2)
    ]
    nothing = {"w": torch.zeros(5000)}
    assert slerp(start, members).angles["w"][0] == pytest.approx(90, abs=3)
    assert slerp(nothing, members).angles["w"][0] < 2


# Groups


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ("block", ["model.embed", "model.layers.0", "model.layers.1"]),
        ("all", ["all"]),
        ("tensor", list(random_model(0))),
    ],
)
def test_each_group_has_its_own_angle(groups: Any, names: list[str]) -> None:
    start = random_model(0)
    members = [moved(start, 1), moved(start, 2)]
    merged = slerp(start, members, groups=groups)
    assert [group.name for group in merged.groups] == names
    for group in merged.groups:
        inside = [name for name in start if groups == "all" or name.startswith(group.name)]
        a, b = (torch.cat([(member[n] - start[n]).flatten().double() for n in inside]) for member in members)
        assert group.angles[0] == pytest.approx(math.degrees(math.acos(torch.cosine_similarity(a, b, 0))), abs=1e-4)
        assert group.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-5)
        angle = math.radians(group.angles[0])
        expected = (a + b) * math.sin(angle / 2) / math.sin(angle)
        assert group.merged == pytest.approx(float(expected.norm()), rel=1e-5)
        result = torch.cat([(merged.weights[n].double() - start[n]).flatten() for n in inside])
        assert torch.allclose(result, expected, atol=1e-6)


def test_blocks_of_other_layouts() -> None:
    names = ["transformer.h.11.attn.c_attn.weight", "transformer.ln_f.bias", "bert.encoder.layer.0.output.dense.bias",
             "model.layers.2.mlp.experts.7.up_proj.weight", "lm_head.weight", "bias"]  # fmt: skip
    start = {name: torch.ones(2) for name in names}
    merged = linear(start, [start])
    assert [group.name for group in merged.groups] == [
        "transformer.h.11", "transformer.ln_f", "bert.encoder.layer.0", "model.layers.2", "lm_head", "bias",
    ]  # fmt: skip


# Linear interpolation


def test_interpolation_gives_its_ends_bit_for_bit() -> None:
    start = {"w": torch.tensor([-0.0, 1e-30, 3.0, math.inf])}
    end = {"w": torch.tensor([1.0, -2.5, -0.0, 0.1])}
    for weight, expected in ((0.0, start), (1.0, end)):
        result = lerp(start, towards=end, weight=weight)["w"]
        assert torch.equal(result, expected["w"])
        assert torch.equal(result.signbit(), expected["w"].signbit())


def test_an_exponential_moving_average_has_its_closed_form() -> None:
    mean, policy = {"w": torch.ones(1, dtype=torch.float64)}, {"w": torch.zeros(1, dtype=torch.float64)}
    lag = torch.zeros(1, dtype=torch.float64)
    for step in range(100):
        mean = lerp(mean, towards=policy, weight=0.01)
        lag = lerp({"w": lag}, towards={"w": torch.full((1,), step + 1.0, dtype=torch.float64)}, weight=0.01)["w"]
    assert float(mean["w"]) == pytest.approx(0.366032, abs=1e-6)
    assert 100 - float(lag) == pytest.approx(62.762798, abs=1e-6)


def test_two_rounds_of_merging_and_interpolating() -> None:
    """WARP with two iterations and eta 1/2 on scripted task vectors: a quarter of the first and half of the second."""
    first, second = {"w": torch.eye(6)[0]}, torch.eye(6)[1]
    start = lerp(ZERO, towards=first, weight=0.5)
    merged = {"w": start["w"] + second}
    assert lerp(ZERO, towards=merged, weight=0.5)["w"][:2].tolist() == [0.25, 0.5]
    assert lerp(ZERO, towards=lerp(start, towards=merged, weight=0.5), weight=0.5)["w"][:2].tolist() == [0.25, 0.25]


def test_weights_of_members() -> None:
    ends = [model(4.0), model(0.0, 4.0)]
    assert linear(ZERO, ends, weight=0.25).weights["w"][:2].tolist() == [3.0, 1.0]
    assert linear(ZERO, ends, weight=[3, 1]).weights["w"][:2].tolist() == [3.0, 1.0]
    three = slerp(ZERO, [*ends, model(0.0, 0.0, 4.0)], weight=[1, 1, 0]).weights["w"]
    assert torch.allclose(three, slerp(ZERO, ends).weights["w"])


# Averages


def test_floating_tensors_are_averaged_and_others_stay() -> None:
    members = [{"w": torch.tensor([1.0, value]), "steps": torch.tensor(3)} for value in (2.0, 6.0)]
    merged = average(members)
    assert merged["w"].tolist() == [1.0, 4.0]
    assert merged["steps"].item() == 3
    assert merged["steps"] is not members[0]["steps"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_copies_give_the_copy_in_float32(dtype: torch.dtype) -> None:
    weights = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)}
    merged = average([weights] * 3)["w"]
    assert merged.dtype == torch.float32
    assert torch.equal(merged, weights["w"].float())


def test_small_changes_of_half_precision_weights_are_not_rounded_away() -> None:
    start = {"w": torch.full((4,), 0.0200195, dtype=torch.bfloat16)}
    moved_once = {"w": torch.nextafter(start["w"], torch.ones(4, dtype=torch.bfloat16))}
    step = float(moved_once["w"][0]) - float(start["w"][0])
    assert float(lerp(start, towards=moved_once, weight=0.125)["w"][0] - start["w"][0]) == pytest.approx(step / 8)


def test_the_sum_is_taken_in_float64() -> None:
    merged = average([{"w": torch.tensor([value])} for value in (1e8, 1.0, -1e8)])
    assert merged["w"].item() == pytest.approx(1 / 3)


def test_tensors_of_more_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    start = random_model(0)
    members = [moved(start, 1), moved(start, 2)]
    whole = slerp(start, members)
    monkeypatch.setattr("treeward.merging.arithmetic.CHUNK", 64)
    parts = slerp(start, members)
    assert all(torch.allclose(parts.weights[name], whole.weights[name], rtol=1e-6) for name in start)


# What cannot be merged


def test_tied_tensors_stay_tied_and_count_once() -> None:
    shared = torch.ones(3)
    start = {"embed.weight": shared, "lm_head.weight": shared}
    other = torch.full((3,), 2.0)
    merged = linear(start, [{"embed.weight": other, "lm_head.weight": other}])
    assert merged.weights["lm_head.weight"] is merged.weights["embed.weight"]
    assert [group.name for group in merged.groups] == ["embed"]
    with pytest.raises(UserError, match=r"'lm_head\.weight' is tied to another tensor in one of them only"):
        linear(start, [{"embed.weight": other, "lm_head.weight": other.clone()}])


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([], "members is empty; name at least one"),
        ([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}], "model 1 and model 0 differ: only one has 'a'"),
        ([{"a": torch.zeros(1)}, {"a": torch.zeros(2)}], r"'a' has the shapes \(2,\) and \(1,\); merge models"),
        ([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}], "'a' .*differs between the models"),
        ([{"a": torch.tensor(1)}, {"a": torch.tensor(1.0)}], "'a' is of type torch.float32 and torch.int64"),
    ],
)
def test_models_that_cannot_be_averaged_are_refused(members: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        average(members)


@pytest.mark.parametrize(
    ("weight", "count", "problem"),
    [
        (0.5, 3, "weight is 0.5, the second of two members' share, but there are 3"),
        ([1.0], 2, r"weight is \[1.0\]; it must be 2 numbers from 0"),
        ([1.0, -1.0], 2, "it must be 2 numbers from 0"),
        ([0.0, 0.0], 2, "it must be 2 numbers from 0"),
        (math.nan, 2, "it must be 2 numbers from 0"),
        (None, 0, "members is empty"),
    ],
)
def test_weights_that_do_not_fit_the_members_are_refused(weight: Any, count: int, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        slerp(ZERO, [model(1.0)] * count, weight=weight)
