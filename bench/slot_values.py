"""A judge for the graded sentences that no model learned: are the values of the dialogue act in the sentence?"""

import re

VALUE = re.compile(r"=\s*'([^']*)'|=\s*([^,;)']+)")
YES_NO = ("yes", "no", "yes or no", "none", "dont_care", "true", "false", "?")
"""Values that a sentence says in other words."""


def values(act: str) -> list[str]:
    """The values of a dialogue act that a sentence repeats, such as names, areas and prices."""
    written = [(quoted or plain).strip().lower() for quoted, plain in VALUE.findall(act)]
    return [value for value in written if value and value not in YES_NO]


def share_said(prompt: str, response: str, row: dict[str, str]) -> float:
    """The share of the act's values that the sentence has; 1 where there are none to say."""
    text = " ".join(re.findall(r"\w+", response.lower()))
    wanted = [" ".join(re.findall(r"\w+", value)) for value in values(row["act"])]
    return sum(value in text for value in wanted) / len(wanted) if wanted else 1.0
