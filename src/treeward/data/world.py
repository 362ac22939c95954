"""The embedded world: a small grammar of film reviews with a known gold score. It needs no network.

A review is an opening (the prompt) and clauses `the ASPECT VERB [not] [INTENSIFIER] ADJECTIVE`, joined by connectives
and ended by a full stop. `gold` parses a text with the same grammar:

    gold = 1/3 * sum of the first three clause sentiments          each in [-1, 1], a missing clause counts 0
           - 1/2 * share of words outside any clause               disfluency
           - 1/2 * share of clauses that repeat an aspect or an adjective
           - 1/2 * (the full stop is missing)

It is in [-2.5, 1]. Long texts gain nothing (only three clauses count), nor does repetition, and a text without an end
loses. Pairs are drawn with Bradley-Terry noise, P(a over b) = sigma((gold a - gold b) / TEMPERATURE), so the accuracy
that the best possible model reaches is exact: the mean of max(P, 1 - P).
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

QUALITY = ("quiet", "loud", "new", "old", "french", "british", "small", "long", "short", "strange", "recent", "famous")
KIND = ("film", "drama", "comedy", "thriller", "western", "musical", "sequel", "remake")
MAKER = ("director", "writer", "team", "studio", "veteran", "beginner", "couple", "student")
ASPECT = (
    "plot", "acting", "music", "script", "ending", "pacing", "cast", "dialogue", "camera", "humour", "story", "set",
)  # fmt: skip
VERB = ("is", "was", "feels", "seems")
NEGATION: Mapping[str, float] = {"not": -0.6, "never": -0.8}
INTENSIFIER: Mapping[str, float] = {"very": 1.4, "truly": 1.3, "quite": 1.0, "rather": 0.8, "slightly": 0.5}
ADJECTIVE: Mapping[str, float] = {
    "superb": 1.0, "wonderful": 0.9, "brilliant": 0.9, "moving": 0.7, "clever": 0.7, "charming": 0.7, "good": 0.6,
    "funny": 0.6, "fresh": 0.5, "solid": 0.4, "fine": 0.3, "plain": 0.0, "ordinary": 0.0, "long": 0.0, "odd": -0.2,
    "uneven": -0.3, "flat": -0.4, "slow": -0.4, "weak": -0.5, "dull": -0.6, "boring": -0.7, "clumsy": -0.7,
    "bad": -0.7, "stupid": -0.8, "dreadful": -0.9, "awful": -1.0,
}  # fmt: skip
CONNECTIVE = ("and", "but", "while", "yet", ",")
END = "."
TEMPERATURE = 0.25
PAYING_CLAUSES = 3
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def vocabulary() -> list[str]:
    """Every token of the world, special ones first."""
    words = {"this", "by", "a", ":", "the", END, *QUALITY, *KIND, *MAKER, *ASPECT, *VERB, *CONNECTIVE}
    return [*SPECIAL, *sorted(words | set(NEGATION) | set(INTENSIFIER) | set(ADJECTIVE))]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the vocabulary; `<bos>` opens every text, `<eos>` ends a response."""
    ids = {word: number for number, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=128,
    )  # fmt: skip


def model_config() -> "transformers.LlamaConfig":
    """A four-layer Llama of about 0.9 million parameters."""
    return transformers.LlamaConfig(
        vocab_size=len(vocabulary()), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def opening(draw: random.Random) -> str:
    """A prompt: the opening words and the beginning of the first clause."""
    return (
        f"this {draw.choice(QUALITY)} {draw.choice(KIND)} by a {draw.choice(MAKER)} : "
        f"the {draw.choice(ASPECT)} {draw.choice(VERB)}"
    )


def continuation(draw: random.Random, prompt: str) -> str:
    """The rest of a review: two to four clauses with distinct aspects and one mood that most clauses share."""
    mood = draw.choice((-1, 1))
    aspects = [a for a in ASPECT if a not in prompt.split()]
    draw.shuffle(aspects)
    clauses = [_opinion(draw, mood)]
    for aspect in aspects[: draw.randint(1, 3)]:
        clauses.append(f"{draw.choice(CONNECTIVE)} the {aspect} {draw.choice(VERB)} {_opinion(draw, mood)}")
    return " " + " ".join(clauses) + f" {END}"


def _opinion(draw: random.Random, mood: int) -> str:
    if draw.random() < 0.25:
        mood = -mood
    words = []
    negated = draw.random() < 0.2
    if negated:
        words.append(draw.choice(list(NEGATION)))
    if draw.random() < 0.4:
        words.append(draw.choice(list(INTENSIFIER)))
    sign = -mood if negated else mood
    words.append(draw.choice([word for word, value in ADJECTIVE.items() if value * sign >= 0]))
    return " ".join(words)


def corrupted(draw: random.Random, text: str) -> str:
    """The same text with one error: a clause repeated, two words swapped, or the end missing."""
    words = text.split()
    error = draw.choice(("repeat", "swap", "cut"))
    if error == "repeat":
        words = [*words[:-1], *words[-5:-1], END]
    elif error == "swap" and len(words) > 3:
        at = draw.randrange(len(words) - 2)
        words[at], words[at + 1] = words[at + 1], words[at]
    else:
        words = words[:-1]
    return " " + " ".join(words)


def gold(prompt: str, response: str) -> float:
    """The gold score of a review, in [-2.5, 1]; the formula is at the head of this module."""
    words = prompt.partition(":")[2].split() + response.split()
    ended = bool(words) and words[-1] == END
    if ended:
        words = words[:-1]
    sentiments: list[float] = []
    seen: set[str] = set()
    repeats = read = at = 0
    while at < len(words):
        clause = _clause(words, at)
        if clause is None:
            at += 1
            continue
        aspect, adjective, sentiment, after = clause
        repeats += bool({aspect, adjective} & seen)
        seen |= {aspect, adjective}
        sentiments.append(sentiment)
        read += after - at
        at = after
    stray = 1 - read / len(words) if words else 1.0
    repeated = repeats / len(sentiments) if sentiments else 0.0
    return sum(sentiments[:PAYING_CLAUSES]) / PAYING_CLAUSES - 0.5 * stray - 0.5 * repeated - 0.5 * (not ended)


def _clause(words: list[str], at: int) -> tuple[str, str, float, int] | None:
    """The clause that starts at word `at`, connective included: its aspect, adjective, sentiment and end."""
    place = at + (words[at] in CONNECTIVE and at > 0)
    head = words[place : place + 3]
    if len(head) < 3 or head[0] != "the" or head[1] not in ASPECT or head[2] not in VERB:
        return None
    place += 3
    factor = 1.0
    for scale in (NEGATION, INTENSIFIER):
        if place < len(words) and words[place] in scale:
            factor *= scale[words[place]]
            place += 1
    if place >= len(words) or words[place] not in ADJECTIVE:
        return None
    sentiment = max(-1.0, min(1.0, factor * ADJECTIVE[words[place]]))
    return head[1], words[place], sentiment, place + 1


def preference(a: float, b: float) -> float:
    """P(a is preferred to b) by Bradley and Terry."""
    return 1 / (1 + math.exp(-(a - b) / TEMPERATURE))


def texts(seed: int, count: int = 6000) -> list[dict[str, Any]]:
    """Reviews as `prompt` and `completion`, for supervised fine-tuning."""
    draw = random.Random(f"texts {seed}")
    prompts = (opening(draw) for _ in range(count))
    return [{"prompt": prompt, "completion": continuation(draw, prompt)} for prompt in prompts]


def pairs(seed: int, count: int = 4000) -> list[dict[str, Any]]:
    """Preference pairs with Bradley-Terry noise; `best_accuracy` is what a perfect model expects on the row."""
    draw = random.Random(f"pairs {seed}")
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        prompt = opening(draw)
        sides = [continuation(draw, prompt) for _ in range(2)]
        sides = [corrupted(draw, side) if draw.random() < 0.2 else side for side in sides]
        if sides[0] == sides[1]:
            continue
        p = preference(*(gold(prompt, side) for side in sides))
        chosen, rejected = sides if draw.random() < p else sides[::-1]
        best = max(p, 1 - p)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "best_accuracy": best})
    return rows


def graded(seed: int, count: int = 4000) -> list[dict[str, Any]]:
    """Two responses a prompt with `scores`: the gold score with a rater's noise of known size, `rating_noise`."""
    draw = random.Random(f"graded {seed}")
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        prompt = opening(draw)
        sides = [continuation(draw, prompt) for _ in range(2)]
        sides = [corrupted(draw, side) if draw.random() < 0.2 else side for side in sides]
        if sides[0] != sides[1]:
            scores = [gold(prompt, side) + draw.gauss(0, rating_noise(side)) for side in sides]
            scores = [min(RATINGS[1], max(RATINGS[0], score)) for score in scores]
            rows.append({"prompt": prompt, "responses": sides, "scores": scores})
    return rows


def rating_noise(response: str) -> float:
    """Standard deviation of a rater's noise: an eightieth a word, so long reviews are graded with less certainty."""
    return 0.0125 * len(response.split())


RATINGS = (-2.5, 2.0)
"""The scale of `graded`."""

KINDS: Mapping[str, Callable[..., list[dict[str, Any]]]] = {
    "world": pairs, "world-texts": texts, "world-graded": graded,
}  # fmt: skip
"""The names of the world in `data.source`: its pairs, its texts, its graded responses."""
