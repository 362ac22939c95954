"""Help: options in groups, of a union only the chosen kind, readable at 80 columns."""

import pytest

from treeward.cli import help as help_pages
from treeward.cli.main import VERBS, run
from treeward.cli.parse import CONFIGS
from treeward.runner import fields


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run([*words, "--help"]) == 0
    return capsys.readouterr().out


def entry(text: str, option: str) -> str:
    """The lines of an option in one."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"  {option} ") or line == f"  {option}")
    rest = lines[start + 1 :]
    end = next(place for place, line in enumerate(rest) if not line.startswith(" " * help_pages.COLUMN))
    return " ".join(" ".join(lines[start : start + 1 + end]).split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_command_has_help_that_fits_80_columns(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of(capsys, verb)
    assert len(printed) > 20
    if verb in help_pages.PAGES:
        assert printed.startswith(f"usage: treeward {verb}")
        assert max(map(len, printed.splitlines()[1:])) <= 80


@pytest.mark.parametrize("verb", CONFIGS)
def test_help_shows_each_option_once_with_its_meaning(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of(capsys, verb)
    shown = [line.split()[0] for line in printed.splitlines() if line.startswith("  --")]
    assert len(set(shown)) == len(shown)
    for option in fields.options(CONFIGS[verb]):
        if verb != "pairs" or not option.key.startswith("dpo."):
            flag = f"--{option.key.replace('_', '-')}"
            assert " ".join(option.meaning.split()[:4]) in entry(printed, flag)


def test_the_groups_of_dpo_come_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    titles = [line for line in help_of(capsys, "dpo").splitlines() if line and not line.startswith((" ", "usage"))]
    groups = ["Model", "Data", "Loss (sigmoid)", "Divergence (reverse-kl)", "Reference (frozen)", "Training",
              "Evaluation", "Run", "Flags"]  # fmt: skip
    assert [title for title in titles if title in groups] == groups


def test_only_the_chosen_kind_is_shown_with_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    usual = help_of(capsys, "dpo")
    assert entry(usual, "--loss.beta").endswith("implicit reward is beta times the log-ratio. [0.1]")
    assert "--loss.gamma" not in usual
    assert "treeward dpo --help --loss.kind robust" in entry(usual, "--loss.kind")
    assert "sigmoid, robust, hinge, ipo" in entry(usual, "--loss.kind")
    simpo = help_of(capsys, "dpo", "--loss.kind", "simpo")
    assert entry(simpo, "--loss.beta").endswith("[2.0]")
    assert "Loss (simpo)" in simpo
    assert "--loss.flip" not in simpo
    assert entry(help_of(capsys, "dpo", "--loss.kind=robust"), "--loss.flip").endswith("[0.1]")


def test_a_union_inside_a_chosen_kind_is_shown_with_the_words_that_lead_to_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = help_of(capsys, "reward", "--loss.kind", "joint", "--loss.pair.kind", "strict")
    assert "treeward reward --help --loss.kind joint --loss.pair.kind half-ties" in entry(printed, "--loss.pair.kind")
    assert "Loss (bradley-terry)" in help_of(capsys, "reward")


def test_the_values_of_an_option_are_listed_unless_its_meaning_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of(capsys, "dpo")
    assert entry(printed, "--schedule").endswith("One of: constant, constant_with_warmup, linear, cosine.")
    assert entry(printed, "--model.device").endswith("[auto]")


def test_an_unknown_kind_in_help_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dpo", "--help", "--loss.kind", "simp"]) == 2
    assert "loss.kind is 'simp', did you mean 'simpo'?" in capsys.readouterr().err


def test_help_of_pairs_points_to_that_of_dpo(capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of(capsys, "pairs")
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  --dpo")] == ["--dpo.KEY"]
    assert "treeward dpo --help" in entry(printed, "--dpo.KEY")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("treeward 0.")
