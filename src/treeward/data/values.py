"""The values that a format reads from a row: texts, messages, numbers, token ids; anything else is refused by name.

A value is taken as it stands or refused: a number is never made a text, nor a list a quoted text. A text that is a
number (as every field of a CSV file) is read where a number belongs.
"""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from treeward.errors import UserError

Row = Mapping[str, Any]
Check = Callable[[Any, str], Any]
"""Takes a value and the name of its column, gives the value that the format reads, or raises ValueError."""

NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")
TOKENS = 1 << 31
"""Token ids lie below this."""

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}
"""ShareGPT's names of the speakers."""

LABELS = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0, "positive": 1.0, "negative": 0.0, "pos": 1.0, "neg": 0.0}
"""What a label may say, in any case; other numbers stand for themselves."""


def text(value: Any, column: str) -> str:
    """A text, or the texts of message parts in OpenAI's form, [{"type": "text", "text": ...}], one after another.

    Raises:
        UserError: it is something else, or a part holds something else, such as an image.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "role" not in part for part in value):
        return "".join(_part(part, column) for part in value)
    raise UserError(f"column {column!r} is {shown(value)}, not a text")


def _part(part: Row, column: str) -> str:
    said = part.get("text")
    if part.get("type") != "text" or not isinstance(said, str):
        raise UserError(f"column {column!r} has a part of type {part.get('type')!r}; only text is read")
    return said


def messages(value: Any, column: str) -> list[dict[str, str]]:
    """Chat messages as role and content, in OpenAI's form or ShareGPT's `from` and `value`; a single one is a list.

    Raises:
        UserError: it is no list of such messages, or a message holds more than text.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of messages")
    return [_message(each, f"{column}, message {place}") for place, each in enumerate(value, 1)]


def _message(value: Any, place: str) -> dict[str, str]:
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
    return rest | {"role": ROLES.get(role.lower(), role), "content": text(content, place)}


def spoken(value: Any, column: str) -> str | list[dict[str, str]]:
    """A text or messages.

    Raises:
        UserError: it is neither.
    """
    speakers = ("role", "from")
    spoken_by = isinstance(value, list | tuple) and any(
        isinstance(each, Mapping) and any(name in each for name in speakers) for each in value
    )
    alone = isinstance(value, Mapping)
    return messages(value, column) if spoken_by or alone or value == [] else text(value, column)


def texts(value: Any, column: str) -> list[str | None]:
    """A list of texts; a missing one is None.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, list | tuple):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of texts")
    return [None if each is None else text(each, f"{column}[{place}]") for place, each in enumerate(value)]


def label(value: Any, column: str) -> float:
    """A label: 1 or 0, also as a word of `LABELS`, or any other number.

    Raises:
        UserError: it is something else.
    """
    word = LABELS.get(str(value).lower())
    return number(value, column) if word is None else word


def number(value: Any, column: str) -> float:
    """A finite number, or a text that is one.

    Raises:
        UserError: it is neither.
    """
    written = isinstance(value, str) and NUMBER.fullmatch(value)
    if written or isinstance(value, int | float | Decimal):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found):
            return found
    raise UserError(f"column {column!r} is {shown(value)}, not a finite number")


def scores(value: Any, column: str) -> Any:
    """A score, or a list of scores.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, list | tuple):
        return [score(each, f"{column}[{place}]") for place, each in enumerate(value)]
    return score(value, column)


def score(value: Any, column: str) -> float | dict[str, float | None]:
    """A number, or numbers by name (None where one is missing).

    Raises:
        UserError: it is something else.
    """
    if value == {}:
        raise UserError(f"column {column!r} is an object without ratings")
    if isinstance(value, Mapping):
        return {name: None if each is None else number(each, f"{column}.{name}") for name, each in value.items()}
    return number(value, column)


def ranked(value: Any, column: str) -> list[dict[str, Any]]:
    """Answers with their ranks, 1 the best, as in Nectar.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise UserError(f"column {column!r} is {shown(value)}, not a list of answers with their ranks")
    return [
        {"answer": optional(text)(each.get("answer"), f"{column}[{place}].answer"),
         "rank": number(each.get("rank"), f"{column}[{place}].rank")}
        for place, each in enumerate(value)
    ]  # fmt: skip


def ids(value: Any, column: str) -> list[int]:
    """Token ids.

    Raises:
        UserError: it is no list of whole numbers from 0.
    """
    sound = isinstance(value, list) and all(type(each) is int and 0 <= each < TOKENS for each in value)
    if not sound:
        raise UserError(f"column {column!r} is {shown(value)}, not a list of token ids")
    return list(value)


def flag(value: Any, column: str) -> bool:
    """True or false, or 1 or 0.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, int) or value not in (0, 1):
        raise UserError(f"column {column!r} is {shown(value)}, not true or false")
    return bool(value)


def listed(check: Check) -> Check:
    """A list whose items pass a check; null items stay."""

    def each(value: Any, column: str) -> Any:
        if not isinstance(value, list):
            raise UserError(f"column {column!r} is {shown(value)}, not a list")
        return [None if item is None else check(item, f"{column}[{place}]") for place, item in enumerate(value)]

    return each


def optional(check: Check) -> Check:
    """The same check where a value may be missing: null, or an empty CSV field where no text is read."""
    textual = check in (text, spoken)
    return lambda value, column: None if value is None or (value == "" and not textual) else check(value, column)


def shown(value: Any) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN, a missing value"
    kinds: Mapping[type, str] = {list: "a list", dict: "an object", str: "the text", bool: "the value",
                                 int: "the number", float: "the number"}  # fmt: skip
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"{kind} of {value.bit_length()} bits"
    return kind if isinstance(value, list | dict | bytes) else f"{kind} {str(value)[:40]!r}" if isinstance(
        value, str) else f"{kind} {str(value)[:40]}"  # fmt: skip


RATED: Mapping[str, Check] = {"chosen_rating": optional(number), "rejected_rating": optional(number)}
PROMPT: Mapping[str, Check] = {"prompt": optional(spoken), "prompt_ids": optional(ids), "vocabulary": optional(text)}
SAMPLED_PAIR: Mapping[str, Check] = {
    "chosen_ids": optional(ids), "rejected_ids": optional(ids),
    "chosen_finished": optional(flag), "rejected_finished": optional(flag),
}  # fmt: skip

COLUMNS: Mapping[str, Mapping[str, Check]] = {
    "preference": {**PROMPT, "chosen": optional(spoken), "rejected": optional(spoken), **RATED, **SAMPLED_PAIR},
    "compared": {"prompt": optional(spoken), "response_1": optional(spoken), "response_2": optional(spoken)},
    "transcripts": {"chosen": text, "rejected": text},
    "messages": {"messages": messages},
    "completion": {"prompt": optional(spoken), "completion": optional(spoken)},
    "labelled": {"prompt": optional(spoken), "completion": optional(spoken), "label": label},
    "text": {"text": optional(text), "label": optional(label)},
    "prompts": {"prompt": optional(spoken)},
    "graded": {**PROMPT, "response": optional(text), "responses": texts, "scores": scores,
               "responses_ids": optional(listed(ids)), "responses_finished": optional(listed(flag))},
    "answers": {"prompt": optional(spoken), "answers": ranked},
    "helpsteer": {"prompt": text, "response": optional(text), "helpfulness": number, "correctness": number,
                  "coherence": number, "complexity": number, "verbosity": number},
}  # fmt: skip
"""What each format reads, by column; null where a text may be missing: the row is then dropped and counted. Other
columns of a row may hold anything."""


def checked(row: Row, name: str, paired: bool) -> dict[str, Any]:
    """The row with every value that format `name` reads checked; `paired`: its texts become pairs by their labels.

    Raises:
        UserError: a value is not what its column holds; the column is named.
    """
    checks = dict(COLUMNS[name])
    if name == "text" and paired:
        checks["label"] = label
        row = {"label": None, **row}
    if name == "graded" and "responses" not in row:
        checks["scores"] = score
    return {**row, **{column: check(row[column], column) for column, check in checks.items() if column in row}}
