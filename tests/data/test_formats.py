"""Rows to trees: one row for each shape that users bring, the choice of the format, and what each purpose needs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from treeward.data import world
from treeward.data.formats import (
    FORMATS,
    Dropped,
    completion,
    detect,
    for_purpose,
    graded,
    helpsteer,
    messages,
    pair_labelled,
    preference,
    prompts,
    reader,
    spoken_turns,
    text,
    transcript_turns,
    transcripts,
)
from treeward.data.formats import labelled as labelled_completion
from treeward.data.prepare import DataConfig, prepare
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


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: So."
DIALOGUE_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]


@pytest.mark.parametrize(
    ("row", "purpose", "name"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "pairs", "preference"),
        ({"prompt": "p", "chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "pairs", "preference"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "pairs", "transcripts"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "sft", "transcripts"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "prompts", "transcripts"),
        ({"chosen": DIALOGUE_TURNS, "rejected": DIALOGUE_TURNS}, "pairs", "preference"),
        ({"messages": DIALOGUE_TURNS}, "sft", "messages"),
        ({"messages": DIALOGUE_TURNS}, "prompts", "messages"),
        ({"prompt": "p", "completion": "c"}, "sft", "completion"),
        ({"prompt": "p", "completion": "c"}, "prompts", "prompts"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "prompts", "prompts"),
        ({"text": "t", "label": 1}, "pairs", "text"),
        ({"text": "t"}, "sft", "text"),
        ({"id": 3, "text": "t", "extra": None}, "sft", "text"),
        ({"prompt": "p"}, "prompts", "prompts"),
    ],
)
def test_the_columns_tell_the_format(row: dict[str, Any], purpose: str, name: str) -> None:
    assert detect(row, row, purpose) == name


@pytest.mark.parametrize("purpose", ["pairs", "sft", "prompts"])
def test_unknown_columns_are_refused_with_those_found_and_those_that_would_do(purpose: str) -> None:
    with pytest.raises(ValueError, match="columns answer, question fit no format; use prompt/chosen/rejected"):
        detect({"question": "q", "answer": "a"}, {"question": "q", "answer": "a"}, purpose)


def test_a_prompt_alone_is_nothing_to_fine_tune_on() -> None:
    with pytest.raises(ValueError, match="fit no format"):
        detect({"prompt": "p"}, {"prompt": "p"}, "sft")


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
HH = {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT.replace("So.", "No.")}


@pytest.mark.parametrize(
    ("name", "purpose", "row", "trees"),
    [
        ("preference", "pairs", PAIR, [Tree("p", ["a", "b"])]),
        ("preference", "sft", PAIR, [Tree("p", ["a"])]),
        ("preference", "prompts", PAIR, [Tree("p")]),
        ("transcripts", "sft", HH, [Tree(TRANSCRIPT[:-4], [" So."])]),
        ("transcripts", "prompts", HH, [Tree(TRANSCRIPT[:-4])]),
        ("messages", "sft", {"messages": DIALOGUE_TURNS}, [Tree(DIALOGUE_TURNS[:3], ["So."])]),
        ("messages", "prompts", {"messages": DIALOGUE_TURNS}, [Tree(DIALOGUE_TURNS[:3])]),
        ("completion", "sft", {"prompt": "p", "completion": "c"}, [Tree("p", ["c"])]),
        ("completion", "prompts", {"prompt": "p", "completion": "c"}, [Tree("p")]),
        ("prompts", "prompts", {"prompt": "p"}, [Tree("p")]),
        ("text", "sft", {"text": "t"}, [Tree("", ["t"], group="t")]),
    ],
)
def test_a_reader_gives_what_its_purpose_needs(name: str, purpose: str, row: dict[str, Any], trees: list[Tree]) -> None:
    assert reader(name, purpose, "last")(row) == trees


@pytest.mark.parametrize(("name", "row"), [("transcripts", HH), ("messages", {"messages": DIALOGUE_TURNS})])
def test_all_turns_are_read_for_supervised_fine_tuning(name: str, row: dict[str, Any]) -> None:
    assert len(reader(name, "sft", "all")(row)) == 2


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("messages", "pairs"),
        ("transcripts", "pairs"),
        ("preference", "sft"),
        ("text", "sft"),
        ("messages", "prompts"),
        ("transcripts", "prompts"),
    ],
)
def test_all_turns_are_refused_where_they_mean_nothing(name: str, purpose: str) -> None:
    with pytest.raises(ValueError, match=r"data\.turns is 'all'"):
        reader(name, purpose, "all")


@pytest.mark.parametrize("name", ["messages", "completion", "prompts"])
def test_formats_without_pairs_are_refused_for_pairs(name: str) -> None:
    with pytest.raises(ValueError, match=f"data.format '{name}' has no pairs"):
        reader(name, "pairs", "last")


def test_prompts_alone_are_refused_for_supervised_fine_tuning() -> None:
    with pytest.raises(ValueError, match=r"data\.format"):
        reader("prompts", "sft", "last")


@pytest.mark.parametrize("purpose", ["pairs", "sft"])
def test_an_unknown_format_is_refused_with_the_known_ones(purpose: str) -> None:
    with pytest.raises(ValueError, match=r"data\.format is 'jsonl'; it may be answers, compared, completion, graded, "):
        reader("jsonl", purpose, "last")
    names = [
        "answers",
        "compared",
        "completion",
        "graded",
        "helpsteer",
        "labelled",
        "messages",
        "preference",
        "prompts",
        "text",
        "transcripts",
    ]
    assert sorted(FORMATS) == names


FLAT = "Who wrote it?\n<extra_id_1>Assistant\nJane Austen.\nIn 1813.\n<extra_id_1>User\nAnd where?"
TURNS = [
    {"role": "user", "content": "Who wrote it?"},
    {"role": "assistant", "content": "Jane Austen.\nIn 1813."},
    {"role": "user", "content": "And where?"},
]


def test_flattened_turns_become_messages() -> None:
    assert spoken_turns(FLAT) == TURNS
    assert spoken_turns("no markers <extra_id_1> here") == [{"role": "user", "content": "no markers <extra_id_1> here"}]


def test_helpsteer2_binarized_columns() -> None:
    def side(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": FLAT}, {"role": "assistant", "content": answer}]

    row = {
        "prompt": FLAT,
        "chosen": side("Bath."),
        "chosen_rating": 3.4,
        "rejected": side("No."),
        "rejected_rating": 2.0,
    }
    assert detect(row, row, "pairs") == "preference"
    (tree,) = preference(row)
    assert list(tree.prompt) == TURNS
    assert [(r.text, r.ratings) for r in tree.responses] == [("Bath.", (3.4,)), ("No.", (2.0,))]


def test_raw_helpsteer2_attributes() -> None:
    row: dict[str, Any] = {"prompt": FLAT, "response": "Bath.", "helpfulness": 4, "correctness": 3, "coherence": 4,
                           "complexity": 1, "verbosity": 0}  # fmt: skip
    assert detect(row, row, "pairs") == "helpsteer"
    (tree,) = helpsteer(row)
    assert list(tree.prompt) == TURNS
    assert tree.responses[0].ratings == (4.0, 3.0, 4.0, 1.0, 0.0)


def test_graded_lists() -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [{"x": 1, "y": 4}, {"y": 2, "x": 3}]}
    assert detect(row, row, "graded") == "graded"
    assert [r.ratings for r in graded(row)[0].responses] == [(1.0, 4.0), (3.0, 2.0)]
    with pytest.raises(ValueError, match="2 responses but 1 scores"):
        graded({**row, "scores": [1]})
    with pytest.raises(ValueError, match="rates without names, and the rows before it rate x, y"):
        graded({**row, "scores": [{"x": 1, "y": 4}, 2]})


def rated(*grades: float, prompt: str = "q") -> list[Tree]:
    return [Tree(prompt, [Response(f"a{n}", grades=(g,))]) for n, g in enumerate(grades)]


def test_single_responses_to_a_prompt_are_one_tree() -> None:
    dropped: Counter[str] = Counter()
    shaped = for_purpose([*rated(1.0, 3.0), *rated(2.0, prompt="other")], "graded", dropped)
    assert [[r.text for r in tree.responses] for tree in shaped] == [["a1", "a0"], ["a0"]]
    assert not dropped


def test_rankings_stand_best_first_and_what_cannot_be_ranked_is_counted() -> None:
    dropped: Counter[str] = Counter()
    trees = [*rated(1.0, 3.0, 2.0), *rated(2.0, 2.0, prompt="even"), *rated(2.0, prompt="alone")]
    (shaped,) = for_purpose(trees, "ranked", dropped)
    assert [r.grades for r in shaped.responses] == [(3.0,), (2.0,), (1.0,)]
    assert dropped == {"nothing to rank": 1, "one response alone": 1}


def test_every_pair_of_a_list_that_differs_becomes_a_pair() -> None:
    shaped = for_purpose(rated(1.0, 3.0, 1.0), "pairs", Counter())
    assert [[r.text for r in tree.responses] for tree in shaped] == [["a1", "a0"], ["a1", "a2"]]


def test_a_given_pair_keeps_its_order_whatever_its_ratings() -> None:
    pair = Tree("q", [Response("a", score=1.0), Response("b", score=2.0)])
    assert for_purpose([pair], "pairs", Counter()) == [pair]


def test_a_pair_without_ratings_ranks_by_its_order() -> None:
    (shaped,) = for_purpose([Tree("q", ["a", "b"])], "ranked", Counter())
    assert [r.text for r in shaped.responses] == ["a", "b"]


def test_unrated_trees_cannot_be_graded() -> None:
    dropped: Counter[str] = Counter()
    assert for_purpose([Tree("q", ["a", "b"])], "graded", dropped) == []
    assert dropped == {"without a rating": 1}


def test_the_graded_world_is_prepared_for_every_preference_purpose() -> None:
    config = DataConfig(source="world-graded:200")
    tokenizer = world.tokenizer()
    by_grade = prepare(config, tokenizer, "graded")
    assert all(len(tree.ratings) == len(tree.branches) for tree in by_grade.train)
    pairs = prepare(config, tokenizer, "pairs")
    assert all(tree.grades[0] > tree.grades[1] for tree in pairs.train)
    assert prepare(config, tokenizer, "ranked").train == pairs.train


def test_the_noise_of_the_worlds_ratings_has_the_stated_size() -> None:
    rows = world.graded(0, 3000)
    off = [
        (score - world.gold(row["prompt"], side)) / world.rating_noise(side)
        for row in rows for side, score in zip(row["responses"], row["scores"], strict=True)
    ]  # fmt: skip
    mean = sum(off) / len(off)
    assert abs(mean) < 0.05
    assert sum((x - mean) ** 2 for x in off) / len(off) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("name", ["world:0", "world:many", "world-graded:-3"])
def test_a_bad_count_of_world_rows_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="after the colon comes a number"):
        prepare(DataConfig(source=name), world.tokenizer(), "pairs")


def test_every_format_is_reachable_by_name() -> None:
    assert {"graded", "helpsteer"} <= set(FORMATS)


@pytest.mark.data
def test_the_raw_graded_sets_load_by_renaming_columns(data_root: Path, real_tokenizer: Any) -> None:
    config = DataConfig(
        source=str(data_root / "graded" / "sfhot.json"), columns={"prompt": "source", "response": "system_output"}
    )
    shaped = prepare(config, real_tokenizer("gpt2"), "graded")
    ratings = [rating for part in shaped.parts.values() for tree in part for rating in tree.ratings]
    assert len(ratings) == 875
    assert {len(rating) for rating in ratings} == {3}
    assert min(map(min, ratings)) >= 1.0
    assert max(map(max, ratings)) <= 6.0
