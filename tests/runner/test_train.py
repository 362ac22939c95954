"""Whole runs on the world: LoRA, checkpointing, dropout, the quickstart's smoke, and what their receipts say."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from treeward.cli.main import run
from treeward.data import world
from treeward.data.prepare import prepare
from treeward.errors import ChecksFailed, UserError
from treeward.methods import find
from treeward.methods.sft import SFT, SFTRun
from treeward.models.logp_store import LogpStore
from treeward.runner import run as runner
from treeward.runner.quickstart import quickstart
from treeward.runner.run import Finished
from treeward.runner.settings import build, merge, recipe
from treeward.runs.directory import RunDirectory
from treeward.training.loop import Loop

SHORT: dict[str, Any] = {
    "model": {"config": {"num_hidden_layers": 1}}, "steps": 6, "require": "any", "skip_check": ["F48"],
    "evaluation": {"prompts": 3, "samples": 2, "max_new_tokens": 8},
}  # fmt: skip


def short(verb: str) -> dict[str, Any]:
    """SHORT with data of the embedded world, and for reward models without options of sampling, which they refuse."""
    fields = {name: value for name, value in SHORT.items() if verb != "reward" or name != "evaluation"}
    return fields | {"data": {"source": "world-texts:400" if verb == "sft" else "world:400"}}


def short_run(verb: str, out: Path, method: Any = None, **over: Any) -> Finished:
    values = recipe(f"world-{verb}")
    del values["command"]
    config = build(find(verb).Config, merge(merge(values, short(verb)), {**over, "out": str(out)}))
    return runner.run(config, method or find(verb))


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo"])
def test_lora_writes_a_merged_model_and_an_adapter(verb: str, tmp_path: Path) -> None:
    done = short_run(verb, tmp_path / "run", model={"path": "world", "lora": {"r": 4}})
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any("lora_B" in name for name in adapter)
    assert all(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    assert any("score" in name for name in adapter) == (verb == "reward")
    merged = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not any("lora" in name for name in merged)
    kind = AutoModelForSequenceClassification if verb == "reward" else AutoModelForCausalLM
    assert kind.from_pretrained(tmp_path / "run" / "model") is not None
    passed = {check["id"]: check["passed"] for check in done.receipt["checks"]}
    assert passed["I11"] is True
    assert passed["I12"] is True
    assert done.receipt["movement"]["parameters_unmoved"] == []


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    runs = []
    for on in (False, True):
        out = tmp_path / str(on)
        short_run("sft", out, model={"path": "world", "gradient_checkpointing": on})
        runs.append(load_file(out / "model" / "model.safetensors"))
    assert all(torch.allclose(runs[0][name], runs[1][name], atol=1e-6) for name in runs[0])


def test_dropout_acts_only_when_asked_for(tmp_path: Path) -> None:
    losses = []
    for share in (0.0, 0.3):
        out = tmp_path / str(share)
        config = {"num_hidden_layers": 2, "attention_dropout": 0.1}
        short_run("sft", out, model={"path": "world", "dropout": share, "config": config})
        losses.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert losses[0][0] != losses[1][0]


def test_receipt_follows_the_schema(tmp_path: Path) -> None:
    receipt = short_run("dpo", tmp_path / "run").receipt
    assert receipt["schema"] == 2
    assert (receipt["metric"], receipt["scorer"], receipt["higher_is_better"]) == ("score", "gold", True)
    for side in ("before", "after"):
        assert set(receipt[side]) == {"value", "low", "high", "n", "constant", "reliable"}
    assert set(receipt["difference"]) == {"value", "low", "high", "p", "test", "minimum_detectable", "reliable"}
    assert set(receipt["metrics"]) == {
        "accuracy", "log_ratio_chosen", "log_ratio_rejected", "kl", "kl_token", "entropy", "start_nll", "length",
        "ended", "repetition", "self_bleu"
    }  # fmt: skip
    assert set(receipt["diversity"]) == {
        "budget", "n", "token_entropy", "distinct_1", "distinct_2", "distinct_3", "perplexity"
    }  # fmt: skip
    assert receipt["win_rate"]["score"]["n"] == 3
    assert [point["n"] for point in receipt["best_of_n"]["curve"]] == [1, 2]
    assert receipt["metrics"]["kl"]["before"]["value"] == 0.0
    assert set(receipt["movement"]) == {"relative_update", "by_module", "parameters_unmoved", "gradient_missing"}
    assert receipt["data"]["rows"] == 400
    for check in receipt["checks"]:
        assert set(check) == {"id", "slug", "guards", "name", "stage", "passed", "value", "limit", "detail"}


def test_first_dpo_loss_is_ln_2_and_first_rate_above_zero(tmp_path: Path) -> None:
    short_run("dpo", tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["lr"] > 0


def test_the_best_step_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short_run("sft", run, steps=8, evaluate_every=2, lr=0.05)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["validation/nll"] for row in rows if "validation/nll" in row}
    assert sorted(measured) == [2, 4, 6, 8]
    best = load_file(run / "checkpoints" / "best.safetensors")
    final = load_file(run / "model" / "model.safetensors")
    assert torch.equal(best["model.model.norm.weight"], final["model.norm.weight"])


def test_quickstart_smoke(tmp_path: Path) -> None:
    over = {verb: short(verb) for verb in ("sft", "reward", "dpo")}
    for verb in ("reward", "dpo"):
        del over[verb]["model"]  # they begin from the stage before
    over["reinforce"] = {**over["dpo"], "samples": 2, "max_new_tokens": 8, "unfinished": "keep"}
    done = quickstart(str(tmp_path / "qs"), over)
    page = done.page.read_text()
    assert list(done.stages) == ["sft", "reward", "dpo", "reinforce"]
    assert "Score against distance from the start</h2>" in page  # the frontier of the policies
    assert (tmp_path / "qs" / "frontier.png").stat().st_size > 10_000
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    for verb in done.stages:
        assert (tmp_path / "qs" / verb / "receipt.json").exists()


def test_a_run_stopped_by_nan_reports_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward, steps = Loop._backward, iter(range(9))

    def poisoned(self: Loop, trees: Any) -> dict[str, torch.Tensor]:
        metrics = backward(self, trees)
        return metrics | {"loss": torch.tensor(float("nan"))} if next(steps) == 4 else metrics

    monkeypatch.setattr(Loop, "_backward", poisoned)
    receipt = short_run("sft", tmp_path / "run").receipt
    assert receipt["verdict"] == "broken"
    assert receipt["tokens_per_second"] > 0
    (missing,) = [check for check in receipt["checks"] if check["id"] == "F46"]
    assert missing["detail"].startswith("4 of 6; ")


def test_a_resumed_run_counts_the_tokens_of_its_own_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[tuple[int, int]] = []
    honest = runner.conclude

    def stopped(setup: Any, directory: Any, before: Any, trained: Any) -> Any:
        sessions.append((trained.taken, trained.planned))
        if len(sessions) == 1:
            raise KeyboardInterrupt
        return honest(setup, directory, before, trained)

    monkeypatch.setattr(runner, "conclude", stopped)
    with pytest.raises(KeyboardInterrupt):
        short_run("sft", tmp_path / "run", save_every=4)
    assert run(["resume", str(tmp_path / "run")]) == 0
    assert sessions == [(6, 6), (6, 6)]
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config = build(SFTRun, {name: value for name, value in values.items() if name != "command"})
    batches = config.batches(prepare(config.data, world.tokenizer(), "sft").train)
    taken = sum(len(tree) for step in (4, 5) for tree in batches.batch(step))
    assert receipt["tokens_per_second"] * receipt["seconds"] == pytest.approx(taken)


def preferences(path: Path, **column: Any) -> dict[str, Any]:
    """400 pairs of the world in a file, with one more column."""
    kept = ("prompt", "chosen", "rejected")
    rows = [{name: row[name] for name in kept} | column for row in world.pairs(0, 400)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": str(path / "rows.jsonl"), "limit": 400}


def test_margins_that_the_loss_takes_none_of_are_counted_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^\d{3} rows have a margin, but loss.kind IPO takes none"):
        short_run("dpo", tmp_path / "run", data=preferences(tmp_path, margin=0.2), loss={"kind": "ipo"})
    assert not (tmp_path / "run").exists()


def spoiled(store: LogpStore) -> None:
    """Every value of the store moved by a hundredth."""
    with sqlite3.connect(store.path) as base:
        names = [name for (name,) in base.execute("SELECT key FROM entries")]
    store.write({name: values + 0.01 for name, values in store.read(names).items()})


def test_f22_a_stored_value_of_other_weights_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    over = {"reference": {"store": str(tmp_path / "a.sqlite")}, "steps": 2, "evaluation": {"prompts": 2, "samples": 1}}
    first = short_run("dpo", tmp_path / "first", **over)
    assert [c["passed"] for c in first.receipt["checks"] if c["id"] == "F22"] == [None]
    second = short_run("dpo", tmp_path / "second", **over)
    assert [c["passed"] for c in second.receipt["checks"] if c["id"] == "F22"] == [True]
    spoiled(LogpStore(tmp_path / "a.sqlite"))
    with pytest.raises(ChecksFailed) as caught:
        short_run("dpo", tmp_path / "third", **over)
    assert [check.id for check in caught.value.checks] == ["F22"]
    assert not (tmp_path / "third").exists()


def test_a_user_error_before_the_first_step_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Loop, trees: Any) -> Any:
        raise UserError("not with me")

    monkeypatch.setattr(Loop, "_backward", refuses)
    with pytest.raises(UserError, match="not with me"):
        short_run("sft", tmp_path / "run")
    assert not (tmp_path / "run").exists()


class FailsLater(SFT):
    """Its third measurement (the start, then each validation) raises a plain ValueError, as a bug of ours would."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.measured = 0

    def measure(self, trees: Any) -> Any:
        self.measured += 1
        if self.measured == 3:
            raise ValueError("zip() argument 2 is shorter than argument 1")
        return super().measure(trees)


def test_a_bug_during_a_run_propagates_and_leaves_the_directory_as_it_is(tmp_path: Path) -> None:
    """Not a UserError, so the command line would show its traceback; steps and checkpoints stay for a resume."""
    out = tmp_path / "run"
    over = {"evaluate_every": 2, "save_every": 1, "data": {"validation": 0.1}}
    with pytest.raises(ValueError, match="shorter than") as caught:
        short_run("sft", out, FailsLater, **over)
    assert not isinstance(caught.value, UserError)
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-000003"]
    assert not (out / "receipt.json").exists()
    values = yaml.safe_load((out / "config.yaml").read_text())
    config = build(SFTRun, {name: value for name, value in values.items() if name != "command"})
    finished = runner.run(config, SFT, resume=RunDirectory.open(str(out)))
    assert finished.receipt["verdict"] != "broken"


def test_a_bug_before_the_first_step_leaves_the_directory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Loop, trees: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(Loop, "_backward", fails)
    with pytest.raises(ValueError, match="a bug"):
        short_run("sft", tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").exists()
