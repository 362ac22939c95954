"""What this machine and a model can do, for `treeward doctor`; measured where possible."""

import os
from dataclasses import replace
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM

from treeward.data import render
from treeward.errors import UserError
from treeward.models import vocabulary
from treeward.models.device import choose_device, measure_products, native_bf16
from treeward.models.loading import ModelConfig, load
from treeward.runner.process import versions
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify

Facts = dict[str, Any]


def machine() -> Facts:
    """Versions, devices, memory, and the measured speed of matrix products in fp32 and bf16."""
    device = choose_device("auto")
    speed = measure_products(device)
    memory = psutil.virtual_memory()
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "device": f"{device} (cuda {torch.cuda.is_available()}, mps {torch.backends.mps.is_available()})",
        "cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "products": f"fp32 {speed.fp32:.0f}, bf16 {speed.bf16:.0f} GFLOP/s; error {speed.error:.1e} of the largest",
        "bf16": f"{'native' if native_bf16(device) else 'not native'}; `auto` takes "
        f"{'bf16 from 10M parameters' if native_bf16(device) else 'fp32'}",
    }


def model(config: ModelConfig, longest: int = 96) -> Facts:
    """A model's tokenizer, template, special tokens, and the layout that `verify` chose on random ids.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or no layout equals plain calls.
    """
    loaded = load(config, AutoModelForCausalLM, seed=0)
    vocabulary.check_end(config, loaded.tokenizer, loaded.model)
    tokenizer: Any = loaded.tokenizer
    packed = TreeLM(loaded.model, "fp32", loaded.backend)
    layout = verify(packed, _random_trees(packed, longest))
    parameters = sum(p.numel() for p in loaded.model.parameters())
    embedding: Any = loaded.model.get_input_embeddings()  # type: ignore[operator]
    return {
        "model": f"{type(loaded.model).__name__}, {parameters / 1e6:.1f}M parameters, {packed.positions} positions",
        "precision": loaded.precision,
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens, {embedding.num_embeddings} embedding rows",
        "special": _special_tokens(tokenizer),
        "vocabulary": _vocabulary(config, tokenizer, loaded.model),
        "ends": f"plain text {tokenizer.decode([render.end_id(tokenizer, False)])!r}"
        + (f", chats {tokenizer.decode([render.end_id(tokenizer, True)])!r}" if tokenizer.chat_template else ""),
        "template": _template(tokenizer),
        "layout": f"{layout.backend}, largest deviation from plain calls {layout.value_deviation:.1e}, "
        f"gradients {layout.gradient_deviation:.1e}" + (f" ({layout.fallback})" if layout.fallback else ""),
    }


def _special_tokens(tokenizer: Any) -> str:
    tokens = [
        f"{name} {getattr(tokenizer, f'{name}_token')!r} {getattr(tokenizer, f'{name}_token_id')}"
        for name in ("bos", "eos", "pad")
    ]
    return ", ".join(tokens) + ("; opens plain text with BOS" if render.adds_bos(tokenizer) else "")


def _vocabulary(config: ModelConfig, tokenizer: Any, module: Any) -> str:
    faults = [result.detail for result in vocabulary.compare(config, tokenizer, module) if not result.passed]
    return f"F09, the tokenizer belongs to another model: {faults[0]}" if faults else "the tokenizer fits the model"


def _template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        return "none: prompts must be plain text"
    error, remark = render.template_faults(tokenizer)
    if error is not None:
        return f"unusable: {error}"
    return f"rewrites the response: {remark}" if remark else "a dialogue begins with prompt + response + end token"


def model_config(path: str, tokenizer: str | None, init: str | None) -> ModelConfig:
    """The model configuration of doctor's options.

    Raises:
        UserError: `init` is neither pretrained nor random.
    """
    config = ModelConfig(path=path, tokenizer=tokenizer)
    if init is None:
        return config
    if init not in ("pretrained", "random"):
        raise UserError(f"--init is {init!r}; it may be pretrained or random")
    return replace(config, init="random" if init == "random" else "pretrained")


def _random_trees(packed: TreeLM, longest: int) -> list[TokenTree]:
    """Two trees of random ids, with paths of at most `longest` tokens."""
    embedding: Any = packed.model.get_input_embeddings()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    longest = min(longest, packed.positions or longest)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(embedding.num_embeddings, (count,), generator=generator).tolist())

    half = longest // 2
    return [TokenTree(ids(half), (ids(longest - half), ids(7))), TokenTree(ids(3), (ids(1), ids(5), ids(2)))]
