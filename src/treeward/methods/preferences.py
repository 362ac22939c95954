"""The objectives of direct preference optimisation: forests to the scores that the losses of `losses.preference` see.

Three shapes of data have three objectives: pairs, rankings, and single labelled responses. Each starts from

    x = log pi(y | prompt) - log reference(y | prompt)        summed over response tokens, end token included

and, under an f-divergence, from s(x) in its place. Letters: P pairs, N branches, G trees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treeward import runtime as ranks
from treeward.errors import UserError
from treeward.losses.divergences import AnyDivergence, ReverseKL
from treeward.losses.heads import Scalar
from treeward.losses.logprobs import branch_lengths, sum_by_branch
from treeward.losses.preference import KTO, LabelledScores, PairLoss, PairScores, PlackettLuce, Sigmoid, Sum
from treeward.losses.reward import Branches, asked_margins
from treeward.models.policy import branch_sums
from treeward.models.reference import EMAReference
from treeward.training.loop import Terms
from treeward.training.outputs import branches, own_margins, weights
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree

Known = Mapping[TokenTree, Float[Tensor, "N"]]
"""The reference's log-probability of each branch of a tree."""


@dataclass(frozen=True)
class Ratios:
    """The policy's sums, their log-ratios to the reference (NaN where there is none), and the counts of scored
    tokens.
    """

    logps: Float[Tensor, "N"]
    x: Float[Tensor, "N"]
    lengths: Int[Tensor, "N"]

    @classmethod
    def of(cls, model: TreeLM, forest: Forest, reference: Known | None) -> "Ratios":
        """Those of every branch of the forest, in its order."""
        scored_branch = forest.scored_branch.to(model.device)
        logps = sum_by_branch(model(forest), scored_branch, forest.branches)
        lengths = branch_lengths(scored_branch, forest.branches)
        if reference is None:
            return cls(logps, torch.full_like(logps, torch.nan), lengths)
        return cls(logps, logps - torch.cat([reference[tree] for tree in forest.sources]).to(logps.device), lengths)


@dataclass(frozen=True)
class PairPreference:
    """A loss of pairs, over forests of two-branch trees, the chosen response first; a unit is a pair.

    `reference` maps each tree to its branches' log-probabilities; it is None for losses that need none.
    """

    model: TreeLM
    loss: PairLoss
    reference: Known | None
    divergence: AnyDivergence = field(default_factory=ReverseKL)
    margin: float = 0.0

    def count(self, tree: TokenTree) -> int:
        assert len(tree.branches) == 2, "a pair has two branches"
        return 1

    def scores(self, forest: Forest) -> PairScores:
        """Log-ratios (or scores of them), lengths, the policy's own sums and the margin of every pair."""
        return self._paired(forest, Ratios.of(self.model, forest, self.reference))

    def __call__(self, forest: Forest) -> Terms:
        ratios = Ratios.of(self.model, forest, self.reference)
        scores = self._paired(forest, ratios)
        chosen, rejected = self.loss.rewards(scores)
        metrics = {
            **compared(chosen, rejected), "logps/chosen": ratios.logps[0::2], "logps/rejected": ratios.logps[1::2],
            **clamp_rate(self.divergence, ratios.x.view(-1, 2)), **clip_rate(self.loss, scores),
        }  # fmt: skip
        if self.reference is not None:
            metrics |= {"logratios/chosen": ratios.x[0::2], "logratios/rejected": ratios.x[1::2]}
        return Terms(self.loss(scores), metrics, weights(forest.sources, self.count, ratios.x.device))

    def at_start(self, forest: Forest, reference: Known) -> float:
        """The known mean loss of these pairs where the policy is the reference."""
        logps = torch.cat([reference[tree] for tree in forest.sources])
        zero = torch.zeros_like(logps)
        lengths = torch.tensor([len(branch) for tree in forest.sources for branch in tree.branches])
        return self.loss.at_start(self._paired(forest, Ratios(logps, zero, lengths)))

    def _paired(self, forest: Forest, ratios: Ratios) -> PairScores:
        x, n, logps = self.divergence.score(ratios.x), ratios.lengths, ratios.logps
        return PairScores(x[0::2], x[1::2], n[0::2], n[1::2], logps[0::2], logps[1::2], self._margins(forest, x))

    def _margins(self, forest: Forest, like: Tensor) -> Float[Tensor, "P"] | None:
        own = own_margins(forest.sources, like)
        if self.margin == 0 and own is None:
            return None
        gaps = [tree.grades[0] - tree.grades[1] if tree.ratings else torch.nan for tree in forest.sources]
        return asked_margins(self.margin, like.new_tensor(gaps), own)


@dataclass(frozen=True)
class RankedPreference:
    """A loss of rankings, over trees of ranked branches (by rating, else best first); a unit is a tree."""

    model: TreeLM
    loss: PlackettLuce
    reference: Known
    divergence: AnyDivergence = field(default_factory=ReverseKL)

    def count(self, tree: TokenTree) -> int:
        return 1

    def __call__(self, forest: Forest) -> Terms:
        ratios = Ratios.of(self.model, forest, self.reference)
        found = self._branches(forest, ratios.x)
        sizes = [len(tree.branches) for tree in forest.sources]
        rewards = [
            *zip(torch.split(self.loss.beta * found.scores(), sizes), torch.split(found.order(), sizes), strict=True)
        ]
        best = torch.stack([reward[order.argmax()] for reward, order in rewards])
        worst = torch.stack([reward[order.argmin()] for reward, order in rewards])
        metrics = {**compared(best, worst), **clamp_rate(self.divergence, ratios.x, found)}
        return Terms(self.loss(found), metrics, weights(forest.sources, self.count, ratios.x.device))

    def at_start(self, forest: Forest, reference: Known) -> float:
        """The known mean loss of these rankings where the policy is the reference."""
        return self.loss.at_start(self._branches(forest, torch.zeros(forest.branches)))

    def _branches(self, forest: Forest, x: Float[Tensor, "N"]) -> Branches:
        return branches(forest, self.divergence.score(x)[:, None], Scalar())


@dataclass
class LabelledPreference:
    """KTO, over trees of one labelled response, or of two (the first desirable); a unit is a response.

    `reference_for` gives the reference's log-probabilities of trees, also of the mismatched ones of a batch;
    `reference` is z0 of the batch that was prepared last, and `mismatched` the count of responses that it is the mean
    of.
    """

    model: TreeLM
    loss: KTO
    reference: Known
    reference_for: Callable[[Sequence[TokenTree]], Known]
    budget: int
    z0: float = 0.0
    mismatched: int = 0

    def count(self, tree: TokenTree) -> int:
        return len(tree.branches)

    def prepare(self, batch: Sequence[TokenTree]) -> None:
        """z0 = max(0, mean x) of the batch's responses put under one another's prompts, over all ranks, each with the
        weight of its prompt's tree.
        """
        others = mismatched(batch)[ranks.rank() :: ranks.world()]
        sums: dict[str, Tensor] = {}
        if others:
            known = self.reference_for(others)
            x = branch_sums(self.model, others, self.budget) - torch.cat([known[tree] for tree in others]).cpu()
            w = torch.tensor([tree.weight for tree in others for _ in tree.branches], dtype=torch.float64)
            sums = {"x": (w * x).sum(), "w": w.sum(), "n": torch.tensor(len(x))}
        found = ranks.sum_all(sums)
        self.z0 = max(0.0, (found["x"] / found["w"]).item()) if found else 0.0
        self.mismatched = int(found["n"]) if found else 0

    def __call__(self, forest: Forest) -> Terms:
        ratios = Ratios.of(self.model, forest, self.reference)
        desirable = labels(forest.sources).to(ratios.x.device)
        scores = LabelledScores(ratios.x, desirable, ratios.x.new_tensor(self.z0))
        signed = torch.where(desirable, 1.0, -1.0) * self.loss.beta * (ratios.x - scores.z0)
        metrics = {
            "rewards/margins": signed, "rewards/accuracies": _share_above(signed),
            "rewards/reference": (self.loss.beta * scores.z0).expand_as(signed),
            "rewards/mismatched": torch.full_like(signed, self.mismatched), "logps": ratios.logps,
        }  # fmt: skip
        return Terms(self.loss(scores), metrics, weights(forest.sources, self.count, ratios.x.device))

    def at_start(self, forest: Forest, reference: Known) -> float:
        """The known mean loss of these responses where the policy is the reference."""
        zero = torch.zeros(forest.branches)
        return self.loss.at_start(LabelledScores(zero, labels(forest.sources), torch.zeros(())))


AnyObjective = PairPreference | RankedPreference | LabelledPreference


@dataclass(frozen=True)
class Following:
    """An objective whose reference moves: `known`, which it reads, is filled anew for each batch."""

    inner: AnyObjective
    known: dict[TokenTree, Tensor]
    reference: EMAReference
    budget: int

    def count(self, tree: TokenTree) -> int:
        return self.inner.count(tree)

    def prepare(self, batch: Sequence[TokenTree]) -> None:
        """The reference's log-probabilities as it is now."""
        self.known.clear()
        self.known.update(self.reference.computed_logps(batch[ranks.rank() :: ranks.world()], self.budget))
        if isinstance(self.inner, LabelledPreference):
            self.inner.prepare(batch)

    def __call__(self, forest: Forest) -> Terms:
        return self.inner(forest)

    def at_start(self, forest: Forest, reference: Known) -> float:
        """The known mean loss of these trees where the policy is the reference."""
        return self.inner.at_start(forest, reference)


def mismatched(batch: Sequence[TokenTree]) -> list[TokenTree]:
    """Each tree's prompt with the responses of the next tree that has another prompt, cut to the batch's longest path.

    Trees of weight 0 stand aside. A batch with one prompt has none.
    """
    counted = [tree for tree in batch if tree.weight]
    longest = max((tree.longest_path for tree in counted), default=0)
    found = []
    for place, tree in enumerate(counted):
        others = (*counted[place + 1 :], *counted[:place])
        other = next((other for other in others if other.prompt != tree.prompt), None)
        if other is not None:
            room = longest - len(tree.prompt)
            cut = tuple(branch[:room] for branch in other.branches)
            found.append(TokenTree(tree.prompt, cut, tree.group, weight=tree.weight))
    return found


def labels(trees: Sequence[TokenTree]) -> Bool[Tensor, "N"]:
    """Which branches are desirable: of a pair the first, of single responses those labelled 1.

    Raises:
        UserError: a single response has no label, or a tree has three branches; the first is named.
    """
    found: list[bool] = []
    for tree in trees:
        if len(tree.branches) == 2:
            found += [True, False]
        elif len(tree.branches) == 1 and tree.ratings in (((0.0,),), ((1.0,),)):
            found.append(tree.ratings == ((1.0,),))
        else:
            raise UserError(
                f"{tree.group[:60]!r} has {len(tree.branches)} responses and the ratings {list(tree.ratings)}; kto "
                "learns from single responses labelled 1 or 0, or from pairs"
            )
    return torch.tensor(found, dtype=torch.bool)


def compared(better: Float[Tensor, "P"], worse: Float[Tensor, "P"]) -> dict[str, Tensor]:
    """The metrics of two implicit rewards."""
    return {
        "rewards/chosen": better, "rewards/rejected": worse, "rewards/margins": better - worse,
        "rewards/accuracies": _share_above(better - worse),
    }  # fmt: skip


def clamp_rate(divergence: AnyDivergence, x: Tensor, found: Branches | None = None) -> dict[str, Tensor]:
    """The share of each unit's log-ratios that lie in the score's straight tail; nothing under reverse KL."""
    if isinstance(divergence, ReverseKL):
        return {}
    rows = divergence.clamped(x).float()
    return {"divergence/clamped": rows.mean(1) if found is None else found.tree_mean(rows)}


def clip_rate(loss: PairLoss, scores: PairScores) -> dict[str, Tensor]:
    """Whether a clip holds a pair's difference, where its gradient is dead; nothing without a clip."""
    losses = [term.loss for term in loss.terms] if isinstance(loss, Sum) else [loss]
    held = [each.clipped(scores) for each in losses if isinstance(each, Sigmoid) and each.clip is not None]
    return {"loss/clipped": torch.stack(held).any(0).float()} if held else {}


def _share_above(difference: Tensor) -> Tensor:
    return (difference > 0).float() + 0.5 * (difference == 0).float()
