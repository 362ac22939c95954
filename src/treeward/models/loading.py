"""Finding models and tokenizers: the embedded world, a local directory, or a hub id; one-line errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from treeward.data import world
from treeward.data.hub import reachable
from treeward.data.render import Tokenizer
from treeward.models.device import AskedDevice, AskedPrecision, choose_device, choose_precision, keep_freed_memory
from treeward.models.kernels import fuse_gelu
from treeward.models.weights import set_dropout
from treeward.trees.forest import Backend
from treeward.trees.forward import Precision

TINY = 2_000_000
"""Models below this many parameters run on one CPU thread: two are 25 % faster at best, and forty times slower as soon
as another process holds a core, since each of their many small products waits for the slower thread."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by peft."""

    r: int = 16
    """Rank of the adapters."""
    alpha: int = 32
    """The adapters' output is scaled by alpha / r."""
    targets: tuple[str, ...] = ()
    """Names of the modules that get one; empty: all linear layers but the output head."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it runs."""

    path: str = "world"
    """A directory, a hub id, or `world` (the embedded 0.9M Llama)."""
    init: Literal["pretrained", "random"] | None = None
    """pretrained weights, or random ones from the path's config.json; by default random for `world` alone."""
    tokenizer: str | None = None
    """A directory or hub id of the tokenizer, where it is not the model's."""
    precision: AskedPrecision = "auto"
    """fp32; bf16 (products in bf16, weights in fp32); auto takes bf16 where it is native, from 10M parameters."""
    device: AskedDevice = "auto"
    """auto takes cuda, then mps, then cpu."""
    seed: int | None = None
    """Seeds random weights; by default the run's seed."""
    backend: Literal["auto", "tree", "rows"] = "auto"
    """The layout of the forward pass; auto takes the tree where it equals plain calls."""
    dropout: float = 0.0
    """Dropout while training; 0 unless asked for, and always 0 when log-probabilities are compared. At 0 training runs
    in eval mode, so that no other noise of train mode acts either."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    config: dict[str, Any] = field(default_factory=dict)
    """With random weights: values that replace those of config.json, such as {num_hidden_layers: 2}."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights."""
    train: Literal["all", "head"] = "all"
    """What trains in a reward model: all weights, or the head on a frozen backbone."""
    any_tokenizer: bool = False
    """Accept a tokenizer or template other than the one that a reward model was trained with."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; it lies in [0, 1)")
        if self.path == "world" and self.init == "pretrained":
            raise ValueError("model.init is 'pretrained', but the embedded 'world' model has no weights; use random")
        if self.train == "head" and self.lora is not None:
            raise ValueError("model.train is 'head', but model.lora trains the backbone too; leave one of them away")
        if self.config and not self.random:
            raise ValueError(f"model.config {self.config} shapes a model with random weights; add --model.init random")

    @property
    def random(self) -> bool:
        """Whether the weights are drawn anew."""
        return self.init == "random" or (self.init is None and self.path == "world")


@dataclass(frozen=True)
class Loaded:
    """A public model with its tokenizer, on its device, and the precision its products run in."""

    module: nn.Module
    tokenizer: Tokenizer
    precision: Precision
    backend: Backend | None


def load(config: ModelConfig, auto_class: Any, seed: int, **named: Any) -> Loaded:
    """Load a model of a transformers auto class in fp32, dropout as asked, in eval mode, and its tokenizer.

    Raises:
        ValueError: the path, its weights or its tokenizer cannot be had, or they do not belong together.
    """
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    tokenizer = load_tokenizer(config)
    if config.random:
        plan = world.model_config() if config.path == "world" else _ask(config.path, "config", AutoConfig)
        for name, value in (named | config.config).items():
            if name in config.config and not hasattr(plan, name):
                raise ValueError(f"model.config has {name!r}, which {type(plan).__name__} does not know")
            setattr(plan, name, value)
        with seeded(config, seed):
            module = auto_class.from_config(plan, dtype=torch.float32)
    else:
        with seeded(config, seed):
            module = _ask(config.path, "weights", auto_class, dtype=torch.float32, **named)
    set_dropout(module, config.dropout)
    fuse_gelu(module)
    check_vocabulary(module, tokenizer, config)
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = sum(p.numel() for p in module.parameters())
    if device.type == "cpu" and parameters < TINY:
        torch.set_num_threads(1)
    precision = choose_precision(config.precision, device, parameters)
    return Loaded(module.to(device), tokenizer, precision, None if config.backend == "auto" else config.backend)


@contextmanager
def seeded(config: ModelConfig, seed: int) -> Iterator[None]:
    """Weights drawn inside, such as those of a new layer, depend on the seed alone; no generator moves."""
    with torch.random.fork_rng():
        torch.manual_seed(seed if config.seed is None else config.seed)
        yield


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer named, else the model's own.

    Raises:
        ValueError: there is none at that place.
    """
    path = config.tokenizer or config.path
    return world.tokenizer() if path == "world" else _ask(path, "tokenizer", AutoTokenizer)


def embedding_rows(path: str) -> int:
    """How many token ids a model has embeddings for, by its config.json alone.

    Raises:
        ValueError: there is no configuration at that place, or it names no vocabulary.
    """
    plan = world.model_config() if path == "world" else _ask(path, "config", AutoConfig)
    rows = getattr(plan.get_text_config(), "vocab_size", None)
    if rows is None:
        raise ValueError(f"model.path {path!r} names no vocab_size in its config.json; it is not a language model")
    return int(rows)


def check_vocabulary(module: Any, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer whose ids go beyond the model's embedding."""
    rows = module.get_input_embeddings().num_embeddings
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    if size > rows:
        raise ValueError(
            f"model.tokenizer {config.tokenizer or config.path!r} has ids up to {size - 1}, but the model "
            f"{config.path!r} has {rows} embedding rows; give the model's own tokenizer"
        )


def _ask(path: str, what: str, source: Any, **named: Any) -> Any:
    local = Path(path).expanduser()
    if not local.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path):
        raise ValueError(f"model.path {path!r} is not a directory")
    if local.is_dir() and what == "weights" and not any(local.glob("*.safetensors")) and not any(local.glob("*.bin")):
        raise ValueError(f"model.path {path!r} holds no weights; use --model.init random to draw them from config.json")
    if local.is_dir() and what == "tokenizer" and not any(local.glob("tokenizer*")) and not any(local.glob("vocab*")):
        raise ValueError(f"{path!r} holds no tokenizer; name one with --model.tokenizer")
    if local.is_dir() and what != "tokenizer" and not (local / "config.json").exists():
        raise ValueError(f"model.path {path!r} holds no config.json, so it is not a model directory")
    if not local.is_dir() and not reachable():
        named["local_files_only"] = True
    try:
        return source.from_pretrained(path, **named)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as problem:
        if named.get("local_files_only"):
            raise ValueError(
                f"the {what} of {path!r} is not on this machine and the hub cannot be reached; give a local directory "
                "or 'world'"
            ) from None
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ValueError(f"the {what} of {path!r} cannot be loaded ({reason[:160]})") from None
