"""Faults planted in sampling: recorded log-probabilities must equal recomputed ones (I09)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from treeward.checks import identities
from treeward.cli.main import run
from treeward.cli.parse import parse
from treeward.cli.training import configured
from treeward.data import world
from treeward.methods import find
from treeward.models import sampler
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Noise
from treeward.runner import run as runner
from treeward.runner.progress import TerminalReporter
from treeward.trees.tokens import TokenTree

Patch = pytest.MonkeyPatch
PROMPTS = [TokenTree((5, 9, 30, 17), (), "a"), TokenTree((40, 41, 42, 43), (), "b"), TokenTree((7, 8), (), "c")]
DPO = ["dpo", "--data.source", "world:400", "--data.test", "0.2", "--steps", "2", "--batch-size", "16", "--lr", "1e-3",
       "--model.device", "cpu", "--reference.store", "off", "--require", "any", "--evaluation.scorer", "gold",
       "--skip-check", "F48",
       "--evaluation.prompts", "12", "--evaluation.samples", "2", "--evaluation.max-new-tokens", "6"]  # fmt: skip


def bamba() -> Policy:
    """A model whose class counts positions from 0 again at every decoding step unless they are passed."""
    config = transformers.BambaConfig(
        vocab_size=91, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=2, mamba_chunk_size=16, attn_layer_indices=[1], initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Policy(module, world.tokenizer())


def sampling_check(policy: Policy) -> Any:
    rollout = DecodeSampler.of(policy, 16)(PROMPTS, 4, Noise(0))
    (check,) = identities.sampled_rollout(policy, rollout)
    return check


def no_positions(patch: Patch) -> None:
    patch.setattr(sampler, "_positions", lambda rows: {})


def test_f71_positions_are_passed_in_every_step() -> None:
    policy = bamba()
    check = sampling_check(policy)
    assert policy.packed.cache_name == "past_key_values"
    assert (check.id, check.passed) == ("I09", True)


def test_f71_a_cache_at_wrong_positions_is_not_used(monkeypatch: Patch) -> None:
    no_positions(monkeypatch)
    policy = bamba()
    assert sampling_check(policy).passed
    assert policy.packed.cache_name == ""


def test_f71_sampling_at_wrong_positions_fails(monkeypatch: Patch) -> None:
    no_positions(monkeypatch)
    policy = bamba()
    policy.packed.cache_name = "past_key_values"
    check = sampling_check(policy)
    assert not check.passed
    assert check.value > 0.05
    assert "F71" in check.guards


def gpt2() -> Policy:
    """Absolute positions, where a shift by the padding shows; 0.5 to 5 nats a token on real GPT-2 weights."""
    vocabulary = len(world.vocabulary())
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Policy(module, world.tokenizer())


MIXED = [TokenTree((1, *range(10, 10 + n)), (), str(n)) for n in (2, 9, 5)]


def padded_check(policy: Policy) -> Any:
    rollout = DecodeSampler.of(policy, 12)(MIXED, 3, Noise(0))
    return next(check for check in identities.sampled_rollout(policy, rollout) if check.id == "I09")


def test_f36_positions_count_from_the_first_real_token() -> None:
    assert padded_check(gpt2()).passed


def test_f36_positions_that_count_the_padding_fail(monkeypatch: Patch) -> None:
    left_padded = sampler._left_padded

    def counting_padding(prompts: Any, device: Any) -> Any:
        rows, named = left_padded(prompts, device)
        shifted = torch.arange(rows.shape[1], device=device).expand(rows.shape)
        return rows, named | {"position_ids": shifted}

    monkeypatch.setattr(sampler, "_left_padded", counting_padding)
    check = padded_check(gpt2())
    assert not check.passed
    assert check.value > 0.05


def test_f33_samples_of_other_weights_fail() -> None:
    policy, stale = bamba(), bamba()
    rollout = DecodeSampler.of(stale, 8)(PROMPTS, 2, Noise(0))
    assert all(check.passed for check in identities.sampled_rollout(policy, rollout))
    with torch.no_grad():
        next(policy.packed.parameters()).add_(0.02)
    assert not all(check.passed for check in identities.sampled_rollout(policy, rollout))


def test_the_limits_depend_on_the_precision() -> None:
    import numpy as np

    lengths = np.array([10.0, 30.0])

    def passed(mean: float, most: float, precision: Any) -> bool | None:
        return identities.sampled(np.array([0.0, mean * 4 / 3]), np.array([0.0, most]), lengths, precision).passed

    assert passed(0.9e-4, 0.9e-4, "fp32")
    assert not passed(1e-5, 1.1e-4, "fp32")
    assert passed(0.9e-2, 0.09, "bf16")
    assert not passed(1.1e-2, 0.09, "bf16")
    assert not passed(0.9e-2, 0.11, "bf16")
    assert not passed(float("nan"), float("nan"), "fp32")


def record_wrong_logps(patch: Patch) -> None:
    """F31: the recorded log-probabilities are those of another distribution than the policy's."""
    original = sampler.token_logps
    patch.setattr(sampler, "token_logps", lambda *arguments: original(*arguments) + 1e-3)


def receipt_of(path: Path) -> Any:
    return json.loads((path / "receipt.json").read_text())


def sampling_checks(path: Path) -> list[tuple[str, bool]]:
    return [(c["stage"], c["passed"]) for c in receipt_of(path)["checks"] if c["id"] == "I09"]


def test_f31_wrong_log_probabilities_at_the_start_stop_before_the_first_step(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*DPO, "--out", str(tmp_path / "clean")]) == 0
    assert sampling_checks(tmp_path / "clean") == [("before", True), ("after", True)]
    record_wrong_logps(monkeypatch)
    assert run([*DPO, "--out", str(tmp_path / "planted")]) == 2
    assert "I09" in capsys.readouterr().err
    assert not (tmp_path / "planted").exists()


def test_f31_samples_after_training_that_are_not_the_policys_are_broken(tmp_path: Path, monkeypatch: Patch) -> None:
    class Misrecording(TerminalReporter):
        def step(self, index: int, metrics: Any) -> None:
            if index == 2:
                record_wrong_logps(monkeypatch)

    config = configured("dpo", parse([*DPO[1:], "--out", str(tmp_path / "run")], ()))
    assert runner.run(config, find("dpo"), reporter=Misrecording()).exit_code == 4
    assert sampling_checks(tmp_path / "run") == [("before", True), ("after", False)]
    assert receipt_of(tmp_path / "run")["reason"].startswith("sampled-logps-match (I09) FAILED")


def commands(model: Path, out: Path) -> dict[str, list[str]]:
    return {
        "pairs": ["pairs", "--model.path", str(model), "--data.source", "world:40", "--samples", "3",
                  "--max-new-tokens", "6", "--skip-check", "[I17]", "--out", str(out)],
        "evaluate": ["evaluate", "--model.path", str(model), "--data.source", "world:40", "--data.test", "0.5",
                     "--evaluation.scorer", "gold", "--evaluation.max-new-tokens", "6", "--out", str(out)],
    }  # fmt: skip


@pytest.mark.parametrize("command", ["pairs", "evaluate"])
def test_f31_pairs_and_evaluate_refuse_samples_of_another_distribution(
    command: str, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    Policy.load("world").save(start)
    assert run(commands(start, tmp_path / "clean")[command]) == 0
    clean = capsys.readouterr()
    record_wrong_logps(monkeypatch)
    assert run(commands(start, tmp_path / "planted")[command]) == 2
    assert "I09" in capsys.readouterr().err
    assert not (tmp_path / "planted").exists()
    if command == "pairs":
        checks = json.loads((tmp_path / "clean" / "report.json").read_text())["checks"]
        assert next((c["id"], c["passed"]) for c in checks) == ("I09", True)
    else:
        assert "sampled-logps-match (I09) passed" in clean.out


@pytest.mark.parametrize("ends", [2, [2], [2, 20], [20, 2]])
def test_f69_every_end_id_of_the_generation_config_ends_a_response(ends: Any) -> None:
    """With two end ids, responses that end with either of them are not cut."""
    policy = Policy.load("world")
    module: Any = policy.packed.model
    often = torch.nn.functional.one_hot(torch.tensor(20), 91) * 6.0
    module.get_output_embeddings().register_forward_hook(lambda layer, inputs, logits: logits + often)
    module.generation_config.eos_token_id = ends
    (tree,) = DecodeSampler.of(policy, 12)([TokenTree((1, 5), (), "a")], 100, Noise(0)).trees
    stopped = sum(branch[-1] in policy.end_ids for branch in tree.branches)
    assert stopped > 90 if 20 in policy.end_ids else stopped < 50
    assert not any(token in policy.end_ids for branch in tree.branches for token in branch[:-1])
