"""A rollout: what a policy sampled for some prompts, and how it was scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from treeward.trees.tokens import Tokenizer, TokenTree, decode


@dataclass(frozen=True)
class Sample:
    """One response as a scorer sees it.

    `prompt` and `response` are text without special tokens. `row` holds the other columns of the prompt's data row,
    such as the right answer; it is empty where the data has none. `ids` are the sampled tokens.
    """

    prompt: str
    response: str
    row: Mapping[str, Any]
    group: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Sampled:
    """What policy gradients know of a tree's branches, which were sampled: a tuple with one item a branch.

    `logps`, `reference_logps` and `advantages` have one number a token: the policy's log-probability when the token was
    sampled, the reference's (the same number without a reference), and the advantage. `scores` are the scorer's,
    `rewards` what the advantages were made of. `finished` says which branches have an end token, `used` which of them
    train. `weights` multiply the losses, where the samples are corrected for another sampler. `parts` has the scores of
    each scorer where several are mixed.
    """

    logps: tuple[Tensor, ...]
    reference_logps: tuple[Tensor, ...]
    advantages: tuple[Tensor, ...]
    scores: tuple[float, ...]
    rewards: tuple[float, ...]
    finished: tuple[bool, ...]
    used: tuple[bool, ...]
    weights: tuple[float, ...] | None = None
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """Sampled trees in the order of their prompts.

    `logps` and `drawn_logps` hold, by tree and branch, the log-probability of each sampled token in nats: of the policy
    itself, and of the distribution that was sampled from (at temperature 1 the same). Both are None where the sampler
    records none. `finished` tells by tree and branch whether a response has its end token; None where that is unknown.
    `scores` holds one number a branch, by tree; None before scoring. `parts` has the same for each of several scorers
    that were mixed. `greedy` has one greedy response a prompt, for a
    baseline that needs it. Two equal samples are two branches.
    """

    trees: Sequence[TokenTree]
    tokenizer: Tokenizer = None
    logps: Sequence[Sequence[Float[Tensor, "_"]]] | None = None
    drawn_logps: Sequence[Sequence[Float[Tensor, "_"]]] | None = None
    scores: Sequence[Sequence[float]] | None = None
    finished: Sequence[Sequence[bool]] | None = None
    parts: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    greedy: "Rollout | None" = None
    left_out: int = 0
    """Prompts that were sampled too and left out, because all their samples had the same score."""
    probe_gap: float | None = None
    """Of a sampler with weights of its own: how far its log-probabilities are from the policy's, in nats a token."""

    @classmethod
    def joined(cls, rollouts: "Sequence[Rollout]") -> "Rollout":
        """One rollout of several that record the same things, prompts in order."""
        first = rollouts[0]

        def all_of(name: str) -> Any:
            parts = [getattr(rollout, name) for rollout in rollouts]
            return None if parts[0] is None else [item for part in parts for item in part]

        greedy = None if first.greedy is None else cls.joined([r.greedy for r in rollouts if r.greedy is not None])
        parts = {name: [row for rollout in rollouts for row in rollout.parts[name]] for name in first.parts}
        lists = {name: all_of(name) for name in ("trees", "logps", "drawn_logps", "scores", "finished")}
        return replace(first, **lists, parts=parts, greedy=greedy, left_out=sum(r.left_out for r in rollouts))

    def where(self, keep: Sequence[bool]) -> "Rollout":
        """The prompts at which `keep` is true."""

        def kept(items: Any) -> Any:
            return None if items is None else [item for item, k in zip(items, keep, strict=True) if k]

        lists = {name: kept(getattr(self, name)) for name in ("trees", "logps", "drawn_logps", "scores", "finished")}
        parts = {name: kept(rows) for name, rows in self.parts.items()}
        return replace(self, **lists, parts=parts, greedy=None if self.greedy is None else self.greedy.where(keep))

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.trees)

    @property
    def branches(self) -> int:
        """N, the number of responses."""
        return sum(len(tree.branches) for tree in self.trees)

    def samples(self) -> list[Sample]:
        """All N responses, prompt by prompt."""
        samples = []
        for tree in self.trees:
            prompt = decode(tree.prompt, self.tokenizer)
            for ids in tree.branches:
                response = decode(ids, self.tokenizer)
                samples.append(Sample(prompt, response, tree.row or {}, tree.group, ids))
        return samples

    def rows(self) -> list[dict[str, Any]]:
        """All N responses as rows of a JSONL file: texts and ids, and where they are known `finished`, `score` and
        `scores` by scorer.
        """
        places = [(g, k) for g, tree in enumerate(self.trees) for k in range(len(tree.branches))]
        rows = []
        for (g, k), sample in zip(places, self.samples(), strict=True):
            row: dict[str, Any] = {"group": sample.group, "prompt": sample.prompt, "response": sample.response}
            if self.finished is not None:
                row["finished"] = self.finished[g][k]
            if self.scores is not None:
                row["score"] = self.scores[g][k]
            if self.parts:
                row["scores"] = {name: scores[g][k] for name, scores in self.parts.items()}
            rows.append(row | {"ids": sample.ids})
        return rows

    def texts(self) -> list[str]:
        """Prompt and response of every branch as one text, decoded together so that nothing between them is lost."""
        return [decode(tree.prompt + ids, self.tokenizer) for tree in self.trees for ids in tree.branches]

    def with_scores(self, scores: Sequence[float], parts: Mapping[str, Sequence[float]] | None = None) -> "Rollout":
        """The same rollout with these scores, one a branch, in order, and those of each scorer that was mixed."""
        by_scorer = {name: self._by_tree(values) for name, values in (parts or {}).items()}
        return replace(self, scores=self._by_tree(scores), parts=by_scorer)

    def _by_tree(self, values: Sequence[float]) -> list[list[float]]:
        numbers = iter(values)
        return [[float(next(numbers)) for _ in tree.branches] for tree in self.trees]
