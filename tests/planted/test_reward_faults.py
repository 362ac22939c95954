"""Faults of reward models: a pad token that ends turns, a head that is lost, random labels."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig

from treeward.data import world
from treeward.data.prepare import DataConfig
from treeward.data.render import token_tree
from treeward.losses.heads import Categorical
from treeward.methods.reward import Reward, RewardRun
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.runner.run import run
from treeward.runs.directory import RunDirectory
from treeward.trees.text import Tree

SMOLLM2 = "smollm2-135m-instruct-rebuilt"
DIALOGUE = [
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "Are you sure?"},
]


def has_trained_head(path: Path, **fields: Any) -> RewardModel:
    model = RewardModel.from_config(ModelConfig(path=str(path), device="cpu", precision="fp32", **fields))
    with torch.no_grad():
        output_layer(model.packed.model).weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.data
def test_f14_a_pad_token_that_ends_turns(data_root: Path, real_tokenizer: Callable[[str], Any], tmp_path: Path) -> None:
    """SmolLM2 pads with the token that ends its turns: pooling by ids misses the response's end; ours does not."""
    LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.3,
    ).save_pretrained(tmp_path / "start")  # fmt: skip
    tokenizer = real_tokenizer(SMOLLM2)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = has_trained_head(tmp_path / "start", init="random", tokenizer=str(data_root / "tokenizers" / SMOLLM2))
    tree = Tree(DIALOGUE, ["Yes, quite sure of it.", "No."])
    ours = model.score([tree])
    assert (ours[0] - ours[1]).abs() > 1e-3
    rows = token_tree(tree, tokenizer).rows()
    assert all(row.count(tokenizer.pad_token_id) == 5 for row in rows)
    model.save(tmp_path / "model")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for pad, right in ((module.config.pad_token_id, True), (tokenizer.pad_token_id, False)):
        module.config.pad_token_id = pad
        batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, pad)
        lengths = torch.tensor([len(row) for row in rows])
        real = (torch.arange(batch.shape[1]) < lengths[:, None]).long()
        with torch.no_grad():
            scores = module(input_ids=batch, attention_mask=real).logits[:, 0]
        assert bool(torch.allclose(scores, ours, atol=1e-4)) == right


def test_f15_a_head_that_was_not_saved(tmp_path: Path) -> None:
    has_trained_head(Path("world")).save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("score")}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="head's weights are not those"):
        RewardModel.load(str(tmp_path / "model"), device="cpu")
    (tmp_path / "model" / "treeward.json").unlink()
    with pytest.raises(ValueError, match="has no trained head"):
        RewardModel.load(str(tmp_path / "model"), device="cpu")


def test_a_distribution_learns_nothing_from_shuffled_labels(tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = []
    for row in world.pairs(0, 900):
        sides = [row["chosen"], row["rejected"]]
        chance.shuffle(sides)
        rows.append({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]})
    folder = RunDirectory.create(tmp_path / "data")
    folder.write_lines("rows.jsonl", rows)
    data = DataConfig(source=str(folder.path / "rows.jsonl"), test=0.4)
    config = RewardRun(out=str(tmp_path / "run"), data=data, head=Categorical(), steps=12, lr=1e-3)
    finished = run(config, Reward)
    assert finished.receipt["verdict"] == "no detectable change"
    assert finished.exit_code == 3
