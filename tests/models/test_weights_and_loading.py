"""Hashes and movement of weights, dropout, faster kernels, and what is refused when a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from treeward.errors import UserError
from treeward.models.device import choose_device, choose_precision
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reward_model import RewardModel
from treeward.models.weights import fingerprint, fuse_gelu, movement, set_dropout, snapshot, trainable
from treeward.trees.forest import pack
from treeward.trees.forward import TreeLM

Build = Callable[..., Any]


def test_a_fingerprint_is_of_the_values(tiny: Build) -> None:
    assert fingerprint(tiny("llama")) == fingerprint(tiny("llama"))
    assert fingerprint(tiny("llama")) != fingerprint(tiny("llama", seed=1))


@pytest.mark.parametrize("step", [1e-7, 1.0])
def test_one_weight_changes_the_fingerprint(step: float, tiny: Build) -> None:
    module = tiny("gpt2")
    before = fingerprint(module)
    weight = module.transformer.h[1].mlp.c_fc.bias
    with torch.no_grad():
        weight[3] += step
    assert fingerprint(module) != before


def test_a_fingerprint_depends_on_dtypes_and_shapes() -> None:
    wide, narrow = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    for layer in (wide, narrow):
        torch.nn.init.zeros_(layer.weight)
    assert len({fingerprint(wide), fingerprint(narrow), fingerprint(wide.bfloat16())}) == 3


def test_movement_is_the_norm_of_the_change() -> None:
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
        layer.bias.fill_(2.0)
    start = snapshot(layer)
    assert movement(layer, start) == {"weight": (0.0, 5.0), "bias": (0.0, 2.0)}
    with torch.no_grad():
        layer.weight.add_(torch.tensor([[0.6, -0.8]]))
    moved = movement(layer, start)
    assert moved["weight"] == pytest.approx((1.0, 5.0))
    assert moved["bias"] == (0.0, 2.0)


def test_frozen_and_tied_weights_are_counted_as_they_train(tiny: Build) -> None:
    module = tiny("gpt2")
    names = [name for name, _ in trainable(module)]
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    module.transformer.wpe.weight.requires_grad_(False)
    assert len(list(trainable(module))) == len(names) - 1


def forward_twice(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(3, 40)[None]
    return module(input_ids=ids).logits, module(input_ids=ids).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_set_dropout_silences_gpt2(attention: str, tiny: Build) -> None:
    module = tiny("gpt2", attention=attention)
    at_rest = module(input_ids=torch.arange(3, 40)[None]).logits
    module.train()
    first, second = forward_twice(module)
    assert not torch.equal(first, second)
    set_dropout(module, 0.0)
    first, second = forward_twice(module)
    assert torch.equal(first, second)
    assert torch.equal(first, at_rest)


def test_set_dropout_switches_on_llamas_attention_dropout(tiny: Build) -> None:
    module = tiny("llama").train()
    first, second = forward_twice(module)
    assert torch.equal(first, second)
    set_dropout(module, 0.3)
    first, second = forward_twice(module)
    assert not torch.equal(first, second)


def test_a_loaded_policy_has_no_dropout_by_default(policy: Build, tmp_path: Path) -> None:
    policy("gpt2").save(tmp_path / "model")
    path = str(tmp_path / "model")
    quiet = Policy.load(path, device="cpu").packed.model.train()
    assert torch.equal(*forward_twice(quiet))
    loud = Policy.from_config(ModelConfig(path=path, device="cpu", dropout=0.2)).packed.model.train()
    assert not torch.equal(*forward_twice(loud))


def test_a_training_step_runs_in_eval_mode_without_dropout(policy: Build, tmp_path: Path) -> None:
    policy("gpt2").save(tmp_path / "model")
    path = str(tmp_path / "model")
    configs = [ModelConfig(path=path, device="cpu", dropout=share) for share in (0.0, 0.2)]
    quiet, loud = (Policy.from_config(config).packed for config in configs)
    with quiet.training_mode(), loud.training_mode():
        assert not any(part.training for part in quiet.modules())
        assert torch.equal(*forward_twice(quiet.model))
        assert not torch.equal(*forward_twice(loud.model))
    with loud.training_mode(dropout=False):
        assert torch.equal(*forward_twice(loud.model))
    assert not any(part.training for part in loud.modules())


def test_dropout_switches_on_no_other_noise() -> None:
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, num_local_experts=2, router_jitter_noise=0.5,
    )  # fmt: skip
    model = TreeLM(transformers.AutoModelForCausalLM.from_config(config), dropout=0.1)
    set_dropout(model.model, 0.1)
    with model.training_mode():
        states = {type(part).__name__: part.training for part in model.modules()}
    assert states["MixtralAttention"]
    assert not states["MixtralSparseMoeBlock"]


def test_an_adapters_own_dropout_acts_in_training(tiny: Build) -> None:
    module = tiny("gpt2")
    adapter = peft.get_peft_model(module, peft.LoraConfig(lora_dropout=0.5, init_lora_weights=False))
    model = TreeLM(module)
    with model.training_mode():
        noisy = {name for name, part in model.named_modules() if part.training}
        assert not torch.equal(*forward_twice(module))
    assert noisy
    assert all("c_attn" in name and not name.endswith("base_layer") for name in noisy)
    with model.training_mode(dropout=False):
        assert torch.equal(*forward_twice(module))
    assert adapter is not None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_recomputes_in_a_training_step(family: str, tiny: Build, grow: Build) -> None:
    forest, gradients, calls = pack(grow(2)), [], []
    for checkpointed in (False, True):
        model = TreeLM(tiny(family), backend="tree")
        model.backend = "tree"
        if checkpointed:
            model.model.gradient_checkpointing_enable({"use_reentrant": False})
        layer = model.model.base_model.layers[0] if family == "llama" else model.model.transformer.h[0]
        layer.mlp.register_forward_pre_hook(lambda *_, which=checkpointed: calls.append(which))
        with model.training_mode():
            model(forest).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert calls == [False, True, True]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match=rf"model\.dropout is {dropout}"):
        ModelConfig(dropout=dropout)


def test_the_world_has_no_pretrained_weights() -> None:
    with pytest.raises(UserError, match=r"model\.init is 'pretrained'"):
        ModelConfig(init="pretrained")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_directory_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=f"'{path}' is not a directory"):
        Policy.load(path, device="cpu")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        Policy.load(str(tmp_path), device="cpu")
    with pytest.raises(UserError, match=r"has no weights|has no config\.json"):
        Policy.trained(ModelConfig(path=str(tmp_path), device="cpu", tokenizer="world"))


def test_a_configuration_alone_needs_random_weights(policy: Build, tmp_path: Path) -> None:
    policy().save(tmp_path / "model")
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.unlink()
    path = str(tmp_path / "model")
    with pytest.raises(UserError, match=r"has no weights .* set model\.init to random"):
        Policy.load(path, device="cpu")
    first, same, other = (
        Policy.trained(ModelConfig(path=path, init="random", device="cpu"), seed) for seed in (0, 0, 1)
    )
    assert fingerprint(first.packed) == fingerprint(same.packed) != fingerprint(other.packed)


def test_a_hub_id_without_a_network_is_one_line() -> None:
    with pytest.raises(UserError, match=r"'nobody/nothing' .*give a local directory or 'world'") as caught:
        Policy.load("nobody/nothing", device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_are_loaded_in_fp32_whatever_they_were_saved_in(policy: Build, tmp_path: Path) -> None:
    ours = policy()
    ours.packed.bfloat16()
    ours.save(tmp_path / "model")
    again = Policy.load(str(tmp_path / "model"), device="cpu")
    assert {p.dtype for p in again.packed.parameters()} == {torch.float32}


def test_the_requested_backend_reaches_the_model() -> None:
    assert Policy.trained(ModelConfig(device="cpu", backend="rows")).packed.requested_backend == "rows"
    assert Policy.load("world", device="cpu").packed.requested_backend is None


def test_small_models_run_fp32_under_auto() -> None:
    assert choose_precision("auto", torch.device("cpu"), 9_999_999) == "fp32"
    assert choose_precision("bf16", torch.device("cpu"), 10) == "bf16"
    with pytest.raises(UserError, match="MPS runs fp32"):
        choose_precision("bf16", torch.device("mps"), 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.device is 'cuda', which this machine does not have"):
        choose_device("cuda")


def test_loading_leaves_threads_generator_and_defaults_alone(policy: Build, tmp_path: Path) -> None:
    policy().save(tmp_path / "model")

    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.get_rng_state().tolist(),
        )  # fmt: skip

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = state()
        Policy.load("world", device="cpu")
        Policy.load(tmp_path / "model", device="cpu")
        RewardModel.from_config(ModelConfig(device="cpu"))
        assert state() == before
    finally:
        torch.set_num_threads(threads)


def test_gpt2_computes_the_same_function_in_one_operation_per_layer() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=2)).eval()
    ids = torch.randint(50, (1, 20))
    before, names, config = model(ids).logits, list(model.state_dict()), model.config.to_dict()
    fuse_gelu(model)
    kinds = [type(m) for m in model.modules()]
    assert NewGELUActivation not in kinds
    assert kinds.count(torch.nn.GELU) == 3
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)
    assert list(model.state_dict()) == names
    assert model.config.to_dict() == config
