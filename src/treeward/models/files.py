"""What a model's directory says by its files alone, without importing torch: its tokenizer and its vocabulary.

`AutoTokenizer` and `AutoConfig` import torch, which takes seconds and is not needed to count tokens. Both functions
give None where only those classes can tell; `models.loading` then answers.
"""

import json
from pathlib import Path
from typing import Any

import transformers

from treeward.data import world
from treeward.trees.tokens import Tokenizer

GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
"""Names of the class that takes tokenizer.json as it is."""
DECLARED = (None, "gpt2", "llama")
"""Model types, and no model at all, for which AutoTokenizer takes the class that tokenizer_config.json declares. For
others it may take the model type's own, which can give other ids.
"""


def tokenizer_of(path: str) -> Tokenizer | None:
    """The tokenizer that AutoTokenizer would load from this directory, or `world`'s."""
    if path == "world":
        return world.tokenizer()
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
    """How many token ids the model in this directory has embeddings for, by its config.json."""
    if path == "world":
        return len(world.vocabulary())
    plan = _mapping(Path(path).expanduser() / "config.json")
    if plan is None or "model_type" not in plan:
        return None
    if any(isinstance(part, dict) and part.keys() & {"vocab_size", "model_type"} for part in plan.values()):
        return None  # a model of several parts
    rows = plan.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _load(cls: Any, path: str) -> Tokenizer | None:
    try:
        return cls.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # models.loading names what is wrong
    except Exception as problem:
        if type(problem) is Exception:  # what the tokenizers library raises for a file that it cannot read
            return None
        raise


def _mapping(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
