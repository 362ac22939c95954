"""`treeward sample`: what is refused before a model is loaded."""

import math
from typing import Any

import pytest

from treeward.runner import settings
from treeward.runner.sample import SampleRun


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.build(SampleRun, fields)
