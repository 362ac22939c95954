"""What a saved model carries beside its weights: `treeward.json`, and a reward model's card with the lines to a score.

The weights load with plain transformers. Of every model the file holds the fingerprint of its vocabulary and, where a
run trained it, the budgets of its data. Of a reward model it also says what the logits mean, how text must be rendered
for them, and how good they were measured to be.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import nn

from treeward.data.render import vocabulary_hash
from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Attributes, Categorical, Logistic, Ordinal, Scalar, rising
from treeward.models.heads import head_hash
from treeward.models.loading import description, model_directory
from treeward.trees.tokens import Tokenizer

NAME = "treeward.json"
KINDS: dict[str, Any] = {
    "scalar": Scalar, "categorical": Categorical, "ordinal": Ordinal, "logistic": Logistic, "attributes": Attributes,
}  # fmt: skip


@dataclass(frozen=True)
class Budgets:
    """The longest prompt and response in tokens that a model was trained with: data.max_prompt, data.max_response."""

    max_prompt: int
    max_response: int

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> "Budgets | None":
        """Those of a `treeward.json`; None where it has none."""
        return cls(**facts["budgets"]) if facts and "budgets" in facts else None

    def facts(self) -> dict[str, Any]:
        """As they stand in `treeward.json`."""
        return {"budgets": asdict(self)}


def write_policy(directory: Path, tokenizer: Tokenizer, budgets: Budgets | None) -> None:
    """Write the `treeward.json` of a policy: its vocabulary's fingerprint and, where a run trained it, its budgets."""
    facts = {"schema": 1, "tokenizer": vocabulary_hash(tokenizer), **(budgets.facts() if budgets else {})}
    (directory / NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write(
    directory: Path,
    module: nn.Module,
    head: AnyHead,
    free: torch.Tensor | None,
    tokenizer: Tokenizer,
    budgets: Budgets | None,
) -> None:
    """Write the `treeward.json` of a reward model and the model card beside saved weights."""
    facts: dict[str, Any] = {
        "schema": 1,
        **(budgets.facts() if budgets else {}),
        "head": {"kind": _kind(head), **asdict(head)},
        "score_position": "the response's last token, by its index: its end token, unless the response was cut",
        "tokenizer": vocabulary_hash(tokenizer),
        "template": _hash(tokenizer.chat_template or ""),
        "head_hash": head_hash(module),
    }
    if free is not None:
        facts["head"]["thresholds"] = rising(free.detach()).tolist()
    (directory / NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(card(facts["head"]), encoding="utf-8")


def annotate(directory: Path, facts: Mapping[str, Any]) -> None:
    """Add what was measured (`accuracy`, `normalisation`, `data`) to a saved artifact."""
    file = directory / NAME
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**found, **facts}, indent=2) + "\n", encoding="utf-8")


def read(path: str) -> dict[str, Any] | None:
    """The `treeward.json` of a local model or run directory; None where there is none.

    Raises:
        UserError: the path is a run that has no model, or the file is damaged.
    """
    file = Path(model_directory(path)).expanduser() / NAME
    return description(file) if file.is_file() else None


def read_reward(path: str) -> dict[str, Any] | None:
    """The `treeward.json` of a reward model; None where there is none, or where it is a policy's.

    Raises:
        UserError: the file is damaged, or lacks what a reward model needs.
    """
    facts = read(path)
    if facts is None or "head" not in facts:
        return None
    lacking = [name for name in ("tokenizer", "template", "head_hash") if not isinstance(facts.get(name), str)]
    if not isinstance(facts["head"], dict):
        lacking.append("head")
    if lacking:
        file = Path(model_directory(path)).expanduser() / NAME
        raise UserError(f"{str(file)!r} is damaged: it does not say {lacking[0]!r}")
    return facts


def head_of(facts: Mapping[str, Any]) -> tuple[AnyHead, torch.Tensor | None]:
    """The head that `treeward.json` describes, and an ordinal head's thresholds.

    Raises:
        UserError: the kind is unknown, or a field is wrong.
    """
    fields = dict(facts["head"])
    kind, thresholds = fields.pop("kind", None), fields.pop("thresholds", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{NAME} has a head of kind {kind!r}; known are {', '.join(KINDS)}")
    try:
        head: AnyHead = pydantic.TypeAdapter(KINDS[kind]).validate_python(fields)
        numbers = pydantic.TypeAdapter(list[pydantic.FiniteFloat] | None).validate_python(thresholds)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"])) or "head"
        raise UserError(f"{NAME} is damaged: {place}: {first['msg'].lower()}") from None
    return head, None if numbers is None else torch.tensor(numbers)


def check_tokenizer(facts: Mapping[str, Any], tokenizer: Tokenizer, path: str) -> None:
    """Refuse a tokenizer or chat template other than the one the model was trained with.

    Raises:
        UserError: either differs, with the mend.
    """
    for name, own in (
        ("tokenizer", vocabulary_hash(tokenizer)), ("template", _hash(tokenizer.chat_template or "")),
    ):  # fmt: skip
        if facts[name] != own:
            raise UserError(
                f"model.path {path!r} was trained with another {name}; leave model.tokenizer away, or set "
                "model.any_tokenizer to true to accept the difference"
            )


def check_head(facts: Mapping[str, Any], module: nn.Module, path: str) -> None:
    """Refuse weights whose head is not the one that was saved.

    Raises:
        UserError: the head's hash differs.
    """
    if facts["head_hash"] != head_hash(module):
        raise UserError(f"model.path {path!r}: the head's weights are not those that {NAME} was written for")


def card(head: Mapping[str, Any]) -> str:
    """A model card with the lines that turn logits into a score."""
    lines = "\n".join(_lines(head))
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, treeward]
---

# A reward model, trained with treeward

A higher score is better. `text` is the prompt as the chat template renders it (plain text as it stands), then the
response and its end token. `treeward.json` says how it was trained and measured.

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path)
logits = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
{lines}
```
"""


def _lines(head: Mapping[str, Any]) -> list[str]:
    if head["kind"] == "scalar":
        return ["score = logits[:, 0]"]
    bins = head["bins"]
    if head["kind"] == "categorical":
        return [f"score = logits.softmax(-1) @ torch.arange(1.0, {bins} + 1)"]
    if head["kind"] == "ordinal":
        thresholds = [round(t, 6) for t in head["thresholds"]]
        return [
            f"thresholds = torch.tensor({thresholds})",
            f"score = {bins} - torch.sigmoid(thresholds - logits).sum(-1)",
        ]
    if head["kind"] == "logistic":
        shift, floor = Logistic(bins, head["floor"]).shift, head["floor"]
        return [
            f"scale = torch.nn.functional.softplus(logits[:, 1:] + {shift:.9g}) + {floor}",
            f"edges = torch.arange(1.0, {bins}) + 0.5 - {(bins + 1) / 2} - logits[:, :1]",
            f"score = {bins} - torch.sigmoid(edges / scale).sum(-1)",
        ]
    count = len(head["names"])
    weights = list(head["weights"]) or [1 / count] * count
    return [
        f"means = logits.view(-1, {count}, {bins}).softmax(-1) @ torch.arange(1.0, {bins} + 1)",
        f"score = means @ torch.tensor({weights})",
    ]


def _kind(head: AnyHead) -> str:
    return next(kind for kind, cls in KINDS.items() if isinstance(head, cls))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
