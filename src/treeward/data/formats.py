"""Rows to trees: one function a format, and one that tells the formats apart by their columns.

A format function takes a row and returns its trees; a row that holds no usable tree raises `Dropped` with a reason
that is counted. A row that cannot be understood raises ValueError: that is an error for the user, not a count.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from treeward.data import values
from treeward.errors import UserError
from treeward.trees.text import Message, Response, Tree, normalised

Row = Mapping[str, Any]

TURN = "\n\nAssistant:"
"""Where an assistant's turn begins in an HH transcript (Bai et al. 2022, arXiv:2204.05862)."""


HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""HelpSteer2's attributes, in its order."""

MARKER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""Where a speaker's turn begins in HelpSteer2's flattened prompts."""

TIED = "tie"
"""Why a row whose winner is neither of its outputs is dropped."""

JUDGED = ("pairs", "ranked", "graded", "unpaired")
"""The purposes that need judged responses: two sides, ranked branches, ratings, labels."""

Reader = Callable[[Row], list[Tree]]


class Dropped(Exception):
    """This row holds no usable tree; the argument is the reason under which it is counted."""


def preference(row: Row) -> list[Tree]:
    """`prompt`, `chosen`, `rejected` (strings or messages), the prompt explicit or the shared turns of both sides."""
    chosen, rejected = ("" if row[name] is None else row[name] for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("columns 'chosen' and 'rejected' are of different kinds: one text, one messages")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise UserError("columns 'chosen' and 'rejected' are plain text without a 'prompt' column; add one")
        answers = chosen, rejected
    else:
        before, better = _last_turn(chosen, prompt)
        other, worse = _last_turn(rejected, prompt)
        _same_prompt(before, other)
        prompt = [turn for each in before for turn in _unflattened(each)]
        answers = better, worse
    ratings = row.get("chosen_rating"), row.get("rejected_rating")
    return [_sampled(_pair(prompt, *answers, ratings), row, [row.get("chosen_ids"), row.get("rejected_ids")],
                     [row.get("chosen_finished"), row.get("rejected_finished")])]  # fmt: skip


def compared(row: Row) -> list[Tree]:
    """`prompt`, `response_1`, `response_2` (strings or messages) and `winner`: 1, 2, or 0 for a tie, which is
    dropped.
    """
    winner = row["winner"]
    if winner is None:
        raise Dropped("without a winner")
    if winner == 0:
        raise Dropped(TIED)
    sides = row["response_1"], row["response_2"]
    chosen, rejected = sides if winner == 1 else sides[::-1]
    return preference({"prompt": row.get("prompt"), "chosen": chosen, "rejected": rejected})


def transcripts(row: Row) -> list[Tree]:
    """HH transcripts in `chosen` and `rejected`: the prompt is all up to and including the last `Assistant:`."""
    prompt, chosen = _split_transcript(row["chosen"], "chosen")
    other, rejected = _split_transcript(row["rejected"], "rejected")
    _same_prompt(prompt, other)
    return [_pair(prompt, chosen, rejected, (None, None))]


def graded(row: Row) -> list[Tree]:
    """`prompt` with one graded `response`, or graded `responses`; grades in `scores`: a number, attributes by name, or
    one such value a response.
    """
    responses, names = _graded_responses(row)
    tree = Tree(_given(row["prompt"]), responses, attributes=names)
    nothing = [None] * len(tree.responses)
    return [_sampled(tree, row, row.get("responses_ids") or nothing, row.get("responses_finished") or nothing)]


def answers(row: Row) -> list[Tree]:
    """`prompt` and `answers`, each with its `answer` and its `rank`, 1 the best, as in Nectar."""
    responses = [replace(_filled(each["answer"]), grades=(-each["rank"],)) for each in row["answers"]]
    return [Tree(_given(row["prompt"]), responses)]


def helpsteer(row: Row) -> list[Tree]:
    """Raw HelpSteer2 (Wang et al. 2024, arXiv:2406.08673): `prompt`, `response` and five attributes from 0 to 4."""
    response = replace(_filled(row["response"]), grades=tuple(row[name] for name in HELPSTEER))
    return [Tree(spoken_turns(row["prompt"]), [response], attributes=HELPSTEER)]


def messages(row: Row, turns: str = "last") -> list[Tree]:
    """`messages`: one tree for the last assistant turn, or one an assistant turn, all in the group of their opening."""
    dialogue = row["messages"]
    places = [n for n, m in enumerate(dialogue) if m["role"] == "assistant" and n > 0]
    if not places:
        raise Dropped("no assistant turn")
    if turns == "last":
        return [Tree(dialogue[: places[-1]], [_filled(dialogue[places[-1]]["content"])])]
    group = normalised(tuple(dialogue[: places[0]]))
    return [Tree(dialogue[:n], [_filled(dialogue[n]["content"])], group) for n in places]


def transcript_turns(row: Row, turns: str = "last") -> list[Tree]:
    """The chosen side of an HH transcript for supervised fine-tuning: its last assistant turn, or each of them."""
    pieces = row["chosen"].split(TURN)
    if len(pieces) < 2:
        raise UserError(f"column 'chosen' has no {TURN.strip()!r} turn: {row['chosen'][:60]!r}")
    if turns == "last":
        return [Tree(TURN.join(pieces[:-1]) + TURN, [_filled(pieces[-1])])]
    group = normalised(pieces[0])
    replies = [piece.partition("\n\nHuman:")[0] for piece in pieces]
    return [Tree(TURN.join(pieces[:n]) + TURN, [_filled(replies[n])], group) for n in range(1, len(pieces))]


def completion(row: Row) -> list[Tree]:
    """`prompt` and `completion`."""
    prompt = _given(row["prompt"])
    answer = row["completion"]
    if isinstance(answer, list):
        answer = answer[-1]["content"] if answer else None
    return [Tree(prompt, [_filled(answer)])]


def labelled(row: Row) -> list[Tree]:
    """`prompt` and `completion` with a `label`: true (1) desirable, false (0) not, kept as the score."""
    if row["label"] not in (0, 1):
        raise UserError(f"column 'label' is {row['label']:g}; it is true (1) for a desirable response, else false (0)")
    (tree,) = completion(row)
    return [Tree(tree.prompt, [Response(tree.responses[0].text, score=row["label"])])]


def text(row: Row) -> list[Tree]:
    """`text` alone (prompt: none), or with a `label`, kept as the score: 1 positive, 0 negative."""
    response = _filled(row["text"])
    return [Tree("", [Response(response.text, score=row.get("label"))], group=response.text)]


def prompts(row: Row) -> list[Tree]:
    """`prompt` alone: a tree without branches."""
    return [Tree(_given(row["prompt"]))]


def detect(columns: Iterable[str], sample: Row, purpose: str) -> str:
    """The format that these columns mean for this purpose ("pairs", "sft" or "prompts").

    Raises:
        UserError: no known format fits; the message lists the columns found and those that would do.
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
    if {"response_1", "response_2", "winner"} <= have:
        return "compared"
    if {"prompt", "answers"} <= have and isinstance(sample.get("answers"), list | tuple):
        return "answers"
    if {"chosen", "rejected"} <= have:
        chosen = sample.get("chosen")
        hh = isinstance(chosen, str) and "prompt" not in have and TURN in chosen
        return "transcripts" if hh else "preference"
    for wanted, name in (({"messages"}, "messages"), ({"prompt", "completion"}, "completion"), ({"text"}, "text")):
        if wanted <= have:
            return name
    raise UserError(
        f"the columns {', '.join(sorted(have))} fit no format; use prompt/chosen/rejected, chosen/rejected messages, "
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
    return lambda row: read(values.checked(row, name, paired))


def _reader(name: str, purpose: str, turns: str) -> Reader:
    if turns == "all" and (purpose in (*JUDGED, "prompts") or name not in ("messages", "transcripts")):
        raise UserError("data.turns is 'all'; that is for sft on messages or transcripts: use 'last'")
    if purpose == "prompts":
        return lambda row: [replace(tree, responses=()) for tree in _reader(name, "", "last")(row)]
    if purpose == "sft" and name == "transcripts":
        return lambda row: transcript_turns(row, turns)
    if purpose == "sft" and name in ("preference", "compared"):
        return lambda row: [replace(tree, responses=tree.responses[:1]) for tree in FORMATS[name](row)]
    if purpose == "sft" and name in ("graded", "answers"):
        return lambda row: [_best(tree) for tree in FORMATS[name](row)]
    if purpose == "sft" and name == "prompts":
        raise UserError("data.format 'prompts' has nothing to learn from; give prompt and completion, messages or text")
    if purpose == "unpaired" and name not in ("labelled", "text", "preference", "transcripts", "compared"):
        raise UserError(
            f"data.format {name!r} has no labels; give prompt, completion and label, text and label, or pairs"
        )
    if name == "labelled" and purpose in ("pairs", "ranked", "graded"):
        raise UserError("data.format 'labelled' has no pairs; train on single labelled responses with loss.kind kto")
    if purpose in JUDGED and name in ("messages", "completion", "prompts"):
        raise UserError(
            f"data.format {name!r} has no pairs; give chosen and rejected, text and label, or a rating of each "
            "response: --data.columns '{scores: COLUMN}'"
        )
    if name == "messages":
        return lambda row: messages(row, turns)
    try:
        return FORMATS[name]
    except KeyError:
        raise UserError(f"data.format is {name!r}; it may be {', '.join(sorted(FORMATS))}") from None


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


def spoken_turns(prompt: str) -> list[dict[str, str]]:
    """A flattened HelpSteer2 prompt as messages: `<extra_id_1>Assistant` and `<extra_id_1>User` lines begin turns."""
    opening, *rest = MARKER.split(prompt)
    turns = [("user", opening), *zip((name.lower() for name in rest[0::2]), rest[1::2], strict=True)]
    return [{"role": role, "content": content} for role, content in turns]


def rating_names(scores: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of ratings, sorted; a rating that is missing has none."""
    return tuple(sorted(name for name, value in scores.items() if value is not None))


def _pair(prompt: Any, chosen: str, rejected: str, ratings: tuple[float | None, float | None]) -> Tree:
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty response")
    if chosen == rejected:
        raise Dropped("identical pair")
    if not prompt:
        raise Dropped("empty prompt")
    return Tree(prompt, [Response(chosen, score=ratings[0]), Response(rejected, score=ratings[1])])


def _best(tree: Tree) -> Tree:
    """The tree with its best rated response alone."""
    return replace(tree, responses=(max(tree.responses, key=lambda response: sum(response.ratings)),))


def _sampled(tree: Tree, row: Row, ids: Sequence[Any], finished: Sequence[Any]) -> Tree:
    """The tree with the ids that a policy sampled and whether each response ended, where the row says so."""
    responses = tuple(
        replace(each, ids=tuple(tokens or ()), finished=True if ended is None else bool(ended))
        for each, tokens, ended in zip(tree.responses, ids, finished, strict=True)
    )
    return replace(
        tree, responses=responses, prompt_ids=row.get("prompt_ids") or (), vocabulary=row.get("vocabulary") or ""
    )


def _same_prompt(prompt: object, other: object) -> None:
    if prompt != other:
        raise Dropped("prompts differ")


def _split_transcript(dialogue: str, column: str) -> tuple[str, str]:
    before, turn, answer = dialogue.rpartition(TURN)
    if not turn:
        raise UserError(f"column {column!r} has no {TURN.strip()!r} turn: {dialogue[:60]!r}")
    return before + turn, answer


def _last_turn(side: Any, prompt: Any) -> tuple[list[dict[str, str]], str]:
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


def _graded_responses(row: Row) -> tuple[list[Response], tuple[str, ...]]:
    """The responses with their ratings, and the ratings' names."""
    several = "responses" in row
    texts, scores = (row["responses"], row["scores"]) if several else ([row["response"]], [row["scores"]])
    if not isinstance(scores, list):
        raise UserError("column 'scores' is a single rating; beside responses it is a list")
    if len(texts) != len(scores):
        raise UserError(f"{len(texts)} responses but {len(scores)} scores")
    responses, names = [], [rating_names(score) if isinstance(score, Mapping) else () for score in scores]
    for answer, score, own in zip(texts, scores, names, strict=True):
        check_rating_names(own, names[0])
        grades = tuple(score[name] for name in own) if isinstance(score, Mapping) else (score,)
        responses.append(replace(_filled(answer), grades=grades))
    return responses, names[0] if names else ()


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


def _given(prompt: Any) -> Any:
    """A prompt that is not empty."""
    if not prompt:
        raise Dropped("empty prompt")
    return prompt


def _filled(answer: str | None) -> Response:
    """A response; a missing or empty one is dropped."""
    if answer is None or not answer.strip():
        raise Dropped("empty response")
    return Response(answer)
