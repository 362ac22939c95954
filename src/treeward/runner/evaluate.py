"""Measure a trained model on held-out data: a policy against a start, or a reward model against one half."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from treeward.checks import guards, identities
from treeward.checks.check import Check, require
from treeward.checks.verdict import EXIT, GUARDS
from treeward.data.prepare import DataConfig, prepare
from treeward.data.render import vocabulary_hash
from treeward.errors import UserError
from treeward.evaluation import policies, rewards, versus
from treeward.models.loading import CLASSIFIER, ModelConfig, head_of_config
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.rewards import scorers
from treeward.runner.options import EvaluationConfig
from treeward.runs.directory import RunDirectory, finite, free_path
from treeward.stats.tables import Measurement, Table, compare, known
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

SEEN = {"train": "models are trained on it", "validation": "checkpoints are chosen on it"}
"""Why figures of a part are no held-out ones."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """treeward evaluate: a policy's samples and likelihood, or a reward model's pair accuracy."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to measure; a reward model is known by its architecture."""
    start: str | None = None
    """A policy: where KL is measured from, and without one it is left out. A reward model: the one to compare with."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data; its test part is used, or all of it with data.test 0. A policy answers prompts alone as well:
    data.format prompts."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How samples are drawn and judged; with a start, `metric` is the one that a judge must not contradict."""
    part: Literal["train", "validation", "test"] = "test"
    """The part of the data to measure on."""
    seed: int = 0
    """Seeds sampling."""
    out: str | None = None
    """A directory for evaluation.jsonl, samples.jsonl, intervals.json and, with a start, against.json; it must not
    exist."""


@dataclass(frozen=True)
class Evaluated:
    """Intervals of every known metric, by name: value, low, high, n; where a start or another reward model is named,
    the paired `difference` to it. Of a reward model also its `ece`, a `stats.calibration.CalibrationError`. Of a policy
    and its start also what `evaluation.versus` says, and the checks of the samples.
    """

    figures: dict[str, dict[str, Any]]
    against: dict[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()

    @property
    def exit_code(self) -> int:
        """4 where a check failed, 3 where a guard fell."""
        failed = [check for check in self.checks if check.passed is False]
        words = {"worse" if check.id in GUARDS else "broken" for check in failed}
        return max((EXIT[word] for word in words), default=0)


def evaluate(config: EvaluateRun) -> Evaluated:
    """Measure a model and, where one is named, its start; with `out` also on disk.

    Raises:
        ChecksFailed: the samples are not those of the model (I09); nothing is written.
        UserError: the model, the data or the place to write cannot be used, or an option has no effect.
    """
    path = free_path("evaluate", config.out) if config.out else None
    if config.part != "test":
        log.warning("part %s: %s, so the figures of a model of this data are too good here", config.part,
                    SEEN[config.part])  # fmt: skip
    reward = head_of_config(config.model.path) == CLASSIFIER
    if reward:
        config.evaluation.refuse_samples()
    if config.evaluation.metric is not None and (reward or not config.start):
        raise UserError(
            f"evaluation.metric is {config.evaluation.metric!r}, which a policy's judges are held against where it is "
            "compared with a start; leave it away"
        )
    samples: Sequence[Mapping[str, Any]] = []
    if reward:
        tables, found = _reward(config)
        done = Evaluated(found)
    else:
        after, before, checks = _policy(config)
        tables, samples, done = after.tables, after.samples, Evaluated(_intervals(after.tables), checks=checks)
        if before is not None:
            samples, done = versus.side_by_side(before, after), _against(config, before, after, checks)
    if path is not None:
        run = RunDirectory.create(path)
        if done.against:
            run.write_json("against.json", {**done.against, "checks": [check.facts() for check in done.checks]})
        run.write_lines("evaluation.jsonl", ({"kind": k, **row} for k, table in tables.items() for row in table.rows()))
        run.write_lines("samples.jsonl", samples)
        run.write_json("intervals.json", done.figures)
    return done


def _intervals(tables: Mapping[str, Table]) -> dict[str, dict[str, Any]]:
    return {
        name: finite(vars(table.interval(name)))
        for table in tables.values() for name in table.columns if known(name)
    }  # fmt: skip


def _reward(config: EvaluateRun) -> tuple[Mapping[str, Table], dict[str, dict[str, Any]]]:
    own = _pairs(RewardModel.from_config(config.model, config.seed), config)
    found = _intervals({"pairs": own})
    if config.start is not None:
        start = RewardModel.load(config.start, precision=config.model.precision, device=config.model.device)
        other = _pairs(start, config)
        if list(other.groups) != list(own.groups):
            raise UserError(f"start {config.start!r} reads other pairs of this data: its tokenizer drops other rows")
        for name in found:
            found[name]["difference"] = finite(vars(compare(name, other, own).difference))
    return {"pairs": own}, found | {"ece": finite(rewards.calibration_facts(own)["ece"])}


def _pairs(model: RewardModel, config: EvaluateRun) -> Table:
    data = prepare(config.data, model.tokenizer, "pairs")
    table = rewards.Judged.of(model, _chosen_part(data.parts[config.part], config)).pairs()
    if table is None:
        raise UserError(f"data.source {config.data.source!r} has no pair that its ratings tell apart")
    return table


def _policy(config: EvaluateRun) -> tuple[Measurement, Measurement | None, list[Check]]:
    """The policy measured and, where a start is named, that one on the same prompts with the same sampler and seed; and
    the checks that the samples are theirs.

    Raises:
        ChecksFailed: they are not.
    """
    evaluation = config.evaluation
    if evaluation.aa and not config.start:
        raise UserError("evaluation.aa is true, but no start is named that could be measured twice; set start")
    policy = Policy.trained(config.model, config.seed)
    start = _start(config.start, config, policy) if config.start else policy
    data = prepare(config.data, policy.tokenizer, "prompts" if config.data.format == "prompts" else "sft")
    trees = _chosen_part(data.parts[config.part], config)
    by_group = {tree.group: TokenTree(tree.prompt, (), tree.group) for tree in trees}
    prompts = list(by_group.values())[: evaluation.prompts]
    judged = scorers.find_all(evaluation.scorer, evaluation.judges)
    reference = ReferenceModel.of(start)

    def measured(model: Policy) -> Measurement:
        table, shown = policies.fresh(model, reference, prompts, evaluation.plan(config.seed), *judged)
        texts = {"texts": policies.likelihood(model, trees)} if any(tree.branches for tree in trees) else {}
        return Measurement({**texts, "samples": table}, shown)

    after = measured(policy)
    checks = require(identities.sampled_table(after.tables["samples"], policy.packed.precision))
    if not config.start:
        table = after.tables["samples"]
        kept = {name: column for name, column in table.columns.items() if name not in policies.TO_START}
        return replace(after, tables={**after.tables, "samples": Table(table.groups, kept)}), None, checks
    before = measured(start)
    checks += require(identities.sampled_table(before.tables["samples"], start.packed.precision))
    if evaluation.aa:
        again, _ = policies.fresh(start, reference, prompts, evaluation.plan(config.seed + 1), *judged)
        before = replace(before, tables={**before.tables, versus.AGAIN: again})
    return after, before, checks


def _start(path: str, config: EvaluateRun, policy: Policy) -> Policy:
    own = policy.packed
    start = Policy.load(
        path, tokenizer=config.model.tokenizer, any_tokenizer=config.model.any_tokenizer, precision=own.precision,
        device=own.device.type,
    )  # fmt: skip
    if vocabulary_hash(start.tokenizer) != vocabulary_hash(policy.tokenizer):
        raise UserError(f"start {path!r} has another tokenizer than the policy; name one of its family")
    return start


def _against(config: EvaluateRun, before: Measurement, after: Measurement, checks: Sequence[Check]) -> Evaluated:
    """The policy's figures with their paired differences to the start, and what else is said of the two."""
    found = _intervals(after.tables)
    main = config.evaluation.metric or ("score" if "score" in found else next(iter(found)))
    after.table_of(main)
    comparisons = [compare(n, before.table_of(n), after.table_of(n)) for n in sorted(found, key=lambda n: n != main)]
    for comparison in comparisons:
        found[comparison.metric.name]["difference"] = finite(vars(comparison.difference))
    said = versus.facts(before, after)
    checks = [
        *checks,
        guards.k1_check(after.tables["samples"], config.evaluation.temperature),
        *guards.judge_guards(comparisons),
        *guards.collapse_guards(comparisons, said["diversity"], ModelConfig(path=str(config.start)).random),
    ]
    for check in checks:
        if check.passed is False:
            log.error("%s", check)
    return Evaluated(found, finite(said), checks)


def _chosen_part(trees: list[TokenTree], config: EvaluateRun) -> list[TokenTree]:
    if not trees:
        raise UserError(f"the part {config.part!r} of data.source {config.data.source!r} is empty; name another part")
    return trees
