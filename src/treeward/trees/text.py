"""Text: a prompt with its responses.

A `Tree` is frozen and survives JSON. What a prompt's text becomes as ids is decided in one place, `data.render`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from treeward.errors import UserError

Message = Mapping[str, str]
"""A chat turn: {"role": ..., "content": ...}."""

Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Response:
    """One branch: its text, and what is known of it.

    `finished` False means that no end token is added or scored (the text was cut). `score` is a scorer's or rater's
    number on any scale, higher is better; `grades` are a rater's numbers by attribute, where there are several. `ids`
    are the tokens that a policy sampled, end token included, in the vocabulary that its tree names.
    """

    text: str
    finished: bool = True
    score: float | None = None
    grades: tuple[float, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def ratings(self) -> tuple[float, ...]:
        """The grades, else the score alone, else nothing."""
        return self.grades or (() if self.score is None else (self.score,))


@dataclass(frozen=True)
class Tree:
    """A prompt (text as it stands, or messages for the chat template) and its responses; plain strings will do.

    For a pair the first response is the chosen one, the second the rejected. `group` is the unit of splitting and of
    every interval: the normalised prompt unless given. An empty prompt is allowed only with a group of its own.
    `subset` names a part of the data that is reported apart; `weight` is what the tree counts for in training, and
    `margin` what a loss of pairs asks for beyond 0, instead of the run's. Of a sampled tree `prompt_ids` are what
    sampling began from, and `vocabulary` is the hash of the tokens its ids mean. `attributes` are the names of the
    responses' grades, in their order, where they have names. `row` holds the other columns of the data row, so that a
    scorer can check a response against them.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    group: str = ""
    subset: str = ""
    weight: float = 1.0
    margin: float | None = None
    prompt_ids: tuple[int, ...] = ()
    vocabulary: str = ""
    attributes: tuple[str, ...] = ()
    row: Mapping[str, Any] | None = None

    def __init__(
        self, prompt: str | Sequence[Message], responses: Sequence[Response | str] = (), group: str | None = None,
        subset: str = "", weight: float = 1.0, margin: float | None = None, prompt_ids: Sequence[int] = (),
        vocabulary: str = "", attributes: Sequence[str] = (), row: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        fixed: Prompt = prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)
        if not fixed and group is None:
            raise UserError("prompt is empty; give a prompt, or a group where the format has no prompts")
        object.__setattr__(self, "prompt", fixed)
        object.__setattr__(self, "responses", tuple(Response(r) if isinstance(r, str) else r for r in responses))
        object.__setattr__(self, "group", normalised(fixed) if group is None else group)
        object.__setattr__(self, "subset", subset)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "margin", margin)
        object.__setattr__(self, "prompt_ids", tuple(prompt_ids))
        object.__setattr__(self, "vocabulary", vocabulary)
        object.__setattr__(self, "attributes", tuple(attributes))
        object.__setattr__(self, "row", row)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def to_json(self) -> str:
        """One line of JSON; `Tree.from_json` gives an equal tree back. A value of `row` that JSON does not know, such
        as a date, becomes its text.
        """
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, default=str)

    @classmethod
    def from_json(cls, line: str) -> "Tree":
        """The tree that `to_json` wrote."""
        row: dict[str, Any] = json.loads(line)
        for each in row["responses"]:
            each |= {name: tuple(each.get(name, ())) for name in ("grades", "ids")}
        row["responses"] = [Response(**each) for each in row["responses"]]
        return cls(**row)


def normalised(prompt: Prompt) -> str:
    """The prompt as a group name: roles and words in lower case, white space folded."""
    text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return " ".join(text.lower().split())


BESIDE = " \x1f "
"""Between the two group names of a pair that was made of two labelled texts: ASCII's unit separator, which no text
has."""


def beside(a: str, b: str) -> str:
    """The group name of a pair of two labelled texts, the desirable one first."""
    return f"{a}{BESIDE}{b}"


def sides(group: str) -> list[str]:
    """The two group names that `beside` joined; empty for any other group."""
    names = group.split(BESIDE)
    return names if len(names) == 2 else []
