"""Checkpoints in Hugging Face layout that are read and written a tensor at a time.

A safetensors file is a header, the name, type, shape and place of each tensor, and then their bytes. So models can be
compared by their headers alone, and merging needs memory for a few copies of the largest tensor only.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from mmap import ACCESS_COPY, ALLOCATIONGRANULARITY, mmap
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from treeward.errors import UserError

TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The types of safetensors that can be merged or copied."""
CODES = {dtype: code for code, dtype in TYPES.items()}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BOOKKEEPING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Entries of config.json that do not change what the weights mean."""
LARGEST_ROUNDING = 0.01
"""A cast at saving may remove at most this share of the norm of what merging changed."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: its file, type, shape, and first and last byte in the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensors(Mapping[str, Tensor]):
    """The tensors of safetensors files by name. One is mapped from its file each time it is asked for.

    Raises:
        UserError: a file is missing or damaged.
    """

    _hashing: "Future[str] | None" = None

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.entries = {name: entry for file in files for name, entry in _entries(file).items()}

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        page = entry.begin - entry.begin % ALLOCATIONGRANULARITY
        with entry.file.open("rb") as file:
            try:
                mapped = mmap(file.fileno(), entry.end - page, access=ACCESS_COPY, offset=page)
            except ValueError:
                raise UserError(f"{str(entry.file)!r} is damaged: it ends inside {name!r}") from None
        values: Tensor = torch.frombuffer(
            mapped, dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.begin - page
        )
        return values.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the files' bytes, in the order of their names."""
        return self._hashing.result() if self._hashing else self._read_hash()

    def hash_in(self, pool: Executor) -> None:
        """Begin to hash in another thread; `hash` waits for it."""
        self._hashing = pool.submit(self._read_hash)

    def _read_hash(self) -> str:
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


class Checkpoint(Tensors):
    """The weights of a model directory.

    Raises:
        UserError: the directory has no config.json or no safetensors files, or one of them is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).expanduser()
        self.config = _json(self.directory / "config.json")
        super().__init__(weight_files(self.directory))

    @property
    def tokenizer(self) -> bytes | None:
        """The content of tokenizer.json; None without one."""
        file = self.directory / "tokenizer.json"
        return file.read_bytes() if file.exists() else None

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        """Token ids by token, from tokenizer.json; None without one."""
        if self.tokenizer is None:
            return None
        facts = _json(self.directory / "tokenizer.json")
        tokens = facts.get("model", {}).get("vocab", {})
        if isinstance(tokens, list):  # a unigram model lists (token, log-probability)
            tokens = {token: number for number, (token, *_) in enumerate(tokens)}
        return {**tokens, **{token["content"]: token["id"] for token in facts.get("added_tokens", ())}}


class Adapted(Mapping[str, Tensor]):
    """A base model with a LoRA adapter in peft's layout: base + scale B A, in float32.

    Raises:
        UserError: the adapter is of another kind, or does not fit the base.
    """

    def __init__(self, base: Checkpoint, directory: str | Path) -> None:
        self.base = base
        self.directory = Path(directory).expanduser()
        facts = _json(self.directory / "adapter_config.json")
        here = f"adapter {str(self.directory)!r}"
        extras = [name for name in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if facts.get(name)]
        if facts.get("peft_type") != "LORA" or extras or facts.get("bias", "none") != "none":
            what = extras[0] if extras else f"peft_type {facts.get('peft_type')!r}, bias {facts.get('bias')!r}"
            raise UserError(f"{here} has {what}; only plain LoRA is merged here: merge it into its base first")
        rank = facts["r"]
        self.scale: float = facts["lora_alpha"] / (math.sqrt(rank) if facts.get("use_rslora") else rank)
        self.transposed = bool(facts.get("fan_in_fan_out"))
        self._adapter = Tensors([self.directory / "adapter_model.safetensors"])
        pairs: dict[str, dict[str, str]] = {}
        for name in self._adapter:
            module, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
            pairs.setdefault(f"{module}.weight", {})[rest[:1]] = name
        self._pairs = pairs
        wrong = [name for name, pair in pairs.items() if name not in base or pair.keys() != {"A", "B"}]
        if wrong:
            raise UserError(f"{here} changes {wrong[0]!r}, which its base {str(base.directory)!r} does not have")

    @property
    def hash(self) -> str:
        """SHA-256 of the bytes of the adapter's file."""
        return self._adapter.hash

    def hash_in(self, pool: Executor) -> None:
        """Begin to hash in another thread; `hash` waits for it."""
        self._adapter.hash_in(pool)

    def __getitem__(self, name: str) -> Tensor:
        weight = self.base[name]
        if name not in self._pairs:
            return weight
        down, up = (self._adapter[self._pairs[name][side]].float() for side in "AB")
        change = self.scale * (up @ down)
        return weight.float() + (change.T if self.transposed else change)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in the order of their names.

    Raises:
        UserError: there are none.
    """
    index = directory / INDEX
    names = {WEIGHTS} if not index.exists() else set(_json(index).get("weight_map", {}).values())
    files = [directory / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(
            f"{str(directory)!r} has no {missing[0] if missing else WEIGHTS}; only safetensors are read: save the "
            "model with save_pretrained"
        )
    return files


def check_belong_together(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Refuse checkpoints that are not of one architecture, vocabulary and set of tensors, before a tensor is read.

    Returns remarks on what could not be compared.

    Raises:
        UserError: names the first difference.
    """
    first, remarks = checkpoints[0], []
    for other in checkpoints[1:]:
        here = f"{str(other.directory)!r} and {str(first.directory)!r}"
        for name in sorted(first.config.keys() | other.config.keys()):
            there, mine = other.config.get(name), first.config.get(name)
            if name not in BOOKKEEPING and there != mine:
                raise UserError(f"{here} differ in config.json: {name} is {there!r} and {mine!r}")
        if first.tokenizer != other.tokenizer:
            _check_vocabulary(first, other, here)
        if first.tokenizer is None or other.tokenizer is None:
            remarks.append(f"{here}: one has no tokenizer.json, so their vocabularies were not compared")
        only = sorted(first.entries.keys() ^ other.entries.keys())
        if only:
            raise UserError(f"{here}: only one has the tensor {only[0]!r}; one of them may have an untied head")
        for name, entry in first.entries.items():
            if other.entries[name].shape != entry.shape:
                raise UserError(f"{here}: {name!r} has the shapes {other.entries[name].shape} and {entry.shape}")
            if other.entries[name].dtype.is_floating_point != entry.dtype.is_floating_point:
                raise UserError(f"{here}: {name!r} is of type {other.entries[name].dtype} and {entry.dtype}")
    return remarks


def _check_vocabulary(first: Checkpoint, other: Checkpoint, here: str) -> None:
    mine, theirs = first.vocabulary, other.vocabulary
    if mine is None or theirs is None or mine == theirs:
        return
    token = min((t for t in mine.keys() | theirs.keys() if mine.get(t) != theirs.get(t)), key=lambda t: mine.get(t, -1))
    raise UserError(f"{here} have other vocabularies: the token {token!r} is {theirs.get(token)} and {mine.get(token)}")


def write(
    directory: Path,
    like: Checkpoint,
    tensors: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype,
    start: Mapping[str, Tensor],
) -> str:
    """Write a checkpoint a tensor at a time, in files as those of `like`, with its other files.

    A tensor is written while the next one is made.

    Args:
        directory: An empty directory.
        like: Gives the names, shapes and files.
        tensors: Every tensor of `like` with its name, in the order of `like`.
        dtype: Of the written floating tensors; the others keep theirs.
        start: What the merge changed; a cast is measured against the change.

    Returns:
        The hash of the written checkpoint, as `Tensors.hash`.

    Raises:
        UserError: the cast removes more than 1 % of the change.
    """
    order = list(like.entries)
    by_file = {file.name: [name for name in order if like.entries[name].file == file] for file in like.files}
    types = {name: dtype if entry.dtype.is_floating_point else entry.dtype for name, entry in like.entries.items()}
    removed = changed = 0.0
    digest = hashlib.sha256()

    def put(out: BinaryIO, data: bytes | memoryview) -> None:
        out.write(data)
        digest.update(data)

    with ThreadPoolExecutor(1) as writer:
        for file, names in by_file.items():
            with (directory / file).open("wb") as out:
                writing = writer.submit(put, out, _header(names, like, types))
                for wanted in names:
                    name, tensor = next(tensors)
                    assert name == wanted, f"{name} comes where {wanted} should"
                    cast = tensor.to(types[name]).contiguous()
                    if cast.dtype != tensor.dtype:
                        removed += float((cast.double() - tensor).square().sum())
                        changed += float((tensor.double() - start[name]).square().sum())
                    data = cast.reshape(-1).view(torch.uint8).numpy().data
                    writing.result()
                    writing = writer.submit(put, out, data)
                writing.result()
    if removed > LARGEST_ROUNDING**2 * changed:
        share = math.sqrt(removed / changed) if changed else math.inf
        raise UserError(
            f"precision {CODES[dtype].lower()} would round away {100 * share:.2g} % of what merging changed; write fp32"
        )
    if len(by_file) > 1:
        size = sum(math.prod(entry.shape) * types[name].itemsize for name, entry in like.entries.items())
        index = {"metadata": {"total_size": size}, "weight_map": {n: f for f, names in by_file.items() for n in names}}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = {name: value for name, value in like.config.items() if name != "torch_dtype"}
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    skipped = {*(file.name for file in like.files), INDEX, "config.json", "README.md"}
    for other in like.directory.iterdir():
        if other.is_file() and other.name not in skipped and other.suffix in (".json", ".jinja", ".txt", ".model"):
            shutil.copyfile(other, directory / other.name)
    return digest.hexdigest()


def _header(names: Sequence[str], like: Checkpoint, types: Mapping[str, torch.dtype]) -> bytes:
    """What stands before the tensors in a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        shape = like.entries[name].shape
        size = math.prod(shape) * types[name].itemsize
        header[name] = {"dtype": CODES[types[name]], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entries(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, from its header."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        first = 8 + length
        entries = {
            name: Entry(
                file,
                TYPES[facts["dtype"]],
                tuple(facts["shape"]),
                *(first + offset for offset in facts["data_offsets"]),
            )
            for name, facts in header.items()
        }
        ends = max((entry.end for entry in entries.values()), default=first)
        if ends != file.stat().st_size:
            raise ValueError(f"it has {file.stat().st_size} bytes and should have {ends}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{str(file)!r} cannot be read ({problem}); save the model again as safetensors") from None
    return entries


def _json(file: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as problem:
        raise UserError(f"{str(file)!r} cannot be read ({problem}); name the directory of a saved model") from None
    if not isinstance(value, dict):
        raise UserError(f"{str(file)!r} is damaged: it is not a JSON object")
    return value
