"""The embedded sums: distinct problems, right answers, texts with a known share of wrong ones, one split for both."""

import pytest

from treeward.data import arithmetic, embedded
from treeward.data.prepare import DataConfig, prepare
from treeward.data.prompts import prepare_prompts
from treeward.errors import UserError


def right(prompt: str) -> int:
    a, b = prompt.removesuffix("=").split("+")
    return int(a) + int(b)


def test_every_sum_stands_once_with_its_answer() -> None:
    rows = arithmetic.problems(0)
    assert len({row["prompt"] for row in rows}) == len(rows) == (arithmetic.HIGHEST + 1) ** 2
    assert all(int(row["answer"]) == right(row["prompt"]) for row in rows)
    assert arithmetic.problems(0, 50) == rows[:50]
    assert arithmetic.problems(1, 50) != rows[:50]
    with pytest.raises(UserError, match="there are 10000 problems"):
        arithmetic.problems(0, 10_001)


def test_a_known_share_of_the_texts_is_wrong() -> None:
    rows = arithmetic.texts(0, 5000)
    wrong = [abs(int(row["completion"]) - right(row["prompt"])) for row in rows]
    share = sum(off > 0 for off in wrong) / len(rows)
    assert share == pytest.approx(arithmetic.WRONG, abs=0.03)
    assert max(wrong) <= 9


def test_the_tokenizer_has_one_token_a_character() -> None:
    tokenizer = arithmetic.tokenizer()
    ids = tokenizer("17+38=").input_ids
    assert len(ids) == 7
    assert tokenizer.decode(ids, skip_special_tokens=True) == "17+38="
    assert tokenizer.unk_token_id not in ids


def test_sums_held_out_from_one_source_are_held_out_from_the_other() -> None:
    """So that no sum of the verdict was in the texts of SFT."""
    tokenizer = embedded.MODELS["arithmetic"].tokenizer()
    sums = prepare_prompts(DataConfig(source="arithmetic:3000", keep=("answer",)), tokenizer, (1, 1))
    texts = prepare(DataConfig(source="arithmetic-texts:3000"), tokenizer, "sft")
    trained = {tree.prompt for tree in texts.train}
    assert len(sums.parts["test"]) > 200
    assert not trained & {tree.prompt for part in ("validation", "test") for tree in sums.parts[part]}
    assert all(tree.row == {"answer": str(right(tokenizer.decode(tree.prompt, skip_special_tokens=True)))}
               for tree in sums.train[:50])  # fmt: skip


def test_the_model_of_a_source_is_its_own() -> None:
    assert embedded.model_of("arithmetic-texts:20") == "arithmetic"
    assert embedded.model_of("world-graded") == "world"
    assert embedded.model_of("data/arithmetic") is None
    assert embedded.source("file.jsonl") is None
    with pytest.raises(UserError, match="such as arithmetic:2000"):
        embedded.source("arithmetic:many")
