"""Fresh samples: every column by hand, one forward pass a model, and faults that must show."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import BuildModel
from treeward.checks.guards import k1_check
from treeward.errors import UserError
from treeward.evaluation.policies import SamplePlan, fresh, implicit
from treeward.evaluation.versus import facts
from treeward.models.policy import Policy, summed_logps
from treeward.models.reference import ReferenceModel
from treeward.models.sampler import ScriptedSampler
from treeward.rewards import scorers
from treeward.stats.intervals import clustered_mean
from treeward.stats.tables import Measurement, Table, compare, is_metric, metric
from treeward.trees.forest import pack
from treeward.trees.forward import TreeLM
from treeward.trees.text import joined_group
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once

PLAN = SamplePlan(samples=3, max_new_tokens=10)
PROMPTS = [TokenTree((n, n + 1), (), f"p{n}") for n in range(5, 45)]


@pytest.fixture
def moved(tiny: BuildModel, tiny_tokenizer: Any) -> Callable[[float], tuple[Policy, ReferenceModel]]:
    """moved(scale): a policy and the reference that it was before its weights got noise of that scale."""

    def build(scale: float) -> tuple[Policy, ReferenceModel]:
        policy = Policy(tiny("llama", initializer_range=0.1), tiny_tokenizer)
        reference = ReferenceModel.of(policy)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in policy.packed.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
        return policy, reference

    return build


def test_columns_by_hand(moved: Any) -> None:
    policy, reference = moved(0.05)
    table, rows = fresh(policy, reference, PROMPTS[:4], PLAN)
    for i, row in enumerate(rows):
        prompt = next(p.prompt for p in PROMPTS if p.group == row["group"])
        ids = torch.tensor([[*prompt, *row["ids"]]])
        at = slice(len(prompt) - 1, -1)
        with torch.no_grad():
            policy_logps, start_logps = (
                m.model(input_ids=ids).logits[0, at].double().log_softmax(1) for m in (policy.packed, reference.packed)
            )
        targets = ids[0, len(prompt) :, None]
        a, b = policy_logps.gather(1, targets).sum().item(), start_logps.gather(1, targets).sum().item()
        kl, count = (policy_logps.exp() * (policy_logps - start_logps)).sum().item(), len(row["ids"])
        expected = {
            "kl": kl, "k1": a - b, "kl_token": kl / count, "start_nll": -b / count,
            "entropy": -(policy_logps.exp() * policy_logps).sum().item() / count, "length": count,
        }  # fmt: skip
        assert {name: table.columns[name][i] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_e1_a_model_against_itself_is_exactly_zero(moved: Any) -> None:
    policy, reference = moved(0.0)
    table, _ = fresh(policy, reference, PROMPTS, PLAN, scorers.find("length"))
    again, _ = fresh(policy, reference, PROMPTS, PLAN, scorers.find("length"))
    assert not table.columns["kl"].any()
    assert not table.columns["k1"].any()
    for name in table.columns:
        if is_metric(name):
            difference = compare(name, table, again).difference
            assert (difference.value, difference.excludes_zero) == (0, False)


def test_at_another_temperature_there_is_no_kl_to_the_start(moved: Any) -> None:
    policy, reference = moved(0.1)
    plan = SamplePlan(samples=2, max_new_tokens=6, temperature=0.7)
    table, rows = fresh(policy, reference, PROMPTS[:3], plan, scorers.find("length"))
    assert not {"kl", "k1", "kl_token"} & (set(table.columns) | set(rows[0]))
    assert {"entropy", "start_nll", "score"} <= set(table.columns)
    measured = Measurement({"samples": table}, rows)
    assert set(facts(measured, measured)["best_of_n"]) == {"curve"}
    assert k1_check(table, 0.7).passed is None


def test_labelled_responses_without_a_counterpart_are_counted(moved: Any, caplog: pytest.LogCaptureFixture) -> None:
    policy, reference = moved(0.1)
    labels = (1.0, 1.0, 0.0, 1.0, 1.0)
    trees = [TokenTree((n, n + 1), ((n, 7),), f"p{n}", ((label,),)) for n, label in enumerate(labels, 5)]
    assert implicit(policy, reference, trees).groups == [joined_group("p5", "p7")]
    assert "3 of 5 labelled responses have no counterpart" in caplog.text
    with pytest.raises(UserError, match="held-out part has nothing to compare"):
        implicit(policy, reference, trees[:2])


def test_one_forward_pass_of_each_model(moved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, reference = moved(0.05)
    fresh(policy, reference, PROMPTS[:2], PLAN)
    calls: list[int] = []
    honest = TreeLM.logits
    monkeypatch.setattr(TreeLM, "logits", lambda self, forest: calls.append(id(self)) or honest(self, forest))
    table, _ = fresh(policy, reference, PROMPTS[:2], PLAN)
    assert {"kl", "k1", "entropy", "start_nll"} <= set(table.columns)
    assert sorted(calls) == sorted([id(policy.packed), id(reference.packed)])


def test_k1_agrees_with_rao_blackwell_on_the_policys_own_samples(moved: Any) -> None:
    policy, reference = moved(0.1)
    table, _ = fresh(policy, reference, PROMPTS, PLAN)
    assert table.mean("kl") > 0.1
    check = k1_check(table, 1.0)
    assert check.passed, str(check)


def test_f34_kl_of_another_models_text_fails_the_check(moved: Any) -> None:
    policy, reference = moved(0.1)
    other = Policy(reference.packed.model, policy.tokenizer)
    _, rows = fresh(other, reference, PROMPTS, PLAN)
    script: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in rows:
        prompt = next(p.prompt for p in PROMPTS if p.group == row["group"])
        script.setdefault(prompt, []).append(tuple(row["ids"]))  # type: ignore[arg-type]
    table, _ = fresh(policy, reference, PROMPTS, PLAN, sampler=ScriptedSampler(script, policy.tokenizer))
    assert k1_check(table, 1.0).passed is False


@pytest.mark.slow
def test_word_salad_shows_in_perplexity_and_entropy() -> None:
    """A start that repeats w7 w8; samples of random words are more "diverse", and far less likely."""
    policy = Policy.load("world")
    draw = np.random.default_rng(0)
    plain = tuple(policy.tokenizer("the film was good and the film was good").input_ids)
    optimizer = torch.optim.Adam(policy.packed.parameters(), lr=3e-3)
    trees = [TokenTree((n,), (plain,), f"p{n}") for n in range(5, 45)]
    verify_once(policy.packed, trees)
    for _ in range(15):
        optimizer.zero_grad()
        (-policy.packed(pack(trees[:8])).mean()).backward()
        optimizer.step()
    assert summed_logps(policy.packed, trees[20:21], 512)[0] / len(plain) > -2
    reference, results = ReferenceModel.of(policy), []
    for size in (0, 12):
        script = {
            tree.prompt: [plain if not size else tuple(draw.integers(5, 40, size).tolist()) for _ in range(3)]
            for tree in trees
        }
        table, rows = fresh(policy, reference, trees, PLAN, sampler=ScriptedSampler(script, policy.tokenizer))
        results.append(Measurement({"samples": table}, rows))
    diversity = facts(*results)["diversity"]
    assert diversity["token_entropy"]["difference"]["low"] > 0
    assert diversity["distinct_2"]["difference"]["low"] > 0
    assert diversity["perplexity"]["difference"]["low"] > 10 * diversity["perplexity"]["before"]["value"]
    assert compare("start_nll", results[0].tables["samples"], results[1].tables["samples"]).outcome == "worse"


def test_self_bleu_stands_by_prompt_and_only_with_several_samples(moved: Any) -> None:
    policy, reference = moved(0.0)
    script = {PROMPTS[0].prompt: [(7, 8, 9, 10)] * 3, PROMPTS[1].prompt: [(7, 8, 9), (10, 11, 12), (13, 14, 15)]}
    sampler = ScriptedSampler(script, policy.tokenizer)
    table, _ = fresh(policy, reference, PROMPTS[:2], PLAN, sampler=sampler)
    assert table.columns["self_bleu"].tolist() == pytest.approx([1, 1, 1, 0, 0, 0])
    table, _ = fresh(policy, reference, PROMPTS[:2], SamplePlan(samples=1), sampler=sampler)
    assert "self_bleu" not in table.columns


def test_judges_have_columns_of_their_own(moved: Any) -> None:
    policy, reference = moved(0.0)
    judges = [scorers.find("count:w9"), scorers.find("length")]
    table, rows = fresh(policy, reference, PROMPTS[:3], PLAN, scorers.find("length"), judges)
    assert table.columns["judge:length"].tolist() == table.columns["score"].tolist()
    assert {"judge:count:w9", "judge:length"} <= set(rows[0])
    assert metric("judge:count:w9").higher_is_better
    assert table.interval("judge:length").n == 3


def test_e7_errors_are_clustered_by_prompt() -> None:
    """G 400, K 8, correlation 1/2: the standard error is sqrt((1 + 7/2) / 3200), twice the naive one."""
    draw = np.random.default_rng(0)
    values = math.sqrt(0.5) * (draw.normal(size=(400, 1)) + draw.normal(size=(400, 8)))
    groups = [str(n) for n in range(400) for _ in range(8)]
    interval = clustered_mean(values.ravel(), groups)
    assert (interval.high - interval.low) / (2 * 1.966) == pytest.approx(0.0375, rel=0.08)
    assert Table(groups, {"score": values.ravel()}).interval("score") == interval
    assert values.std() / math.sqrt(3200) == pytest.approx(0.0177, rel=0.05)
