"""A tokenizer read without torch is the one that training loads: the same class and the same ids."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from treeward.data import world
from treeward.models import files, loading

TEXTS = ("The film opens with", " a bang.", "  naïve\n\n café 12,345 \t<|im_end|> x", "日本語 🙂", "")
NAMES = ("gpt2", "smollm2-135m-instruct-rebuilt", "torchtune-tiny-2000")


def same(path: Path) -> bool:
    """Whether the tokenizer could be read without torch; if so it must equal AutoTokenizer's."""
    fast, real = files.tokenizer_of(str(path)), AutoTokenizer.from_pretrained(path)
    if fast is None:
        return False
    assert type(fast) is type(real)
    assert fast.get_vocab() == real.get_vocab()
    assert fast.special_tokens_map == real.special_tokens_map
    assert fast.chat_template == real.chat_template
    for text in TEXTS:
        assert fast(text).input_ids == real(text).input_ids
        assert fast(text, add_special_tokens=False).input_ids == real(text, add_special_tokens=False).input_ids
    if real.chat_template:
        chat = [{"role": "user", "content": text} for text in TEXTS]
        assert fast.apply_chat_template(chat, tokenize=False) == real.apply_chat_template(chat, tokenize=False)
    return True


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_real_tokenizers_give_the_ids_of_training(name: str, data_root: Path) -> None:
    assert same(data_root / "tokenizers" / name)


@pytest.mark.data
@pytest.mark.parametrize("model", ["gpt2", "smollm2-135m-instruct", "distilbert-base-cased"])
@pytest.mark.parametrize("name", NAMES)
def test_real_tokenizers_next_to_a_model_configuration(name: str, model: str, data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "tokenizers" / name, tmp_path / "model")
    shutil.copy(data_root / "model_configs" / model / "config.json", tmp_path / "model")
    assert same(tmp_path / "model") == (model != "distilbert-base-cased")


def test_saved_tokenizers_are_read(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    assert same(tmp_path / "saved")
    fast = files.tokenizer_of("world")
    assert fast is not None
    assert fast.get_vocab() == world.tokenizer().get_vocab()


@pytest.mark.parametrize(
    "over",
    [{"tokenizer_class": "LlamaTokenizer"}, {"auto_map": {"AutoTokenizer": ["a.B", None]}}, {"tokenizer_class": None}],
)
def test_tokenizers_that_need_autotokenizer_are_left_to_it(over: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | over))
    assert files.tokenizer_of(str(tmp_path)) is None


def test_damaged_or_missing_tokenizers_are_left_to_loading(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert files.tokenizer_of(str(tmp_path)) is None
    assert files.tokenizer_of(str(tmp_path / "nowhere")) is None


@pytest.mark.data
def test_embedding_rows_are_those_of_the_configuration_class(data_root: Path, tmp_path: Path) -> None:
    for path in (data_root / "model_configs").iterdir():
        assert files.embedding_rows_of(str(path)) == loading.embedding_rows(str(path))
    assert files.embedding_rows_of("world") == loading.embedding_rows("world")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "text_config": {"vocab_size": 5}}))
    assert files.embedding_rows_of(str(tmp_path)) is None
