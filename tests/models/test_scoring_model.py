"""The reward model: scores of zero at the start, the pooled token, and equal scores from the saved files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from treeward.data.render import end_id
from treeward.errors import UserError
from treeward.models.loading import LoRA, ModelConfig
from treeward.models.reward_model import RewardModel, padding_id
from treeward.models.weights import output_layer
from treeward.trees.forest import pack
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

NAMES = ["gpt2", "smollm2-135m-instruct-rebuilt", "torchtune-tiny-2000"]
TEXTS = [Tree("Why is it so?", [" Because.", " It is so because it was so before."]), Tree("Who?", [" I.", " You do."])]
Build = Callable[..., Any]


def world(**fields: Any) -> RewardModel:
    return RewardModel.from_config(ModelConfig(device="cpu", **fields))


def with_head(model: RewardModel) -> RewardModel:
    """The model with a random head in place of a trained one."""
    with torch.no_grad():
        head = output_layer(model.packed.model)
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5)))
    return model


def small(tokenizer: str | Path, vocabulary: int, folder: Path) -> RewardModel:
    """A random one-layer Llama for a real tokenizer."""
    LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.3,
    ).save_pretrained(folder)  # fmt: skip
    return with_head(world(path=str(folder), init="random", tokenizer=str(tokenizer)))


def plainly(module: Any, trees: list[TokenTree]) -> list[float]:
    """The public class on one unpadded row at a time."""
    with torch.no_grad():
        return [module(input_ids=torch.tensor([row])).logits[0, 0].item() for tree in trees for row in tree.rows()]


def test_a_new_head_scores_exactly_zero(grow: Build) -> None:
    assert world().score(grow(20, branches=3)).tolist() == [0.0] * 60


def test_a_new_head_scores_zero_under_adapters(grow: Build) -> None:
    assert world(lora=LoRA(r=2)).score(grow(5)).tolist() == [0.0] * 10


def test_scores_are_those_of_the_public_class_on_single_rows(grow: Build) -> None:
    model, trees = with_head(world()), grow(8, branches=3)
    assert model.score(trees).tolist() == pytest.approx(plainly(model.packed.model, trees), abs=1e-4)


def test_text_is_rendered_and_scored_at_its_end_token() -> None:
    model = with_head(world())
    tree = Tree("the plot is", [" good .", " bad ."])
    words = model.tokenizer.get_vocab()
    prompt = (1, *(words[w] for w in ["the", "plot", "is"]))
    branches = tuple((*(words[w] for w in text.split()), 2) for text in ("good .", "bad ."))
    expected = plainly(model.packed.model, [TokenTree(prompt, branches)])
    assert model.score([tree]).tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_tokens_after_a_branch_do_not_change_its_score(grow: Build) -> None:
    model = with_head(world())
    (tree,) = grow(1, branches=1)
    model.score([tree])
    with torch.no_grad():
        alone = model.packed(pack([tree]))
        followed = model.packed(pack([TokenTree(tree.prompt, (*tree.branches, (5, 6, 7)))]))
    assert followed[0].item() == pytest.approx(alone[0].item(), abs=1e-5)


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_the_padding_id_never_ends_a_response(name: str, real_tokenizer: Build) -> None:
    tokenizer = real_tokenizer(name)
    pad = padding_id(tokenizer)
    assert pad not in {tokenizer.eos_token_id, end_id(tokenizer, chat=True), end_id(tokenizer, chat=False)}
    assert pad in tokenizer.get_vocab().values()
    assert pad != tokenizer.bos_token_id


def test_the_worlds_padding_id_is_its_pad() -> None:
    assert padding_id(world().tokenizer) == 0


def test_a_saved_model_gives_the_same_logits_with_plain_transformers(grow: Build, tmp_path: Path) -> None:
    model, trees = with_head(world()), grow(5)
    ours = model.score(trees).tolist()
    model.save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert theirs.config.num_labels == 1
    assert plainly(theirs, trees) == pytest.approx(ours, abs=1e-5)
    rows = [torch.tensor(row) for tree in trees for row in tree.rows()]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=theirs.config.pad_token_id)
    with torch.no_grad():
        padded = theirs(input_ids=batch, attention_mask=batch != theirs.config.pad_token_id).logits[:, 0]
    assert padded.tolist() == pytest.approx(ours, abs=1e-4)


def test_a_saved_model_is_loaded_again_with_its_head(grow: Build, tmp_path: Path) -> None:
    model, trees = with_head(world()), grow(4)
    ours = model.score(trees)
    model.save(tmp_path / "model")
    again = RewardModel.load(str(tmp_path / "model"), device="cpu", precision="fp32")
    assert torch.equal(again.score(trees), ours)


def test_a_model_with_adapters_is_saved_merged_with_its_head(grow: Build, tmp_path: Path) -> None:
    model, trees = with_head(world(lora=LoRA(r=2))), grow(4)
    without = model.score(trees)
    with torch.no_grad():
        for name, parameter in model.packed.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    ours = model.score(trees)
    assert (ours - without).abs().max() > 0.5
    model.save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    # Scores of about 4 through these adapters carry 5e-5 of float32 rounding, merged or not.
    assert plainly(theirs, trees) == pytest.approx(ours.tolist(), abs=5e-4)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("name", "vocabulary"), list(zip(NAMES, [50257, 49152, 2003], strict=True)))
def test_the_saved_tokenizer_pads_as_the_saved_model_pools(
    name: str, vocabulary: int, data_root: Path, tmp_path: Path
) -> None:
    """Model and tokenizer loaded with plain transformers give the scores of the run, also in a padded batch."""
    model = small(data_root / "tokenizers" / name, vocabulary, tmp_path / "start")
    ours = model.score(TEXTS).tolist()
    model.save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [f"{tree.prompt}{r.text}{tokenizer.eos_token}" for tree in TEXTS for r in tree.responses]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert logits.tolist() == pytest.approx(ours, abs=1e-4)


def test_an_untrained_head_is_not_loaded_as_a_reward_model(tmp_path: Path) -> None:
    world().save(tmp_path / "model")
    with pytest.raises(UserError, match="has no trained head"):
        RewardModel.load(str(tmp_path / "model"), device="cpu")


def test_a_policys_weights_start_a_reward_model_with_a_zero_head(policy: Build, grow: Build, tmp_path: Path) -> None:
    policy().save(tmp_path / "model")
    model = world(path=str(tmp_path / "model"))
    assert model.score(grow(3)).tolist() == [0.0] * 6
    start = policy().packed.model.get_input_embeddings().weight
    assert torch.equal(model.packed.model.get_input_embeddings().weight, start)


def test_the_wrong_tokenizer_is_refused(policy: Build, tmp_path: Path) -> None:
    policy().save(tmp_path / "model")
    with pytest.raises(UserError, match=r"has ids up to .* has 64 embedding rows; give the model's own tokenizer"):
        world(path=str(tmp_path / "model"), tokenizer="world")
