"""Finding models and tokenizers: the embedded world, a local directory, or a hub id; one-line errors."""

import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from treeward.data import world
from treeward.data.hub import is_id, reachable
from treeward.errors import UserError
from treeward.models.device import AskedDevice, AskedPrecision, choose_device, choose_precision, keep_freed_memory
from treeward.models.kernels import fuse_gelu
from treeward.models.weights import set_dropout
from treeward.runs.directory import ENDED
from treeward.trees.forest import Backend
from treeward.trees.forward import Precision
from treeward.trees.tokens import Tokenizer

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
    """Accept a tokenizer or template other than the one that the model was trained with."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; it lies in [0, 1)")
        if self.path == "world" and self.init == "pretrained":
            raise UserError("model.init is 'pretrained', but the embedded 'world' model has no weights; use random")
        if self.train == "head" and self.lora is not None:
            raise UserError("model.train is 'head', but model.lora trains the backbone too; leave one of them away")
        if self.config and not self.random:
            raise UserError(f"model.config {self.config} shapes a model with random weights; set model.init to random")

    @classmethod
    def of(cls, path: str | Path, options: Mapping[str, Any]) -> "ModelConfig":
        """The configuration of a model at `path`, its other fields given by name.

        Raises:
            TypeError: there is no field of that name; the nearest is named.
            UserError: a value is out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                close = get_close_matches(name, names, 1)
                nearest = f", did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"unknown option {name!r}{nearest}; there are {', '.join(names[1:])}")
        for name, values in (("device", AskedDevice), ("precision", AskedPrecision)):
            if options.get(name, "auto") not in get_args(values):
                raise UserError(f"{name} is {options[name]!r}; it may be {', '.join(get_args(values))}")
        return cls(path=str(path), **options)

    @property
    def random(self) -> bool:
        """Whether the weights are drawn anew."""
        return self.init == "random" or (self.init is None and self.path == "world")


@dataclass(frozen=True)
class Loaded:
    """A public model with its tokenizer, on its device, and the precision its products run in."""

    model: nn.Module
    tokenizer: Tokenizer
    precision: Precision
    backend: Backend | None


def load(config: ModelConfig, auto_class: Any, seed: int, **named: Any) -> Loaded:
    """Load a model of a transformers auto class in fp32, dropout as asked, in eval mode, and its tokenizer.

    Raises:
        UserError: the path, its weights or its tokenizer cannot be had, or they do not belong together.
    """
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    tokenizer = load_tokenizer(config)
    if config.random:
        plan = world.model_config() if config.path == "world" else _ask(config.path, "config", AutoConfig)
        for name, value in (named | config.config).items():
            if name in config.config and not hasattr(plan, name):
                raise UserError(f"model.config has {name!r}, which {type(plan).__name__} does not know")
            _tried(config.path, f"model.config {name!r}", partial(setattr, plan, name, value))
        with seeded(config, seed):
            module = _tried(config.path, "config", lambda: auto_class.from_config(plan, dtype=torch.float32))
        if config.tokenizer is not None:
            name_special_ids(module, tokenizer)
    else:
        with seeded(config, seed):
            module = _ask(config.path, "weights", auto_class, dtype=torch.float32, output_loading_info=True, **named)
            if isinstance(module, tuple):
                module = _complete(module[0], module[1], config.path)
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
        UserError: the path is a run directory that has no model (yet).
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
        raise UserError(f"{path!r} is the directory of a run without a model: {why}")
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
        UserError: there is none at that place.
    """
    path = config.tokenizer or config.path
    if path == "world":
        return world.tokenizer()
    field = "model.tokenizer" if config.tokenizer else "model.path"
    tokenizer: Tokenizer = _ask(path, "tokenizer", AutoTokenizer, field)
    longest = getattr(tokenizer, "model_max_length", None)
    if not isinstance(longest, int | float | None):
        raise UserError(f"the tokenizer of {path!r} is damaged: its model_max_length is {longest!r}, not a number")
    return tokenizer


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
    """How the model's class ends by its config.json: ForCausalLM, ForSequenceClassification; None without one.

    Raises:
        UserError: the file is damaged.
    """
    file = Path(model_directory(path)).expanduser() / "config.json"
    names = description(file).get("architectures") if file.is_file() else None
    first = names[0] if isinstance(names, list) and names else ""
    ending = re.search(r"For[A-Z]\w*$", first if isinstance(first, str) else "")
    return ending[0] if ending else None


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
        UserError: there is no configuration at that place, or it names no vocabulary.
    """
    plan = world.model_config() if path == "world" else _ask(path, "config", AutoConfig)
    rows = getattr(plan.get_text_config(), "vocab_size", None)
    if rows is None:
        raise UserError(f"model.path {path!r} names no vocab_size in its config.json; it is not a language model")
    return int(rows)


def check_vocabulary(module: Any, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer whose ids go beyond the model's embedding."""
    rows = module.get_input_embeddings().num_embeddings
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    if size > rows:
        raise UserError(
            f"model.tokenizer {config.tokenizer or config.path!r} has ids up to {size - 1}, but the model "
            f"{config.path!r} has {rows} embedding rows; give the model's own tokenizer"
        )


UNLOADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError,
    EOFError, ImportError, MemoryError, TemplateError, SafetensorError, StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip
"""What transformers raises for files that are damaged or hold something else."""

DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
                "special_tokens_map.json", "added_tokens.json", "treeward.json")  # fmt: skip
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def description(file: Path) -> dict[str, Any]:
    """The object that a JSON file of a model directory holds.

    Raises:
        UserError: the file cannot be read or holds something else; it is named.
    """
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as problem:
        raise UserError(f"{str(file)!r} is damaged ({_line(problem)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{str(file)!r} is damaged: it holds no JSON object")
    return value


def _ask(path: str, what: str, source: Any, field: str = "model.path", **named: Any) -> Any:
    """What `source.from_pretrained` gives for a local directory, else for a hub id; code that lies there is never run.

    `field` is what the user set, for messages.
    """
    path = model_directory(path)
    local = Path(path).expanduser()
    if local.is_file():
        raise UserError(f"{field} {path!r} is a file; name the directory that holds it, or a hub id")
    if local.is_dir():
        _check_directory(local, path, what, field)
        path, named = str(local), named | {"local_files_only": True}
    elif local.exists() or not is_id(path):
        raise UserError(f"{field} {path!r} is not a directory")
    elif not reachable():
        named |= {"local_files_only": True}
    absent = not local.is_dir() and bool(named.get("local_files_only"))
    return _tried(path, what, lambda: source.from_pretrained(path, trust_remote_code=False, **named), field, absent)


def _tried(path: str, what: str, call: Callable[[], Any], field: str = "model.path", absent: bool = False) -> Any:
    """What a call into transformers gives; whatever it raises for damaged files is reported in one line.

    `absent`: the path is a hub id and the hub cannot be reached.
    """
    try:
        return call()
    except Exception as problem:
        # The tokenizers library raises bare Exceptions; of a subclass that is not listed nothing is known.
        if not isinstance(problem, UNLOADABLE) and type(problem) is not Exception:
            raise
        if absent:
            raise UserError(
                f"{field} {path!r} is not a directory here, and as a hub id its {what} is not on this machine and the "
                "hub cannot be reached; give a local directory or 'world'"
            ) from None
        raise UserError(f"the {what} of {path!r} cannot be loaded ({_line(problem)})") from None


def _check_directory(local: Path, path: str, what: str, field: str) -> None:
    """Refuse a model directory that lacks a file, holds a damaged description, or points outside itself."""
    if not (local / "config.json").exists() and (local / "adapter_config.json").exists():
        raise UserError(
            f"model.path {path!r} holds an adapter alone; name the directory with the merged weights, or the base model"
        )
    if what == "weights" and not any(local.glob("*.safetensors")) and not any(local.glob("*.bin")):
        raise UserError(
            f"model.path {path!r} holds no weights (no .safetensors or .bin); set model.init to random to draw them "
            "from config.json"
        )
    if what == "tokenizer" and not has_tokenizer(local):
        model = field == "model.tokenizer" or (local / "config.json").exists()
        missing = "" if model else " and no config.json, so it is not a model directory"
        raise UserError(f"{field} {path!r} holds no tokenizer{missing}; name one with model.tokenizer")
    if what != "tokenizer" and not (local / "config.json").exists():
        raise UserError(f"model.path {path!r} holds no config.json, so it is not a model directory")
    descriptions = {name: description(local / name) for name in DESCRIPTIONS if (local / name).is_file()}
    foreign = [name for name, value in descriptions.get("config.json", {}).items() if "attn_implementation" in name
               and "/" in str(value)]  # fmt: skip
    if foreign:
        raise UserError(f"{str(local / 'config.json')!r} asks for code from the hub ({foreign[0]}); take it out")
    for name in INDICES:
        if (local / name).is_file():
            files = description(local / name).get("weight_map")
            if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
                raise UserError(f"{str(local / name)!r} is damaged: weight_map does not name files of the directory")


def has_tokenizer(directory: Path) -> bool:
    """Whether there are a tokenizer's files in a directory."""
    return any(directory.glob("tokenizer*")) or any(directory.glob("vocab*"))


def _complete(module: Any, info: dict[str, Any], path: str) -> Any:
    """The module, unless its weights lack some: those would be drawn at random."""
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the weights of {path!r} lack {missing[0]!r}{more}; they are of another model, or damaged")
    return module


def _line(problem: BaseException) -> str:
    said = " ".join(str(problem).split())
    return said[:160] or type(problem).__name__
