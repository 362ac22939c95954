"""`treeward evaluate` of a policy: alone, against its start, and against itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.cli.main import run
from treeward.models.policy import Policy

SHORT = [
    "--data.source", "world-texts", "--data.limit", "200", "--evaluation.prompts", "6", "--evaluation.samples", "2",
    "--evaluation.max_new_tokens", "6", "--evaluation.scorer", "gold", "--evaluation.judges", "[length]",
]  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The directories of a start and of a policy that has moved from it."""
    start = Policy.load("world")
    start.save(tmp_path / "start")
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for parameter in start.tree.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    start.save(tmp_path / "moved")
    return tmp_path / "start" / "model", tmp_path / "moved" / "model"


def evaluated(out: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    assert run(["evaluate", *SHORT, *arguments, "--out", str(out)]) == 0
    file = out / "against.json"
    against = json.loads(file.read_text()) if file.exists() else None
    return json.loads((out / "intervals.json").read_text()), against


def test_alone_nothing_is_said_of_a_start(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found, against = evaluated(tmp_path / "out", "--model.path", str(pair[1]))
    assert against is None
    assert {"score", "judge:length", "entropy", "nll"} <= set(found)
    assert not {"kl", "kl_token", "start_nll"} & set(found)
    assert run(["evaluate", *SHORT, "--model.path", str(pair[1]), "--evaluation.aa", "true"]) == 2


def test_against_its_start(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found, against = evaluated(
        tmp_path / "out", "--model.path", str(pair[1]), "--start", str(pair[0]), "--evaluation.aa", "true"
    )
    assert found["kl"]["value"] > 0
    assert {"low", "high", "p"} <= set(found["nll"]["difference"])
    assert against is not None
    assert {"diversity", "win_rate", "best_of_n", "aa", "checks"} == set(against)
    assert [check["id"] for check in against["checks"]] == ["F34", "F32"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {"before", "after", "score_before", "judge:length_after"} <= set(rows[0])


def test_e1_a_policy_against_itself_differs_by_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found, against = evaluated(tmp_path / "out", "--model.path", str(pair[0]), "--start", str(pair[0]))
    for name in found:
        gap = found[name]["difference"]
        assert (gap["value"], gap["low"], gap["high"]) == (0, 0, 0), name
    assert found["kl"]["value"] == 0
    assert against is not None
    assert against["win_rate"]["score"]["ties"] == against["win_rate"]["score"]["n"] == 6
