"""Rows to trees: one function a format, and one that tells the formats apart by their columns.

A format function takes a row and returns its trees; a row that holds no usable tree raises `Dropped` with a reason
that is counted. A row that cannot be understood raises ValueError: that is an error for the user, not a count.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from treeward.data import values
from treeward.trees.text import Message, Response, Tree, normalised

Row = Mapping[str, Any]

TURN = "\n\nAssistant:"
"""Where an assistant's turn begins in an HH transcript (Bai et al. 2022, arXiv:2204.05862)."""


HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""HelpSteer2's attributes, in its order."""

MARKER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""Where a speaker's turn begins in HelpSteer2's flattened prompts."""

JUDGED = ("pairs", "ranked", "graded", "unpaired")
"""The purposes that need judged responses: two sides, ranked branches, ratings, labels."""

Reader = Callable[[Row], list[Tree]]


class Dropped(Exception):
    """This row holds no usable tree; the argument is the reason under which it is counted."""


def preference(row: Row) -> list[Tree]:
    """`prompt`, `chosen`, `rejected` (strings or messages), the prompt explicit or the shared turns of both sides."""
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        raise ValueError("columns 'chosen' and 'rejected' are of different kinds: one text, one messages")
    if isinstance(row["chosen"], str):
        if row.get("prompt") is None:
            raise ValueError("columns 'chosen' and 'rejected' are plain text without a 'prompt' column; add one")
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    else:
        prompt, chosen = _last_turn(row["chosen"], row.get("prompt"))
        other, rejected = _last_turn(row["rejected"], row.get("prompt"))
        _same_prompt(prompt, other)
        prompt = [turn for spoken in prompt for turn in _unflattened(spoken)]
    ratings = row.get("chosen_rating"), row.get("rejected_rating")
    return [_sampled(_pair(prompt, chosen, rejected, ratings), row, [row.get("chosen_ids"), row.get("rejected_ids")],
                     [row.get("chosen_finished"), row.get("rejected_finished")])]  # fmt: skip


def transcripts(row: Row) -> list[Tree]:
    """HH transcripts in `chosen` and `rejected`: the prompt is all up to and including the last `Assistant:`."""
    prompt, chosen = _split_transcript(row["chosen"], "chosen")
    other, rejected = _split_transcript(row["rejected"], "rejected")
    _same_prompt(prompt, other)
    return [_pair(prompt, chosen, rejected, (None, None))]


def graded(row: Row) -> list[Tree]:
    """`prompt` with one graded `response`, or graded `responses`; grades in `scores`: a number, attributes by name
    (in the order of their names), or one such value a response.
    """
    tree = Tree(row["prompt"], _graded_responses(row))
    nothing = [None] * len(tree.responses)
    return [_sampled(tree, row, row.get("responses_ids") or nothing, row.get("responses_finished") or nothing)]


def helpsteer(row: Row) -> list[Tree]:
    """Raw HelpSteer2 (Wang et al. 2024, arXiv:2406.08673): `prompt`, `response` and five attributes from 0 to 4."""
    grades = tuple(float(row[name]) for name in HELPSTEER)
    return [Tree(spoken_turns(row["prompt"]), [Response(_filled(row["response"]).text, grades=grades)])]


def messages(row: Row, turns: str = "last") -> list[Tree]:
    """`messages`: one tree for the last assistant turn, or one an assistant turn, all in the group of their opening."""
    spoken = row["messages"]
    places = [n for n, m in enumerate(spoken) if m["role"] == "assistant" and n > 0]
    if not places:
        raise Dropped("no assistant turn")
    if turns == "last":
        return [Tree(spoken[: places[-1]], [_filled(spoken[places[-1]]["content"])])]
    group = normalised(tuple(spoken[: places[0]]))
    return [Tree(spoken[:n], [_filled(spoken[n]["content"])], group) for n in places]


def transcript_turns(row: Row, turns: str = "last") -> list[Tree]:
    """The chosen side of an HH transcript for supervised fine-tuning: its last assistant turn, or each of them."""
    pieces = row["chosen"].split(TURN)
    if len(pieces) < 2:
        raise ValueError(f"column 'chosen' has no {TURN.strip()!r} turn: {row['chosen'][:60]!r}")
    if turns == "last":
        return [Tree(TURN.join(pieces[:-1]) + TURN, [_filled(pieces[-1])])]
    group = normalised(pieces[0])
    answers = [piece.partition("\n\nHuman:")[0] for piece in pieces]
    return [Tree(TURN.join(pieces[:n]) + TURN, [_filled(answers[n])], group) for n in range(1, len(pieces))]


def completion(row: Row) -> list[Tree]:
    """`prompt` and `completion`."""
    prompt = row["prompt"]
    if not prompt:
        raise Dropped("empty prompt")
    answer = row["completion"]
    if not isinstance(answer, str):
        answer = answer[-1]["content"] if answer else ""
    return [Tree(prompt, [_filled(answer)])]


def labelled(row: Row) -> list[Tree]:
    """`prompt` and `completion` with a `label`: true (1) desirable, false (0) not, kept as the score."""
    if row["label"] not in (0, 1):
        raise ValueError(f"column 'label' is {row['label']!r}; it is true (1) for a desirable response, else false (0)")
    (tree,) = completion(row)
    return [Tree(tree.prompt, [Response(tree.responses[0].text, score=float(row["label"]))])]


def text(row: Row) -> list[Tree]:
    """`text` alone (prompt: none), or with a `label`, kept as the score: 1 positive, 0 negative."""
    label = row.get("label")
    response = _filled(row["text"])
    return [Tree("", [Response(response.text, score=None if label is None else float(label))], group=row["text"])]


def prompts(row: Row) -> list[Tree]:
    """`prompt` alone: a tree without branches."""
    return [Tree(row["prompt"])]


def detect(columns: Iterable[str], sample: Row, purpose: str) -> str:
    """The format that these columns mean for this purpose ("pairs", "sft" or "prompts").

    Raises:
        ValueError: no known format fits; the message lists the columns found and those that would do.
    """
    have = set(columns)
    if purpose == "prompts" and "prompt" in have:
        return "prompts"
    if set(HELPSTEER) | {"prompt", "response"} <= have:
        return "helpsteer"
    if purpose == "unpaired" and {"prompt", "completion", "label"} <= have:
        return "labelled"
    if {"prompt", "scores"} <= have and have & {"response", "responses"}:
        return "graded"
    if {"chosen", "rejected"} <= have:
        hh = isinstance(sample["chosen"], str) and "prompt" not in have and TURN in sample["chosen"]
        return "transcripts" if hh else "preference"
    for wanted, name in (({"messages"}, "messages"), ({"prompt", "completion"}, "completion"), ({"text"}, "text")):
        if wanted <= have:
            return name
    raise ValueError(
        f"the columns {', '.join(sorted(have))} fit no format; use prompt/chosen/rejected, chosen/rejected messages, "
        "messages, prompt/completion, text/label, text or prompt, or rename with data.columns"
    )


def reader(name: str, purpose: str, turns: str) -> Reader:
    """The function that turns a row of format `name` into trees, after a check of the values that it reads.

    Raises:
        ValueError: the format or the turns do not serve the purpose.
    """
    read = _reader(name, purpose, turns)
    paired = purpose in ("pairs", "ranked")
    return lambda row: read(values.checked(row, name, paired))


def _reader(name: str, purpose: str, turns: str) -> Reader:
    if turns == "all" and (purpose in (*JUDGED, "prompts") or name not in ("messages", "transcripts")):
        raise ValueError("data.turns is 'all'; that is for sft on messages or transcripts: use 'last'")
    if purpose == "prompts":
        return lambda row: [replace(tree, responses=()) for tree in _reader(name, "", "last")(row)]
    if purpose == "sft" and name == "transcripts":
        return lambda row: transcript_turns(row, turns)
    if purpose == "sft" and name == "preference":
        return lambda row: [replace(tree, responses=tree.responses[:1]) for tree in preference(row)]
    if purpose == "sft" and name == "prompts":
        raise ValueError(
            "data.format 'prompts' has nothing to learn from; give prompt and completion, messages or text"
        )
    if purpose == "unpaired" and name not in ("labelled", "text", "preference", "transcripts"):
        raise ValueError(
            f"data.format {name!r} has no labels; give prompt, completion and label, text and label, or pairs"
        )
    if name == "labelled" and purpose in ("pairs", "ranked", "graded"):
        raise ValueError("data.format 'labelled' has no pairs; train on single labelled responses with loss.kind kto")
    if purpose in JUDGED and name in ("messages", "completion", "prompts"):
        raise ValueError(f"data.format {name!r} has no pairs; give chosen and rejected, or text and label")
    if name == "messages":
        return lambda row: messages(row, turns)
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"data.format is {name!r}; it may be {', '.join(sorted(FORMATS))}") from None


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
}


def spoken_turns(prompt: str) -> list[dict[str, str]]:
    """A flattened HelpSteer2 prompt as messages: `<extra_id_1>Assistant` and `<extra_id_1>User` lines begin turns."""
    opening, *rest = MARKER.split(prompt)
    turns = [("user", opening), *zip((name.lower() for name in rest[0::2]), rest[1::2], strict=True)]
    return [{"role": role, "content": content} for role, content in turns]


def _pair(prompt: Any, chosen: str, rejected: str, ratings: tuple[Any, Any]) -> Tree:
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty response")
    if chosen == rejected:
        raise Dropped("identical pair")
    if not prompt:
        raise Dropped("empty prompt")
    scores = [None if rating is None else float(rating) for rating in ratings]
    return Tree(prompt, [Response(chosen, score=scores[0]), Response(rejected, score=scores[1])])


def _sampled(tree: Tree, row: Row, ids: Sequence[Any], finished: Sequence[Any]) -> Tree:
    """The tree with the ids that a policy sampled and whether each response ended, where the row says so."""
    responses = tuple(
        replace(each, ids=tuple(tokens or ()), finished=True if ended is None else bool(ended))
        for each, tokens, ended in zip(tree.responses, ids, finished, strict=True)
    )
    return replace(
        tree, responses=responses, prompt_ids=row.get("prompt_ids") or (), vocabulary=row.get("vocabulary") or ""
    )


def _filled(answer: str) -> Response:
    if not answer.strip():
        raise Dropped("empty response")
    return Response(answer)


def _same_prompt(prompt: object, other: object) -> None:
    if prompt != other:
        raise Dropped("prompts differ")


def _split_transcript(dialogue: str, column: str) -> tuple[str, str]:
    before, turn, answer = dialogue.rpartition(TURN)
    if not turn:
        raise ValueError(f"column {column!r} has no {TURN.strip()!r} turn: {dialogue[:60]!r}")
    return before + turn, answer


def _last_turn(spoken: Sequence[Message], prompt: Any) -> tuple[list[dict[str, str]], str]:
    """Prompt messages and the text of the last assistant turn."""
    if not spoken or spoken[-1]["role"] != "assistant":
        raise Dropped("no assistant turn at the end")
    before = [dict(m) for m in spoken[:-1]]
    if not before:
        if prompt is None:
            raise ValueError("'chosen' is an assistant turn alone and there is no 'prompt' column; add one")
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    return before, spoken[-1]["content"]


def _unflattened(message: Message) -> list[dict[str, str]]:
    return spoken_turns(message["content"]) if message["role"] == "user" else [dict(message)]


def _graded_responses(row: Row) -> list[Response]:
    texts = row["responses"] if "responses" in row else [row["response"]]
    scores = row["scores"] if "responses" in row else [row["scores"]]
    if len(texts) != len(scores):
        raise ValueError(f"{len(texts)} responses but {len(scores)} scores")
    found = []
    for answer, score in zip(texts, scores, strict=True):
        grades = tuple(float(score[name]) for name in sorted(score)) if isinstance(score, Mapping) else (float(score),)
        found.append(Response(_filled(answer).text, grades=grades))
    return found
