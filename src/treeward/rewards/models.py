"""Reward models and ensembles as scorers: their score, or another number read from what they know.

`DIR` is the score: the scalar, or the mean of the distribution over scores. `DIR#READING` is another number of the same
model. Of a distribution over scores:

    mean-sd:K        mean - K * standard deviation
    cvar:LEVEL       mean of the lowest LEVEL of the probability
    quantile:LEVEL   the lowest score whose cumulative probability reaches LEVEL
    tail:SCORE       probability of SCORE or more
    entropic:KAPPA   -(1 / KAPPA) log E[e^(-KAPPA score)]; without KAPPA, 1 / beta of the run's KL coefficient
    beats-reference  probability of a higher score than the start model's responses have, ties half

Of any reward model:

    par              mean over the start model's responses of sigmoid(score - their score)   (arXiv:2502.18770)

Of an ensemble, the directory of `treeward reward --members M`, whose members are scaled to mean 0 and standard
deviation 1 on their held-out pairs:

    mean             mean over the members
    worst            the lowest member
    mean-spread:K    mean - K * standard deviation over the members
    entropic:KAPPA   -(1 / KAPPA) log mean e^(-KAPPA score)

Each is a function of prompt and response, so it is a reward like any other and leaves the policy gradient unbiased.

With the KL coefficient beta, `entropic` with kappa = 1 / beta is the reward that a policy effectively maximises if the
score is uncertain (arXiv:2606.09073).

Letters: N responses, M members or reference responses, A attributes, B score bins.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.data.render import opening_id
from treeward.errors import UserError
from treeward.losses import risk
from treeward.losses.heads import Attributes, Scalar
from treeward.models import ensemble
from treeward.models.reward_model import RewardModel
from treeward.trees.rollout import Rollout
from treeward.trees.text import Response, Tree
from treeward.trees.tokens import Tokenizer, TokenTree, decode

log = logging.getLogger(__name__)

ENSEMBLE = "ensemble.json"
"""The file of an ensemble's directory that names its members and their scales."""

Responses = Callable[[Sequence[TokenTree]], Rollout]
"""Responses of the start model to these prompts, equally many for each."""


@dataclass(frozen=True)
class RunOptions:
    """What a training run lends to its rewards.

    `kappa` is 1 / beta of its KL coefficient, None where beta is 0 or changes or scores are normalised. `responses`
    samples from the start model. `processes` and `timeout` (seconds a call) are for slow Python functions; 0 processes
    call them in this one.
    """

    kappa: float | None = None
    responses: Responses | None = None
    processes: int = 0
    timeout: float = 60.0

    def weighted(self, weight: float) -> "RunOptions":
        """For a reward of this weight w: w * r is charged at beta, which is r at beta / w."""
        return replace(self, kappa=self.kappa * weight) if self.kappa and weight > 0 else replace(self, kappa=None)


class RewardModelScorer:
    """A trained reward model.

    A model with the policy's vocabulary scores the ids as they are. Any other model gets the text, rendered by its own
    tokenizer; a chat becomes plain text, because its turns cannot be recovered from ids. A model that was trained on
    texts without prompts gets prompt and response as one text. Texts longer than in training are cut as in training.

    Args:
        model: The reward model.
        name: The name that messages and receipts show.
        measure: From log-probabilities over scores, (N, A, B), to one number an attribute, (N, A); by default the mean.
    """

    def __init__(self, model: RewardModel, name: str, measure: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model = model
        self.name = name
        self.measure = measure
        self.cut = 0
        """Trees that had a text longer than in training."""
        self._warned = False

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        trees = self.inputs(rollout)
        if self.measure is None:
            return self.model.score(trees)
        return of_attributes(self.model, self.measure(self.log_probs(trees)))

    def log_probs(self, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N A B"]:
        """log p(k) over the scores 1..B of every branch."""
        return self.model.head.log_probs(self.model.outputs(trees))  # type: ignore[union-attr]

    def inputs(self, rollout: Rollout) -> list[Tree] | list[TokenTree]:
        """The rollout as the model reads it."""
        tokenizer = rollout.tokenizer
        if self.model.reads_whole:
            return [Tree("", [text], group=text) for text in rollout.texts()]
        if self.model.tokenizer.get_vocab() == tokenizer.get_vocab():
            return [self._cut_to_budgets(tree) for tree in rollout.trees]
        if not self._warned and any(_is_chat(tree, tokenizer) for tree in rollout.trees):
            self._warned = True
            log.warning(
                "scorer %r has another vocabulary and reads these chats as plain text, without its template", self.name
            )
        return [_as_text(tree, tokenizer) for tree in rollout.trees]

    def _cut_to_budgets(self, tree: TokenTree) -> TokenTree:
        """The tree at the budgets of the model's training: prompts cut on the left, responses on the right."""
        budgets = self.model.budgets
        if budgets is None:
            return tree
        prompt, branches = tree.prompt, tuple(branch[: budgets.max_response] for branch in tree.branches)
        if len(prompt) > budgets.max_prompt:
            has_bos = prompt[0] == opening_id(self.model.tokenizer) and budgets.max_prompt > 1
            prompt = (prompt[0], *prompt[1 - budgets.max_prompt :]) if has_bos else prompt[-budgets.max_prompt :]
        if (prompt, branches) != (tree.prompt, tree.branches):
            if not self.cut:
                log.warning(
                    "scorer %r was trained with prompts of %d and responses of %d tokens; longer ones are cut",
                    self.name,
                    budgets.max_prompt,
                    budgets.max_response,
                )
            self.cut += 1
        return replace(tree, prompt=prompt, branches=branches)


@dataclass(frozen=True)
class AgainstReference:
    """Compares each response with the start model's responses to the same prompt.

    `values` gives what is compared of every branch: (N,) scores, or (N, A, B) log-probabilities. `compare` takes those
    of the responses of one prompt and of its reference responses, (K, ...) and (M, ...), and gives (K,). Reference
    responses are sampled and scored once a prompt.
    """

    name: str
    values: Callable[[Rollout], Tensor]
    compare: Callable[[Tensor, Tensor], Tensor]
    responses: Responses
    _known: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        new = {tree.prompt: tree for tree in rollout.trees if tree.prompt not in self._known}
        if new:
            sampled = self.responses(list(new.values()))
            by_tree = _by_tree(self.values(sampled), sampled.trees)
            self._known.update(zip(new, by_tree, strict=True))
        values = _by_tree(self.values(rollout), rollout.trees)
        compared = [self.compare(v, self._known[t.prompt]) for v, t in zip(values, rollout.trees, strict=True)]
        return torch.cat(compared)


@dataclass(frozen=True)
class EnsembleScorer:
    """Several reward models, their standardised scores combined to one."""

    name: str
    members: Sequence[RewardModelScorer]
    centres: Sequence[float]
    scales: Sequence[float]
    combine: Callable[[Float[Tensor, "M N"]], Float[Tensor, "N"]]

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        scores = torch.stack([member(rollout) for member in self.members])
        return self.combine((scores - torch.tensor(self.centres)[:, None]) / torch.tensor(self.scales)[:, None])


def of_attributes(model: RewardModel, values: Float[Tensor, "N A"]) -> Float[Tensor, "N"]:
    """The weighted sum over attributes, with the weights of the model's score."""
    head = model.head
    return values @ values.new_tensor(head.shares if isinstance(head, Attributes) else (1.0,))


def beats(log_probs: Float[Tensor, "K A B"], reference: Float[Tensor, "M A B"]) -> Float[Tensor, "K A"]:
    """P(score > reference's score) + 1/2 P(equal), mean over the M reference responses, by attribute."""
    below = reference.exp().cumsum(-1) - reference.exp() / 2
    return torch.einsum("kab,mab->ka", log_probs.exp(), below) / len(reference)


def par(scores: Float[Tensor, "K"], reference: Float[Tensor, "M"]) -> Float[Tensor, "K"]:
    """Mean over the M reference responses of sigmoid(score - reference's score); in (0, 1)."""
    return (scores[:, None] - reference).sigmoid().mean(1)


def entropic_over_members(scores: Float[Tensor, "M N"], kappa: float) -> Float[Tensor, "N"]:
    """-(1 / kappa) log mean over members of e^(-kappa score)."""
    return -((-kappa * scores).logsumexp(0) - math.log(len(scores))) / kappa


def reward_model(path: str, name: str, reading: str, run: RunOptions) -> Any:
    """The scorer of a reward model's or an ensemble's directory and the reading after `#`; "" is its score.

    Raises:
        UserError: there is no such reading of this model.
    """
    kind, _, number = reading.partition(":")
    if kind in DIVIDING:
        raise UserError(
            f"the reading {reading!r} divides by the predicted standard deviation: as a factor of the advantage it "
            "makes the expected gradient depend on the baseline; use mean-sd:K, which subtracts it"
        )
    if kind in ENSEMBLE_READINGS and (Path(path) / ENSEMBLE).is_file():
        return _ensemble(Path(path), name, kind, _number(kind, number, run))
    scorer = RewardModelScorer(RewardModel.load(path), name)
    model = scorer.model
    if not reading:
        return scorer
    if kind != "par" and kind not in DISTRIBUTION_READINGS:
        others = [r for r in ENSEMBLE_READINGS if r not in DISTRIBUTION_READINGS]
        raise UserError(
            f"there is no reading {reading!r}; of a distribution over scores there are "
            f"{', '.join([*DISTRIBUTION_READINGS, 'par'])}, of an ensemble's directory {', '.join(others)}"
        )
    value = _number(kind, number, run)
    if kind == "par":
        return AgainstReference(name, scorer, par, _needed(run, kind))
    if isinstance(model.head, Scalar):
        raise UserError(
            f"the reading {kind!r} needs a distribution over scores, and this reward model has a scalar head; train "
            "one with head.kind categorical, or leave #... away"
        )
    if kind == "beats-reference":
        return AgainstReference(
            name,
            lambda rollout: scorer.log_probs(scorer.inputs(rollout)),
            lambda ours, theirs: of_attributes(model, beats(ours, theirs)),
            _needed(run, kind),
        )
    scorer.measure = _measure(kind, value)
    return scorer


def _measure(kind: str, number: float) -> Callable[[Tensor], Tensor]:
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "mean-sd": partial(risk.mean_minus_sd, kappa=number),
        "cvar": partial(risk.cvar, level=number),
        "quantile": partial(risk.quantile, level=number),
        "tail": partial(risk.tail, score=int(number)),
        "entropic": partial(risk.entropic, kappa=number),
    }
    measure = measures[kind]
    measure(torch.zeros(1, 1, 2).log_softmax(-1))  # refuses a number outside its range before anything is scored
    return measure


def _ensemble(path: Path, name: str, kind: str, number: float) -> EnsembleScorer:
    facts = json.loads((path / ENSEMBLE).read_text(encoding="utf-8"))
    if "centres" not in facts:
        raise UserError(f"{str(path)!r} was trained by an earlier version, which kept no scales; train it again")
    combinations: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": ensemble.mean,
        "worst": ensemble.worst,
        "mean-spread": lambda scores: ensemble.mean(scores) - number * ensemble.spread(scores),
        "entropic": lambda scores: entropic_over_members(scores, number),
    }
    members = [
        RewardModelScorer(RewardModel.load(str(path / member / "model")), f"{name}, {member}")
        for member in facts["members"]
    ]
    return EnsembleScorer(name, members, facts["centres"], facts["scales"], combinations[kind])


NUMBERS: Mapping[str, str] = {
    "mean-sd": "1", "cvar": "0.25", "quantile": "0.25", "tail": "8", "entropic": "5", "mean-spread": "1",
}  # fmt: skip
"""The readings that take a number, each with an example."""
DISTRIBUTION_READINGS = ("mean-sd", "cvar", "quantile", "tail", "entropic", "beats-reference")
ENSEMBLE_READINGS = ("mean", "worst", "mean-spread", "entropic")
DIVIDING = ("mean/sd", "divide-by-sd", "sharpe")
"""Names under which a division by the predicted spread might be asked for."""
READINGS = {*DISTRIBUTION_READINGS, *ENSEMBLE_READINGS, "par", *DIVIDING}
"""Every name after `#` that is a reading; others are labels of classifiers."""


def _number(kind: str, text: str, run: RunOptions) -> float:
    """The number after the colon of a reading.

    Raises:
        UserError: it is missing, no number, or there is one where none belongs.
    """
    if kind not in NUMBERS:
        if text:
            raise UserError(f"the reading {kind!r} takes no number; write #{kind}")
        return math.nan
    if not text and kind == "entropic" and run.kappa is not None:
        return run.kappa
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        run_alone = (
            ""
            if kind != "entropic"
            else " (without it, a run with a fixed kl.beta above 0 and raw scores uses 1 / beta)"
        )
        raise UserError(f"the reading {kind!r} needs a number, not {text!r}: write #{kind}:{NUMBERS[kind]}{run_alone}")
    return number


def _needed(run: RunOptions, kind: str) -> Responses:
    if run.responses is None:
        raise UserError(
            f"the reading {kind!r} compares with responses of the start model, so it is a reward of "
            "`treeward reinforce` only; name the reward model without it here"
        )
    return run.responses


def _by_tree(values: Tensor, trees: Sequence[TokenTree]) -> list[Tensor]:
    return list(torch.split(values, [len(tree.branches) for tree in trees]))


def _is_chat(tree: TokenTree, tokenizer: Tokenizer) -> bool:
    """Whether the prompt has special tokens after the first one, as a chat template inserts them."""
    return not set(tokenizer.all_special_ids).isdisjoint(tree.prompt[1:])


def _as_text(tree: TokenTree, tokenizer: Tokenizer) -> Tree:
    special = set(tokenizer.all_special_ids)
    responses = [Response(decode(b, tokenizer), finished=b[-1] in special) for b in tree.branches]
    return Tree(decode(tree.prompt, tokenizer), responses, group=tree.group)
