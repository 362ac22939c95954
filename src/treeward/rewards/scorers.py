"""Scorers: a rollout in, one number a response out; higher is better.

`find` gives the scorer of a name: the embedded world's gold score, a rule, a Python function, a reward model, or a
public classifier. `as_scorer` accepts the objects themselves too. Every scorer that they return raises `BadScore` where
a score is not a finite number.
"""

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from treeward.data import world
from treeward.errors import UserError
from treeward.models import artifact
from treeward.models.loading import CLASSIFIER, ModelConfig, head_of_config, load, load_tokenizer, model_directory
from treeward.models.reward_model import RewardModel
from treeward.plugins import load_name
from treeward.rewards.models import ENSEMBLE, READINGS, RewardModelScorer, RunOptions, reward_model
from treeward.rewards.pool import FunctionPool
from treeward.trees.rollout import Rollout, Sample
from treeward.trees.tokens import Tokenizer

log = logging.getLogger(__name__)

COUNT = "count:"
"""Begins the name of a `Count`."""
PYTHON = ".py:"
"""Stands in the name of a Python function, between the file and the function."""
BATCH = 32
"""Texts that a classifier reads at a time."""
UNBOUNDED = 1_000_000
"""A tokenizer whose longest input is not known reports a number far above this one."""


@runtime_checkable
class Scorer(Protocol):
    """Scores the branches of a rollout: Float[N], one a branch, trees and branches in order."""

    @property
    def name(self) -> str: ...

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]: ...


AnyScorer = (
    str
    | RewardModel
    | Scorer
    | Callable[[str, str, Mapping[str, Any]], float]
    | Callable[[Sequence[Sample]], Sequence[float]]
)
"""A scorer's name, a reward model, or a function: (prompt, response, row) -> float, or samples -> floats."""


class BadScore(UserError):
    """A scorer failed or returned something else than finite numbers. The message names the scorer and the response.

    `rollout` is what could not be scored, where that is known.
    """

    rollout: Rollout | None = None

    @classmethod
    def of(cls, scorer: str, value: object, number: int, response: str) -> "BadScore":
        """The error for a value that is not a finite number; `number` counts responses from 1."""
        return cls(
            f"scorer {scorer!r} gave {value} for response {number}, {response[:60]!r}; it must give a finite number"
        )


def find(name: str, run: RunOptions | None = None) -> "CheckedScorer":
    """The scorer of a name; `run` is what a training run lends to its rewards.

    - `gold`: the embedded world's known score;
    - `length`: the tokens of a response;
    - `count:WORD`: how often the word occurs in a response;
    - `FILE.py:FUNCTION`: a Python function (`FunctionScorer` says what it is called with);
    - `exact-match`: 1 where the response is the text of the data row's column `answer`, else 0;
    - the directory of a reward model, or of the run that trained it, followed by `#READING` where another number than
      the score is meant (`rewards.models` lists them);
    - the directory or hub id of a sequence classifier, followed by `#LABEL` where one of several labels is meant.

    A directory with `treeward.json`, or whose tokenizer has a chat template, is a reward model; any other one is a
    classifier.

    Raises:
        UserError: there is no such scorer.
    """
    try:
        return CheckedScorer(_load(name, run or RunOptions()), name)
    except UserError as problem:
        message = str(problem)
        raise UserError(message if message.startswith("scorer ") else f"scorer {name!r}: {message}") from None


def as_scorer(scorer: AnyScorer) -> "CheckedScorer":
    """A scorer from a name (see `find`), a reward model, a Python function (see `FunctionScorer`), or a scorer.

    Raises:
        UserError: the name is unknown, or a function takes other arguments than a scorer gives.
    """
    if isinstance(scorer, CheckedScorer):
        return scorer
    if isinstance(scorer, str):
        return find(scorer)
    if isinstance(scorer, RewardModel):
        return CheckedScorer(RewardModelScorer(scorer, "reward model"), "reward model")
    return _from_callable(scorer, str(getattr(scorer, "name", None) or getattr(scorer, "__name__", "function")))


def find_all(scorer: str | None, judges: Sequence[str]) -> tuple[Scorer | None, tuple[Scorer, ...]]:
    """The scorer of the metric, and the judges: scorers that training never used.

    Raises:
        UserError: one does not exist, or a judge is the scorer or is named twice.
    """
    for number, name in enumerate(judges):
        if name == scorer:
            raise UserError(f"evaluation.judges has {name!r}, which is evaluation.scorer as well; name another judge")
        if name in judges[:number]:
            raise UserError(f"evaluation.judges has {name!r} twice; name each judge once")
    return find(scorer) if scorer else None, tuple(map(find, judges))


@dataclass(frozen=True)
class CheckedScorer:
    """A scorer under the name that the user gave, whose scores are known to be finite numbers.

    Raises, when called:
        BadScore: a score is NaN or infinite, or the scorer did not return one number a branch.
    """

    scorer: Scorer
    name: str

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        try:
            return self._checked(rollout)
        except BadScore as problem:
            problem.rollout = rollout
            raise

    def _checked(self, rollout: Rollout) -> Float[Tensor, "N"]:
        scores: Any = self.scorer(rollout)
        count = sum(len(tree.branches) for tree in rollout.trees)
        if not isinstance(scores, Tensor) or scores.shape != (count,) or not scores.is_floating_point():
            raise BadScore(
                f"scorer {self.name!r} returned {_short(scores)} for {count} responses; return a tensor of floats with "
                f"shape ({count},)"
            )
        wrong = (~scores.isfinite()).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise BadScore.of(self.name, scores[place].item(), place + 1, rollout.samples()[place].response)
        return scores


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of scorers; `parts` gives the score of each."""

    scorers: tuple[Scorer, ...]
    weights: tuple[float, ...]

    @classmethod
    def find(
        cls, names: Sequence[str], weights: Sequence[float] = (), run: RunOptions | None = None
    ) -> "Mixture | CheckedScorer":
        """The scorers of these names with their weights (1 each, unless given); a single one of weight 1 as it is.

        Raises:
            UserError: a name is unknown or given twice, or there is another number of weights.
        """
        if weights and len(weights) != len(names):
            raise UserError(f"reward_weights has {len(weights)} numbers, but reward names {len(names)} scorers")
        if len(set(names)) < len(names):
            raise UserError(f"reward names a scorer twice: {', '.join(names)}; name each once, with its weight")
        weights = tuple(weights) or (1.0,) * len(names)
        run = run or RunOptions()
        scorers = tuple(find(name, run.weighted(weight)) for name, weight in zip(names, weights, strict=True))
        return scorers[0] if weights == (1.0,) else cls(scorers, weights)

    @property
    def name(self) -> str:
        """ "gold + 0.5 length"."""
        terms = zip(self.scorers, self.weights, strict=True)
        return " + ".join(scorer.name if weight == 1 else f"{weight:g} {scorer.name}" for scorer, weight in terms)

    def parts(self, rollout: Rollout) -> dict[str, Float[Tensor, "N"]]:
        """The score of each scorer by its name, without its weight."""
        return {scorer.name: scorer(rollout) for scorer in self.scorers}

    def total(self, parts: Mapping[str, Float[Tensor, "N"]]) -> Float[Tensor, "N"]:
        """The weighted sum of these scores."""
        scores = [weight * part for weight, part in zip(self.weights, parts.values(), strict=True)]
        return torch.stack(scores).sum(0)

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        return self.total(self.parts(rollout))


class Gold:
    """The embedded world's known score."""

    name = "gold"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        return torch.tensor([world.gold(sample.prompt, sample.response) for sample in rollout.samples()])


class Length:
    """The number of tokens of a response, the end token included.

    `Length` and `Count` show what a policy can gain without getting better.
    """

    name = "length"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        return torch.tensor([float(len(branch)) for tree in rollout.trees for branch in tree.branches])


@dataclass(frozen=True)
class Count:
    """How often a word occurs in the response: whole words, upper and lower case alike."""

    word: str

    def __post_init__(self) -> None:
        if not self.word.strip():
            raise UserError(f"scorer {self.name!r} names no word; write count:WORD, such as count:good")

    @property
    def name(self) -> str:
        """`count:WORD`."""
        return COUNT + self.word

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        word = re.compile(rf"(?<!\w){re.escape(self.word)}(?!\w)", re.IGNORECASE)
        return torch.tensor([float(len(word.findall(sample.response))) for sample in rollout.samples()])


class ExactMatch:
    """1 where the response is the text of the data row's column `answer`, spaces at both ends left out; else 0.

    Raises, when called:
        BadScore: a row has no such column.
    """

    name = "exact-match"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        samples = rollout.samples()
        for sample in samples:
            if sample.row.get("answer") is None:
                raise BadScore(
                    f"scorer 'exact-match' has no answer for the prompt {sample.prompt[:60]!r}: the data row needs a "
                    "column answer, and data.keep must name it"
                )
        return torch.tensor([float(s.response.strip() == str(s.row["answer"]).strip()) for s in samples])


@dataclass(frozen=True)
class FunctionScorer:
    """A Python function. Its positional parameters decide how it is called:

    - `f(prompt, response, row) -> float`, once a response; `row` is a mapping with the other columns of the data row,
      such as the right answer, empty where the data has none;
    - `f(prompt, response) -> float`, once a response;
    - `f(samples) -> Sequence[float]`, once a rollout, with all its samples (`trees.rollout.Sample`) in order.

    Parameters with a default are left alone, except one that is called `row`. With a `pool` it is called in other
    processes, each call within the pool's time limit.

    Raises:
        UserError: it takes other arguments, or takes all samples at once and has a pool.
    """

    function: Callable[..., Any]
    name: str
    pool: FunctionPool | None = None

    def __post_init__(self) -> None:
        if self.arguments == 1 and self.pool is not None:
            raise UserError(
                f"scorer {self.name!r} takes all samples at once, so it cannot be spread over reward_processes "
                f"{self.pool.processes}; define it as f(prompt, response, row), or leave reward_processes out"
            )
        if self.arguments not in (1, 2, 3):
            raise UserError(
                f"scorer {self.name!r} cannot be called as a scorer: define it as f(prompt, response, row) or "
                "f(prompt, response), which returns a number, or as f(samples), which returns one number a sample"
            )

    @cached_property
    def arguments(self) -> int | None:
        """How many arguments it is called with; None where that is not known or a keyword is required."""
        return _required_arguments(self.function)

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        samples = rollout.samples()
        if self.arguments == 1:
            values = self._all_at_once(samples)
        elif self.pool is not None:
            values = self._in_pool(self.pool, samples)
        else:
            values = [self._one(sample, number) for number, sample in enumerate(samples, 1)]
        scores = [self._number(value, *numbered) for value, numbered in zip(values, enumerate(samples, 1), strict=True)]
        return torch.tensor(scores, dtype=torch.float32)

    def _one(self, sample: Sample, number: int) -> object:
        try:
            return self.function(*self._arguments_of(sample))
        except (Exception, SystemExit) as problem:  # a user's function may raise anything
            raise self._failure(_which(sample, number), problem) from problem

    def _arguments_of(self, sample: Sample) -> tuple[Any, ...]:
        return (sample.prompt, sample.response, sample.row)[: self.arguments]

    def _in_pool(self, pool: FunctionPool, samples: Sequence[Sample]) -> list[object]:
        values: list[object] = []
        for number, answer in enumerate(pool([self._arguments_of(sample) for sample in samples]), 1):
            if answer.problem:
                raise BadScore(f"scorer {self.name!r} failed for {_which(samples[number - 1], number)}{answer.problem}")
            values.append(answer.value)
        return values

    def _all_at_once(self, samples: Sequence[Sample]) -> list[object]:
        try:
            returned: Any = self.function(samples)
        except (Exception, SystemExit) as problem:
            raise self._failure(f"{len(samples)} samples", problem) from problem
        try:
            values = [] if isinstance(returned, str | bytes) else list(returned)
        except TypeError:
            values = []
        if len(values) != len(samples):
            raise BadScore(
                f"scorer {self.name!r} returned {_short(returned)} for {len(samples)} samples; return a sequence of "
                f"{len(samples)} numbers"
            )
        return values

    def _failure(self, what: str, problem: BaseException) -> BadScore:
        frames = traceback.extract_tb(problem.__traceback__)
        return BadScore(
            f"scorer {self.name!r} failed for {what}, in line {frames[-1].lineno} of {frames[-1].filename!r} "
            f"({_reason(problem)})"
        )

    def _number(self, value: Any, number: int, sample: Sample) -> float:
        try:
            if not isinstance(value, str | bytes):
                return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
            pass
        raise BadScore.of(self.name, _short(value), number, sample.response)


class Classifier:
    """A public sequence classifier with its own tokenizer: the score is a raw logit, never a probability.

    With one label the score is its logit, with two the second's minus the first's. `DIR#LABEL` names a label; its score
    is then its log-odds, the logit minus the logsumexp of all others. Probabilities near 0 or 1 leave no room for a
    difference; logits do. Prompt and response are one text, cut on the left to the classifier's longest input.
    """

    def __init__(self, module: Any, tokenizer: Tokenizer, name: str, label: str = "") -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = "left"
        self.name = name
        self.cut = 0
        """Texts that were longer than its input."""
        self.label = _label_index(module.config, name, label)
        candidates = (tokenizer.pad_token_id, module.config.pad_token_id, tokenizer.eos_token_id, 0)
        self.padding = int(next(token for token in candidates if token is not None))
        module.config.pad_token_id = self.padding

    @classmethod
    def load(cls, name: str) -> "Classifier":
        """The classifier of a directory or hub id, with `#LABEL` where one label is meant.

        Raises:
            UserError: nothing loadable is there, or the label is missing or unknown.
        """
        path, _, label = name.partition("#")
        loaded = load(ModelConfig(path=path), AutoModelForSequenceClassification, 0)
        return cls(loaded.model, loaded.tokenizer, name, label)

    @property
    def longest(self) -> int:
        """The most tokens it reads."""
        positions = getattr(self.module.config, "max_position_embeddings", None) or UNBOUNDED
        # RoBERTa's position ids begin after the padding id, so two rows of its position embeddings are never used.
        unused = 2 if "roberta" in str(self.module.config.model_type) else 0
        limit = self.tokenizer.model_max_length or UNBOUNDED
        return int(min(positions - unused, limit, UNBOUNDED))

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        return self.score(rollout.texts())

    def score(self, texts: Sequence[str]) -> Float[Tensor, "N"]:
        """One score a text, in order."""
        if not texts:
            return torch.zeros(0)
        rows = [self._ids(text) for text in texts]
        device = next(self.module.parameters()).device
        scores = torch.zeros(len(rows))
        by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(by_length), BATCH):
            batch = by_length[start : start + BATCH]
            width = max(1, *(len(rows[index]) for index in batch))
            ids = torch.full((len(batch), width), self.padding)
            mask = torch.zeros_like(ids)
            for line, index in enumerate(batch):
                ids[line, : len(rows[index])] = torch.tensor(rows[index])
                mask[line, : len(rows[index])] = 1
            with torch.no_grad():
                logits = self.module(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            scores[batch] = self.scores_of(logits.float().cpu())
        return scores

    def scores_of(self, logits: Float[Tensor, "N C"]) -> Float[Tensor, "N"]:
        """The raw scores of the logits of C labels."""
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = [label for label in range(logits.shape[1]) if label != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(1)

    def _ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text).input_ids)
        if len(ids) <= self.longest:
            return ids
        if not self.cut:
            log.warning("scorer %r reads %d tokens; longer texts are cut on the left", self.name, self.longest)
        self.cut += 1
        return list(self.tokenizer(text, truncation=True, max_length=self.longest).input_ids)


def _load(name: str, run: RunOptions) -> Scorer:
    if name == "gold":
        return Gold()
    if name == "length":
        return Length()
    if name == "exact-match":
        return ExactMatch()
    if name.startswith(COUNT):
        return Count(name.removeprefix(COUNT))
    if PYTHON in name:
        scorer = _from_callable(load_name(name, "scorer"), name)
        if run.processes and isinstance(scorer.scorer, FunctionScorer):
            return replace(scorer.scorer, pool=FunctionPool(name, run.processes, run.timeout))
        return scorer
    if name.endswith(".py"):
        raise UserError(f"scorer {name!r} names a Python file but no function; write {name}:FUNCTION")
    place, _, reading = name.partition("#")
    if reading and (Path(place).expanduser() / ENSEMBLE).is_file():
        return reward_model(str(Path(place).expanduser()), name, reading, run)  # type: ignore[no-any-return]
    path = model_directory(place)
    is_label = bool(reading) and reading.partition(":")[0] not in READINGS and artifact.read_reward(path) is None
    if is_label or _is_classifier(path):
        return Classifier.load(f"{path}#{reading}" if reading else path)
    return reward_model(path, name, reading, run)  # type: ignore[no-any-return]


def _from_callable(value: Any, name: str) -> CheckedScorer:
    """A scorer that is one already, else a function."""
    if isinstance(value, CheckedScorer):
        return CheckedScorer(value.scorer, name)
    if not callable(value) or isinstance(value, type):
        raise UserError(f"scorer {name!r} is not a function but {_short(value)}; give a function or a scorer object")
    if isinstance(getattr(value, "name", None), str) and _required_arguments(value) == 1:
        return CheckedScorer(value, name)
    return CheckedScorer(FunctionScorer(value, name), name)


def _required_arguments(function: Callable[..., Any]) -> int | None:
    """Positional parameters without a default, and one called `row`; None where there are required keywords or the
    signature is unknown.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    required = [p for p in parameters if p.default is p.empty or p.name == "row"]
    if any(p.kind is p.KEYWORD_ONLY for p in required):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required)


def _is_classifier(path: str) -> bool:
    """A local sequence classifier that is not one of our reward models and whose tokenizer has no chat template."""
    if artifact.read_reward(path) is not None:
        return False
    if head_of_config(path) != CLASSIFIER:
        return False
    return not load_tokenizer(ModelConfig(path=path)).chat_template


def _label_index(config: Any, name: str, label: str) -> int:
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    if label:
        if label not in labels:
            raise UserError(f"scorer {name!r}: the classifier has no label {label!r}; it has {', '.join(labels)}")
        if len(labels) == 1:
            raise UserError(f"scorer {name!r}: the classifier has one label; leave #{label} away")
        return labels.index(label)
    if len(labels) > 2:
        path = name.partition("#")[0]
        raise UserError(f"scorer {name!r} has the labels {', '.join(labels)}; name one, such as {path}#{labels[-1]}")
    return len(labels) - 1


def _which(sample: Sample, number: int) -> str:
    return f"response {number}, {sample.response[:60]!r}, to the prompt {sample.prompt[-60:]!r}"


def _short(value: object) -> str:
    return f"{value!r:.80}"


def _reason(problem: BaseException) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
