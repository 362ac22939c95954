"""Text to ids: with the embedded world's tokenizer and small ones made here, in batches, and from sampled ids."""

from collections import Counter
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from treeward.data import formats, render, world
from treeward.data.account import Account
from treeward.data.render import adds_bos, end_id, prompt_ids, template_faults, token_tree, token_trees, vocabulary_hash
from treeward.trees.text import Response, Tree
from treeward.trees.tokens import decode

WORLD = world.tokenizer()
BOS, EOS = 1, 2

CHAT = "{% for m in messages %}<turn> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}<turn> assistant {% endif %}"  # noqa: E501
WORDS = ["<unk>", "<s>", "</s>", "<turn>", "<end>", "user", "assistant", "system", "treeward", "is", "it", "so", "why"]


def words(text: str) -> list[int]:
    """The world's ids of these words."""
    return [world.vocabulary().index(word) for word in text.split()]


def made(template: str | None = None, **special: str) -> Any:
    """A word-level tokenizer that adds nothing by itself."""
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = [word for word in ("<turn>", "<end>") if template]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", additional_special_tokens=extra, **special
    )
    tokenizer.chat_template = template
    return tokenizer


def ids(*names: str) -> list[int]:
    return [WORDS.index(name) for name in names]


def test_a_tree_written_out() -> None:
    tree = token_tree(Tree("the plot is", [" good .", Response(" very bad", finished=False)]), WORLD)
    assert list(tree.prompt) == [BOS, *words("the plot is")]
    assert [list(branch) for branch in tree.branches] == [[*words("good ."), EOS], words("very bad")]
    assert tree.group == "the plot is"


def test_bos_stands_once_even_where_the_text_brings_it() -> None:
    assert prompt_ids("<bos> the plot", WORLD) == [BOS, *words("the plot")]
    assert token_tree(Tree("the plot", [" is good"]), WORLD).branches[0].count(BOS) == 0


def test_an_empty_prompt_is_bos_else_eos_else_refused() -> None:
    assert prompt_ids("", WORLD) == [BOS]
    assert prompt_ids("", made(bos_token="<s>", eos_token="</s>")) == ids("<s>")
    assert prompt_ids("", made(eos_token="</s>")) == ids("</s>")
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        prompt_ids("", made())


def test_a_tokenizer_without_eos_cannot_end_a_response() -> None:
    with pytest.raises(ValueError, match="no EOS to end a response"):
        token_tree(Tree("why", ["so"]), made(bos_token="<s>"))


def test_bos_is_added_only_where_the_tokenizer_does_so_itself() -> None:
    assert adds_bos(WORLD)
    quiet = made(bos_token="<s>", eos_token="</s>")
    assert not adds_bos(quiet)
    assert prompt_ids("why", quiet) == ids("why")


def test_a_cut_response_has_no_end_and_a_fitting_one_keeps_it() -> None:
    tree = Tree("the plot is", [" very good .", " bad ."])
    account = Account()
    cut = token_tree(tree, WORLD, max_response=3, account=account)
    assert [list(branch) for branch in cut.branches] == [words("very good ."), [*words("bad ."), EOS]]
    assert account.cut == {"response 0": 1}
    assert [list(b) for b in token_tree(tree, WORLD, max_response=4).branches] == [
        [*words("very good ."), EOS],
        [*words("bad ."), EOS],
    ]


def test_an_unfinished_response_at_the_limit_is_not_cut() -> None:
    account = Account()
    tree = token_tree(Tree("a", [Response("is good .", finished=False)]), WORLD, max_response=3, account=account)
    assert list(tree.branches[0]) == words("is good .")
    assert account.cut == {}
    assert (account.responses, account.ended) == (0, 0)


def test_prompts_are_cut_on_the_left_and_keep_bos() -> None:
    account = Account()
    tree = token_tree(Tree("the plot is very good", [" ."]), WORLD, max_prompt=3, account=account)
    assert list(tree.prompt) == [BOS, *words("very good")]
    assert account.cut == {"prompt": 1}
    assert list(token_tree(Tree("the plot is", [" ."]), WORLD, max_prompt=1).prompt) == words("is")
    assert list(token_tree(Tree("the plot is", [" ."]), WORLD, max_prompt=4).prompt) == [BOS, *words("the plot is")]


def test_a_prompt_without_bos_is_cut_to_its_tail() -> None:
    plain = made(eos_token="</s>")
    assert list(token_tree(Tree("why is it so", ["so"]), plain, max_prompt=2).prompt) == ids("it", "so")


@pytest.mark.parametrize(
    ("scores", "ratings"), [((3.5, 1.25), ((3.5,), (1.25,))), ((1.0, None), ()), ((None, None), ())]
)
def test_ratings_are_kept_where_every_branch_has_one(scores: tuple[Any, Any], ratings: object) -> None:
    sides = [Response(text, score=score) for text, score in zip((" good", " bad"), scores, strict=True)]
    assert token_tree(Tree("the plot is", sides), WORLD).ratings == ratings


def test_the_account_counts_ends() -> None:
    account = Account()
    token_tree(Tree("the plot is", [" good .", " bad", Response(" odd", finished=False)]), WORLD, account=account)
    assert (account.responses, account.ended) == (2, 2)


def test_an_account_reads_well() -> None:
    account = Account(rows=9, used=7, made="pairs", unread=["id", "title"])
    account.dropped.update({"empty response": 2})
    account.cut.update({"prompt": 3, "response 1": 1})
    assert str(account) == (
        "9 rows made 7 pairs; dropped: 2 empty response; cut: 3 prompt, 1 response 1; columns not read: id, title"
    )


def test_messages_need_a_template() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        token_tree(Tree([{"role": "user", "content": "why"}], ["so"]), WORLD)


def test_a_chat_ends_in_the_templates_token_and_plain_text_in_eos() -> None:
    chat = made(CHAT, eos_token="</s>")
    assert end_id(chat, chat=True) == WORDS.index("<end>")
    assert end_id(chat, chat=False) == WORDS.index("</s>")
    spoken = token_tree(Tree([{"role": "user", "content": "why"}], ["it is so"]), chat)
    assert list(spoken.prompt) == ids("<turn>", "user", "why", "<end>", "<turn>", "assistant")
    assert list(spoken.branches[0]) == ids("it", "is", "so", "<end>")
    assert list(token_tree(Tree("why", ["so"]), chat).branches[0]) == ids("so", "</s>")


def test_a_template_without_an_end_falls_back_to_eos() -> None:
    chat = made(CHAT.replace("<end>", ""), eos_token="</s>")
    assert end_id(chat, chat=True) == WORDS.index("</s>")


def test_a_sound_template_has_no_faults() -> None:
    assert template_faults(made(CHAT, eos_token="</s>")) == (None, None)
    assert template_faults(made(eos_token="</s>")) == (None, None)


def test_a_template_whose_prompt_is_no_prefix_is_an_error() -> None:
    broken = CHAT.replace("<turn> assistant {% endif %}", "<turn> system {% endif %}")
    error, _ = template_faults(made(broken, eos_token="</s>"))
    assert "generation prompt" in (error or "")


def test_a_template_that_rewrites_the_answer_is_a_remark() -> None:
    rewriting = CHAT.replace("{{ m['content'] }}", "{{ m['content'] + (' so' if m['role'] == 'assistant' else '') }}")
    error, remark = template_faults(made(rewriting, eos_token="</s>"))
    assert error is None
    assert "instead of" in (remark or "")


def test_decoding_leaves_special_tokens_out() -> None:
    assert decode([BOS, *words("very good ."), EOS], WORLD) == "very good ."


TEMPLATE = (
    "{% for m in messages %}{{ 'w3 ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}w4{% endif %}"
)


@pytest.fixture
def chatting(tiny_tokenizer: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        chat_template=TEMPLATE,
    )  # fmt: skip


def forest(count: int) -> list[Tree]:
    spoken = [{"role": "user", "content": "w5 w6"}]
    every = [
        [Tree(f"w{3 + n % 50} w7", [f"w8 w{3 + n % 60}", Response("w9 w10", finished=False)]),
         Tree([*spoken, {"role": "user", "content": f"w{3 + n % 40}"}], ["w11 w12", ""]),
         Tree("", ["w13"], group=str(n))]
        for n in range(count)
    ]  # fmt: skip
    return [tree for trees in every for tree in trees]


def test_batched_equals_one_at_a_time(chatting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "CHUNK", 7)
    trees = forest(20)
    one, many = Account(), Account()
    assert list(token_trees(trees, chatting, 3, 2, many)) == [token_tree(t, chatting, 3, 2, one) for t in trees]
    assert one == many


def test_a_tokenizer_that_opens_with_bos() -> None:
    trees = [Tree(row["prompt"], [row["chosen"], row["rejected"]]) for row in world.pairs(0, 30)]
    tokenizer = world.tokenizer()
    assert list(token_trees(trees, tokenizer)) == [token_tree(tree, tokenizer) for tree in trees]


def test_a_chunk_costs_a_few_calls(chatting: Any) -> None:
    calls = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(chatting, name)

        def __call__(self, *texts: Any, **named: Any) -> Any:
            calls.append(texts)
            return chatting(*texts, **named)

    assert len(list(token_trees(forest(150), Counting()))) == 450
    assert len(calls) <= 5


def test_messages_without_a_template_are_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        list(token_trees(forest(1), tiny_tokenizer))


TOKENIZER = world.tokenizer()
OWN = vocabulary_hash(TOKENIZER)
ODD = [5, 0, 6, 7]
"""Ids that no tokenizer call gives for their text, `. : a`."""


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": "the plot is", "chosen": ". : a", "rejected": "acting", "prompt_ids": [1, 9, 9],
        "chosen_ids": [*ODD, 2], "rejected_ids": [8], "chosen_finished": True, "rejected_finished": False,
        "vocabulary": OWN,
    } | changes  # fmt: skip


def test_sampled_ids_are_used_as_they_are() -> None:
    (tree,) = formats.preference(pair())
    tokens = token_tree(tree, TOKENIZER)
    assert tokens.prompt == (1, 9, 9)
    assert tokens.branches == ((5, 0, 6, 7, 2), (8,))


@pytest.mark.parametrize("changes", [{"vocabulary": "another"}, {"vocabulary": None}])
def test_another_vocabulary_reads_the_text(changes: dict[str, Any]) -> None:
    (tree,) = formats.preference(pair(**changes))
    tokens = token_tree(tree, TOKENIZER)
    assert tokens == token_tree(
        formats.preference(pair(chosen_ids=None, rejected_ids=None, prompt_ids=None))[0], TOKENIZER
    )
    assert tokens.branches[0][-1] == 2
    assert tokens.branches[1][-1] != 2, "an unfinished sample gets no end token"


def test_a_ranking_keeps_its_ids_when_it_is_put_in_order() -> None:
    row = {"prompt": "the plot is", "responses": ["acting", "."], "scores": [0.0, 1.0], "vocabulary": OWN,
           "prompt_ids": [1, 9], "responses_ids": [[8, 2], [5]], "responses_finished": [True, False]}  # fmt: skip
    (tree,) = formats.for_purpose(formats.graded(row), "ranked", Counter())
    tokens = token_tree(tree, TOKENIZER)
    assert tokens.branches == ((5,), (8, 2))
    assert tokens.prompt == (1, 9)


def test_the_prompt_alone_keeps_its_ids() -> None:
    (tree,) = formats.reader("preference", "prompts", "last")(pair())
    assert token_tree(tree, TOKENIZER).prompt == (1, 9, 9)
    assert tree.responses == ()


def test_text_that_was_edited_under_its_ids_is_refused() -> None:
    (tree,) = formats.preference(pair(chosen=". : an"))
    with pytest.raises(ValueError, match=r"reads '\. : an', but its sampled ids '\. : a': .*remove its ids"):
        token_tree(tree, TOKENIZER)


def test_a_long_sample_is_cut() -> None:
    (tree,) = formats.preference(pair())
    assert token_tree(tree, TOKENIZER, max_response=2).branches == ((5, 0), (8,))


def test_json_gives_an_equal_tree_back() -> None:
    (tree,) = formats.preference(pair())
    assert Tree.from_json(tree.to_json()) == tree
