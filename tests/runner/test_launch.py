"""Members on a local Ray cluster of two nodes are those of this machine, bit for bit; a task that is lost has died."""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.cli.main import run as command
from treeward.errors import UserError
from treeward.merging.checkpoints import Checkpoint
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.runner import settings
from treeward.runner.launch import RayCluster, run_here
from treeward.runner.warp import WarpRun, warp

pytestmark = pytest.mark.slow
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip


class InThisProcess:
    """Runs a member before anything else."""

    def __init__(self, arguments: Sequence[str], output: Path, threads: int | None) -> None:
        output.touch()
        self.code = command(arguments)

    def poll(self) -> int | None:
        return self.code

    def interrupt(self) -> None:
        """It has ended."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes with one CPU each."""
    ray: Any = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    head = {"num_cpus": 1, "include_dashboard": False}
    nodes = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    yield RayCluster(nodes.address)
    ray.shutdown()
    nodes.shutdown()


def test_members_on_two_nodes_are_those_of_this_machine(cluster: RayCluster, tmp_path: Path) -> None:
    Policy.from_config(ModelConfig(path="world", init="random", device="cpu", config=SMALL), 0).save(tmp_path / "start")
    (tmp_path / "reward.py").write_text("def characters(prompt, response, row):\n    return len(response) / 10\n")
    fields: dict[str, Any] = {
        "model": {"path": str(tmp_path / "start"), "device": "cpu"}, "data": {"source": "world:300"},
        "reward": f"{tmp_path / 'reward.py'}:characters",
        "steps": 2, "batch_size": 2, "samples": 2, "max_new_tokens": 8, "unfinished": "keep", "lr": 1e-3,
        "evaluation": {"prompts": 30, "samples": 2}, "require": "any",
        "skip_check": ["learning-rate-usual", "nll-below-uniform"],
        "iterations": 1, "choose": "1", "parallel": 2, "threads": 1,
    }  # fmt: skip
    for name, launch in (("here", InThisProcess), ("there", cluster)):
        config = settings.build(WarpRun, {**fields, "out": str(tmp_path / name)})
        assert warp(config, launch).receipt["warp"]["chosen"] == 1.0
    a, b = (Checkpoint(tmp_path / name / "model") for name in ("here", "there"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_task_that_cannot_run_has_died(cluster: RayCluster, tmp_path: Path) -> None:
    task = cluster(["--version"], tmp_path / "nowhere" / "log", 1)
    while (code := task.poll()) is None:
        pass
    assert code == -1


def test_a_command_on_a_node_gives_its_exit_code(tmp_path: Path) -> None:
    assert run_here(["--version"], str(tmp_path / "log"), 1, str(tmp_path)) == 0
    assert "treeward" in (tmp_path / "log").read_text()
    assert run_here(["nonsense"], str(tmp_path / "log"), None, str(tmp_path)) == 2


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"cluster is 'auto', but ray is not installed: pip install 'treeward\[ray\]'"):
        RayCluster("auto")
