"""Whole runs on the world: LoRA, checkpointing, dropout, the quickstart's smoke, and what their receipts say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from treeward.jobs.options import RUNS
from treeward.jobs.quickstart import quickstart
from treeward.jobs.settings import build, merge, recipe
from treeward.jobs.train import Finished, train

SHORT: dict[str, Any] = {
    "data": {"limit": 400}, "steps": 6, "require": "any",
    "evaluation": {"prompts": 3, "samples": 2, "max_new_tokens": 8},
}  # fmt: skip


def short_run(verb: str, out: Path, **over: Any) -> Finished:
    values = recipe(f"world-{verb}")
    del values["command"]
    return train(build(RUNS[verb], merge(merge(values, SHORT), {**over, "out": str(out)})))


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
    assert receipt["schema"] == 1
    assert (receipt["metric"], receipt["scorer"], receipt["higher_is_better"]) == ("score", "gold", True)
    for side in ("before", "after"):
        assert set(receipt[side]) == {"value", "low", "high", "n", "constant"}
    assert set(receipt["difference"]) == {"value", "low", "high", "p", "test", "minimum_detectable"}
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
        assert set(check) == {"id", "guards", "name", "stage", "passed", "value", "limit", "detail"}


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
    assert torch.equal(best["module.model.norm.weight"], final["model.norm.weight"])


def test_quickstart_smoke(tmp_path: Path) -> None:
    over = dict.fromkeys(("sft", "reward", "dpo"), SHORT)
    done = quickstart(str(tmp_path / "qs"), over)
    page = done.page.read_text()
    assert list(done.stages) == ["sft", "reward", "dpo"]
    assert page.count("<svg") == 5
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    for verb in done.stages:
        assert (tmp_path / "qs" / verb / "receipt.json").exists()
