"""The tokenizer and the vocabulary size of a model directory, read without importing torch.

`AutoTokenizer` and `AutoConfig` import torch, which takes seconds and is not needed to count tokens. Both functions
return None where those classes are needed; the caller then uses `models.loading`.
"""

import json
from pathlib import Path
from typing import Any

import transformers

from treeward.data import embedded
from treeward.trees.tokens import Tokenizer

GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
"""Names of the class that uses tokenizer.json unchanged."""
DECLARED = (None, "gpt2", "llama")
"""Model types (None: no model) for which AutoTokenizer uses the class that tokenizer_config.json declares. For others
it may use the model type's own class, which can give other ids."""


def tokenizer_of(path: str) -> Tokenizer | None:
    """The tokenizer that AutoTokenizer would load from this directory, or an embedded model's."""
    if path in embedded.MODELS:
        return embedded.MODELS[path].tokenizer()
    folder = Path(path).expanduser()
    settings, model = _mapping(folder / "tokenizer_config.json"), _mapping(folder / "config.json")
    if settings is None or not (folder / "tokenizer.json").is_file():
        return None
    if "auto_map" in settings or (model or {}).get("model_type") not in DECLARED:
        return None
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if name in GENERIC:
        return _load(transformers.PreTrainedTokenizerFast, path)
    cls = getattr(transformers, name, None) if name.endswith("Tokenizer") and name != "LlamaTokenizer" else None
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedTokenizerFast):
        return None
    return _load(cls, path)


def embedding_rows_of(path: str) -> int | None:
    """How many token ids the model in this directory has embeddings for, according to its config.json."""
    if path in embedded.MODELS:
        return len(embedded.MODELS[path].vocabulary())
    config = _mapping(Path(path).expanduser() / "config.json")
    if config is None or "model_type" not in config:
        return None
    if any(isinstance(part, dict) and part.keys() & {"vocab_size", "model_type"} for part in config.values()):
        return None  # a model of several parts, each with a configuration
    rows = config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _load(cls: Any, path: str) -> Tokenizer | None:
    try:
        return cls.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # models.loading reports what is wrong
    except Exception as problem:
        if type(problem) is Exception:  # raised by the tokenizers library for a file that it cannot read
            return None
        raise


def _mapping(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
