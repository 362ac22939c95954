"""REINFORCE on rollouts: the loss by plain rows, rewards and advantages, what is refused, and resuming."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import treeward as tw
from fixtures import BuildPolicy, Grow, PlainLogps
from treeward.errors import UserError
from treeward.losses.advantages import (
    AnyBaseline,
    Greedy,
    GroupZScore,
    LeaveOneOut,
    MovingAverage,
    NoBaseline,
    Whitened,
)
from treeward.losses.policy_gradient import ClippedResponses, ClippedTokens, InLoss, InReward, InRewardToGo
from treeward.methods.reinforce import PolicyGradientObjective, ReinforceConfig, Rollouts, reinforce_steps
from treeward.models.policy import Policy
from treeward.models.reference import EMA, ReferenceModel
from treeward.models.sampler import Noise, ScriptedSampler
from treeward.rewards.scorers import as_scorer
from treeward.training.loop import Loop
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree

TARGET = 7


def count_target(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    """How often the word w7 occurs."""
    return float(response.split().count(f"w{TARGET}"))


def word_numbers(prompt: str, response: str) -> float:
    """The sum of the words' numbers: two different samples seldom score alike."""
    return sum(float(word[1:]) for word in response.split()) / 100


def word_count(prompt: str, response: str) -> float:
    """How many different words the response has, by their letters."""
    return len(set(response)) / 10


def prompts(grow: Grow, count: int) -> list[TokenTree]:
    return [TokenTree(tree.prompt, (), tree.group) for tree in grow(count)]


def scored(policy: Policy, trees: list[TokenTree], samples: int = 3, tokens: int = 6) -> Rollout:
    return tw.score(tw.sample(policy, trees, n=samples, max_new_tokens=tokens, seed=0), word_numbers)


def perturbed(policy: Policy, scale: float = 0.02) -> Policy:
    """Weights a little off, as after some steps, so that the KL to the start is not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.packed.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return policy


def moved(policy: Policy) -> tuple[Policy, ReferenceModel]:
    """A policy that has left its reference."""
    reference = policy.frozen_copy()
    return perturbed(policy), reference


@pytest.mark.parametrize("kl", [InReward(beta=0.3), InRewardToGo(beta=0.3), InLoss(beta=0.3)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_plain_rows(
    family: str, kl: Any, policy: BuildPolicy, grow: Grow, plain_logps: PlainLogps
) -> None:
    trained, reference = moved(policy(family))
    rollout = scored(trained, prompts(grow, 4))
    objective = PolicyGradientObjective(reference, LeaveOneOut(), kl=kl, unfinished="keep")
    metrics = Loop(trained, objective, lr=1e-3).backward(rollout)

    assert rollout.scores is not None
    losses, kls = [], []
    for tree, scores in zip(rollout.trees, rollout.scores, strict=True):
        lengths = [len(branch) for branch in tree.branches]
        logps = plain_logps(trained.model, tree).split(lengths)
        x = [p - q for p, q in zip(logps, plain_logps(reference.packed.model, tree).split(lengths), strict=True)]
        kls += [ratio.sum().item() for ratio in x]
        charged = 0.0 if isinstance(kl, InLoss) else 0.3
        rewards = [score - charged * ratio.sum().item() for score, ratio in zip(scores, x, strict=True)]
        for k, ratio in enumerate(x):
            others = [reward for n, reward in enumerate(rewards) if n != k]
            advantages = torch.full_like(ratio, rewards[k] - sum(others) / len(others))
            if isinstance(kl, InRewardToGo):
                advantages = advantages + 0.3 * (ratio.cumsum(0) - ratio)  # what came before is not charged
            loss = -(advantages * logps[k]).sum()
            losses.append(loss + (0.3 * ratio.sum() ** 2 / 2 if isinstance(kl, InLoss) else 0))
    assert metrics["loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert metrics["kl"].item() == pytest.approx(sum(kls) / len(kls), abs=1e-4)
    assert sum(abs(kl) for kl in kls) > 0.1


def test_the_gradient_is_that_of_plain_rows(policy: BuildPolicy, grow: Grow, plain_logps: PlainLogps) -> None:
    """K responses share their prompt in the forward pass; the gradient is that of one row each."""
    trained = policy()
    rollout = scored(trained, prompts(grow, 3))
    objective = PolicyGradientObjective(baseline=MovingAverage(), kl=InReward(beta=0), unfinished="keep")
    Loop(trained, objective, lr=1e-3).backward(rollout)
    packed = [p.grad.clone() for p in trained.model.parameters() if p.grad is not None]
    trained.model.zero_grad()
    assert rollout.scores is not None
    every = torch.tensor([score for scores in rollout.scores for score in scores])
    logps = [
        part.sum()
        for tree in rollout.trees
        for part in plain_logps(trained.model, tree).split([len(branch) for branch in tree.branches])
    ]
    (-((every - every.mean()) * torch.stack(logps)).mean()).backward()
    plain = [p.grad for p in trained.model.parameters() if p.grad is not None]
    assert len(packed) == len(plain) > 0
    for ours, theirs in zip(packed, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert max(gradient.abs().max().item() for gradient in plain) > 1e-3


def test_equal_samples_are_branches_of_their_own(policy: BuildPolicy) -> None:
    """The same text twice under one prompt, once scored well and once badly: each keeps its own advantage."""
    tree = TokenTree((5, 6), ((8, 2), (8, 2)))
    rollout = Rollout([tree], scores=[[1.0, 0.0]], tokenizer=None)
    trees = PolicyGradientObjective(baseline=LeaveOneOut(), kl=InReward(beta=0)).training_trees(policy(), rollout, 64)
    assert [part[0].item() for part in trees[0].sampled.advantages] == [1.0, -1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "baseline", [MovingAverage(), LeaveOneOut(), NoBaseline(), Greedy(), GroupZScore(), Whitened()]
)
def test_a_rewarded_token_becomes_frequent_within_50_steps(
    baseline: AnyBaseline, policy: BuildPolicy, grow: Grow
) -> None:
    config = ReinforceConfig(
        steps=50, batch_size=6, samples=4, max_new_tokens=3, lr=3e-3, baseline=baseline, unfinished="keep",
        kl=InReward(beta=0.01), seed=6,
    )  # fmt: skip
    metrics = tw.reinforce(policy(), prompts(grow, 32), count_target, config).metrics
    first, last = (sum(row["score"] for row in part) / 10 for part in (metrics[:10], metrics[-10:]))
    assert first < 0.3
    assert last > first + 0.5
    assert all(math.isfinite(value) for row in metrics for value in row.values())


def test_a_constant_reward_moves_nothing_without_a_kl(policy: BuildPolicy, grow: Grow) -> None:
    trained = policy()
    before = [p.detach().clone() for p in trained.packed.parameters()]
    config = ReinforceConfig(steps=3, batch_size=4, max_new_tokens=4, lr=1e-2, kl=InReward(beta=0), unfinished="keep")
    rows = tw.reinforce(trained, prompts(grow, 8), lambda prompt, response: 1.5, config).metrics
    assert [row["no_signal"] for row in rows] == [1.0] * 3
    assert all(torch.equal(a, b) for a, b in zip(before, trained.packed.parameters(), strict=True))


def test_metrics_say_what_was_sampled(policy: BuildPolicy, grow: Grow) -> None:
    trained, reference = moved(policy())
    rollout = scored(trained, prompts(grow, 4))
    assert rollout.scores is not None
    assert rollout.logps is not None
    objective = PolicyGradientObjective(reference, MovingAverage(), unfinished="penalise", missing_end_penalty=0.25)
    loop = Loop(trained, objective, lr=1e-3)
    first = loop.step(rollout).numbers()
    every = torch.tensor([score for scores in rollout.scores for score in scores], dtype=torch.float64)
    lengths = [len(branch) for tree in rollout.trees for branch in tree.branches]
    ended = [branch[-1] == 2 for tree in rollout.trees for branch in tree.branches]
    logps = torch.cat([part for parts in rollout.logps for part in parts])
    assert first["score"] == pytest.approx(every.mean().item())
    assert first["length"] == pytest.approx(sum(lengths) / len(lengths))
    assert first["ended"] == pytest.approx(sum(ended) / len(ended))
    assert first["entropy"] == pytest.approx(-logps.mean().item(), abs=1e-5)
    assert first["reward"] == pytest.approx(first["score"] - 0.05 * first["kl"] - 0.25 * (1 - first["ended"]), abs=1e-5)
    assert first["baseline"] == pytest.approx(first["reward"])
    second = loop.step(scored(trained, prompts(grow, 4))).numbers()
    assert second["baseline"] == pytest.approx(first["reward"])


@pytest.mark.parametrize(
    ("unfinished", "rewards", "advantages"),
    [("penalise", [2.0, 1.5], [0.5, -0.5]), ("keep", [2.0, 2.5], [-0.5, 0.5]), ("mask", [2.0, 2.5], [0.0, 0.0])],
)
def test_responses_without_an_end(
    unfinished: Any, rewards: list[float], advantages: list[float], policy: BuildPolicy
) -> None:
    """Masked ones enter no baseline: the other response is then alone, and there is no other to compare it with."""
    tree = TokenTree((5, 6), ((8, 2), (8, 9)))
    rollout = Rollout([tree], scores=[[2.0, 2.5]], finished=[[True, False]])
    objective = PolicyGradientObjective(baseline=LeaveOneOut(), kl=InReward(beta=0), unfinished=unfinished)
    (sampled,) = (tree.sampled for tree in objective.training_trees(policy(), rollout, 64))
    assert list(sampled.rewards) == rewards
    assert [part[0].item() for part in sampled.advantages] == pytest.approx(advantages)


def test_the_length_penalty_is_by_token(policy: BuildPolicy) -> None:
    rollout = Rollout([TokenTree((5,), ((8, 2), (8, 9, 10, 2)))], scores=[[1.0, 1.0]])
    objective = PolicyGradientObjective(baseline=NoBaseline(), kl=InReward(beta=0), length_penalty=0.1)
    assert objective.training_trees(policy(), rollout, 64)[0].sampled.rewards == pytest.approx((0.8, 0.6))


def test_f67_no_signal_is_judged_on_raw_scores(policy: BuildPolicy) -> None:
    """Equal scores stay a prompt without signal, however much a penalty tells its samples apart."""
    rollout = Rollout([TokenTree((5,), ((8, 2), (8, 9, 10, 2)))], scores=[[1.0, 1.0]])
    objective = PolicyGradientObjective(baseline=LeaveOneOut(), kl=InReward(beta=0), length_penalty=0.1)
    metrics = Loop(policy(), objective, lr=1e-3).step(rollout).numbers()
    assert metrics["no_signal"] == 1.0
    assert metrics["advantages/size"] > 0


def test_f69_every_end_token_ends_a_response(policy: BuildPolicy, grow: Grow) -> None:
    trained = policy()
    trained.model.generation_config.eos_token_id = [2, *range(3, 40)]
    fresh = Policy(trained.model, trained.tokenizer)
    rollout = tw.sample(fresh, prompts(grow, 8), n=4, max_new_tokens=12, seed=0)
    assert rollout.finished is not None
    lasts = [branch[-1] for tree in rollout.trees for branch in tree.branches]
    flags = [flag for flags in rollout.finished for flag in flags]
    assert flags == [last in range(2, 40) for last in lasts]
    assert sum(last != 2 for last, flag in zip(lasts, flags, strict=True) if flag) > 10


def test_the_greedy_baseline_takes_the_most_likely_response(
    policy: BuildPolicy, grow: Grow, plain_logps: PlainLogps
) -> None:
    trained = policy()
    config = ReinforceConfig(max_new_tokens=5, samples=2, baseline=Greedy())
    rollout = Rollouts(trained, as_scorer(count_target), config)(prompts(grow, 3), step=1)
    assert rollout.greedy is not None
    for tree in rollout.greedy.trees:
        ids = tree.prompt
        for token in tree.branches[0]:
            assert token == trained.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            ids = (*ids, token)


def test_a_reference_that_follows_is_moved_and_charged(policy: BuildPolicy, grow: Grow) -> None:
    config = ReinforceConfig(
        steps=4, batch_size=4, max_new_tokens=4, lr=1e-2, reference=EMA(rate=0.5), unfinished="keep"
    )
    frozen = replace(config, reference=tw.Frozen(store="off"))
    kls = [
        [step.numbers()["kl"] for step in reinforce_steps(policy(), prompts(grow, 16), count_target, each)]
        for each in (config, frozen)
    ]
    assert kls[0][0] == kls[1][0] == pytest.approx(0, abs=1e-5)
    assert kls[0][1:] != kls[1][1:]


@pytest.mark.slow
def test_an_interrupted_run_is_the_whole_one_bit_for_bit(policy: BuildPolicy, grow: Grow, tmp_path: Path) -> None:
    """The moving average, the adaptive coefficient and the samples go on where they stopped (F70)."""
    config = ReinforceConfig(
        steps=6, batch_size=4, max_new_tokens=5, lr=3e-3, unfinished="keep", kl=InReward(beta=0.1, target=0.5),
        baseline=MovingAverage(decay=0.5),
    )  # fmt: skip
    trees = prompts(grow, 16)

    def parts(trained: Policy) -> tuple[Any, Any, Any]:
        batches = config.batches(trees)
        objective = PolicyGradientObjective.of(config, start)
        return batches, Loop.from_config(trained, objective, config, 6), Rollouts(trained, scorer, config)

    def go_on(batches: Any, loop: Any, rollouts: Any, until: int) -> list[dict[str, float]]:
        rows = []
        for batch in batches:
            rows.append(loop.step(rollouts(batch, loop.index + 1)).numbers())
            if loop.index == until:
                break
        return rows

    scorer = as_scorer(count_target)
    start = policy().frozen_copy()
    whole = go_on(*parts(policy()), until=6)
    batches, loop, rollouts = parts(policy())
    interrupted = go_on(batches, loop, rollouts, until=3)
    loop.save(tmp_path / "state", batches=batches)
    batches, loop, rollouts = parts(policy())
    loop.load(tmp_path / "state", batches=batches)
    assert loop.objective.average is not None
    resumed = go_on(batches, loop, rollouts, until=6)
    assert [*interrupted, *resumed] == whole
    assert len({row["kl/beta"] for row in whole}) > 2

    batches, loop, rollouts = parts(policy())
    loop.load(tmp_path / "state", batches=batches)
    loop.objective.average = None  # a lost baseline shows
    assert go_on(batches, loop, rollouts, until=4)[0]["loss"] != whole[3]["loss"]


def test_f31_rollouts_of_another_temperature_are_refused(policy: BuildPolicy, grow: Grow) -> None:
    trained = policy()
    warm = tw.sample(trained, prompts(grow, 2), n=2, max_new_tokens=4, seed=0, temperature=0.7)
    loop = Loop(trained, PolicyGradientObjective(kl=InReward(beta=0)), lr=1e-3)
    with pytest.raises(UserError, match="another temperature than 1"):
        loop.step(tw.score(warm, count_target))


def test_scripted_samples_have_the_log_probabilities_of_the_policy(
    policy: BuildPolicy, plain_logps: PlainLogps
) -> None:
    trained = policy()
    rollout = ScriptedSampler({(5, 6): [(8, 9, 2), (10, 2)]})([TokenTree((5, 6), ())], 2, Noise(0))
    objective = PolicyGradientObjective(baseline=NoBaseline(), kl=InReward(beta=0))
    (tree,) = objective.training_trees(trained, rollout.with_scores([1.0, 0.0]), 64)
    assert torch.allclose(torch.cat(tree.sampled.logps), plain_logps(trained.model, tree).float(), atol=1e-5)


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda p, r: PolicyGradientObjective(), "reference is not given, but kl.beta is 0.05"),
        (
            lambda p, r: ReinforceConfig(samples=1, baseline=LeaveOneOut()),
            "samples is 1, but baseline.kind LeaveOneOut",
        ),
        (lambda p, r: ReinforceConfig(samples=0), "samples is 0"),
        (lambda p, r: ReinforceConfig(batch_size=1, samples=1), "a step has one response"),
        (
            lambda p, r: ReinforceConfig(steps_per_rollout=2),
            "estimator.kind reinforce is right at the policy that sampled",
        ),
        (lambda p, r: ReinforceConfig(steps_per_rollout=0), "steps_per_rollout is 0"),
        (lambda p, r: ReinforceConfig(refill=-1), "refill is -1"),
        (lambda p, r: ReinforceConfig(refill=4, samples=1), "one sample always scores like itself"),
        (lambda p, r: step(p, replace(r, scores=None)), "rollout has no scores"),
        (lambda p, r: step(p, r.trees), "the policy gradient needs rollouts"),
        (lambda p, r: step(p, replace(r, scores=[r.scores[0][:2], *r.scores[1:]])), "different numbers of samples"),
        (lambda p, r: step(p, r, baseline=Greedy()), "needs rollout.greedy"),
        (
            lambda p, r: PolicyGradientObjective(p.frozen_copy(), GroupZScore(), kl=InRewardToGo()),
            "in-reward-to-go does not go with baseline.kind group-z-score",
        ),
    ],
)
def test_what_cannot_work_is_refused(act: Any, named: str, policy: BuildPolicy, grow: Grow) -> None:
    trained = policy()
    with pytest.raises(UserError, match=named):
        act(trained, scored(trained, prompts(grow, 2)))


def step(policy: Policy, batch: Any, **choices: Any) -> Any:
    return Loop(policy, PolicyGradientObjective(kl=InReward(beta=0), **choices), lr=1e-3).step(batch)


def test_clipped_tokens_reuse_a_rollout(policy: BuildPolicy, grow: Grow) -> None:
    """A second step on the same trees: the ratio to the policy that sampled is no longer 1."""
    trained = policy()
    objective = PolicyGradientObjective(
        baseline=LeaveOneOut(), estimator=ClippedTokens(clip=0.1), kl=InReward(beta=0), unfinished="keep"
    )
    loop = Loop(trained, objective, lr=1e-3)
    trees = objective.training_trees(trained, scored(trained, prompts(grow, 8)), 4096)
    first, second = (loop.step(trees).numbers() for _ in range(2))
    assert second["loss"] < first["loss"] - 1e-2
    assert second["score"] == first["score"]


def test_a_rollout_that_is_used_twice_moves_the_average_once(policy: BuildPolicy, grow: Grow) -> None:
    trained = policy()
    objective = PolicyGradientObjective(
        baseline=MovingAverage(decay=0.5), estimator=ClippedResponses(), kl=InReward(beta=0), unfinished="keep"
    )
    loop = Loop(trained, objective, lr=1e-3)
    first, second = (scored(trained, prompts(grow, 4), samples=n) for n in (2, 3))
    rows = [loop.step(rollout).numbers() for rollout in (first, first, second, second)]
    assert rows[0]["score"] == rows[1]["score"] == rows[0]["baseline"]
    assert rows[1]["loss"] != rows[0]["loss"]
    assert rows[2]["baseline"] == rows[3]["baseline"] == rows[0]["score"]
    assert objective.average == pytest.approx((rows[0]["score"] + rows[2]["score"]) / 2)


def test_several_steps_a_rollout_sample_once_each(policy: BuildPolicy, grow: Grow) -> None:
    config = ReinforceConfig(
        steps=6, batch_size=4, samples=2, max_new_tokens=4, lr=1e-3, unfinished="keep", steps_per_rollout=3,
        estimator=ClippedResponses(),
    )  # fmt: skip
    rows = [step.numbers() for step in reinforce_steps(policy(), prompts(grow, 16), word_numbers, config)]
    scores = [row["score"] for row in rows]
    assert len(rows) == 6
    assert scores[:3] == [scores[0]] * 3
    assert scores[3:] == [scores[3]] * 3
    assert scores[0] != scores[3]


def test_running_normalisation_is_relative_to_earlier_scores(policy: BuildPolicy) -> None:
    """The first scores by their own mean and spread, later ones by those of all before; raw scores are logged."""
    objective = PolicyGradientObjective(baseline=NoBaseline(), kl=InReward(beta=0), normalise="running")
    trained = policy()

    def rewards(*scores: float) -> list[float]:
        rollout = Rollout([TokenTree((5,), ((8, 2), (9, 2)))] * (len(scores) // 2))
        trees = objective.training_trees(trained, rollout.with_scores(scores), 64)
        assert [score for tree in trees for score in tree.sampled.scores] == list(scores)
        return [reward for tree in trees for reward in tree.sampled.rewards]

    first = [1e6 + 1, 1e6 + 2, 1e6 + 3, 1e6 + 6]  # mean 1e6 + 3, spread sqrt(14 / 3)
    assert rewards(*first) == pytest.approx([x / math.sqrt(14 / 3) for x in (-2, -1, 0, 3)], rel=1e-9)
    assert rewards(1e6 + 3, 1e6 + 99) == pytest.approx([0.0, 5.0], abs=1e-9)
    assert objective.scale is not None
    every = torch.tensor([*first, 1e6 + 3, 1e6 + 99], dtype=torch.float64)
    assert objective.scale.mean == pytest.approx(every.mean().item(), rel=1e-15)
    assert objective.scale.squares == pytest.approx((every - every.mean()).square().sum().item(), rel=1e-9)

    again = PolicyGradientObjective(baseline=NoBaseline(), kl=InReward(beta=0), normalise="running")
    again.load_state_dict(objective.state_dict())
    assert again.scale == objective.scale


def half_alike(prompt: str, response: str) -> float:
    """The same for every response to prompts that end in an odd word, so these have no signal."""
    return 1.0 if int(prompt.rsplit(maxsplit=1)[-1][1:]) % 2 else word_numbers(prompt, response)


@pytest.mark.parametrize("refill", [0, 3, 100])
def test_prompts_without_signal_are_replaced_within_the_budget(refill: int, policy: BuildPolicy, grow: Grow) -> None:
    trees = [TokenTree((5, 6 + n), (), str(n)) for n in range(40)]
    batch, spare = trees[:8], trees[8:]
    config = ReinforceConfig(samples=3, max_new_tokens=5, unfinished="keep", refill=refill, length_penalty=0.1)
    rollouts = Rollouts(policy(), as_scorer(half_alike), config)
    rollout = rollouts(batch, 1, trees)
    assert all(tree.prompt[-1] % 2 == 0 for tree in rollout.trees)
    assert [tree.prompt for tree in rollout.trees[:4]] == [tree.prompt for tree in batch if tree.prompt[-1] % 2 == 0]
    new = [tree.prompt for tree in rollout.trees[4:]]
    assert len(set(new)) == len(new)
    assert set(new) <= {tree.prompt for tree in spare}
    tried = len(rollout) + rollout.left_out
    if refill == 100:
        assert len(rollout) == 8
        assert tried < 8 + 32
    else:
        assert tried == 8 + refill
        assert 4 <= len(rollout) <= 4 + refill
    assert [t.prompt for t in rollouts(batch, 1, trees).trees] == [t.prompt for t in rollout.trees]
    for field in (rollout.scores, rollout.logps, rollout.finished):
        assert field is not None
        assert [len(row) for row in field] == [3] * len(rollout)

    trained = policy()
    metrics = Loop(trained, PolicyGradientObjective(kl=InReward(beta=0), unfinished="keep"), lr=1e-3).step(rollout)
    assert metrics.numbers()["no_signal"] == pytest.approx(rollout.left_out / tried)


@pytest.mark.parametrize(("scores", "no_signal", "spread"), [([0.0, 1.0, 1.0], 0.0, 0.577), ([1.0] * 3, 1.0, 0.0)])
def test_one_sample_a_prompt_is_compared_with_those_of_other_prompts(
    scores: list[float], no_signal: float, spread: float, policy: BuildPolicy
) -> None:
    rollout = Rollout([TokenTree((n + 3,), ((8, 2),)) for n in range(3)], scores=[[score] for score in scores])
    metrics = Loop(policy(), PolicyGradientObjective(kl=InReward(beta=0)), lr=1e-3).step(rollout).numbers()
    assert metrics["no_signal"] == no_signal
    assert metrics["reward_std"] == pytest.approx(spread, abs=1e-3)


def test_the_kl_is_logged_as_a_multiple_of_the_spread_of_the_rewards(policy: BuildPolicy) -> None:
    trained = policy()
    logps = [[torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -0.5])] for _ in range(2)]
    trees = [TokenTree((n + 3,), ((8, 2), (9, 2))) for n in range(2)]
    rollout = Rollout(trees, scores=[[0.0, 2.0], [4.0, 6.0]], logps=logps)
    objective = PolicyGradientObjective(reference := trained.frozen_copy(), kl=InReward(beta=0.3))
    metrics = Loop(trained, objective, lr=1e-3).step(rollout).numbers()
    under_reference = reference.token_logps(trees, 1000)
    ratios = [
        p.sum() - q.sum()
        for tree, ps in zip(trees, logps, strict=True)
        for p, q in zip(ps, under_reference[tree], strict=True)
    ]
    assert metrics["kl/to_reward"] == pytest.approx(0.3 * abs(float(sum(ratios))) / 4 / 5**0.5, rel=1e-4)

    alike = Rollout(trees, scores=[[1.0, 1.0]] * 2, logps=logps)
    assert "kl/to_reward" not in Loop(trained, objective, lr=1e-3).step(alike).numbers()


def test_a_batch_without_any_signal_stays(policy: BuildPolicy) -> None:
    trees = [TokenTree((5, 7 + 2 * n), (), str(n)) for n in range(6)]
    config = ReinforceConfig(samples=2, max_new_tokens=4, unfinished="keep", refill=2)
    rollout = Rollouts(policy(), as_scorer(half_alike), config)(trees[:3], 1, trees)
    assert (len(rollout), rollout.left_out) == (3, 0)


@pytest.mark.slow
def test_adapters_train_and_the_model_without_them_is_the_reference(grow: Grow) -> None:
    lora = tw.LoRA(r=4)
    adapted = Policy.load("world", lora=lora, device="cpu")
    frozen = {name: p.clone() for name, p in adapted.model.named_parameters() if "lora_" not in name}
    trees = [TokenTree((5, 6, 7 + n), (), str(n)) for n in range(8)]
    config = ReinforceConfig(steps=4, batch_size=4, max_new_tokens=4, lr=1e-2, unfinished="keep")
    kls = [step.numbers()["kl"] for step in reinforce_steps(adapted, trees, word_count, config)]
    assert kls[0] == pytest.approx(0, abs=1e-5)
    assert abs(kls[-1]) > 1e-3
    assert all(torch.equal(p, frozen[name]) for name, p in adapted.model.named_parameters() if name in frozen)
