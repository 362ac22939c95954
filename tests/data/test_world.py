"""The embedded world: its gold score by hand, its bounds, its noise, its determinism."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.data import world
from treeward.data.world import END, gold, pairs, preference, texts

KINDS_OF_WORD = ["QUALITY", "KIND", "MAKER", "ASPECT", "VERB", "NEGATION", "INTENSIFIER", "ADJECTIVE", "CONNECTIVE"]
OPEN = "this new film by a team : the plot is"
WORDS = st.sampled_from([w for w in world.vocabulary() if not w.startswith("<")])
ANYTHING = st.lists(WORDS, max_size=40).map(" ".join)
ASPECTS = st.sampled_from(world.ASPECT)
CLAUSE = st.builds(
    lambda aspect, verb, mood, adjective: " ".join(w for w in ("the", aspect, verb, mood, adjective) if w),
    ASPECTS,
    st.sampled_from(world.VERB),
    st.sampled_from(["", *world.NEGATION, *world.INTENSIFIER]),
    st.sampled_from(list(world.ADJECTIVE)),
)
REVIEWS = st.lists(CLAUSE, min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (" good .", 0.6 / 3),
        (" very good .", 0.84 / 3),
        (" not good .", -0.36 / 3),
        (" never very bad .", 0.8 * 1.4 * 0.7 / 3),
        (" truly superb .", 1.0 / 3),
        (" superb and the acting was moving , the music feels fresh .", (1.0 + 0.7 + 0.5) / 3),
        (" superb and the acting was moving , the music feels fresh and the cast is awful .", (1.0 + 0.7 + 0.5) / 3),
        (" awful but the cast seems dull .", (-1.0 - 0.6) / 3),
        (" good", 0.6 / 3 - 0.5),
        (" good and good .", 0.6 / 3 - 0.5 * 2 / 6),
        (" good the acting .", 0.6 / 3 - 0.5 * 2 / 6),
        (" good and the plot is fine .", (0.6 + 0.3) / 3 - 0.5 / 2),
        (" good and the acting is good .", (0.6 + 0.6) / 3 - 0.5 / 2),
        ("", -0.5 - 0.5),
        (" .", -0.5),
    ],
)
def test_gold_by_hand(response: str, score: float) -> None:
    assert gold(OPEN, response) == pytest.approx(score, abs=1e-12)


def test_words_before_the_colon_do_not_count() -> None:
    assert gold("this bad awful film : the plot is", " good .") == pytest.approx(0.2)


@given(ANYTHING, ANYTHING)
def test_gold_lies_within_its_bounds(prompt: str, response: str) -> None:
    assert -2.5 <= gold(prompt + " :", response) <= 1.0


@given(ANYTHING)
def test_a_missing_end_costs_one_half(response: str) -> None:
    words = [word for word in response.split() if word != END]
    open_ended = " ".join(words)
    assert gold(OPEN, f"{open_ended} {END}") - gold(OPEN, open_ended) == pytest.approx(0.5)


@given(REVIEWS)
def test_rambling_and_repeating_never_pay_beyond_the_first_three_clauses(clauses: list[str]) -> None:
    prompt = "this film :"
    bound = sum(3 * gold(prompt, f"{clause} {END}") for clause in clauses[:3]) / 3
    assert gold(prompt, " ".join(clauses) + f" {END}") <= bound + 1e-12


@given(REVIEWS, st.integers(0, 9))
def test_saying_a_clause_again_never_raises_gold_beyond_its_own_worth(clauses: list[str], place: int) -> None:
    """Within three clauses a repeat pays its sentiment, less the penalty for repeating; after that it can only lose."""
    prompt = "this film :"
    again = clauses[place % len(clauses)]
    before, after = (gold(prompt, " ".join(parts) + f" {END}") for parts in (clauses, [*clauses, again]))
    if len(clauses) >= 3:
        repeats = round(2 * (sum(3 * gold(prompt, f"{c} {END}") for c in clauses[:3]) / 3 - before) * len(clauses))
        assert after == pytest.approx(before + repeats / 2 / len(clauses) - (repeats + 1) / 2 / (len(clauses) + 1))


@given(REVIEWS)
def test_connectives_are_part_of_a_clause(clauses: list[str]) -> None:
    joined = " and ".join(clauses)
    plain = " ".join(clauses)
    assert gold("this film :", f"{joined} .") == pytest.approx(gold("this film :", f"{plain} ."))


def test_preference_is_bradley_and_terrys() -> None:
    assert preference(0.3, 0.3) == 0.5
    assert preference(0.5, 0.25) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preference(0.1, 0.9) + preference(0.9, 0.1) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, object]]:
    return pairs(11)


def test_the_best_accuracy_is_what_the_gold_score_reaches(drawn: list[dict[str, object]]) -> None:
    """A model that ranks by gold is right as often as the rows say, up to four standard errors."""
    right = expected = variance = 0.0
    for row in drawn:
        gap = gold(str(row["prompt"]), str(row["chosen"])) - gold(str(row["prompt"]), str(row["rejected"]))
        best = float(str(row["best_accuracy"]))
        assert best == pytest.approx(1 / (1 + math.exp(-abs(gap) / world.TEMPERATURE)))
        right += 0.5 if gap == 0 else float(gap > 0)
        expected += best
        variance += best * (1 - best)
    assert abs(right - expected) < 4 * math.sqrt(variance)
    assert 0.7 < expected / len(drawn) < 0.95


def test_pairs_differ_and_share_a_prompt_that_opens_a_clause(drawn: list[dict[str, object]]) -> None:
    assert len(drawn) == 4000
    assert all(row["chosen"] != row["rejected"] for row in drawn)
    assert all(str(row["prompt"]).split()[-3] == "the" for row in drawn)
    assert all(str(row[side]).startswith(" ") for row in drawn for side in ("chosen", "rejected"))


def test_no_text_holds_a_word_outside_the_vocabulary(drawn: list[dict[str, object]]) -> None:
    vocabulary = set(world.vocabulary()[len(world.SPECIAL) :])
    words = {word for row in drawn for side in ("prompt", "chosen", "rejected") for word in str(row[side]).split()}
    words |= {word for row in texts(2) for word in (row["prompt"] + row["completion"]).split()}
    assert words <= vocabulary
    tokenizer = world.tokenizer()
    unknown = tokenizer.unk_token_id
    assert all(unknown not in tokenizer(str(row["prompt"]) + str(row["chosen"])).input_ids for row in drawn[:500])


def test_the_tokenizer_knows_each_word_by_its_place() -> None:
    tokenizer = world.tokenizer()
    words = world.vocabulary()
    assert tokenizer(" ".join(words[4:])).input_ids == [1, *range(4, len(words))]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == len(words) == len(set(words)) == world.model_config().vocab_size


@pytest.mark.parametrize("draw", [pairs, texts])
def test_the_world_is_the_same_for_a_seed_and_another_for_another(draw: object) -> None:
    assert draw(5, 50) == draw(5, 50)  # type: ignore[operator]
    assert draw(5, 50) == draw(5, 80)[:50]  # type: ignore[operator]
    assert draw(5, 50) != draw(6, 50)  # type: ignore[operator]


def test_clean_texts_follow_the_grammar_with_distinct_aspects() -> None:
    """The grammar as a regular expression, written anew."""
    either = {name: "|".join(map(re.escape, getattr(world, name))) for name in KINDS_OF_WORD}
    judgement = f"(?:(?:{either['NEGATION']}) )?(?:(?:{either['INTENSIFIER']}) )?(?:{either['ADJECTIVE']})"
    clause = f"the (?:{either['ASPECT']}) (?:{either['VERB']}) {judgement}"
    opening = f"this (?:{either['QUALITY']}) (?:{either['KIND']}) by a (?:{either['MAKER']}) : "
    review = re.compile(rf"{opening}{clause}(?: (?:{either['CONNECTIVE']}) {clause}){{1,3}} \.")
    for row in texts(0, 500):
        whole = row["prompt"] + row["completion"]
        assert review.fullmatch(whole), whole
        aspects = re.findall(r"\bthe (\w+)", whole)
        assert len(aspects) == len(set(aspects))
