"""Parts by group: stable, disjoint, of the right size."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.data.splits import NAMES, PARTS, Part, Use, edges, named, part_at, shuffled, unit


def part_of(group: str, seed: int, validation: float, test: float) -> Part:
    """The part of a group with expected shares, as `prepare` puts it there."""
    return part_at(unit(group, seed), edges((), validation, test))


GROUPS = st.lists(st.text(max_size=12), min_size=1, max_size=30)


@given(GROUPS, st.randoms(use_true_random=False), st.integers(0, 5))
def test_a_part_depends_on_the_group_and_the_seed_alone(groups: list[str], chance: object, seed: int) -> None:
    before = {group: part_of(group, seed, 0.2, 0.3) for group in groups}
    chance.shuffle(groups)  # type: ignore[attr-defined]
    assert {group: part_of(group, seed, 0.2, 0.3) for group in groups} == before


@given(GROUPS, st.integers(0, 5))
def test_units_lie_in_the_unit_interval(groups: list[str], seed: int) -> None:
    assert all(0 <= unit(group, seed) < 1 for group in groups)


def test_the_unit_is_the_head_of_a_sha256_sum() -> None:
    """`printf '0:the film' | sha256sum | cut -c1-16`, over 2^64: another hash would move every prompt of every run."""
    assert unit("the film", 0) == 0x1B9F2466DFE9450E / 2**64
    assert unit("the film", 1) == 0xBACF73D93A9FE581 / 2**64


@pytest.mark.parametrize("use", [use for use in get_args(Use) if use != "split"])
def test_each_use_of_the_hash_is_independent_of_the_split(use: Use) -> None:
    """400 of 4,000 groups are in the test part; the first tenth by another use holds a tenth of them, 40 +- 5 x 6."""
    groups = [f"group {n}" for n in range(4000)]
    both = sum(unit(group, 3) < 0.1 and unit(group, 3, use) < 0.1 for group in groups)
    assert 10 <= both <= 70
    others = [other for other in get_args(Use) if other != use]
    assert all(unit("group", 3, use) != unit("group", 3, other) for other in others)


def test_shares_are_kept_up_to_chance() -> None:
    parts = [part_of(f"group {n}", 7, 0.1, 0.25) for n in range(4000)]
    for part, share in zip(PARTS, (0.65, 0.1, 0.25), strict=True):
        assert parts.count(part) / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_another_seed_moves_groups() -> None:
    groups = [f"group {n}" for n in range(200)]
    sides = [[part_of(group, seed, 0.0, 0.5) for group in groups] for seed in (0, 1)]
    moved = sum(a != b for a, b in zip(*sides, strict=True))
    assert 60 < moved < 140


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_validation_share_takes_from_training_only(seed: int) -> None:
    for n in range(300):
        small, large = (part_of(f"g{n}", seed, share, 0.2) for share in (0.1, 0.4))
        assert small == large or (small, large) == ("train", "validation")


def test_shares_of_zero_leave_all_for_training() -> None:
    assert {part_of(f"g{n}", 0, 0.0, 0.0) for n in range(500)} == {"train"}


def exact(groups: list[str], validation: float, test: float) -> list[Part]:
    places = [unit(group, 0) for group in groups]
    ends = edges(places, validation, test, "exact")
    return [part_at(place, ends) for place in places]


def test_exact_shares_of_helpsteer() -> None:
    """8,678 rows, a prompt each: the published 6,942 and 1,736."""
    parts = exact([f"prompt {n}" for n in range(8678)], 0.0, 0.2)
    assert (parts.count("train"), parts.count("validation"), parts.count("test")) == (6942, 0, 1736)


def test_exact_shares_take_the_groups_in_the_order_of_their_hashes() -> None:
    groups = [f"g{n}" for n in range(10)]
    parts = dict(zip(groups, exact(groups, 0.3, 0.2), strict=True))
    ordered = sorted(groups, key=lambda group: unit(group, 0))
    assert [parts[group] for group in ordered] == ["test"] * 2 + ["validation"] * 3 + ["train"] * 5


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.floats(0, 0.5), st.floats(0, 0.49))
def test_exact_shares_are_off_by_less_than_half_the_group_at_the_edge(
    rows: list[int], validation: float, test: float
) -> None:
    groups = [f"group {n}" for n in rows]
    parts = exact(groups, validation, test)
    largest = max(groups.count(group) for group in groups)
    assert len(set(zip(groups, parts, strict=True))) == len(set(groups))
    assert abs(parts.count("test") - test * len(rows)) <= largest / 2 + 1e-9
    assert abs(parts.count("train") - (1 - test - validation) * len(rows)) <= largest / 2 + 1e-9


@pytest.mark.parametrize(("name", "part"), NAMES.items())
def test_named_splits_are_read_in_any_case(name: str, part: str) -> None:
    assert named(name) == named(name.upper()) == part
    assert part in PARTS


@pytest.mark.parametrize("value", ["unsupervised", 3, None, ""])
def test_an_unknown_split_name_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=f"column 'split' holds {value!r}"):
        named(value)


@given(st.lists(st.tuples(st.text(max_size=5), st.integers()), max_size=20, unique_by=lambda pair: pair[0]))
def test_shuffling_depends_on_names_not_on_order(items: list[tuple[str, int]]) -> None:
    assert shuffled(items, 1, "pairing") == shuffled(items[::-1], 1, "pairing")
    assert sorted(shuffled(items, 1, "pairing")) == sorted(item for _, item in items)


def test_shuffling_is_a_shuffle() -> None:
    items = [(f"{n:03}", n) for n in range(100)]
    assert shuffled(items, 0, "pairing") != list(range(100))
    assert shuffled(items, 0, "pairing") != shuffled(items, 1, "pairing")


def test_all_turns_of_a_dialogue_are_one_group() -> None:
    from treeward.data.formats import messages, transcript_turns

    spoken = [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")]
    assert [tree.group for tree in messages({"messages": spoken}, "all")] == ["user: user 0"] * 3
    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    trees = transcript_turns({"chosen": dialogue}, "all")
    assert [tree.group for tree in trees] == ["human: a"] * 2
    assert [tree.responses[0].text for tree in trees] == [" b", " d"]
