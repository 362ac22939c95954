"""The public functions: sample, score, pick pairs, evaluate, check, receipt; and models that the user built."""

from collections.abc import Mapping, Sequence
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.nn.functional import softplus

import treeward as tw

WORDS = ("film", "sequel", "musical", "drama", "comedy", "thriller")
ANSWERS = ("good", "fine", "dull", "funny", "boring", "clever")


@pytest.fixture(scope="module")
def prompts() -> list[tw.Tree]:
    return [
        tw.Tree(f"this strange {word} by a team : the plot is", row={"answer": answer})
        for word, answer in zip(WORDS, ANSWERS, strict=True)
    ]


@pytest.fixture
def policy() -> tw.Policy:
    return tw.Policy.load("world", device="cpu")


def has_answer(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    assert prompt.startswith("this strange")
    return float(row["answer"] in response.split())


def test_a_scorer_sees_the_row_of_each_sample(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    rollout = tw.sample(policy, prompts, n=4, max_new_tokens=8, seed=0)
    assert len(rollout) == len(prompts)
    scored = tw.score(rollout, lambda prompt, response, row: float(ANSWERS.index(row["answer"])))
    assert scored.scores == [[float(n)] * 4 for n in range(len(prompts))]
    assert rollout.scores is None


def test_a_scorer_of_all_samples_at_once(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    rollout = tw.sample(policy, prompts[:2], n=3, max_new_tokens=8, seed=0)

    def lengths(samples: Sequence[tw.Sample]) -> list[float]:
        assert [sample.row["answer"] for sample in samples] == ["good"] * 3 + ["fine"] * 3
        return [float(len(sample.ids)) for sample in samples]

    scored = tw.score(rollout, lengths)
    assert scored.scores == [[float(len(branch)) for branch in tree.branches] for tree in rollout.trees]
    assert scored.scores == tw.score(rollout, "length").scores


def test_samples_depend_on_seed_step_and_prompt_only(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    def ids(trees: Sequence[tw.Tree], **changes: int) -> list[Any]:
        return [
            tree.branches for tree in tw.sample(policy, trees, n=2, max_new_tokens=8, **{"seed": 0, **changes}).trees
        ]

    assert ids(prompts) == ids(prompts)
    assert ids(prompts[::-1]) == ids(prompts)[::-1]
    assert ids(prompts, step=1) != ids(prompts)
    assert ids(prompts, seed=1) != ids(prompts)


def test_best_worst_leaves_out_prompts_without_a_difference(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    rollout = tw.sample(policy, prompts[:3], n=3, max_new_tokens=8, seed=0)
    rollout = rollout.with_scores([1, 3, 2, 0, 0, 0, 5, 4, 4])
    first, second = tw.best_worst(rollout)
    assert first.branches == (rollout.trees[0].branches[1], rollout.trees[0].branches[0])
    assert first.ratings == ((3.0,), (1.0,))
    assert second.branches == (rollout.trees[2].branches[0], rollout.trees[2].branches[2])
    assert second.row == {"answer": "dull"}
    assert [pair.prompt for pair in tw.best_worst(rollout, min_gap=1.5)] == [first.prompt]
    assert tw.best_worst(rollout.with_scores([0] * 9)) == []


def test_pairs_of_an_unscored_rollout_are_refused(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    with pytest.raises(tw.UserError, match=r"treeward\.score"):
        tw.best_worst(tw.sample(policy, prompts[:1], n=2, max_new_tokens=4, seed=0))


def test_the_loop_trains_on_what_was_sampled(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    """A plain function as loss: its first value is ln 2, and after some steps on the same pairs it is lower."""

    def loss(pairs: tw.PairScores, beta: float = 0.1) -> torch.Tensor:
        return softplus(-beta * (pairs.chosen_logratios - pairs.rejected_logratios))

    reference = policy.frozen_copy()
    loop = tw.Loop(policy, tw.PairObjective(loss, reference), lr=1e-3)
    pairs = tw.best_worst(tw.score(tw.sample(policy, prompts, n=4, max_new_tokens=8, seed=0), "length"))
    losses = [loop.step(pairs).numbers()["loss"] for _ in range(4)]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < 0.6
    assert loop.index == 4


def test_evaluation_has_intervals_and_kl_only_with_a_reference(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    reference = policy.frozen_copy()
    evaluation = tw.evaluate(policy, prompts, scorer="length", judges=[has_answer], n=2, max_new_tokens=8)
    assert set(evaluation.metrics) & {"kl", "start_nll"} == set()
    assert evaluation.metrics["score"]["n"] == len(prompts)
    assert evaluation.metrics["judge:has_answer"]["value"] >= 0
    assert "score" in str(evaluation)
    assert len(evaluation.samples) == 2 * len(prompts)
    again = tw.evaluate(policy, prompts, scorer="length", reference=reference, n=2, max_new_tokens=8)
    assert again.metrics["score"] == evaluation.metrics["score"]
    assert again.metrics["kl"]["value"] == 0.0


def test_no_prompts_are_refused(policy: tw.Policy) -> None:
    with pytest.raises(tw.UserError, match="prompts is empty"):
        tw.evaluate(policy, [])


def test_check_and_receipt_give_a_verdict(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    texts = [tw.Tree(tree.prompt, [" very good ."]) for tree in prompts]
    objective = tw.TokenNLL()
    checks = tw.check(policy, objective, texts)
    assert {check.slug for check in checks} >= {"layout-equals-rows", "gradient-reaches-weights"}
    assert all(check.passed for check in checks)
    before = tw.evaluate(policy, prompts, scorer="count:good", n=2, max_new_tokens=8)
    loop = tw.Loop(policy, objective, lr=1e-2)
    for batch in tw.Batches(texts, size=6, epochs=15):
        loop.step(batch)
    after = tw.evaluate(policy, prompts, scorer="count:good", n=2, max_new_tokens=8)
    receipt = tw.receipt(before, after, checks, scorer="count:good", random_start=True)
    assert receipt.verdict.word == "improved", str(receipt)
    assert receipt.facts()["schema"] == 2
    assert tw.receipt(before, before, checks).verdict.word == "no detectable change"


def test_a_failed_check_makes_the_receipt_broken(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    """Weights that no gradient reaches: the objective ignores the model."""

    class Constant(tw.TokenNLL):
        def __call__(self, model: Any, forest: tw.Forest) -> tw.Terms:
            terms = super().__call__(model, forest)
            return tw.Terms(terms.values * 0 + 1, {})

    texts = [tw.Tree(tree.prompt, [" very good ."]) for tree in prompts]
    checks = tw.check(policy, Constant(), texts)
    assert [check.slug for check in checks if check.passed is False] == ["gradient-reaches-weights"]
    evaluation = tw.evaluate(policy, prompts, scorer="length", n=2, max_new_tokens=8)
    assert tw.receipt(evaluation, evaluation, checks).verdict.word == "broken"


def test_the_first_loss_of_a_declared_loss_is_checked(policy: tw.Policy, prompts: list[tw.Tree]) -> None:
    pairs = [tw.Tree(tree.prompt, [" very good .", " dull ."]) for tree in prompts]
    reference = policy.frozen_copy()
    clean = tw.check(policy, tw.PairObjective(tw.losses.Sigmoid(), reference), pairs)
    assert next(check for check in clean if check.slug == "first-loss-known").passed
    with torch.no_grad():
        next(policy.packed.parameters()).add_(0.5)
    moved = tw.check(policy, tw.PairObjective(tw.losses.Sigmoid(), reference), pairs)
    assert next(check for check in moved if check.slug == "first-loss-known").passed is False


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tw.Policy.load("world", device="cpu").save(path)
    return str(path)


def test_a_model_that_the_user_built_is_accepted_as_it_is(directory: str, prompts: list[tw.Tree]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    policy = tw.Policy(model, transformers.AutoTokenizer.from_pretrained(directory))
    assert policy.model is model
    trees = [tw.Tree(tree.prompt, [" good ."]) for tree in prompts]
    assert torch.equal(tw.branch_logps(policy, trees), tw.branch_logps(tw.Policy.load(directory), trees))


def test_a_peft_model_is_accepted_and_its_base_is_the_reference(directory: str, prompts: list[tw.Tree]) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    policy = tw.Policy(model, transformers.AutoTokenizer.from_pretrained(directory))
    assert policy.model is model
    reference = policy.frozen_copy()
    assert reference.packed is policy.packed, "no weights are copied"
    loop = tw.Loop(policy, tw.PairObjective(tw.losses.Sigmoid(), reference), lr=1e-2)
    pairs = [tw.Tree(tree.prompt, [" very good .", " dull ."]) for tree in prompts]
    losses = [loop.step(pairs).numbers()["loss"] for _ in range(3)]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0]
    assert all("lora_" in name for name, p in policy.packed.named_parameters() if p.requires_grad)


def test_another_module_than_a_language_model_names_the_fix() -> None:
    with pytest.raises(tw.UserError, match="call load"):
        tw.Policy(torch.nn.Linear(2, 2), None)


def test_render_gives_the_ids_of_a_tree(policy: tw.Policy) -> None:
    tree = tw.render(tw.Tree("the plot is", [" good .", " dull ."]), policy.tokenizer)
    assert len(tree.branches) == 2
    assert {branch[-1] for branch in tree.branches} == {policy.end_ids[0]}


def test_whole_training_functions_return_their_metrics(prompts: list[tw.Tree]) -> None:
    pairs = [tw.Tree(tree.prompt, [" very good .", " dull ."]) for tree in prompts]
    result = tw.dpo(tw.Policy.load("world", device="cpu"), pairs, tw.DPOConfig(steps=3, batch_size=3, lr=1e-3))
    assert result.steps == 3
    assert result.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert str(result).startswith("3 steps, loss 0.6931 -> ")
    steps = tw.sft_steps(tw.Policy.load("world", device="cpu"), pairs, tw.SFTConfig(steps=2, batch_size=3))
    assert [step.index for step in steps] == [1, 2]


def test_training_half_precision_weights_is_warned_about(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for dtype, warnings in ((torch.float32, 0), (torch.bfloat16, 1)):
        caplog.clear()
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        tw.Loop(tw.Policy(model, tokenizer), tw.TokenNLL(), lr=1e-3)
        assert caplog.text.count("small updates are rounded away") == warnings
