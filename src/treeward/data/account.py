"""The account of prepared data: how many rows became what, and what was lost on the way."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Account:
    """What reading, filtering and rendering did to the rows: every loss is counted here and reported.

    `used` counts the trees, and `made` names them ("pairs"). `dropped` and `cut` count losses by reason. `columns`
    counts the rows in which a column beside the texts changes the training. `layout` describes how the columns were
    read, and `unread` lists those that nothing reads. `responses` counts the finished responses, and `ended` those of
    them that close with the end token or were cut. `response_lengths` counts responses by their tokens before any cut.
    `leaked` counts texts that are in training and held out before they are paired, and their rows on both sides;
    `leaks` are three of them.
    """

    rows: int = 0
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    ended: int = 0
    made: str = "trees"
    layout: str = ""
    unread: list[str] = field(default_factory=list)
    response_lengths: Counter[int] = field(default_factory=Counter)
    leaked: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def response_length(self, share: float) -> int:
        """The least number of tokens that this share of the responses does not exceed; 0 without responses."""
        covered, total = 0, self.response_lengths.total()
        for length, n in sorted(self.response_lengths.items()):
            covered += n
            if covered >= share * total:
                return length
        return 0

    def add(self, chunk: "Account") -> None:
        """Add the account of further rows of the same source."""
        for name in ("rows", "used", "responses", "ended"):
            setattr(self, name, getattr(self, name) + getattr(chunk, name))
        for name in ("dropped", "cut", "columns", "response_lengths"):
            setattr(self, name, getattr(self, name) + getattr(chunk, name))
        self.made, self.layout, self.unread = chunk.made, chunk.layout, chunk.unread

    def __str__(self) -> str:
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.items())) or "none"
        cut = ", ".join(f"{n} {what}" for what, n in sorted(self.cut.items())) or "none"
        read = "".join(f"; {name} read in {n} rows" for name, n in sorted(self.columns.items()))
        unread = f"; columns not read: {', '.join(self.unread)}" if self.unread else ""
        return f"{self.rows} rows made {self.used} {self.made}; dropped: {dropped}; cut: {cut}{read}{unread}"
