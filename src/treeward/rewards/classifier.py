"""A public sequence classifier as a scorer, with its own tokenizer: the raw logit, never the squashed probability.

With one label the score is its logit, with two the second's minus the first's. `DIR#LABEL` names the label; its score
is then its log-odds, the logit minus the logsumexp of all others. A probability near 0 or 1 has no room left for a
difference; these have.

Prompt and response are one text, cut on the left at the classifier's longest input, so that the prompt goes first.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from treeward.errors import UserError
from treeward.models.loading import ModelConfig, load
from treeward.rewards import texts
from treeward.trees.tokens import Tokenizer, TokenTree

log = logging.getLogger(__name__)

BATCH = 32
UNBOUNDED = 1_000_000
"""A tokenizer without a stated longest input names a number far above this."""


class Classifier:
    """A sequence classifier, and which of its labels counts."""

    def __init__(self, module: Any, tokenizer: Tokenizer, name: str, label: str = "") -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = "left"
        self.name = name
        self.cut = 0
        """Texts that were longer than its input."""
        self.place = _place(module.config, name, label)
        first = (tokenizer.pad_token_id, module.config.pad_token_id, tokenizer.eos_token_id, 0)
        self.padding = int(next(token for token in first if token is not None))
        module.config.pad_token_id = self.padding

    @classmethod
    def load(cls, name: str) -> "Classifier":
        """The classifier of a directory or hub id, `#LABEL` behind it where one is to be named.

        Raises:
            UserError: nothing loadable is there, or the label is missing or unknown.
        """
        path, _, label = name.partition("#")
        loaded = load(ModelConfig(path=path), AutoModelForSequenceClassification, 0)
        return cls(loaded.model, loaded.tokenizer, name, label)

    @property
    def longest(self) -> int:
        """The most tokens it reads."""
        positions = getattr(self.module.config, "max_position_embeddings", None) or UNBOUNDED
        # Families with position ids that begin after the padding id keep two rows for it.
        offset = 2 if "roberta" in str(self.module.config.model_type) else 0
        stated = self.tokenizer.model_max_length or UNBOUNDED
        return int(min(positions - offset, stated, UNBOUNDED))

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        return self.score(texts.whole(trees, tokenizer))

    def score(self, given: Sequence[str]) -> Float[Tensor, "N"]:
        """One score a text, in order."""
        if not given:
            return torch.zeros(0)
        rows = [self._ids(text) for text in given]
        device = next(self.module.parameters()).device
        scores = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            width = max(1, *(len(rows[place]) for place in part))
            ids = torch.full((len(part), width), self.padding)
            mask = torch.zeros_like(ids)
            for line, place in enumerate(part):
                ids[line, : len(rows[place])] = torch.tensor(rows[place])
                mask[line, : len(rows[place])] = 1
            with torch.no_grad():
                logits = self.module(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            scores[part] = self.scored(logits.float().cpu())
        return scores

    def _ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text).input_ids)
        if len(ids) <= self.longest:
            return ids
        if not self.cut:
            log.warning("scorer %r reads %d tokens; longer texts are cut on the left", self.name, self.longest)
        self.cut += 1
        return list(self.tokenizer(text, truncation=True, max_length=self.longest).input_ids)

    def scored(self, logits: Float[Tensor, "N C"]) -> Float[Tensor, "N"]:
        """The raw score of logits."""
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = [place for place in range(logits.shape[1]) if place != self.place]
        return logits[:, self.place] - logits[:, others].logsumexp(1)


def _place(config: Any, name: str, label: str) -> int:
    labels = [str(config.id2label[place]) for place in range(config.num_labels)]
    if label:
        if label not in labels:
            raise UserError(f"scorer {name!r}: the classifier has no label {label!r}; it has {', '.join(labels)}")
        if len(labels) == 1:
            raise UserError(f"scorer {name!r}: the classifier has one label; leave #{label} away")
        return labels.index(label)
    if len(labels) > 2:
        path = name.partition("#")[0]
        raise UserError(f"scorer {name!r} has the labels {', '.join(labels)}; name one, such as {path}#{labels[-1]}")
    return len(labels) - 1
