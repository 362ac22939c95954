"""Faster kernels compute the public class's function, and leave its weights and configuration alone."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from treeward.models.kernels import fuse_gelu


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
