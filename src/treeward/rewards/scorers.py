"""Scorers by name: the embedded world's gold score, rules, Python files, trained reward models, public classifiers.

A scorer sees token trees of the policy's vocabulary and gives one raw number a branch. Each kind has a file of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.models import artifact
from treeward.models.loading import CLASSIFIER, ModelConfig, head_of_config, load_tokenizer, model_directory
from treeward.models.reward_model import RewardModel
from treeward.rewards.classifier import Classifier
from treeward.rewards.gold import Gold
from treeward.rewards.judge import Judge
from treeward.rewards.python_file import SUFFIX, PythonFile
from treeward.rewards.rule import COUNT, Count, Length
from treeward.rewards.texts import BadScore
from treeward.trees.tokens import Tokenizer, TokenTree, decode


@runtime_checkable
class Scorer(Protocol):
    """One raw score a branch, in order; higher is better."""

    @property
    def name(self) -> str: ...

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]: ...


@dataclass(frozen=True)
class Finite:
    """A scorer that refuses scores which are no finite number (`BadScore`), for all kinds alike."""

    scorer: Scorer

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.scorer.name

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        scores = self.scorer(trees, tokenizer)
        wrong = (~scores.isfinite()).nonzero()
        if len(wrong):
            row = int(wrong[0])
            said = decode([branch for tree in trees for branch in tree.branches][row], tokenizer)
            raise BadScore.of(self.name, scores[row].item(), row + 1, said)
        return scores


def find(name: str) -> Finite:
    """The scorer of that name; it raises BadScore where a score is not finite. How many threads the process uses is
    left as it is.

    `gold`; `length`; `count:WORD`; `FILE.py:FUNCTION`, called as f(prompt, response) -> float; the directory of a
    reward model, or of the run that trained one; the directory of a sequence classifier, `#LABEL` behind it where one
    of several labels is meant. A directory with `treeward.json`, or whose tokenizer has a chat template, is a reward
    model; any other is a classifier.

    Raises:
        UserError: there is no such scorer.
    """
    threads = torch.get_num_threads()
    try:
        return Finite(_found(name))
    except ValueError as problem:
        said = str(problem)
        raise UserError(said if said.startswith("scorer ") else f"scorer {name!r}: {said}") from None
    finally:
        torch.set_num_threads(threads)


def _found(name: str) -> Scorer:
    if name == "gold":
        return Gold()
    if name == "length":
        return Length()
    if name.startswith(COUNT):
        return Count(name.removeprefix(COUNT))
    if SUFFIX in name:
        return PythonFile.load(name)
    if name.endswith(".py"):
        raise UserError(f"scorer {name!r} names a Python file but no function; write {name}:FUNCTION")
    path = model_directory(name.partition("#")[0])
    if "#" in name:
        return Classifier.load(f"{path}#{name.partition('#')[2]}")
    return Classifier.load(path) if _is_classifier(path) else Judge(RewardModel.load(path), name)


def find_all(scorer: str | None, judges: Sequence[str]) -> tuple[Scorer | None, tuple[Scorer, ...]]:
    """The scorer of the metric, and the judges that training never used.

    Raises:
        UserError: one does not exist, or a judge is the scorer or named twice.
    """
    for number, name in enumerate(judges):
        if name == scorer:
            raise UserError(f"evaluation.judges has {name!r}, which is evaluation.scorer as well; name another judge")
        if name in judges[:number]:
            raise UserError(f"evaluation.judges has {name!r} twice; name each judge once")
    return find(scorer) if scorer else None, tuple(map(find, judges))


def _is_classifier(path: str) -> bool:
    """A local sequence classifier that no reward model was saved as, and whose tokenizer knows no chats."""
    if artifact.read_reward(path) is not None:
        return False
    if head_of_config(path) != CLASSIFIER:
        return False
    return not load_tokenizer(ModelConfig(path=path)).chat_template
