"""Every check that Treeward makes: what it compares, why that matters, and what to do when it fails.

A check has a slug, which is its name in receipts, messages and `--skip-check`, and an id, which tests and older
receipts use. F01 to F73 are known silent failures; I01 to I17 are identities, which hold for any weights, and each
guards against some of the failures. Several checks may share an id.

This module imports nothing but the standard library. `python -m treeward.checks.registry` prints docs/checks.md.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Stage = Literal["before", "during", "after"]


@dataclass(frozen=True)
class Kind:
    """One kind of check.

    `guards` are the ids of the failures that it detects. `name` labels the measured value in receipts. `meaning` says
    what is compared and why, `fix` what the user does when it fails.
    """

    slug: str
    id: str
    stage: Stage
    guards: tuple[str, ...]
    name: str
    meaning: str
    fix: str

    def __str__(self) -> str:
        when = {"before": "before the first step", "during": "during training", "after": "after the last step"}
        guards = f"; guards against {', '.join(self.guards)}" if self.guards != (self.id,) else ""
        return f"{self.slug} ({self.id}), {when[self.stage]}{guards}\n\n{self.meaning}\n\nIf it fails: {self.fix}."


_DATA = (
    Kind(
        slug="responses-end",
        id="F02",
        stage="before",
        guards=("F02",),
        name="share of complete responses whose last scored token is no end token",
        meaning="Every response that is not cut off must end with an end token that is scored. A model that never "
        "sees a scored end token does not learn to stop, and generates up to the length limit.",
        fix="check the end token of the tokenizer and its chat template",
    ),
    Kind(
        slug="responses-have-tokens",
        id="I01",
        stage="before",
        guards=("F03", "F12"),
        name="responses without a scored token",
        meaning="Every response must have at least one token that enters the loss. One without any gives a loss of "
        "zero, or a division by zero in losses that are normalised by length.",
        fix="remove empty responses from the data, or raise data.max_response",
    ),
    Kind(
        slug="single-bos",
        id="I16",
        stage="before",
        guards=("F01",),
        name="prompts that begin with two BOS tokens",
        meaning="A prompt must begin with at most one BOS token. Two appear when both the chat template and the "
        "tokenizer add one, and then training and generation see different text.",
        fix="remove BOS from the chat template, or set add_bos_token to false in tokenizer_config.json",
    ),
    Kind(
        slug="template-starts-with-prompt",
        id="F01",
        stage="before",
        guards=("F01",),
        name="the generation prompt at the start of the chat template's dialogue",
        meaning="The chat template must render a whole dialogue so that it begins with the rendering of its prompt. "
        "Otherwise the model is trained on text other than what it sees when it generates.",
        fix="correct the chat template of the tokenizer, or use plain text prompts",
    ),
    Kind(
        slug="token-ids-in-embedding",
        id="F09",
        stage="before",
        guards=("F09",),
        name="largest token id in the data",
        meaning="Every token id in the data must be a row of the model's embedding. A larger id shows that the "
        "tokenizer is another model's.",
        fix="set model.tokenizer to the model's own tokenizer",
    ),
    Kind(
        slug="tokenizer-matches-model",
        id="F09",
        stage="before",
        guards=("F09",),
        name="differences between the tokenizer and the model",
        meaning="The tokenizer's tokens, special ids and size are compared with those of the model. Another model's "
        "tokenizer gives valid ids that mean other tokens to this model; nothing crashes, and the loss still "
        "falls.",
        fix="set model.tokenizer to the model's own tokenizer",
    ),
    Kind(
        slug="nll-below-uniform",
        id="F09",
        stage="before",
        guards=("F09",),
        name="nats a token under the start model",
        meaning="Pretrained weights must predict the data better than a uniform guess over the vocabulary. If they do "
        "not, the tokenizer is another model's, or the weights are random.",
        fix="set model.tokenizer to the model's own tokenizer; set model.init to random if random weights are intended",
    ),
    Kind(
        slug="splits-disjoint",
        id="F04",
        stage="before",
        guards=("F04", "F50"),
        name="groups that are both in training and held out",
        meaning="No prompt may be both in the training part and in a held-out part. Such leaks make the held-out "
        "metric better than the model is on new prompts.",
        fix="split all rows again with --data.splits ignore, or remove the shared training examples with "
        "--data.leaks drop",
    ),
    Kind(
        slug="split-shares",
        id="F63",
        stage="before",
        guards=("F63",),
        name="largest difference between actual and expected share of a part, in standard errors",
        meaning="The parts of a split must have about the requested shares, also after examples were selected. A "
        "large difference means that the selection used the hash that decides the split, so the parts differ "
        "in kind.",
        fix="select the examples in another way, or set another data.seed",
    ),
    Kind(
        slug="rows-kept",
        id="F10",
        stage="before",
        guards=("F10",),
        name="share of rows dropped",
        meaning="Few rows may be dropped because of faults or limits. If many are, the remaining ones are not like "
        "the data: often they are the short ones.",
        fix="look at the dropped rows with `treeward inspect`, correct them, or raise the limits",
    ),
    Kind(
        slug="enough-groups",
        id="F48",
        stage="before",
        guards=("F48", "F50"),
        name="groups that the verdict is measured on",
        meaning="The verdict needs at least 30 held-out groups (usually prompts). With fewer, only very large changes "
        "can be told from chance.",
        fix="hold out more data, or raise evaluation.prompts where the metric is measured on samples",
    ),
    Kind(
        slug="both-labels-held-out",
        id="F50",
        stage="before",
        guards=("F50",),
        name="held-out parts without both labels",
        meaning="A held-out part of labelled responses must contain both labels. With one label no accuracy can be "
        "measured.",
        fix="raise data.validation and data.test, or shuffle the rows",
    ),
    Kind(
        slug="branches-differ",
        id="F11",
        stage="before",
        guards=("F11",),
        name="pairs and rankings with two identical responses",
        meaning="The responses of a pair or ranking must have different tokens. Identical ones give no gradient, and "
        "count as ties or as errors in accuracies.",
        fix="remove pairs with identical responses from the data",
    ),
    Kind(
        slug="truncation-keeps-differences",
        id="F11",
        stage="before",
        guards=("F11",),
        name="share of comparisons that truncation made identical",
        meaning="Truncation must not make the responses of a pair identical. Such pairs teach nothing.",
        fix="raise data.max_response",
    ),
    Kind(
        slug="data-has-differences",
        id="F11",
        stage="before",
        guards=("F11",),
        name="share of comparisons that are identical in the data",
        meaning="Few pairs of the data may have two identical responses. A larger share shows that the data was built "
        "wrongly.",
        fix="remove pairs with identical responses from the data, or look at how they were made",
    ),
    Kind(
        slug="sides-cut-alike",
        id="F13",
        stage="before",
        guards=("F13",),
        name="largest difference between the shares of cut chosen and cut rejected responses",
        meaning="Chosen and rejected responses must be cut off about equally often. Otherwise the model learns which "
        "side has an end token, not which response is better.",
        fix="raise data.max_response, or remove the responses that are too long",
    ),
    Kind(
        slug="one-order-per-pair",
        id="F04",
        stage="before",
        guards=("F04",),
        name="pairs that are present in both orders",
        meaning="No pair may appear with both orders of preference. The two cancel each other.",
        fix="remove one of the two, or both",
    ),
    Kind(
        slug="ratings-agree-with-order",
        id="F05",
        stage="before",
        guards=("F05",),
        name="share of pairs whose ratings contradict their order",
        meaning="Where responses have ratings, the chosen one must have the higher rating. Otherwise the columns are "
        "probably swapped.",
        fix="correct data.columns, or remove the contradicting pairs",
    ),
    Kind(
        slug="responses-without-prompt",
        id="F08",
        stage="before",
        guards=("F08",),
        name="share of responses that begin with their prompt",
        meaning="A response must not repeat its prompt. If many do, the response column holds prompt and response "
        "together, and the model learns to repeat the prompt.",
        fix="give the response alone, without its prompt",
    ),
    Kind(
        slug="prompts-not-empty",
        id="F08",
        stage="before",
        guards=("F08",),
        name="share of prompts that are only the start token",
        meaning="Prompts must have text. Preferences between responses to an empty prompt say nothing about answers "
        "to a prompt.",
        fix="map the prompt column with data.columns, or use the text format for data without prompts",
    ),
    Kind(
        slug="rating-gap",
        id="F08",
        stage="before",
        guards=("F08",),
        name="median difference of the ratings of a pair, in standard deviations of all ratings",
        meaning="The ratings of chosen and rejected responses must differ by more than noise. Pairs with a difference "
        "near zero are random labels.",
        fix="raise min_gap, or draw more samples a prompt",
    ),
    Kind(
        slug="every-example-measured",
        id="F49",
        stage="before",
        guards=("F49",),
        name="held-out examples without exactly one row of values",
        meaning="The measurement must have exactly one row for each held-out example. Otherwise the metric is an "
        "average over some of them, such as the last batch.",
        fix="this is an error in the measurement, not in the data; report it with the command that shows it",
    ),
)

_MODEL = (
    Kind(
        slug="layout-equals-rows",
        id="I05",
        stage="before",
        guards=("F07", "F22"),
        name="largest deviation of packed from unpacked values",
        meaning="Log-probabilities or scores, and their gradients, must be the same in the packed layout and with one "
        "plain call for each response. If they differ, branches see each other or have wrong positions.",
        fix="set model.backend to rows, or use another model class",
    ),
    Kind(
        slug="batch-independent",
        id="I04",
        stage="before",
        guards=("F03", "F14", "F26", "F36"),
        name="largest deviation between one batch, single rows and padded rows",
        meaning="The values of a response must not depend on padding or on the other responses of the batch. If they "
        "do, masks or positions are wrong.",
        fix="set model.backend to rows, or use another model class",
    ),
    Kind(
        slug="passes-repeat",
        id="I07",
        stage="before",
        guards=("F21",),
        name="largest deviation between two equal passes",
        meaning="Two passes over the same rows must give the same values. If they do not, dropout or other noise of "
        "train mode is active while log-probabilities are computed.",
        fix="turn off dropout and other random layers in the model's configuration",
    ),
    Kind(
        slug="first-loss-known",
        id="I02",
        stage="before",
        guards=("F03", "F16", "F21", "F27"),
        name="relative deviation of the first loss from its known value",
        meaning="Where the policy equals the reference model, or the score head is zero, the first loss has a known "
        "value, such as ln 2 for the sigmoid loss. Another value shows a wrong scale, sign, mask or "
        "reference.",
        fix="check the loss: a factor beta, a sum instead of a mean, or the order of chosen and rejected",
    ),
    Kind(
        slug="reference-equals-start",
        id="I03",
        stage="before",
        guards=("F20", "F22", "F34"),
        name="largest log-ratio to the reference model",
        meaning="Before the first step, the log-ratios between the policy and a reference model that is its copy must "
        "be zero. If they are not, the reference has other weights than the policy started with.",
        fix="leave reference.path unset so that the start is copied, or merge a loaded adapter into the model first",
    ),
    Kind(
        slug="reference-has-own-weights",
        id="I15",
        stage="before",
        guards=("F20", "F23"),
        name="tensors that policy and reference model share",
        meaning="The reference model must not share memory with the policy. A shared tensor moves with the policy, "
        "and KL stays near zero whatever the policy does.",
        fix="copy the model for the reference: policy.frozen_copy()",
    ),
    Kind(
        slug="accumulation-equals-batch",
        id="I06",
        stage="before",
        guards=("F19", "F43"),
        name="relative deviation between the gradients of one batch and of its rows one by one",
        meaning="The gradient of a batch must be the sum of the gradients of its rows. If it is not, the loss couples "
        "rows, or gradient accumulation divides by the wrong count.",
        fix="let the loss return one value for each row, each computed from that row alone",
    ),
    Kind(
        slug="gradient-reaches-weights",
        id="I11",
        stage="before",
        guards=("F15", "F44", "F47"),
        name="trainable tensors without a gradient or outside the optimizer",
        meaning="The optimizer must hold exactly the trainable tensors, and each must get a finite gradient that is "
        "not zero. A tensor without a gradient is never trained.",
        fix="look for detached tensors, frozen layers or an optimizer of another model",
    ),
    Kind(
        slug="sampled-logps-match",
        id="I09",
        stage="before",
        guards=("F31", "F33", "F71"),
        name="largest deviation between log-probabilities recorded while sampling and recomputed, in nats",
        meaning="The log-probabilities recorded while sampling must equal those of a forward pass over the same ids. "
        "If they do not, the samples come from other weights or another distribution than the policy. It runs "
        "before the first step, and again on the samples after training.",
        fix="set model.precision to fp32, or use another model class",
    ),
    Kind(
        slug="swap-changes-sign",
        id="I08",
        stage="before",
        guards=("F05", "F18", "F27"),
        name="largest sum of a margin and the margin of the swapped pair",
        meaning="When the two responses of each pair are swapped, every margin must change its sign and nothing else. "
        "If it does not, the score depends on the place of a response, or the metric cannot measure accuracy.",
        fix="check the score head and the order of chosen and rejected",
    ),
    Kind(
        slug="stored-logps-match",
        id="F22",
        stage="before",
        guards=("F22",),
        name="largest deviation of stored from recomputed reference log-probabilities, in nats a token",
        meaning="A sample of the stored log-probabilities of the reference model is recomputed at each start. A "
        "difference shows that the store belongs to other weights, another tokenizer or another precision.",
        fix="delete the store, or set reference.store to off",
    ),
    Kind(
        slug="learning-rate-usual",
        id="F42",
        stage="before",
        guards=("F42",),
        name="learning rate",
        meaning="The learning rate must be within a factor of 30 of the usual one for the method and model size, and "
        "the run must be long enough to move a weight. A rate that is much too high destroys the model; one "
        "that is much too low changes nothing.",
        fix="set --lr to about the usual rate",
    ),
    Kind(
        slug="advantages-as-declared",
        id="I10",
        stage="before",
        guards=("F35",),
        name="deviation of the advantages from what the baseline declares",
        meaning="A sample's own reward must weigh in its baseline only as much as the baseline declares (not at all, "
        "for most), advantages that are relative to the other samples of a prompt must sum to zero, and equal rewards "
        "must give advantages of zero. Otherwise the gradient is not that of the mean reward.",
        fix="this is a fault of the baseline; use another --baseline.kind and report it",
    ),
    Kind(
        slug="first-samples-differ",
        id="I17",
        stage="before",
        guards=("F29",),
        name="prompts whose samples differ in score",
        meaning="Among the first prompts, some must have samples with different scores. If all samples of a prompt "
        "score alike, there is nothing to learn from.",
        fix="look at the scorer",
    ),
    Kind(
        slug="first-samples-end",
        id="I17",
        stage="before",
        guards=("F30",),
        name="share of the first samples that are cut off",
        meaning="Most of the first samples must end before the length limit. If nearly all are cut off, their scores "
        "depend on the limit rather than on the policy.",
        fix="raise max_new_tokens, or use a policy that ends its answers",
    ),
    Kind(
        slug="weights-reach-gradient",
        id="F68",
        stage="before",
        guards=("F68",),
        name="deviation of the gradient under halved importance weights from half the gradient",
        meaning="Halving the weight of every response must halve the gradient, on the path that trains. Otherwise the "
        "weights are computed and then dropped.",
        fix="this is a fault of the objective; use another one and report it",
    ),
)

_TRAINING = (
    Kind(
        slug="finite-losses",
        id="F28",
        stage="during",
        guards=("F28",),
        name="finite losses, gradients and measured values",
        meaning="Losses, gradients and measured values must be finite numbers. After NaN or infinity the weights mean "
        "nothing.",
        fix="lower the learning rate, set model.precision to fp32, or look at the data of the named step",
    ),
    Kind(
        slug="divergence-tail",
        id="F28",
        stage="during",
        guards=("F28",),
        name="share of log-ratios in the linear tail of the divergence",
        meaning="Very large log-ratios use a linear continuation of the divergence so that it does not overflow. The "
        "gradient stays correct in direction, so the share is reported only and never fails.",
        fix="nothing; lower the learning rate if the share is large",
    ),
    Kind(
        slug="clip-seldom-binds",
        id="F28",
        stage="during",
        guards=("F28",),
        name="share of pairs without a gradient because of loss.clip",
        meaning="A clipped log-ratio has no gradient, so at most 1 % of the pairs may be clipped. For chi-PO, whose "
        "objective includes its clip, the share is reported only.",
        fix="raise loss.clip or remove it",
    ),
    Kind(
        slug="rollouts-differ",
        id="F29",
        stage="during",
        guards=("F29",),
        name="share of prompts whose samples all score alike",
        meaning="Over 20 steps, at most 90 % of the prompts may have samples that all score alike, unless the score "
        "has risen since the first steps. Without differences in score there is no gradient.",
        fix="look at the scorer; use prompts that are neither too easy nor too hard, or more samples a prompt",
    ),
    Kind(
        slug="rollouts-end",
        id="F30",
        stage="during",
        guards=("F30",),
        name="share of samples that are cut off at the length limit",
        meaning="Sampled responses must end before the length limit: all cut off in 3 steps in a row, or over 80 % of "
        "them over 20 steps, is a failure. Their scores then depend on the limit, and masked ones teach nothing.",
        fix="raise max_new_tokens, or set unfinished to keep where responses of a fixed length are wanted",
    ),
    Kind(
        slug="sampler-follows-policy",
        id="F33",
        stage="during",
        guards=("F31", "F33"),
        name="mean difference between sampled and recomputed log-probabilities of a token, in nats",
        meaning="The log-probabilities that the sampler recorded must be those of the policy that is updated. A "
        "sampler with stale weights, or another temperature, samples from another policy, and the gradient is wrong.",
        fix="give the sampler the weights of each step; sample at temperature 1 without top-k, top-p or penalties",
    ),
    Kind(
        slug="samples-effective",
        id="F31",
        stage="during",
        guards=("F31", "F33"),
        name="share of the samples lost to importance weights",
        meaning="With `correction` each response weighs pi(y) / pi_sampler(y). The effective sample size of these "
        "weights must be at least 30 % of the samples; below it a few responses decide the gradient.",
        fix="synchronise the sampler more often, or with higher precision",
    ),
)

_AFTER = (
    Kind(
        slug="finite-scores",
        id="F35",
        stage="after",
        guards=("F35",),
        name="a finite score for every sample",
        meaning="The scorer must give every sample a finite number. A missing score that is read as zero would count "
        "as a result.",
        fix="correct the scorer for the named response",
    ),
    Kind(
        slug="weights-moved",
        id="F37",
        stage="after",
        guards=("F37", "F47", "F51"),
        name="movement of the weights, relative to their norm",
        meaning="Training must have moved the weights. If they are those of the start, every later comparison "
        "compares the start with itself.",
        fix="check the learning rate and that the trained model is the one that is measured",
    ),
    Kind(
        slug="every-tensor-moved",
        id="F44",
        stage="after",
        guards=("F44",),
        name="trainable tensors that did not move",
        meaning="Every trainable tensor (biases excepted) must have moved. A tensor that did not was not reached by "
        "the gradient.",
        fix="look for detached tensors or frozen layers, or train for more steps",
    ),
    Kind(
        slug="planned-updates-taken",
        id="F46",
        stage="after",
        guards=("F46",),
        name="share of planned updates that were not taken",
        meaning="At least 95 % of the planned optimizer steps must have been taken. Otherwise the run ended early "
        "without notice.",
        fix="run `treeward resume` on the run directory, or look at the log for skipped steps",
    ),
    Kind(
        slug="reference-unchanged",
        id="F23",
        stage="after",
        guards=("F20", "F23"),
        name="weights of the reference model, before and after",
        meaning="The weights of a frozen reference model must be the same after training as before. If they moved, KL "
        "and rewards were measured against another model.",
        fix="make sure that nothing trains or modifies the reference model; policy.frozen_copy() copies the weights",
    ),
    Kind(
        slug="reference-follows-policy",
        id="F39",
        stage="after",
        guards=("F39",),
        name="movement of the averaged reference, against that of a steady drift",
        meaning="A reference that is a moving average of the policy must move with it. If it has moved less than half "
        "as far as it would behind a steady drift of the policy, updates were left out or the rate is on the wrong "
        "side.",
        fix="let Loop update the reference: pass it to the objective, and leave its update to Loop.step",
    ),
    Kind(
        slug="interpolated-as-asked",
        id="F39",
        stage="after",
        guards=("F39",),
        name="distance of the chosen weights from the start, against the share that was asked",
        meaning="The chosen policy must be the asked share of the way from the first start to the last merge. Weights "
        "that were interpolated twice, or from the wrong end, are elsewhere.",
        fix="report it: this is a fault of the program",
    ),
    Kind(
        slug="saved-equals-trained",
        id="I12",
        stage="after",
        guards=("F15", "F17", "F53"),
        name="largest deviation of the reloaded model from the trained one",
        meaning="The saved model, loaded with plain transformers, must have the weights and give the values of the "
        "model in memory. Otherwise another model is served than was measured.",
        fix="do not use the saved model; save it again, and look at what differs",
    ),
    Kind(
        slug="scores-vary",
        id="F18",
        stage="after",
        guards=("F18",),
        name="standard deviation of the scores",
        meaning="The scores of a trained reward model must vary. Equal scores for all responses measure nothing.",
        fix="train for more steps or with a higher learning rate, and check the score head",
    ),
    Kind(
        slug="kl-estimates-agree",
        id="F34",
        stage="after",
        guards=("F31", "F34"),
        name="standard errors between two estimates of KL(policy, start)",
        meaning="Two estimates of the KL, from the sampled tokens and from the full distributions, must agree within "
        "their standard error, or within a hundredth of the KL. If they do not, the samples are not the policy's, or "
        "a log-probability is wrong.",
        fix="set model.precision to fp32, and sample at temperature 1",
    ),
    Kind(
        slug="labels-agree-between-parts",
        id="F05",
        stage="after",
        guards=("F05",),
        name="side of one half of the accuracies on the training part and on the held-out part",
        meaning="The accuracy must not be clearly above one half on the training part and clearly below it on the "
        "held-out part. That happens when the labels of one part are reversed.",
        fix="check the order of chosen and rejected in both parts",
    ),
    Kind(
        slug="judges-agree",
        id="F32",
        stage="after",
        guards=("F24", "F32"),
        name="change of a judge's score",
        meaning="No judge (a scorer that training never used) may fall while the main metric improves. If one does, "
        "the policy has learned to exploit its reward.",
        fix="train for fewer steps, raise beta, or correct the reward",
    ),
    Kind(
        slug="repetition-limited",
        id="F24",
        stage="after",
        guards=("F24", "F32"),
        name="increase of the share of repeated 4-grams, lower end of its interval",
        meaning="Fresh samples must not be much more repetitive than those of the start model.",
        fix="look at the samples; train for fewer steps, raise beta, or correct the reward",
    ),
    Kind(
        slug="samples-likely-under-start",
        id="F24",
        stage="after",
        guards=("F24", "F32"),
        name="increase of the samples' NLL under the start model, nats a token, lower end of its interval",
        meaning="Fresh samples must not be much less likely under the start model than its own samples. Text that the "
        "start model finds very unlikely is usually word salad.",
        fix="look at the samples; train for fewer steps, raise beta, or correct the reward",
    ),
    Kind(
        slug="kl-limited",
        id="F24",
        stage="after",
        guards=("F24", "F32"),
        name="KL(policy, start), nats a token, lower end of its interval",
        meaning="The KL between policy and start model must stay below 2 nats a token. A larger one means that the "
        "policy has left the language of the start model.",
        fix="look at the samples; train for fewer steps, raise beta, or correct the reward",
    ),
    Kind(
        slug="bigrams-kept",
        id="F24",
        stage="after",
        guards=("F24", "F32"),
        name="share of the start model's distinct bigrams that was lost, lower end of its interval",
        meaning="Fresh samples must keep at least half of the start model's distinct bigrams. Losing more means that "
        "the policy gives nearly the same text to every prompt.",
        fix="look at the samples; train for fewer steps, raise beta, or correct the reward",
    ),
    Kind(
        slug="beats-length-rule",
        id="F16",
        stage="after",
        guards=("F16",),
        name="accuracy above the rule that the longer response wins",
        meaning="A reward model that is no better than preferring the longer response has not learned the preference. "
        "It fails no run, but the verdict is then `no detectable change`.",
        fix="train on pairs of equal length, or on more data",
    ),
)

REGISTRY: dict[str, Kind] = {kind.slug: kind for kind in (*_DATA, *_MODEL, *_TRAINING, *_AFTER)}
"""Every kind of check by its slug, in the order in which they run."""


def find(name: str) -> list[Kind]:
    """The kinds with this slug, or with this id, or else those that guard against the failure of this id."""
    lower, upper = name.lower(), name.upper()
    matches = [kind for kind in REGISTRY.values() if lower == kind.slug or upper == kind.id]
    return matches or [kind for kind in REGISTRY.values() if upper in kind.guards]


def nearest(name: str, slugs_and_ids: list[str]) -> str | None:
    """The slug or id that is written most like `name`, if any is close."""
    close = get_close_matches(name.lower(), [text.lower() for text in slugs_and_ids], 1, 0.5)
    return next((text for text in slugs_and_ids if close and text.lower() == close[0]), None)


SECTIONS: dict[Stage, tuple[str, str]] = {
    "before": (
        "Before the first step",
        "A failed check stops the run with exit code 2, and nothing is written. Most can be accepted with "
        "`--skip-check SLUG`.",
    ),
    "during": ("During training", "A failed check makes the verdict `broken`."),
    "after": (
        "After the last step",
        "A failed check makes the verdict `broken`; a failed F24 or F32 makes it `worse`.",
    ),
}
"""Title and introduction of each stage in docs/checks.md."""


def page() -> str:
    """The text of docs/checks.md."""
    lines = [
        "# Checks",
        "",
        "Every run checks itself, and its receipt lists the results. This page is generated from "
        "`src/treeward/checks/registry.py`; `treeward explain SLUG` prints one entry.",
        "",
        "Ids that begin with I are identities, which hold for any weights. Ids that begin with F are known silent "
        "failures.",
    ]
    for stage, (title, introduction) in SECTIONS.items():
        lines += ["", f"## {title}", "", introduction]
        for kind in (kind for kind in REGISTRY.values() if kind.stage == stage):
            guards = f" Guards against {', '.join(kind.guards)}." if kind.guards != (kind.id,) else ""
            lines += ["", f"### {kind.slug}", "", f"{kind.id}. Measured: {kind.name}.{guards}", ""]
            lines += [kind.meaning, "", f"If it fails: {kind.fix}."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
