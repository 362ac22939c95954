"""Prompts to sample from: given ones, first tokens of texts, each once and in one part."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from treeward.data import store, world
from treeward.data.formats import Purpose
from treeward.data.prepare import DataConfig, prepare
from treeward.data.prompts import drawn, openings
from treeward.data.render import vocabulary_hash

TOKENIZER = world.tokenizer()


def source(folder: Path, rows: list[dict[str, Any]]) -> DataConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(source=str(file), validation=0, test=0)


def test_the_first_tokens_of_a_text(tmp_path: Path) -> None:
    config = source(tmp_path, [{"text": "the plot is good and the cast is bad .", "split": "test"}])
    opened = openings(config, TOKENIZER, (3, 3))
    (prompt,) = opened.prompts
    assert prompt.text == "the plot is"
    assert prompt.ids == (1, *TOKENIZER("the plot is", add_special_tokens=False).input_ids)
    assert (prompt.group, prompt.split) == ("the plot is", "test")
    assert not opened.dropped
    assert not opened.from_data


def test_a_range_draws_every_length_by_the_text_alone(tmp_path: Path) -> None:
    texts = [f"the plot is {a} and the {b} is bad ." for a in world.ADJECTIVE for b in world.ASPECT]
    config = source(tmp_path, [{"text": text} for text in texts])
    opened = openings(config, TOKENIZER, (4, 6))
    assert {len(prompt.ids) - 1 for prompt in opened.prompts} == {4, 5, 6}
    assert openings(config, TOKENIZER, (4, 6)).prompts == opened.prompts


def test_lengths_do_not_depend_on_the_part(tmp_path: Path) -> None:
    """312 texts: the mean of 2 to 8 tokens is 5 +- 2/sqrt(n) in each part; the test part had the shortest alone."""
    texts = [f"{a} {b} is bad and long and dull ." for a in world.ADJECTIVE for b in world.ASPECT]
    config = replace(source(tmp_path, [{"text": text} for text in texts]), validation=0.2, test=0.2)
    opened = openings(config, TOKENIZER, (2, 8))
    for part in ("train", "validation", "test"):
        lengths = [len(prompt.ids) - 1 for prompt in opened.prompts if prompt.split == part]
        assert len(lengths) > 30
        assert abs(sum(lengths) / len(lengths) - 5) < 5 * 2 / len(lengths) ** 0.5
        assert {min(lengths), max(lengths)} <= {2, 3, 7, 8}


def test_a_text_that_is_all_opening_is_left_out_and_counted(tmp_path: Path) -> None:
    config = source(tmp_path, [{"text": "the plot is"}, {"text": "the cast is good ."}])
    opened = openings(config, TOKENIZER, (3, 3))
    assert [prompt.text for prompt in opened.prompts] == ["the cast is"]
    assert opened.dropped == {"texts no longer than their opening": 1}


def test_an_opening_in_two_parts_stays_in_the_one_held_out_furthest(tmp_path: Path) -> None:
    rows = [{"text": f"the plot is {word} .", "split": part}
            for word, part in (("good", "train"), ("bad", "test"), ("dull", "validation"))]  # fmt: skip
    opened = openings(source(tmp_path, rows), TOKENIZER, (3, 3))
    assert [prompt.split for prompt in opened.prompts] == ["test"]
    assert opened.dropped == {"repeated prompts": 2}


def test_prompts_of_the_data_are_whole(tmp_path: Path) -> None:
    rows = [{"prompt": "the plot is", "chosen": "good .", "rejected": "bad ."}]
    opened = openings(source(tmp_path, rows), TOKENIZER, (1, 1))
    (prompt,) = opened.prompts
    assert prompt.text == "the plot is"
    assert len(prompt.ids) == 4
    assert opened.from_data
    assert opened.cut == 0


def test_the_ids_that_a_policy_sampled_from_are_kept(tmp_path: Path) -> None:
    """Pairs of this tool have them; the text alone would lose a start token. Ids of another vocabulary are not used."""
    row = {"prompt": "the plot is", "prompt_ids": [7, 8, 9], "vocabulary": vocabulary_hash(TOKENIZER)}
    rows = [row, {**row, "prompt": "the cast is", "vocabulary": "another"}]
    sampled, rendered = openings(source(tmp_path, rows), TOKENIZER, (1, 1)).prompts
    assert sampled.ids == (7, 8, 9)
    assert len(rendered.ids) == 4


def test_prompts_that_are_cut_are_counted(tmp_path: Path) -> None:
    config = source(tmp_path, [{"prompt": "the plot is"}, {"prompt": "this film : the cast is"}])
    opened = openings(replace(config, max_prompt=4), TOKENIZER, (1, 1))
    assert [len(prompt.ids) for prompt in opened.prompts] == [4, 4]
    assert opened.cut == 1


@pytest.mark.parametrize(
    ("purpose", "row", "text"),
    [
        ("pairs", {"prompt": "the plot is", "chosen": "good .", "rejected": "bad ."}, "the plot is"),
        ("sft", {"text": "the plot is good and the cast is bad ."}, "the plot"),
    ],
)
def test_prepared_data_gives_the_prompts_of_its_rows(
    purpose: Purpose, row: dict[str, str], text: str, tmp_path: Path
) -> None:
    config = source(tmp_path, [row])
    raw = openings(config, TOKENIZER, (2, 2))
    store.save(tmp_path / "kept", prepare(config, TOKENIZER, purpose), TOKENIZER, asdict(config), purpose)
    from_saved = openings(replace(config, source=str(tmp_path / "kept")), TOKENIZER, (2, 2))
    assert from_saved == raw
    assert [prompt.text for prompt in from_saved.prompts] == [text]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves no prompt"):
        openings(source(tmp_path, [{"text": "good ."}]), TOKENIZER, (3, 3))


def test_some_prompts_are_drawn_by_name_and_seed_in_their_order(tmp_path: Path) -> None:
    texts = [{"text": f"the plot is {word} ."} for word in world.ADJECTIVE]
    prompts = openings(source(tmp_path, texts), TOKENIZER, (4, 4)).prompts
    some = drawn(prompts, 7, 0)
    assert len(some) == 7
    assert [prompt for prompt in prompts if prompt in some] == some
    assert set(some) < set(drawn(prompts, 9, 0))
    assert set(some) != set(drawn(prompts, 7, 1))
    assert drawn(prompts, None, 0) == prompts
