"""Some hundred malformed files, a minute's worth; `python tests/fuzz/fuzz.py --minutes N --seed S` runs longer."""

from fuzz import trial

CASES = 400
SEED = 7


def test_no_malformed_file_gives_a_traceback_a_crash_or_other_rows() -> None:
    wrong = []
    for number in range(CASES):
        case, outcome = trial(number, SEED)
        if outcome.verdict != "ok":
            wrong.append(f"case {number} of seed {SEED}: {outcome.verdict}: {case.label}: {outcome.detail}")
    assert not wrong, "\n".join(wrong)
