"""Finding models and tokenizers: the embedded world, a local directory, or a hub id; one-line errors."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from treeward.data import world
from treeward.data.hub import reachable
from treeward.data.render import Tokenizer
from treeward.models.device import AskedDevice, AskedPrecision, choose_device, choose_precision, keep_freed_memory
from treeward.models.kernels import fuse_gelu
from treeward.models.weights import set_dropout
from treeward.runs.directory import ENDED
from treeward.trees.forest import Backend
from treeward.trees.forward import Precision

log = logging.getLogger(__name__)
CLASSIFIER = "ForSequenceClassification"
"""How the class of a reward model ends."""
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
    """Dropout while training; 0 unless asked for, and always 0 when log-probabilities are compared."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    config: dict[str, Any] = field(default_factory=dict)
    """With random weights: values that replace those of config.json, such as {num_hidden_layers: 2}."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights."""
    train: Literal["all", "head"] = "all"
    """What trains in a reward model: all weights, or the head on a frozen backbone."""
    any_tokenizer: bool = False
    """Accept a tokenizer or template other than the one that the model was trained with."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; it lies in [0, 1)")
        if self.path == "world" and self.init == "pretrained":
            raise ValueError("model.init is 'pretrained', but the embedded 'world' model has no weights; use random")
        if self.train == "head" and self.lora is not None:
            raise ValueError("model.train is 'head', but model.lora trains the backbone too; leave one of them away")
        if self.config and not self.random:
            raise ValueError(f"model.config {self.config} shapes a model with random weights; set model.init to random")

    @classmethod
    def of(cls, path: str | Path, options: Mapping[str, Any]) -> "ModelConfig":
        """The configuration of a model at `path`, its other fields given by name.

        Raises:
            TypeError: there is no field of that name; the nearest is named.
            ValueError: a value is out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                close = get_close_matches(name, names, 1)
                nearest = f", did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"unknown option {name!r}{nearest}; there are {', '.join(names[1:])}")
        for name, values in (("device", AskedDevice), ("precision", AskedPrecision)):
            if options.get(name, "auto") not in get_args(values):
                raise ValueError(f"{name} is {options[name]!r}; it may be {', '.join(get_args(values))}")
        return cls(path=str(path), **options)

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
        if config.tokenizer is not None:
            name_special_ids(module, tokenizer)
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


def model_directory(path: str) -> str:
    """Where the model of a path lies: of a run directory its `model/`; any other path, such as a hub id, as it stands.

    Raises:
        ValueError: the path is a run directory that has no model (yet).
    """
    place = Path(path).expanduser()
    if path == "world" or not place.is_dir() or (place / "config.json").exists():
        return path
    if (place / "model" / "config.json").exists():
        return str(place / "model")
    if (place / "config.yaml").exists():
        ended = any((place / name).exists() for name in ENDED)
        resume = f"it has not ended; finish it with `treeward resume {path}`, or name another"
        why = "it made none; name another" if ended else resume
        raise ValueError(f"{path!r} is the directory of a run without a model: {why}")
    return path


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
    if path == "world":
        return world.tokenizer()
    return _ask(path, "tokenizer", AutoTokenizer, "model.tokenizer" if config.tokenizer else "model.path")


def own_tokenizer(config: ModelConfig) -> Tokenizer | None:
    """The tokenizer that lies with the model, where another one is named; else, or where there is none, None."""
    if config.tokenizer is None or config.path == "world":
        return None
    place = Path(model_directory(config.path)).expanduser()
    if place.is_dir() and not has_tokenizer(place):
        return None
    try:
        return _ask(config.path, "tokenizer", AutoTokenizer)
    except ValueError as problem:
        log.warning("the tokenizer %r is not compared with the model's own: %s", config.tokenizer, problem)
        return None


def head_of_config(path: str) -> str | None:
    """How the model's class ends by its config.json: ForCausalLM, ForSequenceClassification; None without one."""
    file = Path(model_directory(path)).expanduser() / "config.json"
    if not file.exists():
        return None
    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]
    found = re.search(r"For[A-Z]\w*$", names[0])
    return found[0] if found else None


def name_special_ids(module: Any, tokenizer: Tokenizer) -> None:
    """Give a model with random weights the special ids of its tokenizer, so that what is saved agrees with itself."""
    for source in (module.config, getattr(module, "generation_config", None)):
        for kind in ("bos_token_id", "eos_token_id", "pad_token_id"):
            own = getattr(tokenizer, kind)
            if source is not None and own is not None and getattr(source, kind, None) is not None:
                setattr(source, kind, own)


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


def _ask(path: str, what: str, source: Any, field: str = "model.path", **named: Any) -> Any:
    path = model_directory(path)
    local = Path(path).expanduser()
    if local.is_file():
        raise ValueError(f"{field} {path!r} is a file; name the directory that holds it, or a hub id")
    if not local.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path):
        raise ValueError(f"{field} {path!r} is not a directory")
    if local.is_dir():
        path = str(local)
        _check_files(path, local, what, field)
    elif not reachable():
        named["local_files_only"] = True
    try:
        return source.from_pretrained(path, **named)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as problem:
        if named.get("local_files_only"):
            raise ValueError(
                f"{field} {path!r} is not a directory here, and as a hub id its {what} is not on this machine and the "
                "hub cannot be reached; give a local directory or 'world'"
            ) from None
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ValueError(f"the {what} of {path!r} cannot be loaded ({reason[:160]})") from None


def _check_files(path: str, local: Path, what: str, field: str) -> None:
    """Refuse a directory that lacks the files of what is asked of it, before transformers looks for them."""
    if not (local / "config.json").exists() and (local / "adapter_config.json").exists():
        raise ValueError(
            f"model.path {path!r} holds an adapter alone; name the directory with the merged weights, or the base model"
        )
    if what == "weights" and not any(local.glob("*.safetensors")) and not any(local.glob("*.bin")):
        raise ValueError(
            f"model.path {path!r} holds no weights (no .safetensors or .bin); set model.init to random to draw them "
            "from config.json"
        )
    if what == "tokenizer" and not has_tokenizer(local):
        model = field == "model.tokenizer" or (local / "config.json").exists()
        missing = "" if model else " and no config.json, so it is not a model directory"
        raise ValueError(f"{field} {path!r} holds no tokenizer{missing}; name one with model.tokenizer")
    if what != "tokenizer" and not (local / "config.json").exists():
        raise ValueError(f"model.path {path!r} holds no config.json, so it is not a model directory")


def has_tokenizer(directory: Path) -> bool:
    """Whether there are a tokenizer's files in a directory."""
    return any(directory.glob("tokenizer*")) or any(directory.glob("vocab*"))
