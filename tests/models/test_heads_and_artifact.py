"""Every head is trained, saved and loaded; the code of its card runs; encoders pool as their class does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Attributes, Categorical, Logistic, Ordinal, Scalar
from treeward.methods.reward import RewardConfig, reward_steps
from treeward.models import artifact
from treeward.models.ensemble import Ensemble, mean, spread, uncertainty_weighted, warm, worst
from treeward.models.loading import LoRA, ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]
HEADS: list[AnyHead] = [Scalar(), Categorical(6), Ordinal(6), Logistic(6), Attributes(("a", "b"), 3, (0.7, 0.3))]


def made(head: AnyHead | None = None, **fields: Any) -> RewardModel:
    return RewardModel.from_config(ModelConfig(device="cpu", **fields), 0, head)


def rated(trees: list[TokenTree]) -> list[TokenTree]:
    """The same trees with two grades a branch, on a scale from 0 to 4."""
    return [TokenTree(t.prompt, t.branches, t.group, ((3.0, 2.0), (1.0, 2.0))) for t in trees]


def trained(head: AnyHead, trees: list[TokenTree], **fields: Any) -> RewardModel:
    model = made(head, **fields)
    for _ in reward_steps(model, rated(trees), RewardConfig(steps=4, batch_size=4, lr=1e-2)):
        pass
    return model


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_trained_head_is_saved_and_its_card_gives_its_scores(head: AnyHead, grow: Build, tmp_path: Path) -> None:
    trees = grow(6)
    model = trained(head, trees)
    assert model.has_trained_head
    ours = model.score(trees)
    assert ours.std() > 1e-4
    model.save(tmp_path / "model")
    again = RewardModel.load(str(tmp_path / "model"), device="cpu", precision="fp32")
    assert again.head == head
    torch.testing.assert_close(again.score(trees), ours, atol=1e-5, rtol=1e-5)

    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert module.config.num_labels == head.width
    code = (tmp_path / "model" / "README.md").read_text().split('return_tensors="pt")).logits\n')[1].split("```")[0]
    rows = [row for tree in trees for row in tree.rows()]
    pad = module.config.pad_token_id
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    with torch.no_grad():
        batch = module(input_ids=padded, attention_mask=(padded != pad).long()).logits
        for number, row in enumerate(rows):
            logits = module(input_ids=torch.tensor([row])).logits
            torch.testing.assert_close(batch[number], logits[0], atol=1e-4, rtol=1e-4)
            names = {"logits": logits, "torch": torch}
            exec(code, names)
            assert names["score"].item() == pytest.approx(ours[number].item(), abs=1e-3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("head", HEADS[1:])
def test_distributions_sum_to_one_and_their_mean_is_the_score(head: AnyHead, grow: Build) -> None:
    trees = grow(4)
    model = trained(head, trees)
    probabilities = model.distribution(trees)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    if not isinstance(head, Attributes):
        assert (probabilities @ torch.arange(1.0, 7)).tolist() == pytest.approx(model.score(trees).tolist(), abs=1e-4)
    else:
        assert probabilities.shape == (8, 2, 3)


def test_ordinal_thresholds_train(grow: Build) -> None:
    model = trained(Ordinal(6), grow(6))
    start = made(Ordinal(6))
    assert model.packed.thresholds is not None
    assert start.packed.thresholds is not None
    assert (model.packed.thresholds - start.packed.thresholds).abs().min() > 1e-4


def test_a_scalar_has_no_distribution(grow: Build) -> None:
    with pytest.raises(UserError, match="scalar head and no distribution"):
        made().distribution(grow(1))


def test_a_frozen_backbone_stays_and_the_head_moves(grow: Build) -> None:
    model = trained(Categorical(4), grow(6), train="head")
    start = made(Categorical(4))
    for (name, now), (_, before) in zip(model.packed.named_parameters(), start.packed.named_parameters(), strict=True):
        assert torch.equal(now, before) != (name == "model.score.weight"), name


def test_a_frozen_backbone_with_adapters_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.train is 'head', but model\.lora"):
        ModelConfig(train="head", lora=LoRA())


def test_the_saved_facts_have_the_head_and_what_is_added_later(grow: Build, tmp_path: Path) -> None:
    model = trained(Ordinal(6), grow(4))
    model.save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "treeward.json").read_text())
    assert facts["head"]["kind"] == "ordinal"
    assert facts["head"]["thresholds"] == sorted(facts["head"]["thresholds"])
    artifact.annotate(tmp_path / "model", {"accuracy": {"value": 0.7}})
    assert artifact.read(str(tmp_path / "model"))["accuracy"] == {"value": 0.7}  # type: ignore[index]
    with pytest.raises(UserError, match="cannot be trained as"):
        RewardModel.from_config(ModelConfig(path=str(tmp_path / "model"), device="cpu"), 0, Categorical(6))


def test_another_template_or_head_is_refused_unless_accepted(grow: Build, tmp_path: Path) -> None:
    trained(Scalar(), grow(4)).save(tmp_path / "model")
    path = str(tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="another template"):
        RewardModel.load(path, device="cpu")
    RewardModel.trained(ModelConfig(path=path, device="cpu", any_tokenizer=True))
    template.unlink()
    module = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        module.score.weight.mul_(2)
    module.save_pretrained(path)
    with pytest.raises(UserError, match="head's weights are not those"):
        RewardModel.load(path, device="cpu")


ENCODERS = {
    "distilbert": ("DistilBertConfig", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    "bert": ("BertConfig", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                            "intermediate_size": 32}),
    "modernbert": ("ModernBertConfig", {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "local_attention": 8, "global_attn_every_n_layers": 2,
    }),
}  # fmt: skip


def encoder(family: str, folder: Path, head: AnyHead | None = None) -> RewardModel:
    """A random encoder with a word-level tokenizer that has CLS and SEP and neither BOS nor EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(4, 64))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    name, fields = ENCODERS[family]
    getattr(transformers, name)(vocab_size=64, max_position_embeddings=64, pad_token_id=0, **fields).save_pretrained(
        folder
    )
    return made(head, path=str(folder), init="random")


@pytest.mark.parametrize("family", list(ENCODERS))
def test_an_encoder_is_scored_as_rows_by_its_own_class(family: str, tmp_path: Path) -> None:
    model = encoder(family, tmp_path / "start", Categorical(4))
    texts = [Tree("w4 w5", [" w6 w7 w8", " w9"]), Tree("", [" w10", " w11 w12 w13"], group="none")]
    assert model.score(texts).tolist() == [2.5] * 4
    assert model.packed.backend == "rows"
    for _ in reward_steps(model, texts, RewardConfig(steps=6, batch_size=2, lr=3e-2)):
        pass
    ours = model.score(texts)
    assert ours[0] > ours[1]
    assert ours[2] > ours[3]
    model.save(tmp_path / "run" / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    rows = ["w4 w5 w6 w7 w8", "w4 w5 w9", "w10", "w11 w12 w13"]
    for number, row in enumerate(rows):
        ids = model.tokenizer(row, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert model.head.scores(logits).item() == pytest.approx(ours[number].item(), abs=1e-4)
    assert RewardModel.load(str(tmp_path / "run" / "model")).score(texts).tolist() == pytest.approx(
        ours.tolist(), abs=1e-4
    )


def test_r9_warm_of_copies_is_the_copy(grow: Build) -> None:
    trees = grow(5)
    model = trained(Ordinal(6), trees)
    torch.testing.assert_close(warm([model.copy() for _ in range(3)]).score(trees), model.score(trees))


def test_r9_heads_linear_in_shared_features_average_to_the_ensembles_mean(grow: Build) -> None:
    trees = grow(5)
    members = []
    for seed in range(3):
        member = made()
        with torch.no_grad():
            layer = output_layer(member.packed.model)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)))
        members.append(member)
    before = [member.score(trees) for member in members]
    torch.testing.assert_close(warm(members).score(trees), torch.stack(before).mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Ensemble(members).scores(trees), torch.stack(before))
    assert [torch.equal(a, m.score(trees)) for a, m in zip(before, members, strict=True)] == [True] * 3
    standard = Ensemble.standardised(members, trees).scores(trees)
    assert standard.mean(1).tolist() == pytest.approx([0.0] * 3, abs=1e-5)
    assert standard.std(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_ensembles_by_written_out_numbers() -> None:
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    assert mean(scores).tolist() == [3.0, 2.0]
    assert worst(scores).tolist() == [1.0, 0.0]
    assert spread(scores).square().tolist() == pytest.approx([8 / 3, 8.0])
    assert uncertainty_weighted(scores, 0.5).tolist() == pytest.approx([3 - 4 / 3, -2.0])


def test_members_that_differ_are_refused(grow: Build) -> None:
    with pytest.raises(UserError, match="member 1 has the head"):
        Ensemble([made(), made(Categorical(4))])
    with pytest.raises(UserError, match="at least one"):
        Ensemble([])
    with pytest.raises(UserError, match="gives every text the same score"):
        Ensemble.standardised([made()], grow(3))
    with pytest.raises(UserError, match="has an adapter"):
        warm([made(lora=LoRA(r=2))])
