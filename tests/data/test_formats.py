"""Rows to trees, one written-out row a shape that users bring."""

from typing import Any

import pytest

from treeward.data.formats import (
    Dropped,
    completion,
    detect,
    messages,
    preference,
    prompts,
    reader,
    text,
    transcript_turns,
    transcripts,
)
from treeward.data.formats import labelled as labelled_completion
from treeward.data.shapes import pair_labelled
from treeward.trees.text import Response, Tree


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


ASKED = {"role": "user", "content": "Why?"}
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"


def only(trees: list[Tree]) -> Tree:
    (tree,) = trees
    return tree


def test_preference_of_strings_keeps_every_character() -> None:
    tree = only(preference({"prompt": "The film ", "chosen": " is good.", "rejected": "\nis bad"}))
    assert tree == Tree("The film ", [" is good.", "\nis bad"])


def test_preference_of_messages_with_an_explicit_string_prompt() -> None:
    row = {"prompt": "Why?", "chosen": [assistant("So.")], "rejected": [assistant("No.")]}
    assert only(preference(row)) == Tree([ASKED], ["So.", "No."])


def test_preference_of_messages_with_an_explicit_prompt_of_messages() -> None:
    row = {"prompt": [user("Hi"), assistant("Yes?"), ASKED], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert only(preference(row)) == Tree([user("Hi"), assistant("Yes?"), ASKED], ["a", "b"])


def test_preference_with_an_implicit_prompt_of_several_turns() -> None:
    shared = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Yes?"), ASKED]
    row = {"chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    assert only(preference(row)) == Tree(shared, ["a", "b"])


def test_helpsteer_rows_take_the_prompt_once_and_keep_the_ratings() -> None:
    row = {
        "prompt": "Why?", "chosen": [ASKED, assistant("So.")], "chosen_rating": 3.6,
        "rejected": [ASKED, assistant("No.")], "rejected_rating": 2,
    }  # fmt: skip
    tree = only(preference(row))
    assert tree.prompt == (ASKED,)
    assert tree.responses == (Response("So.", score=3.6), Response("No.", score=2.0))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "identical pair"),
        ({"prompt": "p", "chosen": "a", "rejected": " \n"}, "empty response"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "empty response"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty prompt"),
        (
            {"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]},
            "prompts differ",
        ),
        ({"chosen": [user("x")], "rejected": [user("x"), assistant("b")]}, "no assistant turn at the end"),
        ({"prompt": "p", "chosen": [], "rejected": [assistant("b")]}, "no assistant turn at the end"),
    ],
)
def test_rows_without_a_usable_pair_are_dropped_with_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Dropped, match=f"^{reason}$"):
        preference(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": [assistant("b")]}, "different kinds"),
        ({"chosen": "a", "rejected": "b"}, "without a 'prompt' column"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no 'prompt' column"),
    ],
)
def test_rows_that_cannot_be_understood_are_errors_not_counts(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference(row)


def test_transcripts_split_at_the_last_assistant() -> None:
    row = {"chosen": DIALOGUE + " Because.", "rejected": DIALOGUE + " No idea."}
    assert only(transcripts(row)) == Tree(DIALOGUE, [" Because.", " No idea."])


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (DIALOGUE + " a", DIALOGUE.replace("Hi", "Ho") + " b", "prompts differ"),
        (DIALOGUE + " a", DIALOGUE + " a", "identical pair"),
        (DIALOGUE, DIALOGUE + " b", "empty response"),
        (DIALOGUE + " a", DIALOGUE + "  \n", "empty response"),
    ],
)
def test_transcripts_without_a_usable_pair_are_dropped(chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(Dropped, match=f"^{reason}$"):
        transcripts({"chosen": chosen, "rejected": rejected})


def test_a_transcript_without_an_assistant_is_an_error_that_names_the_column() -> None:
    with pytest.raises(ValueError, match="'rejected' has no 'Assistant:' turn"):
        transcripts({"chosen": DIALOGUE + " a", "rejected": "just text"})


SPOKEN = [user("Hi"), assistant("Hello."), ASKED, assistant("Because."), user("Thanks")]


def test_messages_train_on_the_last_assistant_turn() -> None:
    assert messages({"messages": SPOKEN}) == [Tree(SPOKEN[:3], ["Because."])]


def test_messages_train_on_each_assistant_turn_when_asked_for_all() -> None:
    assert messages({"messages": SPOKEN}, "all") == [
        Tree(SPOKEN[:1], ["Hello."]),
        Tree(SPOKEN[:3], ["Because."], group="user: hi"),
    ]


def test_an_assistant_that_speaks_first_has_no_prompt_and_is_no_tree() -> None:
    assert messages({"messages": [assistant("Welcome"), user("Hi"), assistant("Yes?")]}, "all") == [
        Tree([assistant("Welcome"), user("Hi")], ["Yes?"])
    ]


@pytest.mark.parametrize("spoken", [[user("Hi")], [assistant("Hi")], []])
def test_messages_without_an_answer_are_dropped(spoken: list[dict[str, str]]) -> None:
    with pytest.raises(Dropped, match="no assistant turn"):
        messages({"messages": spoken})


def test_transcript_turns_last_and_all() -> None:
    row = {"chosen": DIALOGUE + " Because."}
    assert transcript_turns(row) == [Tree(DIALOGUE, [" Because."])]
    assert transcript_turns(row, "all") == [
        Tree("\n\nHuman: Hi\n\nAssistant:", [" Hello."], group="human: hi"),
        Tree(DIALOGUE, [" Because."], group="human: hi"),
    ]


def test_completion_of_strings_and_of_messages() -> None:
    assert completion({"prompt": "p", "completion": " c"}) == [Tree("p", [" c"])]
    assert completion({"prompt": [ASKED], "completion": [assistant("So.")]}) == [Tree([ASKED], ["So."])]
    with pytest.raises(Dropped, match="empty response"):
        completion({"prompt": "p", "completion": " "})


def test_text_stands_without_a_prompt_and_is_its_own_group() -> None:
    assert text({"text": "Once upon"}) == [Tree("", ["Once upon"], group="Once upon")]


@pytest.mark.parametrize(("label", "score"), [(1, 1.0), (0, 0.0), (True, 1.0), (None, None)])
def test_a_label_is_kept_as_the_score(label: object, score: float | None) -> None:
    assert only(text({"text": "fine", "label": label})).responses == (Response("fine", score=score),)


def test_prompts_have_no_branches() -> None:
    assert prompts({"prompt": "The film"}) == [Tree("The film")]
    assert prompts({"prompt": [ASKED]}) == [Tree([ASKED])]


def labelled(positive: int, negative: int) -> list[Tree]:
    rows = [{"text": f"good {n}", "label": 1} for n in range(positive)]
    return [tree for row in rows + [{"text": f"bad {n}", "label": 0} for n in range(negative)] for tree in text(row)]


def test_labelled_texts_are_paired_positive_first_and_used_once() -> None:
    pairs = pair_labelled(labelled(5, 3), seed=0)
    chosen, rejected = ([tree.responses[side].text for tree in pairs] for side in (0, 1))
    assert len(pairs) == 3
    assert len(set(chosen)) == 3
    assert all(one.startswith("good") for one in chosen)
    assert sorted(rejected) == ["bad 0", "bad 1", "bad 2"]


def test_pairing_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    trees = labelled(20, 20)
    assert pair_labelled(trees, 3) == pair_labelled(trees[::-1], 3)
    assert pair_labelled(trees, 3) != pair_labelled(trees, 4)


@pytest.mark.parametrize("label", [None, 2, 0.5])
def test_labels_other_than_one_and_zero_are_refused(label: float | None) -> None:
    with pytest.raises(ValueError, match="column 'label' holds"):
        pair_labelled([*labelled(1, 1), *text({"text": "so so", "label": label})], seed=0)


def test_labelled_completions_for_kto() -> None:
    row = {"prompt": "p", "completion": " yes", "label": True}
    assert detect(row, row, "unpaired") == "labelled"
    assert detect(row, row, "sft") == "completion"
    (tree,) = labelled_completion(row)
    assert tree.responses == (Response(" yes", score=1.0),)
    assert labelled_completion({**row, "label": 0})[0].responses[0].score == 0.0
    with pytest.raises(ValueError, match="'label' is 2; it is true"):
        labelled_completion({**row, "label": 2.0})
    with pytest.raises(ValueError, match="'label' is the text 'good', not a finite number"):
        reader("labelled", "unpaired", "last")({**row, "label": "good"})
    with pytest.raises(ValueError, match=r"loss\.kind kto"):
        reader("labelled", "pairs", "last")
    for name in ("completion", "graded", "helpsteer", "messages"):
        with pytest.raises(ValueError, match="has no labels"):
            reader(name, "unpaired", "last")
