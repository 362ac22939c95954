"""The command `treeward`: find the command, run it, turn what happens into an exit code.

0 done; 1 our own fault (an exception that nothing here catches: its traceback is printed); 2 bad usage or input, or a
check that failed before the first step; 3 the verdict is below what `--require` asks for; 4 broken; 130 stopped by
Ctrl-C with a checkpoint.
"""

import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata

from treeward.cli.help import PAGES, help_text
from treeward.cli.parse import is_training
from treeward.errors import ChecksFailed, UserError
from treeward.runner.progress import Interrupted
from treeward.runs.directory import is_full

VERBS = {
    "quickstart": "the whole path on the embedded world: sft, reward model, DPO, REINFORCE, one page",
    "doctor": "what this machine and a model can do: versions, device, precision, tokenizer, layout",
    "inspect": "what is in a data set: lengths, ratings, faults, splits, length bias; --save prepares it",
    "sft": "supervised fine-tuning",
    "reward": "a reward model from pairs",
    "dpo": "direct preference optimisation",
    "reinforce": "REINFORCE with a baseline, on the policy's own samples, against a reward",
    "warp": "weight-averaged rewarded policies: train several, merge them, interpolate, and again",
    "train": "any training method, also one of your own: --method FILE.py:NAME",
    "pairs": "preferences from a policy's own samples, ranked by a scorer; --rounds trains on them",
    "merge": "one model from several: slerp, linear interpolation, LITI, EMA, WARM",
    "evaluate": "measure a policy against its start model, or a reward model, on held-out data",
    "sample": "samples of a policy",
    "score": "scores of given responses, by one reward model or several",
    "report": "write the page of a run again, or one frontier of several runs",
    "resume": "continue a run that was stopped",
    "recipes": "list the recipes, or copy one",
    "runs": "list runs with verdict, metric and age",
    "explain": "what a check means, and how to fix what it reports",
}

USAGE = """usage: treeward COMMAND [RECIPE] [--KEY VALUE ...]

Aligns language models to preferences, and proves that it did.

{commands}

treeward COMMAND --help shows every option with its meaning and default.
A recipe is a name (treeward recipes) or a YAML file; options after it change its values.
treeward --version prints the version."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(USAGE.format(commands="\n".join(f"  {verb:<12}{summary}" for verb, summary in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"treeward {metadata.version('treeward')}")
        return 0
    verb, *rest = arguments
    if verb == "--method":
        verb, rest = "train", list(arguments)
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {close[0]!r}?" if close else "treeward --help lists them"
        return _complain(f"unknown command {verb!r}, {hint}")
    try:
        if verb in PAGES and not {"--help", "-h"}.isdisjoint(rest):
            print(help_text(verb, rest))
            return 0
        _quieten()
        module = import_module(f"treeward.cli.{'training' if is_training(verb) else verb}")
        return int(module.run(verb, rest))
    except (UserError, FloatingPointError, PermissionError) as problem:
        return _complain(" ".join(str(problem).split()))
    except OSError as problem:
        if not is_full(problem):
            raise
        return _complain(f"no space left on the disk ({problem}): free some, or write elsewhere with --out")
    except ChecksFailed as problem:
        return _checks_failed(problem)
    except Interrupted as problem:
        print(problem, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130


def _complain(text: str) -> int:
    print(f"treeward: {text}", file=sys.stderr)
    return 2


def _checks_failed(problem: ChecksFailed) -> int:
    for check in problem.checks:
        print(f"treeward: {check}", file=sys.stderr)
    slugs = ",".join(dict.fromkeys(check.slug for check in problem.checks))
    accept = f"; to proceed anyway, add: --skip-check {slugs}" if problem.acceptable else ""
    print(f"treeward: nothing was trained{accept}", file=sys.stderr)
    return 2


def _quieten() -> None:
    """Our own log goes to stderr from INFO on, that of libraries from ERROR on."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.ERROR)
    logging.getLogger("treeward").setLevel(logging.INFO)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
