"""Losses that users write: plain functions, what they may declare, losses from a file, and checks of their results."""

from pathlib import Path
from typing import Any

import pytest
import torch
from losses_of_pairs import LOSSES, pairs
from torch.nn.functional import softplus

from treeward.errors import UserError
from treeward.losses import preference as p
from treeward.losses.divergences import ForwardKL
from treeward.losses.preference import FromFile, PairScores, Sigmoid, Sum, Term
from treeward.methods.dpo import DPOConfig
from treeward.runner import settings

SCORES = pairs([1.0, -2.0, 0.5], [0.3, 1.5, -4.0], ([3, 5, 2], [8, 2, 7]))


def plain(pairs: PairScores, beta: float = 0.3) -> torch.Tensor:
    """Sigmoid, as a user would write it."""
    return softplus(-beta * (pairs.chosen_logratios - pairs.rejected_logratios))


def without_beta(pairs: PairScores) -> torch.Tensor:
    return -pairs.chosen_logratios


# --------------------------------------------------------------------------- declarations


def test_the_defaults_for_a_plain_function() -> None:
    assert p.needs_reference(plain)
    assert p.takes_margins(plain)
    assert p.divergence_refusal(plain) == ""
    assert p.value_at_start(plain, SCORES) is None
    assert p.loss_name(plain) == "plain"
    assert p.required_data(plain) == "pairs"


@pytest.mark.parametrize(("loss", "beta"), [(plain, 0.3), (without_beta, 1.0), (Sigmoid(beta=0.7), 0.7)])
def test_implicit_rewards_are_beta_times_the_log_ratios(loss: Any, beta: float) -> None:
    chosen, rejected = p.implicit_rewards(loss, SCORES)
    assert chosen.tolist() == pytest.approx((beta * SCORES.chosen_logratios).tolist())
    assert rejected.tolist() == pytest.approx((beta * SCORES.rejected_logratios).tolist())


def test_what_a_function_declares_is_read() -> None:
    def declared(pairs: PairScores, beta: float = 2.0) -> torch.Tensor:
        return -beta * pairs.mean_logps()[0]

    functions: Any = declared
    functions.needs_reference, functions.takes_margin, functions.admits_divergence = False, False, False
    functions.divergence_reason = "it has no reference"
    functions.at_start = 4.0
    assert not p.needs_reference(declared)
    assert not p.takes_margins(declared)
    assert p.divergence_refusal(declared) == "it has no reference"
    assert p.value_at_start(declared) == 4.0
    assert p.implicit_rewards(declared, SCORES)[0].tolist() == [-4.0] * 3
    functions.at_start = lambda start: start.chosen_lengths.double().mean().item()
    assert p.value_at_start(declared, SCORES) == pytest.approx(10 / 3)
    functions.rewards = lambda pairs: (pairs.chosen_logps, pairs.rejected_logps)
    assert p.implicit_rewards(declared, SCORES)[1] is SCORES.rejected_logps
    functions.divergence_reason = ""
    assert "declared declares admits_divergence = False" in p.divergence_refusal(declared)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss_of_ours_declares_all(loss: Any) -> None:
    assert p.needs_reference(loss) is loss.needs_reference
    assert p.takes_margins(loss) is loss.takes_margin
    assert bool(p.divergence_refusal(loss)) is not loss.admits_divergence
    assert p.value_at_start(loss, SCORES) == pytest.approx(loss.at_start(SCORES))


def test_a_sum_refuses_a_divergence_by_the_name_of_the_term() -> None:
    assert p.divergence_refusal(Sum()) == ""
    assert p.divergence_refusal(Sum((Term(), Term(loss=p.IPO())))).startswith("IPO: its target")
    assert p.divergence_refusal(Sum((Term(loss=p.ChosenNLL()),))).startswith("ChosenNLL: it has no reference")


# --------------------------------------------------------------------------- results


def leaves() -> PairScores:
    return pairs(torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([0.5, 0.5], requires_grad=True))


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda pairs: 0.5, "type float; it must return a tensor"),
        (lambda pairs: [0.5, 0.5], "type list; it must return a tensor"),
        (lambda pairs: pairs.chosen_logratios.mean(), r"the shape \(\) for 2 pairs.*Do not take the mean"),
        (lambda pairs: pairs.chosen_logratios[:, None], r"the shape \(2, 1\) for 2 pairs"),
        (lambda pairs: pairs.chosen_logratios > 0, "type torch.bool; it must return floating-point"),
        (lambda pairs: pairs.chosen_logratios.detach(), "without a gradient"),
        (lambda pairs: torch.zeros(2), "without a gradient"),
    ],
)
def test_a_wrong_result_is_refused_with_its_fix(loss: Any, problem: str) -> None:
    loss.__name__ = "mine"
    scores = leaves()
    with pytest.raises(UserError, match=f"(?s)the loss 'mine' returned.*{problem}"):
        p.checked_loss_values(loss, loss(scores), 2)


def test_a_right_result_passes_as_it_is() -> None:
    values = plain(leaves())
    assert p.checked_loss_values(plain, values, 2) is values
    with torch.no_grad():
        values = plain(leaves())
        assert p.checked_loss_values(plain, values, 2) is values


# --------------------------------------------------------------------------- from a file

FILE = """
import torch
from torch.nn.functional import softplus
CONSTANT = 3
def loss(pairs, beta=0.3, shift=0.0):
    return softplus(-beta * (pairs.chosen_logratios - pairs.rejected_logratios) + shift)
def free(pairs):
    return -pairs.chosen_logps / pairs.chosen_lengths
free.needs_reference = False
free.takes_margin = False
free.admits_divergence = False
free.at_start = lambda start: 7.0
free.rewards = lambda pairs: (pairs.chosen_logps, pairs.rejected_logps)
def mean(pairs):
    return loss(pairs).mean()
class Loss:
    def __init__(self, beta=0.5):
        self.beta = beta
    def __call__(self, pairs):
        return loss(pairs, self.beta)
class Data:
    pass
runs = []
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def test_a_loss_of_a_file_is_called_with_its_arguments(file: str) -> None:
    assert FromFile(f"{file}:loss")(SCORES).tolist() == plain(SCORES).tolist()
    assert FromFile(f"{file}:loss", {"beta": 0.9})(SCORES).tolist() == plain(SCORES, 0.9).tolist()
    assert FromFile(f"{file}:Loss")(SCORES).tolist() == plain(SCORES, 0.5).tolist()
    assert FromFile(f"{file}:Loss", {"beta": 0.9})(SCORES).tolist() == plain(SCORES, 0.9).tolist()


@pytest.mark.parametrize(
    ("name", "arguments", "beta"),
    [("loss", {}, 0.3), ("loss", {"beta": 0.9}, 0.9), ("Loss", {}, 0.5), ("Loss", {"beta": 0.9}, 0.9)],
)
def test_the_rewards_of_a_loss_of_a_file_use_its_beta(
    file: str, name: str, arguments: dict[str, Any], beta: float
) -> None:
    chosen, _ = p.implicit_rewards(FromFile(f"{file}:{name}", arguments), SCORES)
    assert chosen.tolist() == pytest.approx((beta * SCORES.chosen_logratios).tolist())


def test_what_a_loss_of_a_file_declares_is_honoured(file: str) -> None:
    plain, free = FromFile(f"{file}:loss"), FromFile(f"{file}:free")
    assert (p.needs_reference(plain), p.takes_margins(plain), p.divergence_refusal(plain)) == (True, True, "")
    assert p.value_at_start(plain, SCORES) is None
    assert (p.needs_reference(free), p.takes_margins(free)) == (False, False)
    assert "admits_divergence = False" in p.divergence_refusal(free)
    assert p.value_at_start(free, SCORES) == 7.0
    assert p.implicit_rewards(free, SCORES)[0] is SCORES.chosen_logps
    with pytest.raises(UserError, match=r"margin is 0.5, but loss.kind .*mine.py:free has none"):
        DPOConfig(loss=free, margin=0.5).check_loss()
    with pytest.raises(UserError, match=r"divergence.kind ForwardKL does not go with loss.kind .*mine.py:free"):
        DPOConfig(loss=free, divergence=ForwardKL()).check_loss()


def test_the_file_is_run_once_when_it_is_first_needed(file: str, tmp_path: Path) -> None:
    with open(file, "a") as source:
        source.write(f"\nwith open({str(tmp_path / 'runs')!r}, 'a') as file:\n    file.write('x')\n")
    loss = FromFile(f"{file}:loss")
    config = DPOConfig(loss=loss, divergence=ForwardKL(), margin=0.1)
    assert loss == FromFile(f"{file}:loss")
    assert not (tmp_path / "runs").exists()
    config.check_loss()
    loss(SCORES)
    p.implicit_rewards(loss, SCORES)
    assert (tmp_path / "runs").read_text() == "x"
    assert loss == FromFile(f"{file}:loss")
    assert repr(loss) == repr(FromFile(f"{file}:loss"))


def test_a_sum_may_hold_a_loss_of_a_file(file: str) -> None:
    total = Sum((Term(2.0, FromFile(f"{file}:loss")), Term(1.0, Sigmoid(beta=0.1))))
    expected = 2 * plain(SCORES) + Sigmoid(beta=0.1)(SCORES)
    assert total(SCORES).tolist() == pytest.approx(expected.tolist())
    assert p.value_at_start(total, SCORES) is None
    assert p.loads_file(total)
    assert not p.loads_file(Sum())
    with pytest.raises(UserError, match=r"mine.py:mean' returned the shape"):
        Sum((Term(), Term(loss=FromFile(f"{file}:mean"))))(SCORES)


@pytest.mark.parametrize(
    ("function", "arguments", "problem"),
    [
        ("none.py:loss", {}, "loss.function is .*there is no file"),
        ("mine.py:nothing", {}, "loss.function is .*does not define 'nothing'"),
        ("mine.py:CONSTANT", {}, "loss.function is .*a value of type int and not callable; name a function"),
        ("mine.py:Data", {}, r"loss.function is .*a class without __call__\(self, pairs\); add it"),
        ("mine.py:loss", {"bta": 1}, "loss.arguments is {'bta': 1}, which does not fit .*correct the arguments"),
        ("mine.py:Loss", {"bta": 1}, "loss.arguments is {'bta': 1}, which does not fit .*correct the arguments"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(
    file: str, function: str, arguments: dict[str, Any], problem: str
) -> None:
    loss = FromFile(str(Path(file).parent / function), arguments)
    with pytest.raises(UserError, match=problem):
        p.needs_reference(loss)


def test_a_text_that_names_no_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss.function is 'sigmoid'; write it as FILE.py:NAME"):
        FromFile("sigmoid")
    with pytest.raises(UserError, match=r"loss.function is ''; write it as FILE.py:NAME"):
        p.needs_reference(FromFile())


# --------------------------------------------------------------------------- from configurations


@pytest.mark.parametrize(
    "values",
    [
        {"loss": "my.py:loss"},
        {"loss": {"kind": "from-file", "function": "my.py:loss"}},
        settings.override("loss", "my.py:loss"),
        settings.merge({"loss": {"kind": "hinge", "beta": 0.3}}, settings.override("loss", "my.py:loss")),
        settings.merge({"loss": "their.py:loss"}, settings.override("loss", "my.py:loss")),
    ],
)
def test_a_plain_text_is_a_loss_from_a_file(values: dict[str, Any]) -> None:
    config = settings.build(DPOConfig, values)
    assert config.loss == FromFile("my.py:loss")
    assert settings.build(DPOConfig, settings.dump(config)) == config


def test_arguments_are_set_beside_the_file() -> None:
    values = settings.merge(settings.override("loss", "my.py:loss"), settings.override("loss.arguments.beta", "0.2"))
    assert settings.build(DPOConfig, values).loss == FromFile("my.py:loss", {"beta": 0.2})


def test_a_term_of_a_sum_may_be_a_plain_text() -> None:
    values = {"loss": {"kind": "sum", "terms": [{"loss": "my.py:loss"}, {"weight": 2.0}]}}
    expected = Sum((Term(loss=FromFile("my.py:loss")), Term(2.0)))
    assert settings.build(DPOConfig, values).loss == expected


def test_another_text_is_still_refused() -> None:
    with pytest.raises(UserError, match=r"loss is 'hinge'; it is a group of fields: set loss.kind"):
        settings.build(DPOConfig, settings.override("loss", "hinge"))


def test_a_loss_file_that_only_a_recipe_names_is_not_run() -> None:
    with pytest.raises(UserError, match=r"would run the Python file 'my.py:loss'"):
        settings.refuse_code({"loss": "my.py:loss"}, "recipe")
    settings.refuse_code(settings.override("loss", "my.py:loss"), "recipe")


def test_divergences_that_are_not_offered_give_their_reason() -> None:
    with pytest.raises(UserError, match=r"'total-variation' is not offered: its f'.*use jensen-shannon"):
        settings.build(DPOConfig, {"divergence": {"kind": "total-variation"}})
