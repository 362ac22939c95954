"""Which column of a source means what: prompts, responses, ratings, the winner of two outputs, the split.

A source's names are mapped to ours in three steps: first `data.columns`, then layouts of public data sets, then usual
names (`instruction` and `input` are a prompt, `output_1` and `output_2` two responses). One line tells the user how
they were mapped. A column that is not read but looks like a winner or a split is an error with the line to paste: a run
that takes `output_1` as chosen in every row would only look like training that does not learn.
"""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treeward.data import formats
from treeward.data.formats import COLUMNS, Row
from treeward.data.splits import NAMES
from treeward.errors import UserError

Names = str | list[str]
"""A column of the source, or several that are joined into one of ours."""

SAMPLE = 10_000
"""Rows from which the meaning of the columns is inferred."""

READS: Mapping[str, Sequence[str]] = {
    name: [*checks, *(("winner",) if name == "compared" else ())] for name, checks in COLUMNS.items()
}
"""The columns that each format reads, by our names."""

COMMON = ("split", "subset", "weight", "margin", "best_accuracy")
"""Columns that any format may have beside its own."""

OURS = {*COMMON, *(name for names in READS.values() for name in names)}
"""Every column name of ours."""

TIES = {"tie", "draw", "equal", "same", "both", "neither", "none", "tie (bothbad)", "bothbad", "both_bad", "1.5"}
"""Values of a winner column that mean a tie."""

PROMPTS = ("instruction", "question", "query", "history", "context", "post", "input")
"""Names of a prompt. An `input` beside `instruction` is the second part of the prompt."""
SYSTEMS = ("system", "system_prompt")
RESPONSES = ("response", "output", "answer", "completion", "reply")
"""Names of a single response."""
RATINGS = ("rating", "score", "ratings", "grade", "reward", "quality", "overall")
"""Names of a single response's rating."""
DIALOGUES = ("conversations", "conversation", "dialogue", "dialog", "chat")
TEXTS = ("sentence", "review")
OUTPUTS = (
    "output", "response", "answer", "completion", "conversation", "generation", "reply", "summary", "candidate",
    "human_ref", "model_output", "text",
)  # fmt: skip
"""Names of two outputs, before their number or letter."""
SIDES = (("1", "2"), ("a", "b"), ("A", "B"), ("0", "1"))
"""Numbers and letters of two outputs."""

BOOLEANS = {"true", "false"}

WINNER = re.compile(
    r"(^|_)(winner|winners|won|preferred|preference|better|best|choice|vote|verdict|labels?)(_|\d|$)"
    r"|(^|_)(annotator|rater|judge)_?\d*(_|$)"
)
"""Usual names of a winner column."""
COUNTED = re.compile(
    r"turn|num|count|len|(^|_)n(_|$)|id(_|x|$)|index|rank|score|rating|level|difficult|epoch|round|year|version|seed|fold"
)
"""Names of columns in which 1 and 2 count something."""
SPLIT = re.compile(r"split|partition|(^|_)(set|part|phase)$")
"""Usual names of a split column."""
ANNOTATOR = re.compile(r"(.*?[a-zA-Z])_?\d+")


@dataclass(frozen=True)
class PublicLayout:
    """The layout of a public data set.

    `needs` are the columns by which it is recognised, `columns` maps our names to its names, and `winner` its winner's
    values to 1, 2 or 0 (tie). `other_winners` look like the winner but answer another question.
    """

    name: str
    needs: frozenset[str]
    columns: Mapping[str, Names]
    winner: Mapping[str, int] = field(default_factory=dict)
    other_winners: tuple[str, ...] = ()


PUBLIC_LAYOUTS = (
    PublicLayout(
        "HelpSteer2's preferences",
        frozenset({"prompt", "response_1", "response_2", "preference_strength"}),
        {"winner": "preference_strength"},
        {"-3": 1, "-2": 1, "-1": 1, "0": 0, "1": 2, "2": 2, "3": 2},
    ),
    PublicLayout(
        "SHP",
        frozenset({"history", "human_ref_A", "human_ref_B", "labels"}),
        {"prompt": "history", "response_1": "human_ref_A", "response_2": "human_ref_B", "winner": "labels"},
        {"1": 1, "0": 2},
    ),
    PublicLayout(
        "PKU-SafeRLHF",
        frozenset({"prompt", "response_0", "response_1", "better_response_id"}),
        {"response_1": "response_0", "response_2": "response_1", "winner": "better_response_id"},
        {"0": 1, "1": 2},
        ("safer_response_id",),
    ),
    PublicLayout(
        "Chatbot Arena",
        frozenset({"conversation_a", "conversation_b", "winner"}),
        {"response_1": "conversation_a", "response_2": "conversation_b", "winner": "winner"},
        {"model_a": 1, "model_b": 2, "tie": 0, "tie (bothbad)": 0},
    ),
    PublicLayout(
        "WebGPT comparisons",
        frozenset({"question", "answer_0", "answer_1", "score_0", "score_1"}),
        {"prompt": "question.full_text", "responses": ["answer_0", "answer_1"], "scores": ["score_0", "score_1"]},
    ),
    PublicLayout(
        "stack-exchange-paired",
        frozenset({"question", "response_j", "response_k"}),
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
    PublicLayout(
        "UltraFeedback binarized",
        frozenset({"chosen", "rejected", "score_chosen", "score_rejected"}),
        {"chosen_rating": "score_chosen", "rejected_rating": "score_rejected"},
    ),
)
"""Public layouts whose values need an explanation, or whose names the usual names do not include."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a source are read.

    `columns` maps our names to the source's, `winner` a winner's values to 1, 2 or 0 (tie). `unread` are the columns
    that nothing reads, `ignored` those that the user left out, `keep` those that scorers see in any case. `attributes`
    are the names of the ratings. `description` is the line that tells the user how the columns are read.
    """

    format: str
    columns: Mapping[str, Names]
    winner: Mapping[str, int]
    unread: tuple[str, ...]
    ignored: tuple[str, ...]
    keep: tuple[str, ...]
    attributes: tuple[str, ...]
    description: str

    def row(self, raw: Row) -> dict[str, Any]:
        """The row with our names beside the source's.

        Raises:
            UserError: the winner's column has a value of unknown meaning.
        """
        row = {name: value for name, value in raw.items() if name not in self.ignored}
        mapped = {
            ours: value_of(row, ours, theirs)
            for ours, theirs in self.columns.items()
            if any(has(row, name) for name in several(theirs))
        }
        if self.format == "compared":
            mapped["winner"] = self._winner(raw)
        return row | mapped

    def scorer_row(self, raw: Row) -> dict[str, Any]:
        """The columns of a row that scorers see: those that nothing else reads, and those of `keep`.

        Preferences of sampled responses (they name the vocabulary of their ids) have the columns of the row that their
        prompt came from in one column, `row`: those are columns again.
        """
        columns = {name: raw[name] for name in (*self.unread, *self.ignored, *self.keep) if name in raw}
        if "vocabulary" in raw and isinstance(columns.get("row"), Mapping):
            columns |= columns.pop("row")
        return columns

    def _winner(self, raw: Row) -> int | None:
        votes: Counter[int] = Counter()
        for column in several(self.columns.get("winner", "winner")):
            value = value_of(raw, "winner", column)
            if value is None or value == "":
                continue
            if as_word(value) not in self.winner:
                meaning = {word: side or "tie" for word, side in self.winner.items()} | {as_word(value): "?"}
                raise UserError(
                    f"column {column!r} holds {value!r}, which names neither side; write 1, 2 or tie for the question "
                    f"mark: --data.winner '{yaml_line(meaning)}'"
                )
            votes[self.winner[as_word(value)]] += 1
        if not votes:
            return None
        (side, most), *rest = votes.most_common()
        return 0 if rest and rest[0][1] == most else side


def layout(
    sample: Sequence[Row],
    purpose: str,
    *,
    format: str = "auto",
    columns: Mapping[str, Names] | None = None,
    ignore: Sequence[str] = (),
    keep: Sequence[str] = (),
    winner: Mapping[str, int] | None = None,
    given_splits: bool = True,
) -> Layout:
    """How these rows, the first of a source, are read for a purpose.

    A column of `keep` has the meaning of its own name or of `columns`; its meaning is never inferred.

    Raises:
        UserError: a named column does not exist, no format fits, or a column that is not read looks like a winner or
            (with `given_splits`) like a split; the message has the line to paste.
    """
    present = list(dict.fromkeys(name for row in sample for name in row))
    _check_names(sample, present, columns or {}, {"data.ignore": ignore, "data.keep": keep})
    present = [name for name in present if name not in ignore]
    requested = dict(columns or {})
    inference = _Inference(sample, present, keep, dict(requested), purpose, format)
    inference.infer()
    inferred = inference.columns
    first = {**sample[0], **{ours: value_of(sample[0], ours, theirs) for ours, theirs in inferred.items()}}
    name = format
    if format == "auto":
        try:
            name = formats.detect({*present, *inferred}, first, purpose)
        except formats.NoFormat as problem:
            raise formats.NoFormat(f"{problem}{inference.advice()}") from None
    reads = {*READS.get(name, ()), *COMMON}
    idle = sorted(set(requested) - reads)
    if idle and purpose != "prompts" and name in READS:
        raise UserError(f"data.columns maps {idle[0]!r}, but format {name!r} does not read it; leave it out")
    meanings: Mapping[str, int] = winner or inference.public_winner
    if name == "compared":
        meanings = meanings or inference.meanings(several(inferred.get("winner", "winner")))
    elif winner:
        raise UserError(
            "data.winner explains the values of a winner's column, but none is mapped; add --data.columns "
            "'{winner: COLUMN}'"
        )
    used = {ours: theirs for ours, theirs in inferred.items() if ours in reads}
    read = {theirs for names in used.values() for theirs in several(names)} | (reads - set(used))
    read = {column if column in present else column.partition(".")[0] for column in read}
    unread = tuple(column for column in present if column not in read and column not in keep)
    if name in ("preference", "transcripts") and purpose != "prompts":
        inference.refuse_winner(unread)
    if given_splits and "split" not in {*present, *inferred}:
        inference.refuse_split(unread)
    guessed = {ours: theirs for ours, theirs in used.items() if ours not in requested}
    line = _description(name, guessed, meanings if name == "compared" else {}, used, inference.public_name)
    return Layout(name, used, meanings, unread, tuple(ignore), tuple(keep), attributes(name, first), line)


def attributes(format: str, first: Row) -> tuple[str, ...]:
    """The names of the first row's ratings; empty where they have none."""
    if format == "helpsteer":
        return formats.HELPSTEER
    if format != "graded":
        return ()
    scores = first.get("scores")
    score = scores[0] if isinstance(scores, list | tuple) and scores else scores
    return formats.rating_names(score) if isinstance(score, Mapping) else ()


@dataclass
class _Inference:
    """The meaning of a source's columns, worked out step by step in `columns`.

    `public_name` and `public_winner` are those of the public layout that fits, if any.
    """

    sample: Sequence[Row]
    present: list[str]
    keep: Sequence[str]
    columns: dict[str, Names]
    purpose: str
    format: str
    public_name: str = ""
    public_winner: Mapping[str, int] = field(default_factory=dict)
    other_winners: tuple[str, ...] = ()
    words: dict[str, set[str]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether one of our names is a column or is mapped to one."""
        return name in self.present or name in self.columns

    def infer(self) -> None:
        """Map what the user did not."""
        for public in PUBLIC_LAYOUTS:
            renamed = {name for ours, names in public.columns.items() for name in several(names) if name != ours}
            reads_keep = any(name.partition(".")[0] in self.keep for name in renamed)
            fits = public.needs <= set(self.present) and not reads_keep
            if fits and self.format in ("auto", "compared", "graded", "preference"):
                new = {
                    ours: theirs
                    for ours, theirs in public.columns.items()
                    if ours not in self.columns and (self.purpose != "prompts" or ours == "prompt")
                }
                if "prompt" in new and not has(self.sample[0], str(new["prompt"])):
                    new["prompt"] = str(new["prompt"]).partition(".")[0]
                changed = {ours: theirs for ours, theirs in new.items() if ours != theirs}
                self.columns |= changed
                if public.winner and self.columns.get("winner", "winner") == public.columns["winner"]:
                    self.public_winner, self.other_winners = public.winner, public.other_winners
                if changed or public.winner:
                    self.public_name = public.name
        self._infer_prompt()
        self._infer_responses()

    def _infer_prompt(self) -> None:
        if not self.has("chosen") and not self.has("messages"):
            self._first_of("messages", [name for name in DIALOGUES if self._is_list(name)])
        if self.has("prompt") or self.has("messages") or self.has("text"):
            return
        if self.has("chosen") and isinstance(self._first("chosen"), Mapping):
            self._first_of("prompt", [name for name in DIALOGUES if self._is_list(name)])
        for name in PROMPTS:
            if not self.has("prompt") and self._free(name):
                parts = [part for part in (*SYSTEMS, name) if self._free(part)]
                if name == "instruction" and self._free("input"):
                    parts.append("input")
                self.columns["prompt"] = parts if len(parts) > 1 else name

    def _infer_responses(self) -> None:
        if self.purpose != "prompts" and self.format in ("auto", "compared"):
            self._infer_outputs()
        if any(self.has(name) for name in ("response_1", "responses", "chosen", "text", "messages")):
            return
        rated = self.format == "graded" or (self.format == "auto" and self.purpose in ("pairs", "ranked", "graded"))
        if rated and self.has("prompt") and (self.has("response") or self._free_of(RESPONSES)):
            if not self.has("scores"):
                self._first_of("scores", list(RATINGS))
            if self.has("scores") and not self.has("response"):
                self._first_of("response", list(RESPONSES))
        single = self.format in ("auto", "completion", "labelled") and not self.has("scores")
        if single and self.has("prompt") and not self.has("completion"):
            self._first_of("completion", list(RESPONSES))
        if self.format in ("auto", "text") and not self.has("prompt"):
            self._first_of("text", list(TEXTS))

    def _infer_outputs(self) -> None:
        """The two outputs, and the winner's column where only one fits; else their ratings."""
        mapped = {"chosen", "rejected"} <= {*self.present, *self.columns}
        if mapped and "winner" not in self.columns:
            return
        if mapped:
            sides = [self.columns.pop(name, name) for name in ("chosen", "rejected")]
            self.columns |= {"response_1": sides[0], "response_2": sides[1]}
            return
        if "response_1" in self.columns and "response_2" in self.columns:
            pair: tuple[str, str] | None = (str(self.columns["response_1"]), str(self.columns["response_2"]))
        else:
            pair = self._pair()
        if pair is None:
            return
        winners: list[Names] = [self.columns["winner"]] if "winner" in self.columns else self._winners(self.present)
        ratings = self._rating_pair(pair)
        if len(winners) == 1:
            new: dict[str, Names] = {"response_1": pair[0], "response_2": pair[1], "winner": winners[0]}
            new = {ours: theirs for ours, theirs in new.items() if ours != theirs}
            self.columns = new | self.columns
        elif not winners and ratings:
            self.columns |= {"responses": list(pair), "scores": ratings}

    def _rating_pair(self, pair: tuple[str, str]) -> list[str] | None:
        """The ratings of two outputs, by the ends of their names: `score_a` and `score_b`."""
        for stem in RATINGS:
            names = [f"{stem}_{output[-1]}" for output in pair]
            if set(names) <= self._guessable():
                return names
        return None

    def _pair(self) -> tuple[str, str] | None:
        """Two columns that are outputs by their names, where there is no third."""
        for stem in OUTPUTS:
            for one, two in SIDES:
                for join in ("_", "", " "):
                    names = f"{stem}{join}{one}", f"{stem}{join}{two}"
                    thirds = {f"{stem}{join}{end}" for end in "0123"} - set(names) if one in "01" else set()
                    if set(names) <= self._guessable() and not thirds & set(self.present):
                        return names
        return None

    def _winners(self, columns: Iterable[str]) -> list[Names]:
        """Columns that look like the winner of two outputs; several annotators' columns are one winner."""
        pair = self._pair()
        one_of_two: list[str] = []
        for name in columns:
            values = self._values(name)
            if not values or name in self.other_winners or name in self.keep or name in self._taken():
                continue
            words = values - TIES
            strong = WINNER.search(name.lower())
            sides = all(side_word(word) or word in self._outputs() or (strong and word in BOOLEANS) for word in words)
            if not sides or len(values) > 5 or not words:
                continue
            shortest = 1 if pair else 3
            spoken = len(words) > 1 and all(not word.isdigit() and len(word) >= shortest for word in words)
            numbered = pair is not None and {"1", "2"} <= words <= {"0", "1", "2"} and not COUNTED.search(name.lower())
            if strong or spoken or numbered:
                one_of_two.append(name)
        stems = Counter(match[1] for name in one_of_two if (match := ANNOTATOR.fullmatch(name)))
        groups: dict[str, list[str]] = {}
        for name in one_of_two:
            match = ANNOTATOR.fullmatch(name)
            groups.setdefault(match[1] if match and stems[match[1]] > 1 else name, []).append(name)
        return [names if len(names) > 1 else names[0] for names in groups.values()]

    def meanings(self, winners: Sequence[str]) -> Mapping[str, int]:
        """What each value of these columns means: 1, 2 or 0 (tie).

        Raises:
            UserError: it is unclear which side a value means.
        """
        values = set().union(*(self._values(name) for name in winners))
        outputs = self._outputs()
        ends = tuple(output[-1:] for output in outputs)
        words = values - TIES
        numbers = {str(side_word(word)) for word in words if str(side_word(word)).isdigit() and word not in outputs}
        if ends == ("0", "1"):
            clear = numbers <= {"0", "1"}
        else:
            clear = numbers <= {"1", "2"} or (ends == ("1", "2") and {"2"} <= numbers <= {"0", "1", "2"})
        strange = [word for word in words if side_word(word) is None and word not in outputs]
        if not clear or strange:
            raise UserError(self._ambiguous(winners, values, outputs))
        sides = {"a": 1, "b": 2, "1": 1, "2": 2, "0": 0} if ends != ("0", "1") else {"a": 1, "b": 2, "0": 1, "1": 2}
        meaning = {
            word: outputs.index(word) + 1 if word in outputs else sides[str(side_word(word))] for word in sorted(words)
        }
        return dict.fromkeys(sorted(values & TIES), 0) | meaning | dict.fromkeys(sorted(TIES - values), 0)

    def _ambiguous(self, winners: Sequence[str], values: set[str], outputs: Sequence[str]) -> str:
        words = sorted(values - TIES)
        ties = dict.fromkeys(sorted(values & TIES), "tie")
        column = winners[0]
        opening = f"column {column!r} is the winner, but its values {', '.join(words)} do not name an output clearly"
        one, two = outputs or ("the first", "the second")
        if len(words) == 2:
            ways = [{words[0]: 1, words[1]: 2}, {words[0]: 2, words[1]: 1}]
            return (
                f"{opening}; if {words[0]} names {one}, add --data.winner '{yaml_line(ways[0] | ties)}'; if it names "
                f"{two}, add --data.winner '{yaml_line(ways[1] | ties)}'"
            )
        numbered = {"1": 1, "2": 2, "a": 1, "b": 2}
        meaning: dict[str, Any] = {word: numbered.get(side_word(word) or "", "?") for word in words} | ties
        more = "with 1, 2 or tie for each question mark"
        if words == ["0", "1", "2"]:
            meaning, more = {"0": "tie", "1": 1, "2": 2}, "if 0 is a tie, or with other sides"
        return f"{opening}; add --data.winner '{yaml_line(meaning)}' {more}"

    def refuse_winner(self, unread: Iterable[str]) -> None:
        """Raise where a column that is not read looks like a winner.

        Raises:
            UserError: it does; with the lines that map or ignore it.
        """
        for names in self._winners(unread):
            if names in ("label", "labels") and self.purpose == "unpaired":
                continue
            columns = several(names)
            counts = Counter(as_word(row.get(columns[0])) for row in self.sample if row.get(columns[0]) is not None)
            examples = ", ".join(f"{word} in {n} rows" for word, n in counts.most_common(4))
            mapping = dict(self.columns)
            one, two = (mapping.pop(side, side) for side in ("chosen", "rejected"))
            mapping |= {"response_1": one, "response_2": two, "winner": names}
            ignoring = f"; or, if it is none, --data.ignore '[{', '.join(columns)}]'"
            raise UserError(
                f"column {columns[0]!r} looks like a winner ({examples}), but it is not read, and the first output "
                f"would be the better one in every row: map it with --data.columns '{yaml_line(mapping)}'"
                f"{self._which(columns)}{ignoring}"
            )

    def _which(self, columns: Sequence[str]) -> str:
        """The second line to paste, where it is unclear which side the values of the winner mean."""
        try:
            self.meanings(columns)
        except UserError as problem:
            return f" and {str(problem).partition('; ')[2]}"
        return ""

    def refuse_split(self, unread: Iterable[str]) -> None:
        """Raise where a column that is not read looks like a split.

        Raises:
            UserError: it does; with the lines that map or ignore it.
        """
        for name in unread:
            values = self._values(name)
            if len(values) < 2 or not values <= set(NAMES):
                continue
            if SPLIT.search(name.lower()) or values & {"train", "training"}:
                mapping = yaml_line(self.columns | {"split": name})
                raise UserError(
                    f"column {name!r} looks like a split ({', '.join(sorted(values))}), but it is not read: map it "
                    f"with --data.columns '{mapping}'; or, if it is none, --data.ignore '[{name}]'"
                )

    def advice(self) -> str:
        """What to paste where no format fits but two columns look like outputs."""
        pair = self._pair()
        if self.purpose == "prompts":
            return ""
        if not pair:
            return "; to read the prompts alone, --data.format prompts" if "prompt" in self.present else ""
        mapping = self.columns | {"response_1": pair[0], "response_2": pair[1], "winner": "COLUMN"}
        winners = [", ".join(several(names)) for names in self._winners(self.present)]
        winners = winners or [name for name in self.present if WINNER.search(name.lower())]
        which = f"COLUMN is one of {', '.join(winners)}" if winners else "COLUMN names the better of the two"
        return f"; {pair[0]} and {pair[1]} are two outputs: --data.columns '{yaml_line(mapping)}', where {which}"

    def _outputs(self) -> tuple[str, ...]:
        """The names of the two outputs, in lower case."""
        pair = self._pair()
        names = [self.columns.get(f"response_{n}") or (pair or ("", ""))[n - 1] for n in (1, 2)]
        if not all(isinstance(name, str) and name for name in names):
            return ()
        return tuple(str(name).lower() for name in names)

    def _guessable(self) -> set[str]:
        """The columns whose meaning may be inferred, and those of our own names."""
        return {name for name in self.present if name not in self.keep or name in OURS}

    def _taken(self) -> set[str]:
        return {name for names in self.columns.values() for name in several(names)}

    def _values(self, name: str) -> set[str]:
        """The distinct values of a column as words; empty where one is not a word or there are more than ten."""
        if name not in self.words:
            self.words[name] = self._distinct(name)
        return self.words[name]

    def _distinct(self, name: str) -> set[str]:
        values: set[str] = set()
        for row in self.sample:
            value = value_of(row, name, name)
            if value is None or value == "":
                continue
            if not isinstance(value, str | int | float) or len(values) > 10:
                return set()
            values.add(as_word(value))
        return values

    def _first(self, name: str) -> Any:
        return value_of(self.sample[0], name, self.columns.get(name, name))

    def _is_list(self, name: str) -> bool:
        return isinstance(self.sample[0].get(name), list | tuple)

    def _free(self, name: str) -> bool:
        return name in self.present and name not in self.keep and name not in self._taken()

    def _free_of(self, names: Iterable[str]) -> bool:
        return any(self._free(name) for name in names)

    def _first_of(self, ours: str, names: Sequence[str]) -> None:
        free = [name for name in names if self._free(name)]
        if free and ours not in self.columns and free[0] != ours:
            self.columns[ours] = free[0]


def side_word(word: str) -> str | None:
    """The side that a word names: "a", "b", or a number 0 to 2, alone or after a name; None for other words."""
    stem = r"(?:(?:model|output|response|answer|assistant|completion|option|side)[ _-]?)?"
    match = re.fullmatch(stem + "([ab012])", word)
    if match:
        return match[1]
    return {"first": "a", "left": "a", "second": "b", "right": "b"}.get(word)


def as_word(value: object) -> str:
    """A value as a word to compare: 1, 1.0 and "1" are the same word, and case does not matter."""
    if isinstance(value, str):
        text = value.strip().lower()
        return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value).lower()


def several(names: Names) -> list[str]:
    """One column or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def has(row: Row, name: str) -> bool:
    """Whether the row has this column; `question.full_text` is the key `full_text` of the mapping `question`."""
    head, dot, tail = name.partition(".")
    return name in row or bool(dot and isinstance(row.get(head), Mapping) and tail in row[head])


def value_of(row: Row, ours: str, theirs: Names) -> Any:
    """The value of one of our columns. Of several columns it is their list, or for `prompt` their texts joined by blank
    lines, empty parts left out.
    """
    if isinstance(theirs, list):
        values = [value_of(row, ours, name) for name in theirs]
        if ours != "prompt":
            return values
        for name, value in zip(theirs, values, strict=True):
            if not isinstance(value, str | None):
                raise UserError(f"column {name!r} holds {str(value)[:40]!r}; the parts of a prompt are texts")
        return "\n\n".join(value for value in values if value)
    if theirs in row:
        return row[theirs]
    head, _, tail = theirs.partition(".")
    inner = row.get(head)
    return inner.get(tail) if isinstance(inner, Mapping) else None


def yaml_line(mapping: Mapping[str, Any]) -> str:
    """A mapping as one line of YAML, safe inside single quotes in a shell."""
    return "{" + ", ".join(f"{_plain(key)}: {_plain(value)}" for key, value in mapping.items()) + "}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value) if re.fullmatch(r"[A-Za-z_][\w.-]*|-?\d+", str(value)) else json.dumps(str(value))


def _check_names(
    sample: Sequence[Row], present: Sequence[str], columns: Mapping[str, Names], named: Mapping[str, Sequence[str]]
) -> None:
    """Refuse names of columns that do not exist; `named` are further columns of the source by option.

    Raises:
        UserError: the source has no such column, or none of ours has that name.
    """
    for name, theirs in columns.items():
        if name not in OURS:
            close = difflib.get_close_matches(name, sorted(OURS), 1, 0.5)
            nearest = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"data.columns maps {name!r}, which no format reads{nearest}")
        if isinstance(theirs, list) and name not in ("prompt", "winner", "responses", "scores"):
            raise UserError(f"data.columns maps {name!r} to several columns; it is one")
        for column in several(theirs):
            if not any(has(row, column) for row in sample):
                raise UserError(f"data.columns names {column!r}; the data has {', '.join(sorted(present))}")
    for option, names in named.items():
        for column in names:
            if column not in present:
                raise UserError(f"{option} names {column!r}; the data has {', '.join(sorted(present))}")


def _description(
    name: str, inferred: Mapping[str, Names], meanings: Mapping[str, int], used: Mapping[str, Names], public: str
) -> str:
    """One line on how the columns are read; what the user mapped is not repeated."""
    ordered = [ours for ours in (*READS.get(name, ()), *COMMON) if ours in inferred]
    parts = [f"{ours} is {' + '.join(several(inferred[ours]))}" for ours in ordered]
    if meanings:
        first, second = (several(used.get(f"response_{n}", f"response_{n}"))[0] for n in (1, 2))
        sides = {1: first, 2: second}
        words = [f"{word} means {sides[side]}" for word, side in meanings.items() if side]
        parts.append(f"winner {', '.join([*words, *(['others are ties'] if 0 in meanings.values() else [])])}")
    like = f" as in {public}" if public else ""
    return f"format {name}{like}{': ' if parts else ''}{'; '.join(parts)}"
