"""Invariants of every preference loss, on random pairs."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_of_pairs import DIFFERENCE, LOSSES, WITH_REFERENCE, pairs, reordered

from treeward.losses import preference as p
from treeward.losses.preference import IPO, Hinge, PairScores, Robust, Sigmoid

RATIO = st.floats(-60, 60, allow_nan=False).map(lambda v: round(v, 3))
PAIR = st.tuples(RATIO, RATIO, st.integers(1, 40), st.integers(1, 40), st.floats(-5, -0.01), st.floats(-5, -0.01))
PAIRS = st.lists(PAIR, min_size=1, max_size=8)
SWAPS = [loss for loss in DIFFERENCE if isinstance(loss, Sigmoid | Robust | Hinge)]

SIDED = (p.NCA, p.BCO, p.SPPOHard, p.APOZero, p.APODown, p.DPOP)
BY_LENGTH = (p.IPO, p.NormalisedSigmoid)


def drawn(rows: list[Any], dtype: torch.dtype = torch.float64) -> PairScores:
    """Pairs from drawn rows: log-ratios, lengths, mean log-probabilities."""
    x, y, m, n, a, b = zip(*rows, strict=True)
    logps = [s * t for s, t in zip(a, m, strict=True)], [s * t for s, t in zip(b, n, strict=True)]
    return pairs(x, y, (m, n), logps, dtype)


def shifted(scores: PairScores, by: float) -> PairScores:
    return PairScores(
        **{
            **vars(scores),
            "chosen_logratios": scores.chosen_logratios + by,
            "rejected_logratios": scores.rejected_logratios + by,
        }
    )


@pytest.mark.parametrize("loss", DIFFERENCE, ids=repr)
@given(rows=PAIRS, shift=st.floats(-50, 50))
@settings(max_examples=20)
def test_i_adding_a_constant_to_both_log_ratios_changes_nothing(loss: Any, rows: list[Any], shift: float) -> None:
    scores = drawn(rows)
    torch.testing.assert_close(loss(shifted(scores, shift)), loss(scores), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [loss for loss in WITH_REFERENCE if not loss.admits_divergence], ids=repr)
def test_i_adding_a_constant_changes_the_losses_that_refuse_divergences(loss: Any) -> None:
    """They depend on more than the difference."""
    scores = pairs([1.0, -2.0, 0.5], [0.3, 1.5, -4.0], ([3, 5, 2], [8, 2, 7]))
    assert (loss(shifted(scores, -1.7)) - loss(scores)).abs().max() > 1e-4


@pytest.mark.parametrize("loss", DIFFERENCE, ids=repr)
@given(rows=PAIRS)
@settings(max_examples=20)
def test_ii_the_two_gradients_are_opposite(loss: Any, rows: list[Any]) -> None:
    scores = drawn(rows)
    for side in (scores.chosen_logratios, scores.rejected_logratios):
        side.requires_grad_(True)
    loss(scores).sum().backward()
    torch.testing.assert_close(scores.chosen_logratios.grad, -scores.rejected_logratios.grad, rtol=1e-12, atol=0)


def test_every_loss_is_of_exactly_one_kind() -> None:
    """So no loss escapes the tests of its kind."""
    for loss in LOSSES:
        kinds = [loss.admits_divergence, isinstance(loss, SIDED), isinstance(loss, BY_LENGTH), not loss.needs_reference]
        assert sum(kinds) == 1 or isinstance(loss, p.Sum), loss


@pytest.mark.parametrize(
    ("loss", "finite"),
    [(Sigmoid(flip=0.2), True), (IPO(), True), (p.EXO(), True), (Sigmoid(), False), (Robust(), False)],
    ids=repr,
)
def test_iii_which_have_a_finite_optimum(loss: Any, finite: bool) -> None:
    grid = torch.linspace(-400, 400, 80_001, dtype=torch.float64)
    best = loss(pairs(grid, torch.zeros_like(grid))).argmin().item()
    assert (0 < best < len(grid) - 1) == finite


@pytest.mark.parametrize("loss", DIFFERENCE, ids=repr)
@given(rows=PAIRS)
@settings(max_examples=20)
def test_iv_swapping_a_pair_negates_its_difference(loss: Any, rows: list[Any]) -> None:
    scores = drawn(rows)
    swapped = PairScores(
        **{**vars(scores), "chosen_logratios": scores.rejected_logratios, "rejected_logratios": scores.chosen_logratios}
    )
    zero = torch.zeros_like(scores.chosen_logratios)
    negated = PairScores(
        **{
            **vars(scores),
            "chosen_logratios": zero,
            "rejected_logratios": scores.chosen_logratios - scores.rejected_logratios,
        }
    )
    torch.testing.assert_close(loss(swapped), loss(negated), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", SWAPS, ids=repr)
@given(rows=PAIRS)
@settings(max_examples=20)
def test_iv_by_how_much_the_swapped_loss_differs(loss: Any, rows: list[Any]) -> None:
    """-log sigma(-d) = d - log sigma(d); hinge(-d) = max(0, 1 + d)."""
    scores = drawn(rows)
    d = loss.beta * (scores.chosen_logratios - scores.rejected_logratios)
    if getattr(loss, "clip", None) is not None:
        d = d.clamp(-loss.clip, loss.clip)
    swapped = loss(
        PairScores(
            **{
                **vars(scores),
                "chosen_logratios": scores.rejected_logratios,
                "rejected_logratios": scores.chosen_logratios,
            }
        )
    )
    if isinstance(loss, Hinge):
        expected = (1 + d).clamp(min=0)
    else:
        expected = loss(scores) + d * (1 - 2 * loss.flip if isinstance(loss, Sigmoid) else 1 / (1 - 2 * loss.flip))
    torch.testing.assert_close(swapped, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(rows=PAIRS, data=st.data())
@settings(max_examples=15)
def test_v_a_pair_s_loss_does_not_depend_on_the_other_pairs(loss: Any, rows: list[Any], data: Any) -> None:
    scores = drawn(rows, torch.float32)
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    whole = loss(scores)
    torch.testing.assert_close(loss(reordered(scores, order)), whole[order], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss(reordered(scores, order[:1])), whole[order[:1]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(rows=PAIRS)
@settings(max_examples=15)
def test_a_loss_reads_only_what_it_declares(loss: Any, rows: list[Any]) -> None:
    """Without a reference, log-ratios may be NaN. With one, log-probabilities may be missing, except in sums."""
    scores = drawn(rows)
    nothing = torch.full_like(scores.chosen_logratios, torch.nan)
    if not loss.needs_reference:
        blind = PairScores(**{**vars(scores), "chosen_logratios": nothing, "rejected_logratios": nothing})
    elif isinstance(loss, p.Sum):
        blind = scores
    else:
        blind = PairScores(**{**vars(scores), "chosen_logps": None, "rejected_logps": None})
    assert loss(blind).tolist() == loss(scores).tolist()
    assert torch.isfinite(loss(blind)).all()
    for side in loss.rewards(blind):
        assert torch.isfinite(side).all()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_margins_are_honoured_where_they_are_taken(loss: Any) -> None:
    scores = pairs([1.0, -2.0], [0.3, 1.5], ([3, 5], [8, 2]))
    with_margins = PairScores(**{**vars(scores), "margins": torch.tensor([0.4, 0.4])})
    changed = (loss(with_margins) - loss(scores)).abs().max() > 1e-3
    assert bool(changed) == loss.takes_margin
