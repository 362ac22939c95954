"""The command `treeward`: find the verb, run it, turn what happens into an exit code.

0 done; 1 our own fault; 2 bad usage or input, or a check that failed before the first step; 3 the verdict is below what
`--require` asks for; 4 broken; 130 stopped by Ctrl-C with a checkpoint.
"""

import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from treeward.checks.check import ChecksFailed
from treeward.errors import UserError
from treeward.runner.progress import Interrupted
from treeward.runs.directory import is_full

VERBS = {
    "quickstart": "the whole path on the embedded world: sft, reward model, DPO, one page",
    "doctor": "what this machine and a model can do: versions, device, precision, tokenizer, layout",
    "inspect": "what is in a data set: lengths, ratings, faults, splits, length bias, a word floor; --save prepares it",
    "sft": "supervised fine-tuning",
    "reward": "a reward model from pairs",
    "dpo": "direct preference optimisation",
    "pairs": "preferences from a policy's own samples, judged by a scorer; --rounds trains on them",
    "evaluate": "a policy against its start, or a reward model, on held-out data",
    "sample": "samples from a policy",
    "score": "the scores of given responses, by a reward model or several",
    "report": "the page of a run directory, written again",
    "resume": "go on with a run that was stopped",
}

USAGE = """treeward VERB [RECIPE] [--key value ...]

Aligns language models to preferences, and proves that it did.

{verbs}

treeward VERB --help shows every field with its default; a recipe is a name or a YAML file, overrides come after it.
Training verbs take --print-config and --dry-run."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<12}{meaning}" for verb, meaning in VERBS.items())))
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, 1)
        return _complain(f"unknown command {verb!r}{f', did you mean {close[0]!r}?' if close else ''}")
    _quieten()
    module = import_module(f"treeward.cli.{'training' if verb in ('sft', 'reward', 'dpo', 'resume') else verb}")
    try:
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
    ids = ",".join(dict.fromkeys(check.id for check in problem.checks))
    accept = f"; to accept the risk, add: --skip-check {ids}" if problem.acceptable else ""
    print(f"treeward: nothing was trained{accept}", file=sys.stderr)
    return 2


def _quieten() -> None:
    """Our own log to stderr at INFO; the libraries' chatter only from errors on."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.ERROR)
    logging.getLogger("treeward").setLevel(logging.INFO)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
