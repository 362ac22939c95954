"""Check that a tokenizer belongs to the model: its tokens, the special ids of the model's configuration, its size.

A tokenizer of another model gives valid ids that mean other tokens, so nothing crashes and the loss still falls. Random
weights have no vocabulary yet, and any tokenizer that fits the embedding will do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from treeward.data.render import adds_bos, closing_id, end_id, vocabulary_hash
from treeward.errors import UserError
from treeward.models import artifact
from treeward.models.loading import ModelConfig, replaced_tokenizer
from treeward.trees.tokens import Tokenizer

SPARE_ROWS, SPARE_SHARE = 1024, 0.05
"""A model may have this many embedding rows, or this share of them, without a token, because embeddings are padded to
round sizes: Phi-2 has 905 rows more than tokens, DeepSeek-LLM 2.3 % more."""


@dataclass(frozen=True)
class Finding:
    """The result of one comparison: what was counted, how many cases, how many are allowed, and the first case."""

    name: str
    count: int
    limit: int
    detail: str

    @property
    def passed(self) -> bool:
        """Whether there are no more cases than allowed."""
        return self.count <= self.limit


def compare(config: ModelConfig, tokenizer: Tokenizer, module: Any) -> list[Finding]:
    """Compare the tokenizer with the model; empty for random weights and where `model.any_tokenizer` accepts all."""
    if config.random or config.any_tokenizer:
        return []
    saved = artifact.read(config.path) or {}
    if saved.get("tokenizer") == vocabulary_hash(tokenizer):
        return [Finding("tokens that differ from those it was trained with", 0, 0, "the saved fingerprint is equal")]
    original = replaced_tokenizer(config)
    tokens = _tokens(config, tokenizer, original) if original is not None else None
    special = _special_ids(config, tokenizer, module, compare_ends=tokens is None or not tokens.passed)
    return [*([tokens] if tokens else []), special, _size(config, tokenizer, module)]


def refuse_foreign(config: ModelConfig, tokenizer: Tokenizer, module: Any) -> None:
    """Refuse a tokenizer of another model.

    Raises:
        UserError: it is another model's; the message has the names, sizes and the first difference.
    """
    for finding in compare(config, tokenizer, module):
        if not finding.passed:
            raise UserError(
                f"F09: {finding.detail}; name the model's own tokenizer, or accept it by setting "
                "model.any_tokenizer to true"
            )


def check_end(config: ModelConfig, tokenizer: Tokenizer, module: Any) -> None:
    """Refuse a tokenizer without an end token.

    Raises:
        UserError: it has neither EOS nor an encoder's SEP; the message names a token that could be EOS.
    """
    if closing_id(tokenizer) is not None:
        return
    name = config.tokenizer or config.path
    candidate = _end_candidate(tokenizer, module)
    example = f'"eos_token": "{candidate}"' if candidate else "an eos_token"
    raise UserError(
        f"the tokenizer of {name!r} has no end token (eos_token), so no response could end; set {example} in its "
        "tokenizer_config.json, or name another with model.tokenizer"
    )


def _tokens(config: ModelConfig, tokenizer: Tokenizer, original: Tokenizer) -> Finding:
    """Ordinary tokens with another id. Special and added tokens are left out, since fine-tuning often renames them."""
    ours, theirs = _by_id(tokenizer), _by_id(original)
    special = {id for both in (tokenizer, original) for id in (*both.all_special_ids, *both.added_tokens_decoder)}
    different = sorted(id for id in ours.keys() & theirs.keys() if ours[id] != theirs[id] and id not in special)
    detail = f"model.tokenizer {config.tokenizer!r} has {len(ours)} tokens, the model {config.path!r} has {len(theirs)}"
    if different:
        first = different[0]
        detail += f"; the first that differs is id {first}: {ours[first]!r} here, {theirs[first]!r} in the model's own"
    return Finding("tokens that differ from the model's own tokenizer", len(different), 0, detail)


def _special_ids(config: ModelConfig, tokenizer: Tokenizer, module: Any, compare_ends: bool) -> Finding:
    """Special ids of the configuration that the tokenizer lacks or, with `compare_ends`, uses for other tokens."""
    ids, rows = _by_id(tokenizer), module.get_input_embeddings().num_embeddings
    configured = _configured(module, rows)
    name = config.tokenizer or config.path
    where = f"the configuration of {config.path!r} ({rows} embedding rows)"
    missing = [
        f"{where} has {kind} {id}, which the tokenizer of {name!r} ({len(ids)} tokens) does not have"
        for kind, values in configured.items()
        for id in sorted(values)
        if id not in ids
    ]
    different: list[str] = []
    if compare_ends and not missing:
        ends = {closing_id(tokenizer), end_id(tokenizer, chat=bool(tokenizer.chat_template))}
        pairs = [("eos_token_id", ends)]
        if adds_bos(tokenizer):
            pairs.append(("bos_token_id", {tokenizer.bos_token_id}))
        for kind, ours in pairs:
            theirs = configured.get(kind, set())
            if theirs and ours != {None} and not ours & theirs:
                first = min(theirs)
                expected = ", ".join(f"{id} {ids.get(id)!r}" for id in sorted(id for id in ours if id is not None))
                different.append(
                    f"{where} has {kind} {first} ({ids[first]!r}), the tokenizer of {name!r} ({len(ids)} tokens) has "
                    f"{expected}"
                )
    detail = (missing + different + [f"{len(ids)} tokens, {rows} embedding rows"])[0]
    name = "special ids of the configuration that the tokenizer does not share"
    return Finding(name, len(missing + different), 0, detail)


def _size(config: ModelConfig, tokenizer: Tokenizer, module: Any) -> Finding:
    rows = module.get_input_embeddings().num_embeddings
    size = len(_by_id(tokenizer))
    limit = max(SPARE_ROWS, int(SPARE_SHARE * rows))
    detail = (
        f"the tokenizer of {config.tokenizer or config.path!r} has {size} tokens, the model {config.path!r} has {rows} "
        "embedding rows"
    )
    return Finding("embedding rows without a token", max(0, rows - size), limit, detail)


def _configured(module: Any, rows: int) -> dict[str, set[int]]:
    """The special ids of config.json and generation_config.json that have an embedding, by their names.

    An id without an embedding is a default of the configuration class and no token of this model.
    """
    special_ids: dict[str, set[int]] = {}
    for source in (module.config, getattr(module, "generation_config", None)):
        for kind in ("eos_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(source, kind, None)
            ids = value if isinstance(value, list) else [value]
            special_ids.setdefault(kind, set()).update(id for id in ids if isinstance(id, int) and 0 <= id < rows)
    return special_ids


def _end_candidate(tokenizer: Tokenizer, module: Any) -> str | None:
    """A token that could end a response: the configuration's EOS, else one of the usual names."""
    ids = _by_id(tokenizer)
    ends = _configured(module, len(ids))["eos_token_id"]
    usual = ("<|im_end|>", "<|endoftext|>", "</s>", "<eos>", "<|eot_id|>", "<end_of_turn>")
    vocabulary = set(ids.values())
    return next((ids[id] for id in sorted(ends) if id in ids), next((t for t in usual if t in vocabulary), None))


def _by_id(tokenizer: Tokenizer) -> Mapping[int, str]:
    return {int(id): str(token) for token, id in tokenizer.get_vocab().items()}
