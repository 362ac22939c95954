"""`treeward evaluate`: a policy on held-out data, alone or against a start model; or a reward model's pair accuracy."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from treeward.checks import guards, identities
from treeward.checks.check import Check, require
from treeward.checks.receipt import EXIT, GUARDS
from treeward.data.prepare import DataConfig, prepare
from treeward.data.render import vocabulary_hash
from treeward.errors import UserError
from treeward.evaluation import policies, rewards, versus
from treeward.methods.method import EvaluationConfig
from treeward.models.loading import CLASSIFIER, ModelConfig, head_of_config
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.runner.process import prepare_process
from treeward.runs.directory import RunDirectory, finite, free_path
from treeward.stats.tables import Measurement, Table, compare, is_metric
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

USED_BY_TRAINING = {"train": "models are trained on it", "validation": "checkpoints are selected on it"}
"""Why a part gives no held-out figures."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """treeward evaluate: a policy's samples and likelihood, or a reward model's pair accuracy."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to measure; a reward model is recognised by its architecture."""
    start: str | None = None
    """For a policy: the model that KL is measured against; without it KL is left out. For a reward model: the one to
    compare with."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data; its test part is used, or all of it with data.test 0. For a policy prompts are enough: data.format
    prompts."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How samples are drawn and scored. With a start, `metric` is the one that judges must not contradict."""
    part: Literal["train", "validation", "test"] = "test"
    """The part of the data to measure on."""
    seed: int = 0
    """Seeds sampling."""
    out: str | None = None
    """A directory for evaluation.jsonl, samples.jsonl, intervals.json and, with a start, against.json; it must not
    exist."""


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` measured.

    `figures` holds, by metric, value, low, high and n, and the paired `difference` to a start or another reward model
    where one is named; of a reward model also `ece` (`stats.calibration.CalibrationError`). `against` holds what
    `evaluation.versus` reports of a policy and its start, `checks` the checks of their samples.
    """

    figures: dict[str, dict[str, Any]]
    against: dict[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()

    @property
    def exit_code(self) -> int:
        """4 if a check failed, 3 if only a guard did."""
        failed = [check for check in self.checks if check.passed is False]
        words = {"worse" if check.id in GUARDS else "broken" for check in failed}
        return max((EXIT[word] for word in words), default=0)


def evaluate(config: EvaluateRun) -> Evaluated:
    """Measure a model and, if one is named, its start; with `out` also on disk.

    Raises:
        ChecksFailed: the samples are not those of the model (I09); nothing is written.
        UserError: the model, the data or the place to write cannot be used, or an option has no effect.
    """
    path = free_path("evaluate", config.out) if config.out else None
    if config.part != "test":
        log.warning(
            "part %s: %s, so figures of a model that was trained on this data are too good here",
            config.part,
            USED_BY_TRAINING[config.part],
        )
    is_reward_model = head_of_config(config.model.path) == CLASSIFIER
    if is_reward_model:
        config.evaluation.refuse_sampling()
    if config.evaluation.metric is not None and (is_reward_model or not config.start):
        raise UserError(
            f"evaluation.metric is {config.evaluation.metric!r}, which only matters when a policy is compared with a "
            "start; remove it, or set start"
        )
    samples: Sequence[Mapping[str, Any]] = []
    if is_reward_model:
        tables, figures = _reward_model(config)
        result = Evaluated(figures)
    else:
        after, before, checks = _policy(config)
        tables, samples, result = after.tables, after.samples, Evaluated(_intervals(after.tables), checks=checks)
        if before is not None:
            samples, result = versus.side_by_side(before, after), _against_start(config, before, after, checks)
    if path is not None:
        directory = RunDirectory.create(path)
        if result.against:
            checks_facts = [check.facts() for check in result.checks]
            directory.write_json("against.json", {**result.against, "checks": checks_facts})
        rows = ({"kind": kind, **row} for kind, table in tables.items() for row in table.rows())
        directory.write_lines("evaluation.jsonl", rows)
        directory.write_lines("samples.jsonl", samples)
        directory.write_json("intervals.json", result.figures)
    return result


def _intervals(tables: Mapping[str, Table]) -> dict[str, dict[str, Any]]:
    return {
        name: finite(vars(table.interval(name)))
        for table in tables.values()
        for name in table.columns
        if is_metric(name)
    }


def _reward_model(config: EvaluateRun) -> tuple[Mapping[str, Table], dict[str, dict[str, Any]]]:
    """The pairs of a reward model and its figures, against another reward model if one is named."""
    model = RewardModel.from_config(config.model, config.seed)
    prepare_process(model)
    pairs = _pairs(model, config)
    figures = _intervals({"pairs": pairs})
    if config.start is not None:
        start = RewardModel.load(config.start, precision=config.model.precision, device=config.model.device)
        start_pairs = _pairs(start, config)
        if list(start_pairs.groups) != list(pairs.groups):
            raise UserError(
                f"start {config.start!r} has another tokenizer, which truncates differently, so the evaluated pairs "
                "differ; name a reward model with the same tokenizer, or raise data.max_response"
            )
        for name in figures:
            figures[name]["difference"] = finite(vars(compare(name, start_pairs, pairs).difference))
    return {"pairs": pairs}, figures | {"ece": finite(rewards.calibration_facts(pairs)["ece"])}


def _pairs(model: RewardModel, config: EvaluateRun) -> Table:
    data = prepare(config.data, model.tokenizer, "pairs")
    table = rewards.ScoredTrees.of(model, _part(data.parts[config.part], config)).pairs()
    if table is None:
        raise UserError(f"data.source {config.data.source!r} has no pair with different ratings; name other data")
    return table


def _policy(config: EvaluateRun) -> tuple[Measurement, Measurement | None, list[Check]]:
    """The policy's measurement; the start's, if one is named, on the same prompts with the same noise; and the checks
    that the samples are theirs.

    Raises:
        ChecksFailed: they are not.
    """
    evaluation = config.evaluation
    if evaluation.aa and not config.start:
        raise UserError("evaluation.aa is true, but there is no start to measure twice; set start")
    policy = Policy.trained(config.model, config.seed)
    prepare_process(policy)
    start = _start(config.start, config, policy) if config.start else None
    data = prepare(config.data, policy.tokenizer, "prompts" if config.data.format == "prompts" else "sft")
    trees = _part(data.parts[config.part], config)
    reference = None if start is None else ReferenceModel.of(start)
    samples = policies.SampleEvaluation.of(policy, reference, config)

    def measure(model: Policy) -> Measurement:
        table, rows = replace(samples, policy=model).measure(trees)
        texts = {"texts": policies.likelihood(model, trees)} if any(tree.branches for tree in trees) else {}
        return Measurement({**texts, "samples": table}, rows)

    after = measure(policy)
    checks = require(identities.sampled_table(after.tables["samples"], policy.packed.precision))
    if start is None:
        return after, None, checks
    before = measure(start)
    checks += require(identities.sampled_table(before.tables["samples"], start.packed.precision))
    if evaluation.aa:
        again, _ = replace(samples, policy=start).measure(trees, offset=1)
        before = replace(before, tables={**before.tables, versus.AGAIN: again})
    return after, before, checks


def _start(path: str, config: EvaluateRun, policy: Policy) -> Policy:
    packed = policy.packed
    start = Policy.trained(
        ModelConfig.of(
            path,
            {
                "tokenizer": config.model.tokenizer,
                "any_tokenizer": config.model.any_tokenizer,
                "precision": packed.precision,
                "device": packed.device.type,
            },
        )
    )
    if vocabulary_hash(start.tokenizer) != vocabulary_hash(policy.tokenizer):
        raise UserError(f"start {path!r} has another tokenizer than the policy; name a model of the same family")
    return start


def _against_start(config: EvaluateRun, before: Measurement, after: Measurement, checks: Sequence[Check]) -> Evaluated:
    """The policy's figures with their paired differences to the start, and the guards of the comparison."""
    figures = _intervals(after.tables)
    main = config.evaluation.metric or ("score" if "score" in figures else next(iter(figures)))
    after.table_of(main)
    names = sorted(figures, key=lambda name: name != main)
    comparisons = [compare(name, before.table_of(name), after.table_of(name)) for name in names]
    for comparison in comparisons:
        figures[comparison.metric.name]["difference"] = finite(vars(comparison.difference))
    facts = versus.facts(before, after)
    checks = [
        *checks,
        guards.k1_check(after.tables["samples"], config.evaluation.temperature),
        *guards.judge_guards(comparisons),
        *guards.collapse_guards(comparisons, facts["diversity"], ModelConfig(path=str(config.start)).random),
    ]
    for check in checks:
        if check.passed is False:
            log.error("%s", check)
    return Evaluated(figures, finite(facts), checks)


def _part(trees: list[TokenTree], config: EvaluateRun) -> list[TokenTree]:
    if not trees:
        raise UserError(f"the part {config.part!r} of data.source {config.data.source!r} is empty; name another part")
    return trees
