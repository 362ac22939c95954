"""The files beside saved weights: `treeward.json`, and a reward model's card with the code that computes a score.

The weights load with plain transformers. `treeward.json` has hashes of the vocabulary and of the weights' files and,
where a run trained the model, its start and the token budgets of its data. For a reward model it also has the head, the
chat template that text must be rendered with, and the measured accuracy.
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
from transformers import AutoConfig, AutoModelForSequenceClassification

from treeward.data.render import vocabulary_hash
from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Attributes, Categorical, Logistic, Ordinal, Scalar, rising_thresholds
from treeward.merging.checkpoints import Checkpoint
from treeward.models.loading import ModelConfig, description, model_directory
from treeward.models.weights import hash_of, head_hash, output_layer
from treeward.trees.tokens import Tokenizer

NAME = "treeward.json"
KINDS: dict[str, Any] = {
    "scalar": Scalar,
    "categorical": Categorical,
    "ordinal": Ordinal,
    "logistic": Logistic,
    "attributes": Attributes,
}
"""The classes of the heads by their names in `treeward.json`."""


@dataclass(frozen=True)
class Budgets:
    """The longest prompt and response, in tokens, of a model's training (data.max_prompt, data.max_response)."""

    max_prompt: int
    max_response: int

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> "Budgets | None":
        """The budgets of a `treeward.json`; None where it has none."""
        return cls(**facts["budgets"]) if facts and "budgets" in facts else None

    def facts(self) -> dict[str, Any]:
        """The entry for `treeward.json`."""
        return {"budgets": asdict(self)}


def write_policy(directory: Path, tokenizer: Tokenizer, budgets: Budgets | None) -> None:
    """Write the `treeward.json` of a policy: the hash of its vocabulary and, where a run trained it, its budgets."""
    facts = {"schema": 1, "tokenizer": vocabulary_hash(tokenizer), **(budgets.facts() if budgets else {})}
    _write(directory, facts, weights_hash(directory))


def write(
    directory: Path,
    module: nn.Module,
    head: AnyHead,
    thresholds: torch.Tensor | None,
    tokenizer: Tokenizer,
    budgets: Budgets | None,
) -> None:
    """Write the `treeward.json` of a reward model and its model card.

    `thresholds` are an ordinal head's unconstrained parameters.
    """
    facts: dict[str, Any] = {
        "schema": 1,
        **(budgets.facts() if budgets else {}),
        "head": {"kind": _kind(head), **asdict(head)},
        "score_position": "the response's last token, by its index: its end token, unless the response was cut",
        "tokenizer": vocabulary_hash(tokenizer),
        "template": _hash(tokenizer.chat_template or ""),
        "head_hash": head_hash(module),
    }
    if thresholds is not None:
        facts["head"]["thresholds"] = rising_thresholds(thresholds.detach()).tolist()
    _write(directory, facts, weights_hash(directory))
    (directory / "README.md").write_text(card(facts["head"]), encoding="utf-8")


def write_merged(directory: Path, facts: Mapping[str, Any], weights: str) -> None:
    """Write the `treeward.json` of merged weights, which are in `directory` already, from what the members share.

    `weights` is their hash, as `weights_hash` gives it.
    """
    if "head" in facts:
        with torch.device("meta"):
            module = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(directory))
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        saved = Checkpoint(directory)
        facts = {**facts, "head_hash": hash_of(saved[names[id(p)]] for p in output_layer(module).parameters())}
    _write(directory, facts, weights)


def start_of(config: ModelConfig) -> dict[str, Any]:
    """The entry `start` of a trained model: the path or hub id, and the hash of its weights where they are local."""
    directory = Path(model_directory(config.path)).expanduser()
    local = not config.random and (directory / "config.json").exists()
    return {"path": config.path, "weights": weights_hash(directory) if local else None}


def weights_hash(directory: Path) -> str | None:
    """The hash of the safetensors files in a model directory; None where there are none."""
    return Checkpoint(directory).hash if list(directory.glob("*.safetensors")) else None


def _write(directory: Path, facts: Mapping[str, Any], weights: str | None) -> None:
    text = json.dumps({**facts, "weights": weights}, indent=2)
    (directory / NAME).write_text(text + "\n", encoding="utf-8")


def annotate(directory: Path, facts: Mapping[str, Any]) -> None:
    """Add measured facts (`accuracy`, `normalisation`, `data`) to a saved `treeward.json`."""
    file = directory / NAME
    saved = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**saved, **facts}, indent=2) + "\n", encoding="utf-8")


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
        UserError: the file is damaged, or lacks an entry of a reward model.
    """
    facts = read(path)
    if facts is None or "head" not in facts:
        return None
    missing = [name for name in ("tokenizer", "template", "head_hash") if not isinstance(facts.get(name), str)]
    if not isinstance(facts["head"], dict):
        missing.append("head")
    if missing:
        file = Path(model_directory(path)).expanduser() / NAME
        raise UserError(f"{str(file)!r} is damaged: it has no {missing[0]!r}; save the model again")
    return facts


def head_of(facts: Mapping[str, Any]) -> tuple[AnyHead, torch.Tensor | None]:
    """The head that `treeward.json` describes, and an ordinal head's thresholds.

    Raises:
        UserError: the kind is unknown, or a field is wrong.
    """
    fields = dict(facts["head"])
    kind, thresholds = fields.pop("kind", None), fields.pop("thresholds", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{NAME} has a head of kind {kind!r}; it must be one of {', '.join(KINDS)}")
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
        UserError: either differs.
    """
    hashes = {"tokenizer": vocabulary_hash(tokenizer), "template": _hash(tokenizer.chat_template or "")}
    for name, digest in hashes.items():
        if facts[name] != digest:
            raise UserError(
                f"model.path {path!r} was trained with another {name}; leave model.tokenizer out, or set "
                "model.any_tokenizer to true to accept the difference"
            )


def check_head(facts: Mapping[str, Any], module: nn.Module, path: str) -> None:
    """Refuse weights whose head differs from the saved one.

    Raises:
        UserError: the hash of the head differs.
    """
    if facts["head_hash"] != head_hash(module):
        raise UserError(
            f"model.path {path!r}: the head's weights are not those that {NAME} was written for; use files that were "
            "saved together"
        )


def card(head: Mapping[str, Any]) -> str:
    """The model card, with the code that turns logits into a score."""
    lines = "\n".join(_lines(head))
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, treeward]
---

# A reward model, trained with treeward

A higher score is better. `text` is the prompt as the chat template renders it (plain text unchanged), then the
response and its end token. `treeward.json` has the facts of its training and its measured accuracy.

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
