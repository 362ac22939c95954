"""Prepared data on disk: read back equal, and refused where the ids would be wrong."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from treeward.data import store, world
from treeward.data.formats import Purpose
from treeward.data.prepare import DataConfig, prepare
from treeward.data.render import vocabulary_hash
from treeward.data.store import Prepared

CONFIG = DataConfig(limit=60, validation=0.1, test=0.2, max_response=12)


def saved(path: Path, purpose: Purpose = "pairs") -> tuple[str, Prepared]:
    prepared = prepare(CONFIG, world.tokenizer(), purpose)
    store.save(path / "kept", prepared, world.tokenizer(), asdict(CONFIG), purpose)
    return str(path / "kept"), prepared


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    place, prepared = saved(tmp_path)
    assert prepared.account.cut
    again = prepare(DataConfig(source=place), world.tokenizer(), "pairs")
    assert again == prepared
    assert all(again.parts[part] for part in again.parts)


def test_every_field_of_a_token_tree_survives(tmp_path: Path) -> None:
    """The round trip goes by the fields there are, whatever they are."""
    place, prepared = saved(tmp_path)
    again = prepare(DataConfig(source=place), world.tokenizer(), "pairs")
    assert [vars(tree) for tree in again.train] == [vars(tree) for tree in prepared.train]


@pytest.mark.parametrize(("purpose", "branches"), [("sft", 1), ("prompts", 0)])
def test_pairs_serve_for_less(purpose: Purpose, branches: int, tmp_path: Path) -> None:
    place, prepared = saved(tmp_path)
    again = prepare(DataConfig(source=place), world.tokenizer(), purpose)
    assert [tree.branches for tree in again.train] == [tree.branches[:branches] for tree in prepared.train]
    assert [text.responses for text in again.texts["test"]] == [t.responses[:branches] for t in prepared.texts["test"]]
    assert again.best_accuracy is None


def test_prompts_do_not_serve_for_pairs(tmp_path: Path) -> None:
    place, _ = saved(tmp_path, "prompts")
    with pytest.raises(ValueError, match="was prepared for prompts, not pairs"):
        prepare(DataConfig(source=place), world.tokenizer(), "pairs")


def test_another_tokenizer_is_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    place, _ = saved(tmp_path)
    with pytest.raises(ValueError, match=r"another tokenizer: .*\(91 tokens\), not .*\(64\)"):
        prepare(DataConfig(source=place), tiny_tokenizer, "pairs")


def test_a_permuted_vocabulary_is_another_tokenizer() -> None:
    from tokenizers import Tokenizer, models

    def made(words: list[str]) -> PreTrainedTokenizerFast:
        core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="a"))
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="a", eos_token="a")

    assert vocabulary_hash(made(["a", "b", "c"])) == vocabulary_hash(made(["a", "b", "c"]))
    assert vocabulary_hash(made(["a", "b", "c"])) != vocabulary_hash(made(["a", "c", "b"]))


@pytest.mark.parametrize("change", [{"max_response": 8}, {"limit": 10}, {"test": 0.3}, {"columns": {"prompt": "x"}}])
def test_an_option_that_differs_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    place, _ = saved(tmp_path)
    with pytest.raises(ValueError, match=rf"data\.{next(iter(change))} is .* was prepared with"):
        prepare(DataConfig(source=place, **change), world.tokenizer(), "pairs")


def test_an_option_that_repeats_what_was_saved_is_accepted(tmp_path: Path) -> None:
    place, prepared = saved(tmp_path)
    config = DataConfig(source=place, limit=60, test=0.2, max_response=12)
    assert prepare(config, world.tokenizer(), "pairs") == prepared


def test_damage_is_refused(tmp_path: Path) -> None:
    place, _ = saved(tmp_path)
    file = Path(place) / "train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"damaged \(train\.jsonl has"):
        prepare(DataConfig(source=place), world.tokenizer(), "pairs")
    facts = json.loads((Path(place) / "prepared.json").read_text())
    (Path(place) / "prepared.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "purpose"}))
    with pytest.raises(ValueError, match="damaged"):
        prepare(DataConfig(source=place), world.tokenizer(), "pairs")


def test_nothing_is_overwritten_or_left_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, prepared = saved(tmp_path)
    with pytest.raises(ValueError, match="exists"):
        store.save(Path(place), prepared, world.tokenizer(), asdict(CONFIG), "pairs")
    monkeypatch.setattr(store, "vocabulary_hash", lambda tokenizer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(tmp_path / "other", prepared, world.tokenizer(), asdict(CONFIG), "pairs")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_pairs_serve_single_responses_but_single_responses_no_pairs(tmp_path: Path) -> None:
    place, prepared = saved(tmp_path)
    again = prepare(DataConfig(source=place), world.tokenizer(), "unpaired")
    assert again.train == prepared.train
    (tmp_path / "other").mkdir()
    place, _ = saved(tmp_path / "other", "unpaired")
    with pytest.raises(ValueError, match="was prepared for unpaired, not pairs"):
        prepare(DataConfig(source=place), world.tokenizer(), "pairs")


def test_weights_of_rows_survive(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p {n}", "chosen": " good .", "rejected": " bad .", "weight": 0.5 + n % 2} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(source=str(file), test=0.2)
    prepared = prepare(config, world.tokenizer(), "pairs")
    assert {tree.weight for tree in prepared.train} == {0.5, 1.5}
    store.save(tmp_path / "kept", prepared, world.tokenizer(), asdict(config), "pairs")
    assert prepare(DataConfig(source=str(tmp_path / "kept")), world.tokenizer(), "pairs") == prepared
