"""F09: a tokenizer of another model, and one that cannot end a response; matching pairs pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from treeward.models import vocabulary
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy

SIZE = 64
Config = Callable[..., ModelConfig]


def words(order: list[str], **special: Any) -> Any:
    """A word-level tokenizer with these tokens at the ids 3, 4, ...; <pad> 0, <bos> 1, <eos> 2."""
    ids = {word: n for n, word in enumerate(["<pad>", "<bos>", "<eos>", *order])}
    core = Tokenizer(models.WordLevel(ids, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | special
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **named)


PLAIN = [f"w{n}" for n in range(3, SIZE)]


@pytest.fixture
def model_of(tiny: Any, tmp_path: Path) -> Config:
    """model_of(own, other=None, **changes): a saved model with its own tokenizer, read with another one."""

    def save(own: Any, other: Any = None, **changes: Any) -> ModelConfig:
        tiny("gpt2", **changes).save_pretrained(tmp_path / "model")
        for tokenizer, name in ((own, "model"), (other, "other")):
            if tokenizer is not None:
                tokenizer.save_pretrained(tmp_path / name)
        return ModelConfig(path=str(tmp_path / "model"), tokenizer=str(tmp_path / "other") if other else None)

    return save


def faults(config: ModelConfig) -> list[str]:
    """Details of the failed comparisons between a policy and its tokenizer."""
    policy = Policy.from_config(config)
    return [
        finding.detail
        for finding in vocabulary.compare(config, policy.tokenizer, policy.packed.model)
        if not finding.passed
    ]


def test_f09_equal_size_and_permuted(model_of: Config) -> None:
    (detail,) = faults(model_of(words(PLAIN), words([PLAIN[0], *PLAIN[:0:-1]])))
    assert "has 64 tokens" in detail
    assert "the first that differs is id 4: 'w63' here, 'w4' in the model's own" in detail


def test_f09_permuted_is_refused_where_nothing_is_trained(model_of: Config) -> None:
    config = model_of(words(PLAIN), words(PLAIN[::-1]))
    with pytest.raises(ValueError, match=r"F09: .*first that differs is id 3.*any_tokenizer"):
        Policy.trained(config)
    accepted = ModelConfig(path=config.path, tokenizer=config.tokenizer, any_tokenizer=True)
    assert Policy.trained(accepted).tokenizer.convert_ids_to_tokens(3) == "w63"


def test_f09_the_models_own_tokenizer_was_overwritten(model_of: Config) -> None:
    """The configuration's end token lies beyond a smaller vocabulary, as GPT-2's 50256 beyond SmolLM2's 49152."""
    (detail,) = faults(model_of(words(PLAIN[:-8]), eos_token_id=60))
    assert "(64 embedding rows) has eos_token_id 60" in detail
    assert "(56 tokens) does not have" in detail


def test_f09_another_end_token_than_the_configurations(model_of: Config) -> None:
    (detail,) = faults(model_of(words(PLAIN), eos_token_id=7))
    assert "has eos_token_id 7 ('w7')" in detail
    assert "has 2 '<eos>'" in detail


def test_f09_sizes_far_apart(model_of: Config) -> None:
    (detail,) = faults(model_of(words(PLAIN), vocab_size=3000))
    assert "has 64 tokens" in detail
    assert "3000 embedding rows" in detail


@pytest.mark.parametrize("case", ["own", "same", "renamed special", "added", "padded", "class default", "several ends"])
def test_f09_tokenizers_that_belong_to_the_model_pass(case: str, model_of: Config) -> None:
    twins: dict[str, Callable[[], ModelConfig]] = {
        "own": lambda: model_of(words(PLAIN)),
        "same": lambda: model_of(words(PLAIN), words(PLAIN)),
        "renamed special": lambda: model_of(words(PLAIN), words(PLAIN, pad_token="<bos>", eos_token="w9")),
        "added": lambda: model_of(words(PLAIN[:-8]), words(PLAIN[:-8], extra_special_tokens=["<mask>"])),
        "padded": lambda: model_of(words(PLAIN), vocab_size=1000),
        "class default": lambda: model_of(words(PLAIN), eos_token_id=50256),
        "several ends": lambda: model_of(words(PLAIN), eos_token_id=[7, 2]),
    }
    assert faults(twins[case]()) == []


def test_f09_random_weights_take_any_tokenizer_and_are_saved_with_its_ends(model_of: Config, tmp_path: Path) -> None:
    config = model_of(words(PLAIN, eos_token="w5"), words(PLAIN[:20]), eos_token_id=50, vocab_size=3000)
    drawn = Policy.from_config(ModelConfig(path=config.path, tokenizer=config.tokenizer, init="random"))
    drawn.save(tmp_path / "run" / "model")
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["eos_token_id"] == 2
    assert faults(ModelConfig(path=str(tmp_path / "run"))) == []


def test_f09_a_tokenizer_without_an_end_names_the_token_that_could_be_one(model_of: Config) -> None:
    with pytest.raises(ValueError, match=r'no end token .* set "eos_token": "<eos>" in its tokenizer_config\.json'):
        Policy.from_config(model_of(words(PLAIN, eos_token=None)))


def test_f09_stops_a_run_before_its_data_is_read_and_can_be_accepted(
    model_of: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from treeward.cli.main import run

    config = model_of(words(PLAIN), words(PLAIN[::-1]))
    rows = [{"prompt": f"w{n % 40 + 4} w{n // 7 + 4}", "chosen": f"w{n % 50 + 5}", "rejected": f"w{n % 50 + 6} w9"}
            for n in range(400)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["dpo", "--model.path", config.path, "--model.tokenizer", str(config.tokenizer), "--data.source",
              str(tmp_path / "rows.jsonl"), "--lr", "3e-4", "--dry-run"]  # fmt: skip
    assert run(arguments) == 2
    printed = capsys.readouterr().err
    failure = "tokenizer-matches-model (F09) FAILED: differences between the tokenizer and the model 60 (limit 0)"
    assert f"{failure}; tokens that differ from the model's own tokenizer" in printed
    assert "data:" not in printed
    assert run([*arguments, "--skip-check", "F09"]) == 0
    assert "tokenizer-matches-model (F09) skipped" in capsys.readouterr().out


def small(config: Path, **changes: Any) -> Any:
    """A model with the real vocabulary and special ids of a configuration, and little else."""
    plan = transformers.AutoConfig.from_pretrained(config)
    for name, value in changes.items():
        setattr(plan, name, value)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(plan)


def tokenizer_at(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.data
@pytest.mark.parametrize(("name", "tokenizer", "sound"), [
    ("gpt2", "gpt2", True), ("dialogpt-medium", "gpt2", True), ("smollm2-135m-instruct", "smollm2", True),
    ("gpt2", "smollm2", False), ("dialogpt-medium", "smollm2", False), ("gpt2", "torchtune", False),
])  # fmt: skip
def test_f09_real_tokenizers_and_configurations(name: str, tokenizer: str, sound: bool, data_root: Path) -> None:
    folders = {"gpt2": "gpt2", "smollm2": "smollm2-135m-instruct-rebuilt", "torchtune": "torchtune-tiny-2000"}
    path = data_root / "tokenizers" / folders[tokenizer]
    module = small(data_root / "model_configs" / name)
    config = ModelConfig(path=str(data_root / "model_configs" / name), tokenizer=str(path))
    findings = vocabulary.compare(config, tokenizer_at(path), module)
    assert all(finding.passed for finding in findings) is sound, [finding.detail for finding in findings]


@pytest.mark.data
@pytest.mark.parametrize(("rows", "sound"), [(50264, True), (51200, True), (52000, True), (60000, False)])
def test_f09_embeddings_padded_beyond_the_vocabulary(rows: int, sound: bool, data_root: Path) -> None:
    """GPT-2's 50,257 tokens in Phi-2's 51,200 rows and the like are sound; nearly ten thousand idle rows are not."""
    path = data_root / "tokenizers" / "gpt2"
    module = small(data_root / "model_configs" / "gpt2", vocab_size=rows)
    findings = vocabulary.compare(ModelConfig(path="some/model", tokenizer=None), tokenizer_at(path), module)
    assert all(finding.passed for finding in findings) is sound, [finding.detail for finding in findings]
