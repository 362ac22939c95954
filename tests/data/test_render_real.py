"""The real tokenizers: templates, starts and ends."""

from collections.abc import Callable
from typing import Any

import pytest

from treeward.data import sources
from treeward.data.formats import TURN
from treeward.data.render import adds_bos, end_id, prompt_ids, template_faults, token_tree
from treeward.trees.text import Tree
from treeward.trees.tokens import decode

pytestmark = pytest.mark.data

SMOL, TINY, GPT2 = "smollm2-135m-instruct-rebuilt", "torchtune-tiny-2000", "gpt2"
Load = Callable[[str], Any]


def spoken(transcript: str) -> list[dict[str, str]]:
    """An HH transcript as messages."""
    messages = []
    for human in transcript.split("\n\nHuman: ")[1:]:
        question, *answers = human.split(TURN + " ")
        messages.append({"role": "user", "content": question})
        messages += [{"role": "assistant", "content": answer} for answer in answers]
    return messages


@pytest.fixture(scope="module")
def dialogues(data_root: Any) -> list[list[dict[str, str]]]:
    rows = sources.read_rows(str(data_root / "hh-rlhf" / "helpful-base" / "test.jsonl.gz"), limit=150)
    return [turns for row in rows if (turns := spoken(row["chosen"])) and turns[-1]["role"] == "assistant"]


@pytest.mark.parametrize("name", [SMOL, TINY])
def test_prompt_ids_are_those_of_apply_chat_template(
    name: str, real_tokenizer: Load, dialogues: list[list[dict[str, str]]]
) -> None:
    tokenizer = real_tokenizer(name)
    assert len(dialogues) > 100
    for dialogue in dialogues:
        theirs = tokenizer.apply_chat_template(dialogue[:-1], add_generation_prompt=True, tokenize=True)
        assert prompt_ids(tuple(dialogue[:-1]), tokenizer) == list(theirs["input_ids"])


@pytest.mark.parametrize("name", [SMOL, TINY])
def test_the_whole_dialogue_begins_with_prompt_response_and_end(
    name: str, real_tokenizer: Load, dialogues: list[list[dict[str, str]]]
) -> None:
    tokenizer = real_tokenizer(name)
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    for dialogue in dialogues:
        tree = token_tree(Tree(dialogue[:-1], [dialogue[-1]["content"]]), tokenizer)
        whole = list(tokenizer.apply_chat_template(dialogue, tokenize=True)["input_ids"])
        ours = [*tree.prompt, *tree.branches[0]]
        assert whole == ours + newline


@pytest.mark.parametrize(("name", "plain", "chat"), [(SMOL, 2, 2), (TINY, 2002, 2002), (GPT2, 50256, 50256)])
def test_end_tokens(name: str, plain: int, chat: int, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    assert end_id(tokenizer, chat=False) == plain
    assert end_id(tokenizer, chat=True) == chat


@pytest.mark.parametrize(("name", "start"), [(SMOL, 1), (TINY, 2002), (GPT2, 50256)])
def test_an_empty_prompt_is_bos_else_eos(name: str, start: int, real_tokenizer: Load) -> None:
    assert prompt_ids("", real_tokenizer(name)) == [start]


@pytest.mark.parametrize("name", [SMOL, TINY, GPT2])
def test_plain_text_is_tokenised_as_it_stands(name: str, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    tree = token_tree(Tree("\n\nHuman: Why?\n\nAssistant:", [" Because it is so."]), tokenizer)
    assert not adds_bos(tokenizer)
    assert tokenizer.decode(tree.prompt) == "\n\nHuman: Why?\n\nAssistant:"
    assert tokenizer.decode(tree.branches[0][:-1]) == " Because it is so."
    assert tree.branches[0][-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in tree.prompt
    assert decode(tree.branches[0], tokenizer) == " Because it is so."


@pytest.mark.parametrize("name", [SMOL, TINY, GPT2])
def test_a_cut_response_does_not_end(name: str, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    long = " Because it is so, and so it is."
    whole = token_tree(Tree("Why?", [long]), tokenizer).branches[0]
    cut = token_tree(Tree("Why?", [long]), tokenizer, max_response=len(whole) - 1).branches[0]
    assert cut == whole[:-1]
    assert tokenizer.eos_token_id not in cut


def test_a_chat_prompt_cut_on_the_left_keeps_its_first_token_and_its_end(real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(SMOL)
    tree = Tree([{"role": "user", "content": "Why is it so? " * 30}], ["So."])
    whole, cut = token_tree(tree, tokenizer).prompt, token_tree(tree, tokenizer, max_prompt=20).prompt
    assert cut == (tokenizer.bos_token_id, *whole[-19:])


@pytest.mark.parametrize("name", [SMOL, TINY])
def test_the_templates_have_no_faults(name: str, real_tokenizer: Load) -> None:
    assert template_faults(real_tokenizer(name)) == (None, None)


def test_smollms_default_system_turn_is_part_of_the_prompt(real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(SMOL)
    text = tokenizer.decode(prompt_ids(({"role": "user", "content": "Why?"},), tokenizer))
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
