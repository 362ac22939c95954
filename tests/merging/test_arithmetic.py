"""Averages of weights by written-out numbers, and members that cannot be averaged."""

from typing import Any

import pytest
import torch

from treeward.errors import UserError
from treeward.merging import average


def test_floating_tensors_are_averaged_and_others_stay() -> None:
    members = [{"w": torch.tensor([1.0, value]), "steps": torch.tensor(3)} for value in (2.0, 6.0)]
    merged = average(members)
    assert merged["w"].tolist() == [1.0, 4.0]
    assert merged["steps"].item() == 3
    assert merged["steps"] is not members[0]["steps"]


def test_copies_give_the_copy_in_its_own_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        weights = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)}
        merged = average([weights] * 3)["w"]
        assert merged.dtype == dtype
        assert torch.equal(merged, weights["w"])


def test_the_sum_is_taken_in_float64() -> None:
    merged = average([{"w": torch.tensor([value])} for value in (1e8, 1.0, -1e8)])
    assert merged["w"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([], "members is empty; name at least one"),
        ([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}], "member 1 and member 0 differ: only one has 'a'"),
        ([{"a": torch.zeros(1)}, {"a": torch.zeros(2)}], r"'a' has the shapes \[\(1,\), \(2,\)\]; average models"),
        ([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}], "'a' .*differs between members"),
    ],
)
def test_members_that_cannot_be_averaged_are_refused(members: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        average(members)
