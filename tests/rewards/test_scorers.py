"""Scorers: names, functions, reward models and classifiers; their scores, their order, and what is refused."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from treeward.errors import UserError
from treeward.models.artifact import Budgets, annotate
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.rewards import scorers
from treeward.rewards.scorers import BadScore, Classifier, RewardModelScorer
from treeward.trees.rollout import Rollout, Sample
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

TREES = [
    TokenTree((5, 6), ((7, 8, 2), (9,)), row={"answer": "w9"}),
    TokenTree((10,), ((7, 7, 7),), row={"answer": "w7 w7 w7"}),
]


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


@pytest.fixture
def rollout(tiny_tokenizer: Any) -> Rollout:
    """Three responses to two prompts: "w7 w8" and "w9" to "w5 w6", "w7 w7 w7" to "w10"."""
    return Rollout(TREES, tiny_tokenizer)


def reward_model() -> RewardModel:
    """The embedded world's architecture with random weights and a head of ones."""
    model = RewardModel.from_config(ModelConfig())
    torch.nn.init.ones_(model.packed.model.score.weight)  # type: ignore[union-attr, arg-type]
    return model


def test_length_and_count(rollout: Rollout) -> None:
    assert scorers.find("length")(rollout).tolist() == [3.0, 1.0, 3.0]
    assert scorers.find("count:w7")(rollout).tolist() == [1.0, 0.0, 3.0]
    assert scorers.find("count:w")(rollout).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(UserError, match="count:good"):
        scorers.find("count:")


def answered(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    return float(response == row["answer"])


def answered_if_known(prompt: str, response: str, row: Mapping[str, Any] | None = None) -> bool:
    return row is not None and response == row["answer"]


def lengths(prompt: str, response: str, scale: float = 10) -> float:
    return len(prompt.split()) * scale + len(response.split())


def ranks(samples: Sequence[Sample]) -> list[int]:
    return [sorted(sample.response for sample in samples).index(sample.response) for sample in samples]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (answered, [0.0, 1.0, 1.0]),
        (answered_if_known, [0.0, 1.0, 1.0]),
        (lengths, [22.0, 21.0, 13.0]),
        (ranks, [1.0, 2.0, 0.0]),
        (lambda samples: torch.tensor([float(len(sample.ids)) for sample in samples]), [3.0, 1.0, 3.0]),
        (lambda samples: (sample.group == "" for sample in samples), [1.0, 1.0, 1.0]),
    ],
)
def test_a_function_is_called_as_its_parameters_ask(
    function: Callable[..., Any], expected: list[float], rollout: Rollout
) -> None:
    scorer = scorers.as_scorer(function)
    assert scorer(rollout).tolist() == expected
    assert scorer.name == function.__name__
    assert scorers.as_scorer(scorer) is scorer


@pytest.mark.parametrize("data_row", [None, {}])
def test_a_row_without_columns_is_an_empty_mapping(data_row: dict[str, Any] | None, tiny_tokenizer: Any) -> None:
    scorer = scorers.as_scorer(lambda prompt, response, row: len(row))
    assert scorer(Rollout([TokenTree((5,), ((6,),), row=data_row)], tiny_tokenizer)).tolist() == [0.0]


@pytest.mark.parametrize(
    "function",
    [lambda: 1.0, lambda a, b, c, d: 1.0, lambda *texts: 1.0, lambda prompt, response, *, keyword: 1.0, max, dict],
)
def test_a_function_of_other_arguments_is_refused_with_the_fix(function: Any) -> None:
    with pytest.raises(UserError, match=r"scorer .*(f\(prompt, response, row\)|give a function)"):
        scorers.as_scorer(function)


class Constant:
    """A user's scorer: it has a name and takes a rollout."""

    name = "mine"

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def __call__(self, rollout: Rollout) -> Any:
        return self.scores


def test_an_object_with_a_name_that_takes_a_rollout_is_a_scorer(rollout: Rollout) -> None:
    scorer = scorers.as_scorer(Constant(torch.tensor([1.0, 2.0, 3.0])))
    assert (scorer.name, scorer(rollout).tolist()) == ("mine", [1.0, 2.0, 3.0])


@pytest.mark.parametrize("scores", [torch.tensor([1.0]), torch.tensor([1, 2, 3]), [1.0, 2.0, 3.0], None])
def test_a_scorer_must_return_one_float_a_branch(scores: Any, rollout: Rollout) -> None:
    with pytest.raises(BadScore, match=r"scorer 'mine' returned .* for 3 responses; return a tensor of floats"):
        scorers.as_scorer(Constant(scores))(rollout)


@pytest.mark.parametrize("returned", [[1.0], 1.0, "123", None, torch.tensor(1.0)])
def test_a_function_of_samples_must_return_one_number_a_sample(returned: Any, rollout: Rollout) -> None:
    with pytest.raises(BadScore, match=r"for 3 samples; return a sequence of 3 numbers"):
        scorers.as_scorer(lambda samples: returned)(rollout)


def test_a_reward_model_and_a_name_become_scorers(rollout: Rollout) -> None:
    model = reward_model()
    own_ids = Rollout([TokenTree((5, 6), ((7, 8), (9,)))], model.tokenizer)
    torch.testing.assert_close(scorers.as_scorer(model)(own_ids), model.score(own_ids.trees))
    assert scorers.as_scorer("length")(rollout).tolist() == [3.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def score(prompt, response):\n    return len(prompt) * 10 + len(response)", [55.0, 52.0, 38.0]),
        ("def score(prompt, response, row):\n    return response == row['answer']", [0.0, 1.0, 1.0]),
        ("def score(samples):\n    return [s.row['answer'] == s.response for s in samples]", [0.0, 1.0, 1.0]),
    ],
)
def test_a_function_of_a_file_has_the_same_three_shapes(
    body: str, expected: list[float], tmp_path: Path, rollout: Rollout
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body + "\n")
    scorer = scorers.find(f"{file}:score")
    assert (scorer.name, scorer(rollout).tolist()) == (f"{file}:score", expected)


def test_a_scorer_object_of_a_file_keeps_the_name_that_the_user_gave(tmp_path: Path, rollout: Rollout) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from treeward.rewards.scorers import Count\nsevens = Count('w7')\n")
    scorer = scorers.find(f"{file}:sevens")
    assert (scorer.name, scorer(rollout).tolist()) == (f"{file}:sevens", [1.0, 0.0, 3.0])


@pytest.mark.parametrize("body", ["return None", "return float('nan')", "return 'good'", "return 10**400"])
def test_f35_a_missing_number_names_scorer_and_response(body: str, tmp_path: Path, rollout: Rollout) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def score(prompt, response):\n    if 'w9' in response:\n        {body}\n    return 1\n")
    with pytest.raises(BadScore, match=r"mine\.py:score.*response 2, 'w9'"):
        scorers.find(f"{file}:score")(rollout)


@pytest.mark.parametrize("shape", ["prompt, response", "prompt, response, row", "samples"])
def test_f35_a_function_that_raises_is_named_with_its_line(shape: str, tmp_path: Path, rollout: Rollout) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def score({shape}):\n    raise KeyError('answer')\n")
    with pytest.raises(BadScore, match=r"mine\.py:score' failed for .*, in line 2 of .*mine\.py' \(KeyError: 'answer'"):
        scorers.find(f"{file}:score")(rollout)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_f35_no_scorer_may_give_a_score_that_is_not_finite(value: float, rollout: Rollout) -> None:
    scorer = scorers.as_scorer(Constant(torch.tensor([1.0, value, value])))
    with pytest.raises(BadScore, match=rf"scorer 'mine' gave {value} for response 2, 'w9'"):
        scorer(rollout)


def test_a_model_that_is_not_there_is_named_as_the_scorer(tmp_path: Path) -> None:
    for name in (f"{tmp_path}/none", f"{tmp_path}/none#GOOD"):
        with pytest.raises(UserError, match=rf"^scorer '{name}': model.path '{tmp_path}/none' is not a directory"):
            scorers.find(name)


def test_python_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    with pytest.raises(UserError, match="no file"):
        scorers.find(f"{file}:score")
    file.write_text("score = 3\n")
    with pytest.raises(UserError, match=r"is not a function but 3"):
        scorers.find(f"{file}:score")
    with pytest.raises(UserError, match="does not define 'other'"):
        scorers.find(f"{file}:other")
    with pytest.raises(UserError, match=":FUNCTION"):
        scorers.find(str(file))
    file.write_text("def score(:\n")
    with pytest.raises(UserError, match="cannot be run"):
        scorers.find(f"{file}:score")


def test_a_classifier_gives_the_raw_logit(saved: Callable[..., Path], tiny_tokenizer: Any, rollout: Rollout) -> None:
    path = saved(["bad", "good"])
    texts = ["w5 w6 w7 w8", "w5 w6 w9", "w10 w7 w7 w7"]
    logits = by_hand(path, texts, tiny_tokenizer)
    expected = (logits[:, 1] - logits[:, 0]).tolist()
    assert scorers.find(str(path))(rollout).tolist() == pytest.approx(expected, abs=1e-5)
    assert scorers.find(f"{path}#bad")(rollout).tolist() == pytest.approx([-x for x in expected], abs=1e-5)
    assert len(set(expected)) == 3


def test_a_classifier_with_one_label(saved: Callable[..., Path], tiny_tokenizer: Any, rollout: Rollout) -> None:
    path = saved(["score"])
    logits = by_hand(path, ["w5 w6 w9"], tiny_tokenizer)
    assert scorers.find(str(path))(rollout)[1].item() == pytest.approx(logits[0, 0].item(), abs=1e-5)
    with pytest.raises(UserError, match="one label"):
        scorers.find(f"{path}#score")


def test_a_label_is_of_a_classifier_also_where_nothing_is_known_of_the_model(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id has no files to look at, and a chat template is no reason against a label."""
    asked: list[str] = []
    monkeypatch.setattr(Classifier, "load", lambda name: asked.append(name) or scorers.Length())
    path = saved(["NEGATIVE", "POSITIVE"], template="{{ messages }}")
    for name in ("someone/distilbert#POSITIVE", f"{path}#POSITIVE"):
        scorers.find(name)
    assert asked == ["someone/distilbert#POSITIVE", f"{path}#POSITIVE"]


def test_of_several_labels_one_is_named(saved: Callable[..., Path], tiny_tokenizer: Any, rollout: Rollout) -> None:
    path = saved(["bad", "so", "good"])
    with pytest.raises(UserError, match=r"bad, so, good.*#good"):
        scorers.find(str(path))
    with pytest.raises(UserError, match="no label 'fine'"):
        scorers.find(f"{path}#fine")
    logits = by_hand(path, ["w5 w6 w9"], tiny_tokenizer)[0]
    odds = (logits.softmax(0)[2] / (1 - logits.softmax(0)[2])).log()
    assert scorers.find(f"{path}#good")(rollout)[1].item() == pytest.approx(odds.item(), abs=1e-4)


def test_scores_differ_where_probabilities_are_saturated(saved: Callable[..., Path]) -> None:
    scorer = Classifier.load(str(saved(["bad", "good"])))
    scores = scorer.scores_of(torch.tensor([[-30.0, 30.0], [-31.0, 31.0]]))
    assert scores.tolist() == [60.0, 62.0]
    assert scores.sigmoid().unique().numel() == 1


def test_a_long_text_is_cut_on_the_left_and_the_cut_is_reported(
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


def test_a_reward_model_and_the_run_that_trained_it(tmp_path: Path) -> None:
    model = reward_model()
    model.save(tmp_path / "run" / "model")
    trees = [TokenTree((5, 6), ((7, 8), (9,)))]
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        scorer = scorers.find(str(place))
        assert isinstance(scorer.scorer, RewardModelScorer)
        assert scorer.name == str(place)
        torch.testing.assert_close(scorer(Rollout(trees, model.tokenizer)), model.score(trees))


def test_a_reward_model_of_another_vocabulary_reports_that_it_reads_chats_as_text(
    rollout: Rollout, caplog: pytest.LogCaptureFixture
) -> None:
    model = reward_model()
    scorer = RewardModelScorer(model, "mine")
    chat = TokenTree((1, 5, 2, 6), ((7, 8, 2),))
    scorer(rollout)
    assert not caplog.messages
    scorer(Rollout([chat], model.tokenizer))
    assert not caplog.messages, "its own vocabulary"
    for _ in range(2):
        scorer(Rollout([chat], rollout.tokenizer))
    assert len(caplog.messages) == 1
    assert "'mine' has another vocabulary and reads these chats as plain text" in caplog.messages[0]


def test_a_reward_model_reads_samples_at_the_budgets_it_was_trained_with(caplog: pytest.LogCaptureFixture) -> None:
    model = reward_model()
    trees = [TokenTree((1, 5, 6, 7), ((8, 9, 10), (11,))), TokenTree((5, 6), ((8,),))]
    cut = model.score([TokenTree((1, 6, 7), ((8, 9), (11,))), trees[1]])
    model.budgets = Budgets(3, 2)
    scorer = RewardModelScorer(model, "mine")
    torch.testing.assert_close(scorer(Rollout(trees, model.tokenizer)), cut)
    assert scorer.cut == 1
    assert "'mine' was trained with prompts of 3 and responses of 2 tokens; longer ones are cut" in caplog.messages[0]


def test_a_judge_is_not_the_scorer_and_is_named_once() -> None:
    with pytest.raises(UserError, match="name another judge"):
        scorers.find_all("length", ("length",))
    with pytest.raises(UserError, match="twice"):
        scorers.find_all("gold", ("length", "length"))
    scorer, judges = scorers.find_all(None, ("length", "count:good"))
    assert scorer is None
    assert [judge.name for judge in judges] == ["length", "count:good"]


def test_a_directory_without_a_head_is_refused(tmp_path: Path, tiny: Any, tiny_tokenizer: Any) -> None:
    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no trained head"):
        scorers.find(str(tmp_path))


def test_a_reward_model_of_whole_texts_reads_prompt_and_response_as_one(tmp_path: Path) -> None:
    model = reward_model()
    model.save(tmp_path / "model")
    annotate(tmp_path / "model", {"data": {"format": "text"}})
    tree = TokenTree((1, *model.tokenizer("the plot is", add_special_tokens=False).input_ids), ((20, 21), (22, 2)))
    scores = scorers.find(str(tmp_path / "model"))(Rollout([tree], model.tokenizer))
    texts = [model.tokenizer.decode([*tree.prompt[1:], *branch], skip_special_tokens=True) for branch in tree.branches]
    torch.testing.assert_close(scores, model.score([Tree("", [text], group=text) for text in texts]))
    assert (scores - model.score([tree])).abs()[0] > 1e-4, "a cut sample is read as a text that ended"
