"""Public model classes: sampled and teacher-forced log-probabilities agree, or the class is refused in one line.

Every class has a tiny configuration. Classes differ in how they count positions, in the name of their cache, in whether
that cache is right, and in the layout that they support.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from treeward.errors import UserError
from treeward.models.sampler import DecodeSampler, Noise
from treeward.trees.forward import TreeLM, TreeScorer
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify

Build = Callable[..., Any]
Fields = dict[str, Any]

SIZES: Fields = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEADS: Fields = {**SIZES, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 256}
GROUPED: Fields = {**HEADS, "num_key_value_heads": 2}
GPT: Fields = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SSM: Fields = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
FALCON: Fields = {**SIZES, "num_attention_heads": 4}

CACHED, NONE = True, False
CLASSES: dict[str, tuple[str, Fields, str, bool]] = {
    "gpt2": ("GPT2Config", GPT, "tree", CACHED),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 4}, "rows", CACHED),
    "codegen": ("CodeGenConfig", {**GPT, "rotary_dim": 4}, "rows", CACHED),
    "openai-gpt": ("OpenAIGPTConfig", GPT, "rows", NONE),
    "llama": ("LlamaConfig", GROUPED, "tree", CACHED),
    "qwen2": ("Qwen2Config", GROUPED, "tree", CACHED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}, "tree", CACHED),
    "phi": ("PhiConfig", GROUPED, "tree", CACHED),
    "phi3": ("Phi3Config", GROUPED, "tree", CACHED),
    "neox": ("GPTNeoXConfig", HEADS, "tree", CACHED),
    "opt": ("OPTConfig", {**HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3}, "tree", CACHED),
    "bloom": ("BloomConfig", {**SIZES, "n_layer": 2, "n_head": 4}, "rows", CACHED),
    "falcon rotary": ("FalconConfig", FALCON, "tree", CACHED),
    "falcon alibi": ("FalconConfig", {**FALCON, "alibi": True, "multi_query": False}, "rows", CACHED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 8}, "rows", CACHED),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8, "sliding_window": 8}, "rows", CACHED),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 8}, "rows", CACHED),
    "olmo2": ("Olmo2Config", GROUPED, "tree", CACHED),
    "cohere": ("CohereConfig", GROUPED, "tree", CACHED),
    "granite": ("GraniteConfig", GROUPED, "tree", CACHED),
    "stablelm": ("StableLmConfig", GROUPED, "tree", CACHED),
    "starcoder2": ("Starcoder2Config", GROUPED, "tree", CACHED),
    "xglm": (
        "XGLMConfig",
        {**SIZES, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "init_std": 0.3,
         "max_position_embeddings": 256}, "rows", CACHED,
    ),
    "roberta": ("RobertaConfig", {**HEADS, "is_decoder": True}, "rows", NONE),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 2}, "tree", CACHED),
    "phimoe": ("PhimoeConfig", {**GROUPED, "num_local_experts": 2}, "tree", CACHED),
    "mamba": ("MambaConfig", {**SIZES, "state_size": 8}, "rows", CACHED),
    "mamba2": (
        "Mamba2Config",
        {**SIZES, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16}, "rows", CACHED,
    ),
    "bamba": ("BambaConfig", {**GROUPED, **SSM, "attn_layer_indices": [1]}, "rows", CACHED),
    "falcon_h1": (
        "FalconH1Config", {**GROUPED, **SSM, "mamba_n_heads": 4, "mamba_d_ssm": 32, "head_dim": 8}, "rows", CACHED,
    ),
    "jamba": (
        "JambaConfig",
        {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
         "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4}, "rows", CACHED,
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**GROUPED, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 32, "attention_window_size": 8}, "rows", NONE,
    ),
    "rwkv": ("RwkvConfig", {**SIZES, "attention_hidden_size": 32, "context_length": 64}, "rows", NONE),
    "zamba2": (
        "Zamba2Config",
        {**GROUPED, "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 16,
         "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "use_mem_rope": True,
         "attention_hidden_size": 64, "attention_head_dim": 16}, "rows", NONE,
    ),
}  # fmt: skip
"""Name: configuration, its fields, the layout that the class gets, and whether it decodes with its cache."""

ENCODERS: dict[str, tuple[str, Fields]] = {
    "bert": ("BertConfig", HEADS),
    "mpnet": ("MPNetConfig", HEADS),
    "deberta": ("DebertaConfig", HEADS),
    "camembert": ("CamembertConfig", HEADS),
    "ernie": ("ErnieConfig", HEADS),
    "roformer": ("RoFormerConfig", HEADS),
    "squeezebert": ("SqueezeBertConfig", {**HEADS, "embedding_size": 32}),
    "xlm": ("XLMConfig", {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "ctrl": ("CTRLConfig", {**GPT, "dff": 64}),
}
"""Classes that pool by themselves."""


def build(auto: Any, name: str, fields: Fields) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return auto.from_config(getattr(transformers, name)(**fields), dtype=torch.float32)


def policy_of(name: str) -> TreeLM:
    config, fields, *_ = CLASSES[name]
    return TreeLM(build(transformers.AutoModelForCausalLM, config, fields))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_sampled_log_probabilities_are_the_teacher_forced_ones(name: str) -> None:
    """Two prompts of one length and one of another, so that rows are batched, and padded where the layout takes it."""
    model = policy_of(name)
    prompts = [TokenTree((5, 9, 30, 17), (), "a"), TokenTree((40, 41, 42, 43), (), "b"), TokenTree((7, 8), (), "c")]
    rollout = DecodeSampler(model, (2,), 14)(prompts, 2, Noise(0))
    assert (model.backend, bool(model.cache_name)) == CLASSES[name][2:]
    assert rollout.logps is not None
    with torch.no_grad():
        for tree, logps in zip(rollout.trees, rollout.logps, strict=True):
            for number, recorded in enumerate(logps):
                torch.testing.assert_close(recorded, model.unpacked(tree, number), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bamba", "mixtral", "mistral"])
def test_in_bf16_they_agree_within_its_limits(name: str) -> None:
    """The mean to 1e-2 nats; the largest of these weights, whose logits are far apart, is left to I09."""
    model = policy_of(name)
    prompts = [TokenTree((5, 9, 30, 17), (), "a"), TokenTree((40, 41, 42, 43), (), "b")]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    model.precision = "bf16"
    rollout = DecodeSampler(model, (), 14)(prompts, 4, Noise(0))
    assert rollout.logps is not None
    with torch.no_grad():
        off = torch.cat([
            (recorded - model.unpacked(tree, number)).abs()
            for tree, logps in zip(rollout.trees, rollout.logps, strict=True) for number, recorded in enumerate(logps)
        ])  # fmt: skip
    assert 0 < off.mean() < 1e-2
    assert off.max() < 1e-1


@pytest.mark.parametrize("name", ENCODERS)
def test_classifiers_that_pool_by_themselves_are_reward_models(name: str, grow: Build) -> None:
    config, fields = ENCODERS[name]
    model = TreeScorer(build(transformers.AutoModelForSequenceClassification, config, {**fields, "num_labels": 1}))
    result = verify(model, grow(3, longest=8))
    assert model.is_encoder
    assert (result.backend, result.fallback) == ("rows", "the model is not a decoder")


@pytest.mark.parametrize(
    ("auto", "config", "fields", "message"),
    [
        ("AutoModelForCausalLM", "BertConfig", {**HEADS, "is_decoder": False}, "looks at later tokens .* no policy"),
        ("AutoModelForCausalLM", "XLNetConfig", {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4,
                                                 "d_inner": 64, "initializer_range": 0.3}, "looks at later tokens"),
        ("AutoModelForCausalLM", "xLSTMConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                                                 "num_heads": 2, "chunk_size": 16}, "cannot be called with plain rows"),
        ("AutoModelForSequenceClassification", "BartConfig",
         {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}, "an encoder and a decoder"),
        ("AutoModelForSequenceClassification", "FNetConfig", {**HEADS, "num_labels": 1}, "deviates from plain calls"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(
    auto: str, config: str, fields: Fields, message: str, grow: Build
) -> None:
    kind = TreeLM if auto == "AutoModelForCausalLM" else TreeScorer
    model = kind(build(getattr(transformers, auto), config, fields))
    with pytest.raises(UserError, match=message) as refused:
        verify(model, grow(3, longest=8))
    assert "\n" not in str(refused.value)
    assert type(model.model).__name__ in str(refused.value)
