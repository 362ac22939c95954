"""A saved model, a run directory and its `model/` can be used wherever a model is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.errors import UserError
from treeward.models.artifact import Budgets
from treeward.models.loading import ModelConfig, model_directory
from treeward.models.policy import Policy, branch_logps
from treeward.models.reference import Frozen, reference_for
from treeward.models.reward_model import RewardModel
from treeward.rewards import scorers
from treeward.trees.text import Response, Tree

Build = Callable[..., Any]
LONG = Tree("the plot is the plot is", [" good . good . good .", " bad ."])


def places(run: Path) -> list[str]:
    """The run directory (it has a config.yaml) and its model directory."""
    (run / "config.yaml").write_text("command: dpo\n")
    return [str(run), str(run / "model")]


@pytest.fixture
def reward_model() -> RewardModel:
    """A reward model of the world whose head has weights."""
    model = RewardModel.from_config(ModelConfig(device="cpu"))
    torch.nn.init.ones_(model.packed.model.score.weight)  # type: ignore[union-attr, arg-type]
    return model


def test_a_saved_policy_is_loaded(policy: Build, grow: Build, tmp_path: Path) -> None:
    ours, trees = policy(), grow(3)
    ours.save(str(tmp_path / "out"))
    again = Policy.load(str(tmp_path / "out"), precision="fp32", device="cpu")
    assert torch.equal(branch_logps(again, trees), branch_logps(ours, trees))


def test_a_saved_reward_model_is_loaded(reward_model: RewardModel, tmp_path: Path) -> None:
    reward_model.save(str(tmp_path / "out"))
    again = RewardModel.load(str(tmp_path / "out"), precision="fp32", device="cpu")
    assert torch.equal(again.score([LONG]), reward_model.score([LONG]))


def test_a_run_directory_stands_for_its_model(policy: Build, grow: Build, tmp_path: Path) -> None:
    ours, trees = policy(), grow(3)
    ours.save(tmp_path / "model")
    start = policy(seed=1)
    for place in places(tmp_path):
        loaded = Policy.load(place, precision="fp32", device="cpu")
        assert torch.equal(branch_logps(loaded, trees), branch_logps(ours, trees))
        reference_logps = reference_for(start, Frozen(place, "off")).branch_logps(trees, 64)
        assert torch.cat([reference_logps[tree] for tree in trees]).tolist() == branch_logps(ours, trees).tolist()


def test_a_run_directory_is_its_reward_model_and_its_scorer(reward_model: RewardModel, tmp_path: Path) -> None:
    reward_model.save(tmp_path / "model")
    for place in places(tmp_path):
        assert torch.equal(RewardModel.load(place, device="cpu").score([LONG]), reward_model.score([LONG]))
        assert scorers.find(place).name == place


def test_a_run_without_a_model_is_refused_because_it_has_not_ended(tmp_path: Path) -> None:
    run = places(tmp_path)[0]
    for load in (Policy.load, RewardModel.load, scorers.find):
        with pytest.raises(UserError, match="the directory of a run without a model: it has not ended") as caught:
            load(run)
        assert f"treeward resume {run}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_finished_run_without_a_model_is_not_resumed(tmp_path: Path) -> None:
    run = places(tmp_path)[0]
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="a run without a model: it saved none; name another directory"):
        Policy.load(run)


def test_a_reward_model_is_no_policy(reward_model: RewardModel, tmp_path: Path) -> None:
    reward_model.save(tmp_path)
    with pytest.raises(UserError, match="is a reward model or classifier; name a policy"):
        Policy.load(str(tmp_path))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UserError, match=r"model\.path '.*model\.safetensors' is a file; name the directory"):
        Policy.load(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: ModelConfig.of("world", {"precison": "fp32"}), TypeError,
     "unknown option 'precison', did you mean 'precision'"),
    (lambda: ModelConfig.of("world", {"device": "cudaa"}), UserError, "device is 'cudaa'; it may be auto, cpu"),
    (lambda: ModelConfig.of("world", {"precision": "fp16"}), UserError, "precision is 'fp16'; it may be auto, fp32"),
    (lambda: Policy.load("world").save(__file__), UserError, "is a file; name a directory to save into"),
])  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(call: Build, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_and_the_world_stay_unchanged() -> None:
    paths = ["world", "some/model", "/nowhere"]
    assert [model_directory(path) for path in paths] == paths


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nobody/nothing"])
def test_a_python_error_names_no_option_of_the_command_line(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (path, str(tmp_path / "empty")):
        with pytest.raises(UserError, match=str(place)) as caught:
            Policy.load(place)
        assert "--" not in str(caught.value)


def test_a_reward_model_reads_text_at_the_budgets_it_was_trained_with(
    reward_model: RewardModel, tmp_path: Path
) -> None:
    """With budgets of 3 and 4 tokens a long text scores as its start token, last two and first four; else as it is."""
    whole = reward_model.score([LONG])
    cut = reward_model.score([Tree("plot is", [Response(" good . good .", finished=False), " bad ."])])
    reward_model.budgets = Budgets(3, 4)
    reward_model.save(tmp_path)
    again = RewardModel.load(str(tmp_path), device="cpu")
    assert again.budgets == Budgets(3, 4)
    assert torch.equal(again.score([LONG]), cut)
    assert not torch.allclose(cut, whole)
