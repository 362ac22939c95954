"""Scorers by name: each kind's number, order, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from treeward.models.artifact import Budgets, annotate
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.rewards import scorers
from treeward.rewards.classifier import Classifier
from treeward.rewards.judge import Judge
from treeward.rewards.rule import Length
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

TREES = [TokenTree((5, 6), ((7, 8, 2), (9,))), TokenTree((10,), ((7, 7, 7),))]


@pytest.fixture
def saved(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """saved(labels, template=None): the directory of a small BERT classifier with random weights."""

    def save(labels: list[str], template: str | None = None) -> Path:
        path = tmp_path / "classifier"
        config = transformers.BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, id2label=dict(enumerate(labels)), initializer_range=0.5, pad_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transformers.BertForSequenceClassification(config).save_pretrained(path)
        tiny_tokenizer.save_pretrained(path)
        if template:
            (path / "chat_template.jinja").write_text(template)
        return path

    return save


def by_hand(path: Path, texts: list[str], tokenizer: Any) -> torch.Tensor:
    """Logits one text at a time, without padding."""
    module = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        return torch.cat([module(**tokenizer(text, return_tensors="pt")).logits for text in texts])


def test_length_and_count(tiny_tokenizer: Any) -> None:
    assert scorers.find("length")(TREES, tiny_tokenizer).tolist() == [3.0, 1.0, 3.0]
    assert scorers.find("count:w7")(TREES, tiny_tokenizer).tolist() == [1.0, 0.0, 3.0]
    assert scorers.find("count:w")(TREES, tiny_tokenizer).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="count:good"):
        scorers.find("count:")


def test_a_python_file_is_called_with_prompt_and_response(tmp_path: Path, tiny_tokenizer: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt, response):\n    return len(prompt.split()) * 10 + len(response.split())\n")
    assert scorers.find(f"{file}:score")(TREES, tiny_tokenizer).tolist() == [22.0, 21.0, 13.0]


@pytest.mark.parametrize("body", ["return None", "return float('nan')", "return 'good'"])
def test_f35_a_missing_number_names_scorer_and_response(body: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def score(prompt, response):\n    if 'w9' in response:\n        {body}\n    return 1\n")
    with pytest.raises(ValueError, match=r"mine\.py:score.*response 2, 'w9'"):
        scorers.find(f"{file}:score")(TREES, tiny_tokenizer)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_f35_no_scorer_may_give_a_score_that_is_not_finite(
    value: float, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Length, "__call__", lambda self, trees, tokenizer: torch.tensor([1.0, value, value]))
    with pytest.raises(ValueError, match=rf"scorer 'length' gave {value} for response 2, 'w9'"):
        scorers.find("length")(TREES, tiny_tokenizer)


def test_a_model_that_is_not_there_is_named_as_the_scorer(tmp_path: Path) -> None:
    for name in (f"{tmp_path}/none", f"{tmp_path}/none#GOOD"):
        with pytest.raises(ValueError, match=rf"^scorer '{name}': model.path '{tmp_path}/none' is not a directory"):
            scorers.find(name)


def test_python_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    with pytest.raises(ValueError, match="no file"):
        scorers.find(f"{file}:score")
    file.write_text("score = 3\n")
    with pytest.raises(ValueError, match="no function 'score'"):
        scorers.find(f"{file}:score")
    with pytest.raises(ValueError, match=":FUNCTION"):
        scorers.find(str(file))
    file.write_text("def score(:\n")
    with pytest.raises(ValueError, match="cannot be run"):
        scorers.find(f"{file}:score")


def test_a_classifier_gives_the_raw_logit(saved: Callable[..., Path], tiny_tokenizer: Any) -> None:
    path = saved(["bad", "good"])
    texts = ["w5 w6 w7 w8", "w5 w6 w9", "w10 w7 w7 w7"]
    logits = by_hand(path, texts, tiny_tokenizer)
    expected = (logits[:, 1] - logits[:, 0]).tolist()
    assert scorers.find(str(path))(TREES, tiny_tokenizer).tolist() == pytest.approx(expected, abs=1e-5)
    assert scorers.find(f"{path}#bad")(TREES, tiny_tokenizer).tolist() == pytest.approx(
        [-x for x in expected], abs=1e-5
    )
    assert len(set(expected)) == 3


def test_a_classifier_with_one_label(saved: Callable[..., Path], tiny_tokenizer: Any) -> None:
    path = saved(["score"])
    logits = by_hand(path, ["w5 w6 w9"], tiny_tokenizer)
    assert scorers.find(str(path))(TREES, tiny_tokenizer)[1].item() == pytest.approx(logits[0, 0].item(), abs=1e-5)
    with pytest.raises(ValueError, match="one label"):
        scorers.find(f"{path}#score")


def test_of_several_labels_one_is_named(saved: Callable[..., Path], tiny_tokenizer: Any) -> None:
    path = saved(["bad", "so", "good"])
    with pytest.raises(ValueError, match=r"bad, so, good.*#good"):
        scorers.find(str(path))
    with pytest.raises(ValueError, match="no label 'fine'"):
        scorers.find(f"{path}#fine")
    logits = by_hand(path, ["w5 w6 w9"], tiny_tokenizer)[0]
    odds = (logits.softmax(0)[2] / (1 - logits.softmax(0)[2])).log()
    assert scorers.find(f"{path}#good")(TREES, tiny_tokenizer)[1].item() == pytest.approx(odds.item(), abs=1e-4)


def test_a_saturated_classifier_still_tells_texts_apart(saved: Callable[..., Path]) -> None:
    scorer = Classifier.load(str(saved(["bad", "good"])))
    scores = scorer.scored(torch.tensor([[-30.0, 30.0], [-31.0, 31.0]]))
    assert scores.tolist() == [60.0, 62.0]
    assert scores.sigmoid().unique().numel() == 1


def test_of_a_long_text_the_end_is_read_and_the_cut_is_said(
    saved: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Classifier.load(str(saved(["bad", "good"])))
    assert scorer.longest == 16
    assert scorer.score(["w5 " * 14]).shape == (1,)
    assert (scorer.cut, caplog.messages) == (0, [])
    end = "w7 " * 4 + "w8 " * 12
    torch.testing.assert_close(scorer.score(["w5 " * 40 + end, "w6 " * 40 + end]), scorer.score([end]).expand(2))
    assert scorer.cut == 2
    assert len(caplog.messages) == 1
    assert "reads 16 tokens; longer texts are cut on the left" in caplog.messages[0]


def test_a_small_scorer_leaves_the_threads_alone(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = saved(["bad", "good"]), [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    scorers.find(str(path))
    assert asked == [4, 1, 4]


def test_a_reward_model_and_the_run_that_trained_it(tmp_path: Path) -> None:
    model = RewardModel.from_config(ModelConfig())
    torch.nn.init.ones_(model.packed.model.score.weight)  # type: ignore[union-attr, arg-type]
    model.save(tmp_path / "run" / "model")
    trees = [TokenTree((5, 6), ((7, 8), (9,)))]
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        scorer = scorers.find(str(place))
        assert isinstance(scorer.scorer, Judge)
        assert scorer.name == str(place)
        torch.testing.assert_close(scorer(trees, model.tokenizer), model.score(trees))


def test_a_judge_of_another_vocabulary_says_that_it_reads_chats_as_text(
    tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = RewardModel.from_config(ModelConfig())
    torch.nn.init.ones_(model.packed.model.score.weight)  # type: ignore[union-attr, arg-type]
    judge = Judge(model, "mine")
    chat = TokenTree((1, 5, 2, 6), ((7, 8, 2),))
    judge(TREES, tiny_tokenizer)
    assert not caplog.messages
    judge([chat], model.tokenizer)
    assert not caplog.messages, "its own vocabulary"
    for _ in range(2):
        judge([chat], tiny_tokenizer)
    assert len(caplog.messages) == 1
    assert "'mine' has another vocabulary and reads these chats as plain text" in caplog.messages[0]


def test_a_judge_reads_samples_at_the_budgets_it_was_trained_with(caplog: pytest.LogCaptureFixture) -> None:
    model = RewardModel.from_config(ModelConfig())
    torch.nn.init.ones_(model.packed.model.score.weight)  # type: ignore[union-attr, arg-type]
    trees = [TokenTree((1, 5, 6, 7), ((8, 9, 10), (11,))), TokenTree((5, 6), ((8,),))]
    cut = model.score([TokenTree((1, 6, 7), ((8, 9), (11,))), trees[1]])
    model.budgets = Budgets(3, 2)
    judge = Judge(model, "mine")
    torch.testing.assert_close(judge(trees, model.tokenizer), cut)
    assert judge.cut == 1
    assert "'mine' was trained with prompts of 3 and responses of 2 tokens; longer ones are cut" in caplog.messages[0]


def test_a_judge_is_neither_the_scorer_nor_twice_itself() -> None:
    with pytest.raises(ValueError, match="name another judge"):
        scorers.find_all("length", ("length",))
    with pytest.raises(ValueError, match="twice"):
        scorers.find_all("gold", ("length", "length"))
    scorer, judges = scorers.find_all(None, ("length", "count:good"))
    assert scorer is None
    assert [judge.name for judge in judges] == ["length", "count:good"]


def test_a_directory_without_a_head_is_refused(tmp_path: Path, tiny: Any, tiny_tokenizer: Any) -> None:
    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trained head"):
        scorers.find(str(tmp_path))


def test_a_reward_model_of_whole_texts_reads_prompt_and_response_as_one(tmp_path: Path) -> None:
    model = RewardModel.from_config(ModelConfig())
    torch.nn.init.ones_(model.packed.model.score.weight)  # type: ignore[union-attr, arg-type]
    model.save(tmp_path / "model")
    annotate(tmp_path / "model", {"data": {"format": "text"}})
    tree = TokenTree((1, *model.tokenizer("the plot is", add_special_tokens=False).input_ids), ((20, 21), (22, 2)))
    found = scorers.find(str(tmp_path / "model"))([tree], model.tokenizer)
    texts = [model.tokenizer.decode([*tree.prompt[1:], *branch], skip_special_tokens=True) for branch in tree.branches]
    torch.testing.assert_close(found, model.score([Tree("", [text], group=text) for text in texts]))
    assert (found - model.score([tree])).abs()[0] > 1e-4, "a cut sample is read as a text that ended"
