"""Log-probabilities, entropies and KL against closed forms and against torch's own softmax in float64."""

import math

import pytest
import torch

from treeward.losses.kl import exact_kl, k1
from treeward.losses.logprobs import ROWS, branch_lengths, entropies, sum_by_branch, token_logps


def sample(rows: int, width: int = 50, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with a wide spread and targets, from a seed."""
    draw = torch.Generator().manual_seed(rows)
    logits = (torch.randn(rows, width, generator=draw) * 5).to(dtype).requires_grad_(True)
    return logits, torch.randint(width, (rows,), generator=draw)


def in_float64(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
def test_token_logps_and_their_gradient_are_those_of_log_softmax(rows: int) -> None:
    logits, targets = sample(rows)
    weights = torch.linspace(-2, 3, rows)
    (token_logps(logits, targets) * weights).sum().backward()
    reference = logits.detach().double().requires_grad_(True)
    expected = in_float64(reference, targets)
    (expected * weights).sum().backward()
    torch.testing.assert_close(token_logps(logits, targets).detach().double(), expected.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)


def test_token_logps_of_bf16_logits_are_computed_in_float32() -> None:
    logits, targets = sample(100, dtype=torch.bfloat16)
    values = token_logps(logits, targets)
    values.sum().backward()
    reference = logits.detach().double().requires_grad_(True)
    expected = in_float64(reference, targets)
    expected.sum().backward()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-5)
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=1e-2, atol=1e-5)


def test_token_logps_of_written_out_probabilities() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log() + torch.tensor([[7.0], [-9.0]])
    assert token_logps(logits, torch.tensor([0, 2])).tolist() == pytest.approx([math.log(0.5), math.log(0.7)], abs=1e-5)


def test_token_logps_pass_the_gradient_check_at_a_repeated_target() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    token_logps(logits, torch.tensor([1, 1])).sum().backward()
    assert logits.grad.tolist() == [[-0.5, 0.5], [-0.5, 0.5]]


def test_token_logps_are_differentiable_once_and_say_so() -> None:
    logits, targets = sample(3)
    (slope,) = torch.autograd.grad(token_logps(logits, targets).square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_token_logps_of_no_rows_are_empty() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    values = token_logps(logits, torch.zeros(0, dtype=torch.long))
    values.sum().backward()
    assert values.shape == (0,)
    assert logits.grad.shape == (0, 7)


def test_token_logps_stay_finite_at_huge_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    values = token_logps(logits, torch.tensor([1]))
    values.sum().backward()
    assert values.tolist() == [-2e4]
    assert logits.grad.tolist() == [[-1.0, 1.0, 0.0]]


def test_entropy_of_a_uniform_and_of_a_written_out_distribution() -> None:
    logits = torch.stack([torch.zeros(4), torch.tensor([0.5, 0.25, 0.125, 0.125]).log()])
    assert entropies(logits).tolist() == pytest.approx([math.log(4), 1.75 * math.log(2)], abs=1e-6)


def test_entropy_of_a_point_mass_is_zero() -> None:
    assert entropies(torch.tensor([[200.0, 0.0, 0.0]])).item() == pytest.approx(0.0, abs=1e-7)


def test_g12_kl_of_written_out_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert exact_kl(p, q).item() == pytest.approx(0.173287, abs=1e-6)
    assert exact_kl(q, p).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)


def test_kl_is_not_symmetric_in_its_arguments() -> None:
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert exact_kl(p, q).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert exact_kl(q, p).item() == pytest.approx(0.5 * math.log(1 / 1.8) + 0.5 * math.log(5), abs=1e-6)


def test_kl_of_equal_logits_is_zero_bit_for_bit() -> None:
    logits, _ = sample(80, 200)
    assert exact_kl(logits, logits.clone()).tolist() == [0.0] * 80


def kl_in_float64(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = (x.detach().double().log_softmax(1) for x in (p, q))
    return (p.exp() * (p - q)).sum(1)


def test_kl_and_entropy_of_bf16_logits_are_computed_in_float32() -> None:
    (p, _), (other, _) = sample(80, 200, torch.bfloat16), sample(81, 200, torch.bfloat16)
    q = other[:80]
    kl, spread = exact_kl(p, q), entropies(p)
    assert kl.dtype == spread.dtype == torch.float32
    torch.testing.assert_close(kl.double(), kl_in_float64(p, q), rtol=1e-5, atol=1e-6)
    logps = p.detach().double().log_softmax(1)
    torch.testing.assert_close(spread.double(), -(logps.exp() * logps).sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "close"), [(1e-6, 0.5), (1e-4, 5e-3), (1e-2, 1e-4), (1.0, 1e-5), (30.0, 1e-5)])
def test_kl_is_never_negative_and_nearly_that_of_float64(size: float, close: float) -> None:
    """Also of distributions so alike that the plain sum p (log p - log q) is nothing but rounding of either sign."""
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(40, 5000, generator=draw) * 3
    q = p + size * torch.randn(40, 5000, generator=draw)
    kl = exact_kl(p, q)
    assert (kl >= 0).all()
    torch.testing.assert_close(kl.double(), kl_in_float64(p, q), rtol=close, atol=0)


def test_kl_where_probabilities_are_zero() -> None:
    """Masked by both: as if it were not there. By the policy: nothing of it counts. By the reference alone:
    infinite.
    """
    out = -math.inf
    p, q = torch.tensor([[0.0, out, 0.0]]), torch.tensor([[0.0, out, math.log(3)]])
    assert exact_kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert exact_kl(torch.tensor([[0.0, out]]), torch.tensor([[0.0, 0.0]])).item() == pytest.approx(
        math.log(2), rel=1e-5
    )
    assert exact_kl(torch.tensor([[0.0, -300.0]]), torch.tensor([[-300.0, 0.0]])).item() == pytest.approx(300.0)
    assert exact_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, out]])).item() == math.inf


def test_kl_ignores_a_constant_added_to_the_logits() -> None:
    p, _ = sample(9)
    q, _ = sample(9)
    torch.testing.assert_close(exact_kl(p, q + 3.0), exact_kl(p, q), rtol=1e-5, atol=1e-5)


def test_kl_is_the_mean_of_k1_over_the_vocabulary() -> None:
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    expected = (p * k1(p.log(), q.log())).sum().item()
    assert exact_kl(p.log()[None], q.log()[None]).item() == pytest.approx(expected, abs=1e-6)


def test_sums_and_lengths_by_branch_count_a_branch_without_tokens() -> None:
    values, branch = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 0])
    assert sum_by_branch(values, branch, 4).tolist() == [11.0, 0.0, 4.0, 0.0]
    assert branch_lengths(branch, 4).tolist() == [3, 0, 1, 0]
