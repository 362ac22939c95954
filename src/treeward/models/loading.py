"""Loading models and tokenizers from the embedded world, a local directory or a hub id; LoRA adapters; saving.

Errors are one line. Loading changes no global state: no random generator, number of threads or default.
"""

import copy
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

import peft
import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from treeward.data import embedded
from treeward.data.sources import hub_reachable, is_hub_id
from treeward.errors import UserError
from treeward.models.device import DeviceOption, PrecisionOption, choose_device, choose_precision
from treeward.models.weights import fuse_gelu, set_dropout
from treeward.runs.directory import ENDED
from treeward.trees.forest import Backend
from treeward.trees.forward import Precision
from treeward.trees.tokens import Tokenizer

log = logging.getLogger(__name__)
CLASSIFIER = "ForSequenceClassification"
"""The end of the class name of reward models and classifiers."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), with peft."""

    r: int = 16
    """Rank of the adapters."""
    alpha: int = 32
    """The adapters' output is scaled by alpha / r."""
    targets: tuple[str, ...] = ()
    """Names of the modules that get an adapter; empty: all linear layers except the output head."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it runs."""

    path: str = "world"
    """A directory, a hub id, or an embedded Llama with random weights: `world` (0.9M), `arithmetic` (0.8M)."""
    init: Literal["pretrained", "random"] | None = None
    """pretrained weights, or random ones from the path's config.json; by default random for embedded models only."""
    tokenizer: str | None = None
    """The directory or hub id of another tokenizer; by default the model's own."""
    precision: PrecisionOption = "auto"
    """fp32; bf16 (products in bf16, weights in fp32); auto: bf16 from 10M parameters where the hardware has it."""
    device: DeviceOption = "auto"
    """auto: the first available of cuda, mps, cpu."""
    seed: int | None = None
    """Seeds random weights; by default the run's seed."""
    backend: Literal["auto", "tree", "rows"] = "auto"
    """The layout of the forward pass; auto: tree where it gives the numbers of plain calls, else rows."""
    dropout: float = 0.0
    """Dropout while training; always 0 when log-probabilities are compared. With 0 training runs in eval mode, which
    also switches off any other noise of train mode."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    config: dict[str, Any] = field(default_factory=dict)
    """Changes of config.json for random weights, such as {num_hidden_layers: 2}."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights."""
    train: Literal["all", "head"] = "all"
    """What trains in a reward model: all weights, or the head on a frozen backbone."""
    any_tokenizer: bool = False
    """Accept a tokenizer or chat template other than the one that the model was trained with."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.path in embedded.MODELS and self.init == "pretrained":
            raise UserError(
                f"model.init is 'pretrained', but the embedded model {self.path!r} has no weights; use random"
            )
        if self.train == "head" and self.lora is not None:
            raise UserError("model.train is 'head', but model.lora trains the backbone too; leave one of them out")
        if self.config and not self.random:
            raise UserError(f"model.config {self.config} applies to random weights only; set model.init to random")

    @classmethod
    def of(cls, path: str | Path, options: Mapping[str, Any]) -> "ModelConfig":
        """The configuration of a model at `path`, with its other fields by name.

        Raises:
            TypeError: there is no field of that name; the nearest name is given.
            UserError: a value is out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                close = get_close_matches(name, names, 1)
                nearest = f", did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"unknown option {name!r}{nearest}; there are {', '.join(names[1:])}")
        for name, values in (("device", DeviceOption), ("precision", PrecisionOption)):
            if options.get(name, "auto") not in get_args(values):
                raise UserError(f"{name} is {options[name]!r}; it may be {', '.join(get_args(values))}")
        return cls(path=str(path), **options)

    @property
    def random(self) -> bool:
        """Whether the weights are random and not loaded."""
        return self.init == "random" or (self.init is None and self.path in embedded.MODELS)


@dataclass(frozen=True)
class Loaded:
    """A public model on its device, its tokenizer, the precision of its products, and the requested backend."""

    model: nn.Module
    tokenizer: Tokenizer
    precision: Precision
    backend: Backend | None


def _plan(path: str) -> Any:
    """The configuration of an embedded model, a directory or a hub id."""
    return (
        embedded.MODELS[path].model_config()
        if path in embedded.MODELS
        else _from_pretrained(path, "config", AutoConfig)
    )


def load(config: ModelConfig, auto_class: Any, seed: int, **arguments: Any) -> Loaded:
    """Load a model with a transformers auto class, in fp32 and eval mode, and its tokenizer.

    `arguments` go to the auto class. `seed` is for random weights, where the configuration has none.

    Raises:
        UserError: the path, its weights or its tokenizer cannot be loaded, or they do not belong together.
    """
    device = choose_device(config.device)
    tokenizer = load_tokenizer(config)
    if config.random:
        plan = _plan(config.path)
        for name, value in (arguments | config.config).items():
            if name in config.config and not hasattr(plan, name):
                raise UserError(f"model.config has {name!r}, which {type(plan).__name__} does not know")
            _call_transformers(config.path, f"model.config {name!r}", partial(setattr, plan, name, value))
        with seeded(config, seed):
            module = _call_transformers(
                config.path, "config", lambda: auto_class.from_config(plan, dtype=torch.float32)
            )
        if config.tokenizer is not None:
            name_special_ids(module, tokenizer)
    else:
        with seeded(config, seed):
            module = _from_pretrained(
                config.path, "weights", auto_class, dtype=torch.float32, output_loading_info=True, **arguments
            )
            if isinstance(module, tuple):
                module = _without_missing_keys(module[0], module[1], config.path)
    set_dropout(module, config.dropout)
    fuse_gelu(module)
    check_vocabulary(module, tokenizer, config)
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = sum(p.numel() for p in module.parameters())
    precision = choose_precision(config.precision, device, parameters)
    return Loaded(module.to(device), tokenizer, precision, None if config.backend == "auto" else config.backend)


def model_directory(path: str) -> str:
    """The model's directory: `model/` of a run directory; any other path, such as a hub id, unchanged.

    Raises:
        UserError: the path is a run directory that has no model (yet).
    """
    place = Path(path).expanduser()
    if path in embedded.MODELS or not place.is_dir() or (place / "config.json").exists():
        return path
    if (place / "model" / "config.json").exists():
        return str(place / "model")
    if (place / "config.yaml").exists():
        ended = any((place / name).exists() for name in ENDED)
        resume = f"it has not ended; finish it with `treeward resume {path}`, or name another directory"
        fix = "it saved none; name another directory" if ended else resume
        raise UserError(f"{path!r} is the directory of a run without a model: {fix}")
    return path


@contextmanager
def seeded(config: ModelConfig, seed: int) -> Iterator[None]:
    """Random weights created inside depend on the seed only, and the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed if config.seed is None else config.seed)
        yield


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer that the configuration names, else the model's own.

    Raises:
        UserError: there is none in that place, or it is damaged.
    """
    path = config.tokenizer or config.path
    if path in embedded.MODELS:
        return embedded.MODELS[path].tokenizer()
    field = "model.tokenizer" if config.tokenizer else "model.path"
    tokenizer: Tokenizer = _from_pretrained(path, "tokenizer", AutoTokenizer, field)
    longest = getattr(tokenizer, "model_max_length", None)
    if not isinstance(longest, int | float | None):
        raise UserError(f"the tokenizer of {path!r} is damaged: its model_max_length is {longest!r}, not a number")
    return tokenizer


def replaced_tokenizer(config: ModelConfig) -> Tokenizer | None:
    """The model's own tokenizer where the configuration names another one; None otherwise, or where there is none."""
    if config.tokenizer is None or config.path in embedded.MODELS:
        return None
    place = Path(model_directory(config.path)).expanduser()
    if place.is_dir() and not has_tokenizer(place):
        return None
    try:
        return _from_pretrained(config.path, "tokenizer", AutoTokenizer)
    except UserError as problem:
        log.warning("the tokenizer %r is not compared with the model's own: %s", config.tokenizer, problem)
        return None


def head_of_config(path: str) -> str | None:
    """The end of the class name in config.json, such as ForCausalLM or ForSequenceClassification; None without one.

    Raises:
        UserError: the file is damaged.
    """
    file = Path(model_directory(path)).expanduser() / "config.json"
    names = description(file).get("architectures") if file.is_file() else None
    first = names[0] if isinstance(names, list) and names else ""
    ending = re.search(r"For[A-Z]\w*$", first if isinstance(first, str) else "")
    return ending[0] if ending else None


def name_special_ids(module: Any, tokenizer: Tokenizer) -> None:
    """Give a model with random weights the special ids of its tokenizer, so that the saved files agree."""
    for source in (module.config, getattr(module, "generation_config", None)):
        for kind in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token_id = getattr(tokenizer, kind)
            if source is not None and token_id is not None and getattr(source, kind, None) is not None:
                setattr(source, kind, token_id)


def embedding_rows(path: str) -> int:
    """How many token ids a model has embeddings for, according to its config.json.

    Raises:
        UserError: there is no configuration at that place, or it names no vocabulary.
    """
    plan = _plan(path)
    rows = getattr(plan.get_text_config(), "vocab_size", None)
    if rows is None:
        raise UserError(
            f"model.path {path!r} has no vocab_size in its config.json, so it is not a language model; name another"
        )
    return int(rows)


def check_vocabulary(module: Any, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for."""
    rows = module.get_input_embeddings().num_embeddings
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    if size > rows:
        raise UserError(
            f"model.tokenizer {config.tokenizer or config.path!r} has ids up to {size - 1}, but the model "
            f"{config.path!r} has {rows} embedding rows; give the model's own tokenizer"
        )


UNLOADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    ImportError,
    MemoryError,
    TemplateError,
    SafetensorError,
    StrictDataclassError,
    pickle.UnpicklingError,
)
"""What transformers raises for files that are damaged or of another kind."""

DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "treeward.json",
)
"""JSON files of a model directory that must be readable."""
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def description(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model directory.

    Raises:
        UserError: the file cannot be read or has something else.
    """
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as problem:
        raise UserError(f"{str(file)!r} is damaged ({_one_line(problem)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{str(file)!r} is damaged: it is not a JSON object")
    return value


def _from_pretrained(path: str, what: str, auto_class: Any, field: str = "model.path", **arguments: Any) -> Any:
    """`auto_class.from_pretrained` of a local directory, else of a hub id. Code in the directory is never run.

    `what` is loaded and `field` is the option that the user set, both for messages.
    """
    path = model_directory(path)
    local = Path(path).expanduser()
    if local.is_file():
        raise UserError(f"{field} {path!r} is a file; name the directory that contains it, or a hub id")
    if local.is_dir():
        _check_directory(local, path, what, field)
        path, arguments = str(local), arguments | {"local_files_only": True}
    elif local.exists() or not is_hub_id(path):
        raise UserError(f"{field} {path!r} is not a directory; name a run, the directory of a saved model, or a hub id")
    elif not hub_reachable():
        arguments |= {"local_files_only": True}
    offline = not local.is_dir() and bool(arguments.get("local_files_only"))

    def call() -> Any:
        return auto_class.from_pretrained(path, trust_remote_code=False, **arguments)

    return _call_transformers(path, what, call, field, offline)


def _call_transformers(
    path: str, what: str, call: Callable[[], Any], field: str = "model.path", offline: bool = False
) -> Any:
    """The result of a call into transformers, whose errors for damaged files become a one-line UserError.

    `offline`: the path is a hub id and the hub cannot be reached.
    """
    try:
        return call()
    except Exception as problem:
        # The tokenizers library raises plain Exceptions. Other classes that are not listed are faults of ours.
        if not isinstance(problem, UNLOADABLE) and type(problem) is not Exception:
            raise
        if offline:
            raise UserError(
                f"{field} {path!r} is not a directory here, and as a hub id its {what} is not on this machine and the "
                "hub cannot be reached; give a local directory or 'world'"
            ) from None
        raise UserError(f"the {what} of {path!r} cannot be loaded ({_one_line(problem)})") from None


def _check_directory(local: Path, path: str, what: str, field: str) -> None:
    """Refuse a model directory with missing or damaged files, or with references to code or files elsewhere."""
    if not (local / "config.json").exists() and (local / "adapter_config.json").exists():
        raise UserError(
            f"model.path {path!r} has an adapter only; name the directory with the merged weights, or the base model"
        )
    if what == "weights" and not any(local.glob("*.safetensors")) and not any(local.glob("*.bin")):
        raise UserError(
            f"model.path {path!r} has no weights (no .safetensors or .bin); set model.init to random to create "
            "random ones from config.json"
        )
    if what == "tokenizer" and not has_tokenizer(local):
        model = field == "model.tokenizer" or (local / "config.json").exists()
        missing = "" if model else " and no config.json, so it is not a model directory"
        raise UserError(f"{field} {path!r} has no tokenizer{missing}; name one with model.tokenizer")
    if what != "tokenizer" and not (local / "config.json").exists():
        raise UserError(f"model.path {path!r} has no config.json, so it is not a model directory")
    descriptions = {name: description(local / name) for name in DESCRIPTIONS if (local / name).is_file()}
    for name, value in descriptions.get("config.json", {}).items():
        if "attn_implementation" in name and "/" in str(value):
            raise UserError(f"{str(local / 'config.json')!r} names code from the hub ({name}); remove that line")
    for name in INDICES:
        if (local / name).is_file():
            files = description(local / name).get("weight_map")
            if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
                raise UserError(
                    f"{str(local / name)!r} is damaged: weight_map names something else than files of the directory"
                )


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has files of a tokenizer."""
    return any(directory.glob("tokenizer*")) or any(directory.glob("vocab*"))


def _without_missing_keys(module: Any, info: dict[str, Any], path: str) -> Any:
    """The module; refused where some of its weights are not in the files, because they would be random."""
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the weights of {path!r} lack {missing[0]!r}{more}; the files are damaged or belong to another model"
        )
    return module


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text[:160] or type(problem).__name__


def add_lora(module: Any, config: LoRA, task: str, trained_whole: tuple[str, ...] = ()) -> Any:
    """A `PeftModel` around `module`, whose layers change in place. Modules in `trained_whole` train without an adapter.

    Raises:
        UserError: `config.targets` names no module of the model.
    """
    targets: Any = list(config.targets) or "all-linear"
    lora = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type=task,
        modules_to_save=list(trained_whole) or None,
    )
    try:
        return peft.get_peft_model(module, lora)
    except ValueError as problem:
        message = str(problem).splitlines()[0]
        raise UserError(f"model.lora.targets {config.targets}: {message}; name modules of the model") from None


def adapter_is_new(module: nn.Module) -> bool:
    """Whether the adapters do not change the model's outputs: all second matrices of LoRA (B) are still zero.

    False for any other kind of adapter, where this is not known.
    """
    names = ("lora_B", "lora_embedding_B")
    matrices_b = [p for name, p in module.named_parameters() if any(part in name for part in names)]
    return bool(matrices_b) and not any(bool(p.any()) for p in matrices_b)


def save_directory(place: str | Path) -> Path:
    """The directory that a model is saved into.

    Raises:
        UserError: the path is a file.
    """
    if Path(place).is_file():
        raise UserError(f"{str(place)!r} is a file; name a directory to save into")
    return Path(place)


def save_model(adapter: Any | None, module: nn.Module, directory: Path, adapter_directory: Path | None = None) -> None:
    """Write the model into `directory` as safetensors, with the adapter merged where there is one.

    The adapter itself goes to `adapter_directory` in peft's layout, by default `directory/adapter`.
    """
    whole: Any = module
    if adapter is not None:
        adapter.save_pretrained(adapter_directory or directory / "adapter")
        whole = copy.deepcopy(adapter).merge_and_unload()
    whole.save_pretrained(directory)
