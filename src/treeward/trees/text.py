"""Trees of text: a prompt with its responses.

A `Tree` is frozen and can be written to JSON and read back. `data.render` turns it into ids.
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
    """One branch as text.

    - `finished`: False means that the text was cut, so no end token is added or scored.
    - `score`: a scorer's or rater's number on any scale; higher is better.
    - `grades`: a rater's numbers by attribute, where there are several.
    - `ids`: the tokens that a policy sampled, end token included, in the vocabulary that the tree names.
    """

    text: str
    finished: bool = True
    score: float | None = None
    grades: tuple[float, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def ratings(self) -> tuple[float, ...]:
        """The grades if there are any, else the score alone, else nothing."""
        return self.grades or (() if self.score is None else (self.score,))


@dataclass(frozen=True)
class Tree:
    """A prompt and its responses.

    - `prompt`: a string, used unchanged, or messages for the chat template.
    - `responses`: `Response`s or plain strings. In a pair the first is the chosen response, the second the rejected.
    - `group`: the unit of splits and intervals; the normalised prompt unless given. An empty prompt needs a group.
    - `subset`: a part of the data that is reported separately.
    - `weight`: the tree's weight in the loss.
    - `margin`: the margin of this pair in a pairwise loss; it replaces the run's margin.
    - `prompt_ids`: the ids that a sampled tree's prompt had when it was sampled.
    - `vocabulary`: the hash of the vocabulary that `prompt_ids` and the responses' `ids` belong to.
    - `attributes`: the names of the responses' grades, in the same order, where they have names.
    - `row`: the other columns of the data row, so that a scorer can check a response against them.

    Raises:
        UserError: the prompt is empty and no group is given.
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
        self,
        prompt: str | Sequence[Message],
        responses: Sequence[Response | str] = (),
        group: str | None = None,
        subset: str = "",
        weight: float = 1.0,
        margin: float | None = None,
        prompt_ids: Sequence[int] = (),
        vocabulary: str = "",
        attributes: Sequence[str] = (),
        row: Mapping[str, Any] | None = None,
    ) -> None:
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
        """One line of JSON, which `Tree.from_json` reads back. A value of `row` that is not JSON, such as a date,
        becomes its text.
        """
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, default=str)

    @classmethod
    def from_json(cls, line: str) -> "Tree":
        """Read a line that `to_json` wrote."""
        row: dict[str, Any] = json.loads(line)
        for response in row["responses"]:
            response |= {name: tuple(response.get(name, ())) for name in ("grades", "ids")}
        row["responses"] = [Response(**response) for response in row["responses"]]
        return cls(**row)


def normalised(prompt: Prompt) -> str:
    """The prompt as a group name: roles and words in lower case, white space folded."""
    text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return " ".join(text.lower().split())


GROUP_SEPARATOR = " \x1f "
"""Stands between the two names of a joined group: ASCII's unit separator, which does not occur in texts."""


def joined_group(desirable: str, undesirable: str) -> str:
    """The group name of a pair that was made of two labelled texts."""
    return f"{desirable}{GROUP_SEPARATOR}{undesirable}"


def split_group(group: str) -> list[str]:
    """The two names that `joined_group` joined; an empty list for any other group."""
    names = group.split(GROUP_SEPARATOR)
    return names if len(names) == 2 else []
