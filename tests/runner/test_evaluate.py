"""`treeward evaluate` of a policy: alone, against its start, and against itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.checks import guards
from treeward.checks.check import result
from treeward.cli.main import run
from treeward.models.policy import Policy
from treeward.runner.evaluate import Evaluated

SHORT = [
    "--data.source", "world-texts", "--data.limit", "200", "--evaluation.prompts", "6", "--evaluation.samples", "2",
    "--evaluation.max_new_tokens", "6", "--evaluation.scorer", "gold", "--evaluation.judges", "[length]",
]  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The directories of a start and of a policy that has moved from it."""
    start = Policy.load("world")
    start.save(tmp_path / "start" / "model")
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for parameter in start.packed.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    start.save(tmp_path / "moved" / "model")
    return tmp_path / "start" / "model", tmp_path / "moved" / "model"


def evaluated(out: Path, *arguments: str, code: int = 0) -> tuple[dict[str, Any], dict[str, Any] | None]:
    assert run(["evaluate", *SHORT, *arguments, "--out", str(out)]) == code
    file = out / "against.json"
    against = json.loads(file.read_text()) if file.exists() else None
    return json.loads((out / "intervals.json").read_text()), against


def test_alone_nothing_is_said_of_a_start(pair: tuple[Path, Path], tmp_path: Path) -> None:
    metrics, against = evaluated(tmp_path / "out", "--model.path", str(pair[1]))
    assert against is None
    assert {"score", "judge:length", "entropy", "nll"} <= set(metrics)
    assert not {"kl", "kl_token", "start_nll"} & set(metrics)
    assert run(["evaluate", *SHORT, "--model.path", str(pair[1]), "--evaluation.aa", "true"]) == 2


def test_against_its_start(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, against = evaluated(
        tmp_path / "out", "--model.path", str(pair[1]), "--start", str(pair[0]), "--evaluation.aa", "true"
    )
    assert metrics["kl"]["value"] > 0
    assert {"low", "high", "p"} <= set(metrics["nll"]["difference"])
    assert against is not None
    assert {"diversity", "win_rate", "best_of_n", "aa", "checks"} == set(against)
    assert [check["id"] for check in against["checks"]] == ["I09", "I09", "F34", "F32", *["F24"] * 4]
    said = capsys.readouterr().out
    for words in ("wins by score: ", "best of 2 of the start: score ", "distinct_2 ",
                  "the start against itself, score: ", "(F34) passed: ", "(F32) passed: "):  # fmt: skip
        assert words in said
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {"before", "after", "score_before", "judge:length_after"} <= set(rows[0])


def test_e1_a_policy_against_itself_differs_by_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    metrics, against = evaluated(tmp_path / "out", "--model.path", str(pair[0]), "--start", str(pair[0]))
    for name in metrics:
        gap = metrics[name]["difference"]
        assert gap["value"] == 0, name
        assert gap["low"] is None or gap["low"] <= 0 <= gap["high"], name
    assert metrics["kl"]["value"] == 0
    assert against is not None
    assert against["win_rate"]["score"]["ties"] == against["win_rate"]["score"]["n"] == 6


@pytest.mark.parametrize(
    ("failed", "code"),
    [((), 0), (("kl-limited",), 3), (("kl-estimates-agree",), 4), (("judges-agree", "kl-estimates-agree"), 4)],
)
def test_a_failed_check_and_a_fallen_guard_have_exit_codes(failed: tuple[str, ...], code: int) -> None:
    passed = [result("kl-estimates-agree", passed=True), result("judges-agree", passed=None)]
    checks = [*passed, *(result(slug, passed=False) for slug in failed)]
    assert Evaluated({}, {}, checks).exit_code == code


def test_a_judge_is_held_against_the_metric_that_is_named(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[str] = []
    honest = guards.judge_guards
    monkeypatch.setattr(guards, "judge_guards", lambda found: first.append(found[0].metric.name) or honest(found))
    words = ["--model.path", str(pair[1]), "--start", str(pair[0])]
    evaluated(tmp_path / "score", *words)
    evaluated(tmp_path / "length", *words, "--evaluation.metric", "length")
    assert first == ["score", "length"]
    assert run(["evaluate", *SHORT, "--model.path", str(pair[1]), "--evaluation.metric", "length"]) == 2


def test_prompts_alone_are_answered(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"the film {word}"}) + "\n" for word in ("is", "was", "feels")))
    words = ["--data.source", str(file), "--data.format", "prompts", "--data.test", "0", "--data.validation", "0",
             "--part", "train", "--model.path", str(pair[1]), "--start", str(pair[0])]  # fmt: skip
    metrics, against = evaluated(tmp_path / "out", *words)
    assert "nll" not in metrics
    assert metrics["score"]["n"] == 3
    assert against is not None


def test_a_start_of_another_vocabulary_is_refused(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = pair[0] / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    a, b = list(ids)[-2:]
    ids[a], ids[b] = ids[b], ids[a]
    file.write_text(json.dumps(content))
    assert run(["evaluate", *SHORT, "--model.path", str(pair[1]), "--start", str(pair[0])]) == 2
    assert "has another tokenizer than the policy" in capsys.readouterr().err


def test_the_start_has_the_policys_precision(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    honest = Policy.from_config.__func__  # type: ignore[attr-defined]

    def watched(cls: Any, config: Any, seed: int = 0) -> Any:
        loaded.append(config.precision)
        return honest(cls, config, seed)

    monkeypatch.setattr(Policy, "from_config", classmethod(watched))
    words = ["--model.path", str(pair[1]), "--start", str(pair[0]), "--model.precision", "bf16"]
    run(["evaluate", *SHORT, *words])
    assert loaded == ["bf16", "bf16"]
