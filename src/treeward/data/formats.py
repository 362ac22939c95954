"""From a row to trees: the values of each column checked, one function a format, and trees cut to a purpose.

A format function takes a row and returns its trees. A row without a usable tree raises `Dropped` with a reason that is
counted. A row that cannot be understood raises UserError: the user has to fix it.

A value is taken as it is or refused: a number never becomes a text, nor a list a quoted text. A text that is a number
(as every field of a CSV file) is read where a number belongs.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import combinations
from typing import Any, Literal

from treeward.data.splits import shuffled
from treeward.errors import UserError
from treeward.trees.text import Message, Response, Tree, joined_group, normalised

Row = Mapping[str, Any]
Reader = Callable[[Row], list[Tree]]
Check = Callable[[Any, str], Any]
"""Takes a value and the name of its column; returns the value that the format reads, or raises UserError."""

Purpose = Literal["pairs", "ranked", "graded", "unpaired", "sft", "prompts"]
"""What trees are for: two responses (chosen first), several (best first), rated ones, single labelled responses and
pairs, one response, or none."""

PREFERENCE_PURPOSES = ("pairs", "ranked", "graded", "unpaired")
"""The purposes that need compared, ranked, rated or labelled responses."""

UNITS: dict[Purpose, str] = {
    "pairs": "pairs", "ranked": "rankings", "graded": "rated prompts", "unpaired": "labelled responses and pairs",
    "sft": "responses", "prompts": "prompts",
}  # fmt: skip
"""What rows become, by purpose."""

TURN = "\n\nAssistant:"
"""Start of an assistant turn in an HH transcript (Bai et al. 2022, arXiv:2204.05862)."""
MARKER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""Start of a turn in HelpSteer2's flattened prompts."""
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""HelpSteer2's attributes, in its order."""

NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")
MAX_TOKEN_ID = 1 << 31
"""Token ids are below this."""
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}
"""ShareGPT's names of the speakers."""
LABELS = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0, "positive": 1.0, "negative": 0.0, "pos": 1.0, "neg": 0.0}
"""Words that a label may be, in any case. Other numbers are taken as they are."""

TIED = "tie"
"""Reason for dropping a row whose winner is neither of its outputs."""
UNRANKED = "nothing to rank"
"""Reason for dropping responses with equal ratings."""


class Dropped(Exception):
    """This row has no usable tree; the argument is the reason under which it is counted."""


class NoFormat(UserError):
    """The columns fit no format."""


# Values ----------------------------------------------------------------------------------------------------------


def as_text(value: Any, column: str) -> str:
    """A text, or the texts of message parts in OpenAI's form, [{"type": "text", "text": ...}], joined.

    Raises:
        UserError: it is something else, or a part holds something else, such as an image.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "role" not in part for part in value):
        return "".join(_part_text(part, column) for part in value)
    raise UserError(f"column {column!r} is {shown(value)}, not a text")


def _part_text(part: Row, column: str) -> str:
    content = part.get("text")
    if part.get("type") != "text" or not isinstance(content, str):
        raise UserError(f"column {column!r} has a part of type {part.get('type')!r}; only text is read")
    return content


def as_messages(value: Any, column: str) -> list[dict[str, str]]:
    """Chat messages as role and content, from OpenAI's form or ShareGPT's `from` and `value`, or from one message.

    Raises:
        UserError: it is no list of such messages, or a message holds more than text.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of messages")
    return [_as_message(message, f"{column}, message {number}") for number, message in enumerate(value, 1)]


def _as_message(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise UserError(f"column {place!r} is {shown(value)}, not a message with a role and a content")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or not {"content", "value"} & set(value):
        raise UserError(
            f"column {place!r} has no role and content; it has {', '.join(sorted(map(str, value))) or 'nothing'}"
        )
    for call in ("tool_calls", "function_call"):
        if value.get(call):
            raise UserError(f"column {place!r} has {call}; only messages of text are read")
    content = value.get("content", value.get("value"))
    rest = {str(name): item for name, item in value.items() if isinstance(item, str) and name not in ("from", "value")}
    return rest | {"role": ROLES.get(role.lower(), role), "content": as_text(content, place)}


def as_text_or_messages(value: Any, column: str) -> str | list[dict[str, str]]:
    """A text or messages.

    Raises:
        UserError: it is neither.
    """
    roles = ("role", "from")
    is_messages = isinstance(value, list | tuple) and any(
        isinstance(item, Mapping) and any(name in item for name in roles) for item in value
    )
    if is_messages or isinstance(value, Mapping) or value == []:
        return as_messages(value, column)
    return as_text(value, column)


def as_texts(value: Any, column: str) -> list[str | None]:
    """A list of texts; a missing one is None.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, list | tuple):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of texts")
    return [None if item is None else as_text(item, f"{column}[{number}]") for number, item in enumerate(value)]


def as_label(value: Any, column: str) -> float:
    """A label: 1 or 0, also as a word of `LABELS`, or any other number.

    Raises:
        UserError: it is something else.
    """
    label = LABELS.get(str(value).lower())
    return as_number(value, column) if label is None else label


def as_number(value: Any, column: str) -> float:
    """A finite number, or a text that is one.

    Raises:
        UserError: it is neither.
    """
    is_number_text = isinstance(value, str) and NUMBER.fullmatch(value)
    if is_number_text or isinstance(value, int | float | Decimal):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise UserError(f"column {column!r} is {shown(value)}, not a finite number")


def as_scores(value: Any, column: str) -> Any:
    """A score, or a list of scores.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, list | tuple):
        return [as_score(score, f"{column}[{number}]") for number, score in enumerate(value)]
    return as_score(value, column)


def as_score(value: Any, column: str) -> float | dict[str, float | None]:
    """A number, or numbers by name (None where one is missing).

    Raises:
        UserError: it is something else.
    """
    if value == {}:
        raise UserError(f"column {column!r} is an object without ratings")
    if isinstance(value, Mapping):
        return {
            name: None if rating is None else as_number(rating, f"{column}.{name}") for name, rating in value.items()
        }
    return as_number(value, column)


def as_ranked_answers(value: Any, column: str) -> list[dict[str, Any]]:
    """Answers with their ranks, 1 the best, as in Nectar.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(answer, Mapping) for answer in value):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of answers with their ranks")
    return [
        {
            "answer": optional(as_text)(answer.get("answer"), f"{column}[{number}].answer"),
            "rank": as_number(answer.get("rank"), f"{column}[{number}].rank"),
        }
        for number, answer in enumerate(value)
    ]


def as_ids(value: Any, column: str) -> list[int]:
    """Token ids.

    Raises:
        UserError: it is no list of whole numbers from 0.
    """
    if not (isinstance(value, list) and all(type(token) is int and 0 <= token < MAX_TOKEN_ID for token in value)):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of token ids")
    return list(value)


def as_flag(value: Any, column: str) -> bool:
    """True or false, or 1 or 0.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, int) or value not in (0, 1):
        raise UserError(f"column {column!r} is {shown(value)}, not true or false")
    return bool(value)


def list_of(check: Check) -> Check:
    """The check of a list whose items pass `check` or are null."""

    def check_items(value: Any, column: str) -> Any:
        if not isinstance(value, list):
            raise UserError(f"column {column!r} is {shown(value)}, not a list")
        return [None if item is None else check(item, f"{column}[{number}]") for number, item in enumerate(value)]

    return check_items


def optional(check: Check) -> Check:
    """The same check where a value may be missing: null, or an empty CSV field where no text is read."""
    reads_text = check in (as_text, as_text_or_messages)
    return lambda value, column: None if value is None or (value == "" and not reads_text) else check(value, column)


def shown(value: Any) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN, a missing value"
    kinds: Mapping[type, str] = {
        list: "a list", dict: "an object", str: "the text", bool: "the value", int: "the number", float: "the number"
    }  # fmt: skip
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"{kind} of {value.bit_length()} bits"
    if isinstance(value, list | dict | bytes):
        return kind
    return f"{kind} {str(value)[:40]!r}" if isinstance(value, str) else f"{kind} {str(value)[:40]}"


PROMPT: Mapping[str, Check] = {
    "prompt": optional(as_text_or_messages), "prompt_ids": optional(as_ids), "vocabulary": optional(as_text),
}  # fmt: skip

COLUMNS: Mapping[str, Mapping[str, Check]] = {
    "preference": {
        **PROMPT,
        "chosen": optional(as_text_or_messages), "rejected": optional(as_text_or_messages),
        "chosen_rating": optional(as_number), "rejected_rating": optional(as_number),
        "chosen_ids": optional(as_ids), "rejected_ids": optional(as_ids),
        "chosen_finished": optional(as_flag), "rejected_finished": optional(as_flag),
    },
    "compared": {
        "prompt": optional(as_text_or_messages),
        "response_1": optional(as_text_or_messages), "response_2": optional(as_text_or_messages),
    },
    "transcripts": {"chosen": as_text, "rejected": as_text},
    "messages": {"messages": as_messages},
    "completion": {"prompt": optional(as_text_or_messages), "completion": optional(as_text_or_messages)},
    "labelled": {
        "prompt": optional(as_text_or_messages), "completion": optional(as_text_or_messages), "label": as_label,
    },
    "text": {"text": optional(as_text), "label": optional(as_label)},
    "prompts": PROMPT,
    "graded": {
        **PROMPT,
        "response": optional(as_text), "responses": as_texts, "scores": as_scores,
        "responses_ids": optional(list_of(as_ids)), "responses_finished": optional(list_of(as_flag)),
    },
    "answers": {"prompt": optional(as_text_or_messages), "answers": as_ranked_answers},
    "helpsteer": {"prompt": as_text, "response": optional(as_text), **dict.fromkeys(HELPSTEER, as_number)},
}  # fmt: skip
"""What each format reads, by column. `optional` where a text may be missing: the row is then dropped and counted. Other
columns of a row may hold anything."""


def checked(row: Row, name: str, paired: bool) -> dict[str, Any]:
    """The row with every value that format `name` reads checked; `paired`: its texts become pairs by their labels.

    Raises:
        UserError: a value does not fit its column; the column is named.
    """
    checks = dict(COLUMNS[name])
    if name == "text" and paired:
        checks["label"] = as_label
        row = {"label": None, **row}
    if name == "graded" and "responses" not in row:
        checks["scores"] = as_score
    return {**row, **{column: check(row[column], column) for column, check in checks.items() if column in row}}


# Formats ---------------------------------------------------------------------------------------------------------


def preference(row: Row) -> list[Tree]:
    """`prompt`, `chosen`, `rejected` (strings or messages); without `prompt`, the turns that both sides share."""
    chosen, rejected = ("" if row[name] is None else row[name] for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("columns 'chosen' and 'rejected' are of different kinds: one text, one messages")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise UserError("columns 'chosen' and 'rejected' are plain text without a 'prompt' column; add one")
        texts = chosen, rejected
    else:
        chosen_prompt, chosen_text = _split_last_turn(chosen, prompt)
        rejected_prompt, rejected_text = _split_last_turn(rejected, prompt)
        _check_same_prompt(chosen_prompt, rejected_prompt)
        prompt = [turn for message in chosen_prompt for turn in _unflattened(message)]
        texts = chosen_text, rejected_text
    ratings = row.get("chosen_rating"), row.get("rejected_rating")
    ids = [row.get("chosen_ids"), row.get("rejected_ids")]
    finished = [row.get("chosen_finished"), row.get("rejected_finished")]
    return [_with_sampled_ids(_pair(prompt, *texts, ratings), row, ids, finished)]


def compared(row: Row) -> list[Tree]:
    """`prompt`, `response_1`, `response_2` (strings or messages) and `winner`: 1, 2, or 0 for a tie, which is
    dropped.
    """
    winner = row["winner"]
    if winner is None:
        raise Dropped("without a winner")
    if winner == 0:
        raise Dropped(TIED)
    responses = row["response_1"], row["response_2"]
    chosen, rejected = responses if winner == 1 else responses[::-1]
    return preference({"prompt": row.get("prompt"), "chosen": chosen, "rejected": rejected})


def transcripts(row: Row) -> list[Tree]:
    """HH transcripts in `chosen` and `rejected`: the prompt is all up to and including the last `Assistant:`."""
    prompt, chosen = _split_transcript(row["chosen"], "chosen")
    rejected_prompt, rejected = _split_transcript(row["rejected"], "rejected")
    _check_same_prompt(prompt, rejected_prompt)
    return [_pair(prompt, chosen, rejected, (None, None))]


def graded(row: Row) -> list[Tree]:
    """`prompt` with one rated `response`, or with several `responses`. `scores` is one number, ratings by name, or a
    list with one of these a response.
    """
    responses, names = _rated_responses(row)
    tree = Tree(_require_prompt(row["prompt"]), responses, attributes=names)
    missing = [None] * len(tree.responses)
    ids, finished = row.get("responses_ids") or missing, row.get("responses_finished") or missing
    return [_with_sampled_ids(tree, row, ids, finished)]


def answers(row: Row) -> list[Tree]:
    """`prompt` and `answers`, each with its `answer` and its `rank`, 1 the best, as in Nectar."""
    responses = [replace(_response(item["answer"]), grades=(-item["rank"],)) for item in row["answers"]]
    return [Tree(_require_prompt(row["prompt"]), responses)]


def helpsteer(row: Row) -> list[Tree]:
    """Raw HelpSteer2 (Wang et al. 2024, arXiv:2406.08673): `prompt`, `response` and five attributes from 0 to 4."""
    response = replace(_response(row["response"]), grades=tuple(row[name] for name in HELPSTEER))
    return [Tree(spoken_turns(row["prompt"]), [response], attributes=HELPSTEER)]


def messages(row: Row, turns: str = "last") -> list[Tree]:
    """`messages`: a tree for the last assistant turn, or one for each, all in the group of the first one's prompt."""
    dialogue = row["messages"]
    places = [n for n, m in enumerate(dialogue) if m["role"] == "assistant" and n > 0]
    if not places:
        raise Dropped("no assistant turn")
    if turns == "last":
        return [Tree(dialogue[: places[-1]], [_response(dialogue[places[-1]]["content"])])]
    group = normalised(tuple(dialogue[: places[0]]))
    return [Tree(dialogue[:n], [_response(dialogue[n]["content"])], group) for n in places]


def transcript_turns(row: Row, turns: str = "last") -> list[Tree]:
    """The chosen side of an HH transcript for supervised fine-tuning: its last assistant turn, or each of them."""
    pieces = row["chosen"].split(TURN)
    if len(pieces) < 2:
        raise UserError(f"column 'chosen' has no {TURN.strip()!r} turn: {row['chosen'][:60]!r}")
    if turns == "last":
        return [Tree(TURN.join(pieces[:-1]) + TURN, [_response(pieces[-1])])]
    group = normalised(pieces[0])
    replies = [piece.partition("\n\nHuman:")[0] for piece in pieces]
    return [Tree(TURN.join(pieces[:n]) + TURN, [_response(replies[n])], group) for n in range(1, len(pieces))]


def completion(row: Row) -> list[Tree]:
    """`prompt` and `completion`."""
    prompt = _require_prompt(row["prompt"])
    answer = row["completion"]
    if isinstance(answer, list):
        answer = answer[-1]["content"] if answer else None
    return [Tree(prompt, [_response(answer)])]


def labelled(row: Row) -> list[Tree]:
    """`prompt` and `completion` with a `label`: true (1) desirable, false (0) not; the label is kept as the score."""
    if row["label"] not in (0, 1):
        raise UserError(f"column 'label' is {row['label']:g}; it is true (1) for a desirable response, else false (0)")
    (tree,) = completion(row)
    return [Tree(tree.prompt, [Response(tree.responses[0].text, score=row["label"])])]


def text(row: Row) -> list[Tree]:
    """`text` without a prompt. A `label` is kept as the score: 1 positive, 0 negative."""
    response = _response(row["text"])
    return [Tree("", [Response(response.text, score=row.get("label"))], group=response.text)]


def prompts(row: Row) -> list[Tree]:
    """`prompt` alone: a tree without responses. The ids that a policy sampled from are kept, where the row has them."""
    return [_with_sampled_ids(Tree(_require_prompt(row["prompt"])), row, (), ())]


FORMATS: dict[str, Reader] = {
    "preference": preference,
    "transcripts": transcripts,
    "messages": messages,
    "completion": completion,
    "labelled": labelled,
    "text": text,
    "prompts": prompts,
    "graded": graded,
    "helpsteer": helpsteer,
    "compared": compared,
    "answers": answers,
}


def detect(columns: Iterable[str], sample: Row, purpose: str) -> str:
    """The format that these columns mean for this purpose. For "prompts" a `prompt` column is enough.

    Raises:
        NoFormat: no format fits; the message lists the columns that are there and those that would do.
    """
    names = set(columns)
    if purpose == "prompts" and "prompt" in names:
        return "prompts"
    if set(HELPSTEER) | {"prompt", "response"} <= names:
        return "helpsteer"
    if purpose == "unpaired" and {"prompt", "completion", "label"} <= names:
        return "labelled"
    if {"prompt", "scores"} <= names and names & {"response", "responses"}:
        return "graded"
    if {"response_1", "response_2", "winner"} <= names:
        return "compared"
    if {"prompt", "answers"} <= names and isinstance(sample.get("answers"), list | tuple):
        return "answers"
    if {"chosen", "rejected"} <= names:
        chosen = sample.get("chosen")
        is_transcript = isinstance(chosen, str) and "prompt" not in names and TURN in chosen
        return "transcripts" if is_transcript else "preference"
    if "messages" in names:
        return "messages"
    if {"prompt", "completion"} <= names:
        return "completion"
    if "text" in names:
        return "text"
    raise NoFormat(
        f"the columns {', '.join(sorted(names))} fit no format; use prompt/chosen/rejected, chosen/rejected messages, "
        "messages, prompt/completion, prompt/response/scores, text/label, text or prompt, or say which column is what: "
        "--data.columns '{prompt: COLUMN, completion: COLUMN}'"
    )


def reader(name: str, purpose: str, turns: str) -> Reader:
    """The function that turns a row of format `name` into trees, after a check of the values that it reads.

    Raises:
        UserError: the format or the turns do not serve the purpose.
    """
    read = _reader(name, purpose, turns)
    paired = purpose in ("pairs", "ranked")
    return lambda row: read(checked(row, name, paired))


def _reader(name: str, purpose: str, turns: str) -> Reader:
    if turns == "all" and (purpose in (*PREFERENCE_PURPOSES, "prompts") or name not in ("messages", "transcripts")):
        raise UserError("data.turns is 'all'; that is for sft on messages or transcripts: use 'last'")
    if purpose == "prompts":
        return lambda row: [replace(tree, responses=()) for tree in _reader(name, "", "last")(row)]
    if purpose == "sft" and name == "transcripts":
        return lambda row: transcript_turns(row, turns)
    if purpose == "sft" and name in ("preference", "compared"):
        return lambda row: [replace(tree, responses=tree.responses[:1]) for tree in FORMATS[name](row)]
    if purpose == "sft" and name in ("graded", "answers"):
        return lambda row: [_best_response(tree) for tree in FORMATS[name](row)]
    if purpose == "sft" and name == "prompts":
        raise UserError("data.format 'prompts' has nothing to learn from; give prompt and completion, messages or text")
    if purpose == "unpaired" and name not in ("labelled", "text", "preference", "transcripts", "compared"):
        raise UserError(
            f"data.format {name!r} has no labels; give prompt, completion and label, text and label, or pairs"
        )
    if name == "labelled" and purpose in ("pairs", "ranked", "graded"):
        raise UserError("data.format 'labelled' has no pairs; train on single labelled responses with loss.kind kto")
    if purpose in PREFERENCE_PURPOSES and name in ("messages", "completion", "prompts"):
        raise UserError(
            f"data.format {name!r} has no pairs; give chosen and rejected, text and label, or a rating of each "
            "response: --data.columns '{scores: COLUMN}'"
        )
    if name == "messages":
        return lambda row: messages(row, turns)
    if name not in FORMATS:
        raise UserError(f"data.format is {name!r}; it may be {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


def spoken_turns(prompt: str) -> list[dict[str, str]]:
    """A flattened HelpSteer2 prompt as messages: `<extra_id_1>Assistant` and `<extra_id_1>User` lines begin turns."""
    opening, *rest = MARKER.split(prompt)
    turns = [("user", opening), *zip((name.lower() for name in rest[0::2]), rest[1::2], strict=True)]
    return [{"role": role, "content": content} for role, content in turns]


def rating_names(scores: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the ratings that are not null, sorted."""
    return tuple(sorted(name for name, value in scores.items() if value is not None))


def check_rating_names(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Refuse ratings whose names are not the expected ones.

    Raises:
        UserError: names are missing or extra.
    """
    if names == expected:
        return
    missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    faults = [f"{', '.join(some)} {what}" for what, some in (("missing", missing), ("extra", extra)) if some]
    raise UserError(
        f"column 'scores' rates {', '.join(names) or 'without names'}, and the rows before it rate "
        f"{', '.join(expected) or 'without names'} ({'; '.join(faults)}); every row needs the same names"
    )


def _pair(prompt: Any, chosen: str, rejected: str, ratings: tuple[float | None, float | None]) -> Tree:
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty response")
    if chosen == rejected:
        raise Dropped("identical pair")
    if not prompt:
        raise Dropped("empty prompt")
    return Tree(prompt, [Response(chosen, score=ratings[0]), Response(rejected, score=ratings[1])])


def _best_response(tree: Tree) -> Tree:
    """The tree with its best rated response alone."""
    return replace(tree, responses=(max(tree.responses, key=lambda response: sum(response.ratings)),))


def _with_sampled_ids(tree: Tree, row: Row, ids: Sequence[Any], finished: Sequence[Any]) -> Tree:
    """The tree with the ids that a policy sampled and whether each response ended, where the row has these."""
    responses = tuple(
        replace(response, ids=tuple(tokens or ()), finished=True if ended is None else bool(ended))
        for response, tokens, ended in zip(tree.responses, ids, finished, strict=True)
    )
    return replace(
        tree, responses=responses, prompt_ids=row.get("prompt_ids") or (), vocabulary=row.get("vocabulary") or ""
    )


def _check_same_prompt(chosen: object, rejected: object) -> None:
    if chosen != rejected:
        raise Dropped("prompts differ")


def _split_transcript(dialogue: str, column: str) -> tuple[str, str]:
    before, turn, answer = dialogue.rpartition(TURN)
    if not turn:
        raise UserError(f"column {column!r} has no {TURN.strip()!r} turn: {dialogue[:60]!r}")
    return before + turn, answer


def _split_last_turn(side: Any, prompt: Any) -> tuple[list[dict[str, str]], str]:
    """Prompt messages and the text of the last assistant turn."""
    if not side or side[-1]["role"] != "assistant":
        raise Dropped("no assistant turn at the end")
    before = side[:-1]
    if not before:
        if prompt is None:
            raise UserError("'chosen' is an assistant turn alone and there is no 'prompt' column; add one")
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return before, side[-1]["content"]


def _unflattened(message: Message) -> list[dict[str, str]]:
    return spoken_turns(message["content"]) if message["role"] == "user" else [dict(message)]


def _rated_responses(row: Row) -> tuple[list[Response], tuple[str, ...]]:
    """The responses with their ratings, and the ratings' names."""
    several = "responses" in row
    texts, scores = (row["responses"], row["scores"]) if several else ([row["response"]], [row["scores"]])
    if not isinstance(scores, list):
        raise UserError("column 'scores' is a single rating; beside responses it is a list")
    if len(texts) != len(scores):
        raise UserError(f"{len(texts)} responses but {len(scores)} scores")
    first = rating_names(scores[0]) if scores and isinstance(scores[0], Mapping) else ()
    responses = []
    for answer, score in zip(texts, scores, strict=True):
        names = rating_names(score) if isinstance(score, Mapping) else ()
        check_rating_names(names, first)
        grades = tuple(score[name] for name in names) if isinstance(score, Mapping) else (score,)
        responses.append(replace(_response(answer), grades=grades))
    return responses, first


def _require_prompt(prompt: Any) -> Any:
    if not prompt:
        raise Dropped("empty prompt")
    return prompt


def _response(answer: str | None) -> Response:
    if answer is None or not answer.strip():
        raise Dropped("empty response")
    return Response(answer)


# Purposes --------------------------------------------------------------------------------------------------------


def for_purpose(trees: Sequence[Tree], purpose: Purpose, dropped: Counter[str]) -> list[Tree]:
    """Rated trees joined by prompt and cut to the purpose; trees that cannot serve it are counted in `dropped`.

    "pairs": two responses, the better rated first; "ranked": all responses, best first; "graded": all that are rated,
    best first; "unpaired": single responses and pairs as they are.
    """
    if purpose == "unpaired":
        return list(trees)
    joined = join_by_prompt(trees)
    if purpose == "graded":
        rated = [tree for tree in joined if all(response.ratings for response in tree.responses)]
        if len(rated) < len(joined):
            dropped["without a rating"] += len(joined) - len(rated)
        return [with_responses(tree, sorted(tree.responses, key=_mean_rating, reverse=True)) for tree in rated]
    if purpose == "pairs":
        return [pair for tree in joined for pair in _pairs_of(tree, dropped)]
    return [ranked for tree in joined if (ranked := _ranked(tree, dropped))]


def join_by_prompt(trees: Sequence[Tree]) -> list[Tree]:
    """Single rated responses to one prompt as one tree; trees of two and more responses stay as they are.

    The joined tree keeps the subset and the row's columns that all its responses share.

    Raises:
        UserError: the responses to one prompt have different weights, or ratings of different names.
    """
    joined: dict[object, Tree] = {}
    for number, tree in enumerate(trees):
        key = (tree.group, str(tree.prompt)) if len(tree.responses) == 1 else number
        joined[key] = _join(joined[key], tree) if key in joined else tree
    return list(joined.values())


def _join(tree: Tree, addition: Tree) -> Tree:
    if tree.weight != addition.weight:
        raise UserError(
            f"column 'weight' is {tree.weight:g} and {addition.weight:g} for responses to {tree.group[:60]!r}, which "
            "are compared with each other; give them one weight"
        )
    if tree.attributes != addition.attributes:
        raise UserError(
            f"the responses to {tree.group[:60]!r} are rated by {', '.join(tree.attributes) or 'one number'} and by "
            f"{', '.join(addition.attributes) or 'one number'}; every row needs the same names"
        )
    return replace(
        tree,
        responses=(*tree.responses, *addition.responses),
        subset=tree.subset if tree.subset == addition.subset else "",
        row=_shared_columns(tree.row, addition.row),
    )


def _shared_columns(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The columns that have the same value in both rows."""
    if a is None or b is None:
        return None
    return {name: value for name, value in a.items() if name in b and b[name] == value}


def with_responses(tree: Tree, responses: Sequence[Response]) -> Tree:
    """The same tree with other responses."""
    return replace(tree, responses=tuple(responses))


def pair_labelled(trees: Sequence[Tree], seed: int) -> list[Tree]:
    """Positive texts against negative ones, each text in at most one pair; the order depends on the seed alone.

    A pair keeps the subset and the row's columns that both its texts share.

    Raises:
        UserError: a text has no label, a label is neither 0 nor 1, or a text has a weight of its own.
    """
    labels = {tree.responses[0].score for tree in trees}
    if not labels <= {0.0, 1.0}:
        raise UserError(
            f"column 'label' holds {sorted(map(str, labels))[:4]}; pairs need 1 (positive) and 0 (negative)"
        )
    weighted = sum(tree.weight != 1 for tree in trees)
    if weighted:
        raise UserError(
            f"column 'weight' weighs {weighted} single texts, but they are trained on in pairs; take the column out, "
            "or give pairs with weights"
        )
    positive, negative = (
        shuffled(((t.group, t) for t in trees if t.responses[0].score == label), seed, "pairing")
        for label in (1.0, 0.0)
    )
    return [
        Tree(
            "",
            [Response(a.responses[0].text), Response(b.responses[0].text)],
            group=joined_group(a.group, b.group),
            subset=a.subset if a.subset == b.subset else "",
            row=_shared_columns(a.row, b.row),
        )
        for a, b in zip(positive, negative, strict=False)
    ]


def _pairs_of(tree: Tree, dropped: Counter[str]) -> list[Tree]:
    if len(tree.responses) == 2 and not tree.responses[0].grades:
        return [tree]
    ranked = _ranked(tree, dropped)
    if ranked is None:
        return []
    pairs = combinations(ranked.responses, 2)
    return [with_responses(ranked, (a, b)) for a, b in pairs if _mean_rating(a) > _mean_rating(b)]


def _ranked(tree: Tree, dropped: Counter[str]) -> Tree | None:
    """The responses by their mean rating, best first; None where there is nothing to rank."""
    if any(not response.ratings for response in tree.responses):
        if len(tree.responses) == 2:
            return with_responses(tree, [replace(r, score=float(1 - n)) for n, r in enumerate(tree.responses)])
        dropped["without a rating"] += 1
        return None
    if len({_mean_rating(response) for response in tree.responses}) < 2:
        dropped[UNRANKED if len(tree.responses) > 1 else "one response alone"] += 1
        return None
    return with_responses(tree, sorted(tree.responses, key=_mean_rating, reverse=True))


def _mean_rating(response: Response) -> float:
    return sum(response.ratings) / len(response.ratings)
