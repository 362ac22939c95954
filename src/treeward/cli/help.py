"""`treeward COMMAND --help`: usage, then every option with its meaning and default, in groups.

The options are read from the source of the config classes (`treeward.runner.fields`), so help imports no torch. Of a
union only the chosen kind's options are shown: `treeward dpo --help --loss.kind simpo`.
"""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from treeward.cli.parse import CONFIGS, config_class, is_method, parse
from treeward.errors import UserError
from treeward.methods import METHODS
from treeward.runner import fields, settings
from treeward.runner.fields import Option

WIDTH, COLUMN = 100, 28
"""Characters of a line at most, and the column at which meanings begin."""
GROUPS = (
    "model", "data", "head", "loss", "divergence", "baseline", "estimator", "kl", "reference", "training", "evaluation",
    "run",
)  # fmt: skip
"""The order of the groups; others come before the last one."""

ALLOW_CODE = ("--allow-code", "run the Python files that a recipe or a run directory names")
PRINT_CONFIG = ("--print-config", "print the resolved configuration as YAML, and stop")
JSON = ("--json", "print the result as one JSON object")
TRAIN_FLAGS = (
    ("--dry-run", "load the data, run the checks, estimate time and memory, and stop"),
    PRINT_CONFIG,
    ("--sweep KEY=V1,V2,...", "train with each value (repeated: with each combination); one frontier of all runs"),
    ("--seeds N", "train with N seeds, each point of a sweep too; settings are compared from 8 paired seeds on"),
    ("--resume RUN", "the same as treeward resume RUN"),
    JSON,
    ALLOW_CODE,
)


@dataclass(frozen=True)
class Page:
    """The help of a command: how it is called, a sentence or two, and flags that are no fields of its config class.

    `elsewhere` are groups of options with a line that says where they are described.
    """

    usage: str
    about: str
    flags: Sequence[tuple[str, str]] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)


PAGES = {
    "quickstart": Page(
        "quickstart [--out DIR]", "SFT, a reward model, DPO and REINFORCE on the embedded world, and one page on all."
    ),
    "doctor": Page(
        "doctor [--model PATH|ID] [--tokenizer PATH|ID] [--init pretrained|random]",
        "What this machine can do, and a model if one is named: versions, device, precision, tokenizer, layout.",
    ),
    "inspect": Page(
        "inspect DATA|RECIPE [--tokenizer T].. [--model DIR] [--out DIR] [--save DIR] [--data.KEY VALUE ...]",
        "What is in a data set: lengths, ratings, faults, splits, length bias. --save writes it ready for training.",
    ),
    "sft": Page("sft [RECIPE] [--KEY VALUE ...]", "Supervised fine-tuning on responses.", TRAIN_FLAGS),
    "reward": Page(
        "reward [RECIPE] [--KEY VALUE ...]", "A reward model from pairs, rankings or ratings of responses.", TRAIN_FLAGS
    ),
    "dpo": Page(
        "dpo [RECIPE] [--KEY VALUE ...]",
        "Direct preference optimisation: a preference loss on pairs, rankings or labelled responses.",
        TRAIN_FLAGS,
    ),
    "reinforce": Page(
        "reinforce [RECIPE] --model.path POLICY --reward SCORER [--KEY VALUE ...]",
        "REINFORCE with a baseline: the policy samples responses, and those that score better than the baseline become "
        "more likely.",
        TRAIN_FLAGS,
    ),
    "warp": Page(
        "warp [RECIPE] --model.path POLICY --reward SCORER [--method NAME] [--KEY VALUE ...]",
        "Weight-averaged rewarded policies (arXiv:2406.16768): each iteration trains several members from one start, "
        "merges them by slerp of their task vectors, and starts the next one between start and merge. At the end the "
        "policies between the first start and the last merge are measured. The options of other methods: treeward "
        "METHOD --help.",
        (PRINT_CONFIG, JSON, ALLOW_CODE),
    ),
    "train": Page(
        "train --method NAME|FILE.py:NAME [RECIPE] [--KEY VALUE ...]",
        "Any training method: one of the commands above, or a subclass of treeward.Method in a Python file. Its "
        "options: treeward train --method FILE.py:NAME --help.",
        TRAIN_FLAGS,
    ),
    "pairs": Page(
        "pairs [RECIPE] --model.path POLICY --data.source TEXTS --scorer SCORER [--KEY VALUE ...]",
        "Preferences from a policy's own samples, ranked by a scorer. --rounds N trains on them and repeats.",
        (PRINT_CONFIG, ALLOW_CODE),
        {"dpo": "the DPO run of each round, such as --dpo.loss.beta; all keys: treeward dpo --help"},
    ),
    "merge": Page(
        "merge --kind KIND --start DIR --members '[A, B]' [--KEY VALUE ...]",
        "One model from several by arithmetic on their weights. Prints how far each member moved from the start, and "
        "the angles between what they learned.",
        (JSON,),
    ),
    "evaluate": Page(
        "evaluate --model.path DIR [--start DIR] [--KEY VALUE ...]",
        "A policy's samples and likelihood, or a reward model's accuracy, on held-out data.",
        (JSON,),
    ),
    "sample": Page("sample --model.path DIR [--prompt TEXT]", "Samples of a policy, one JSON line each."),
    "score": Page(
        "score --model.path DIR --data FILE [--KEY VALUE ...]",
        "Scores of given responses by a reward model, one JSON line a row.",
        (JSON,),
    ),
    "report": Page(
        "report DIR | report RUN [RUN ...] --out FILE.html",
        "Write the page of a run or an inspection again. With --out: one frontier of several runs, score against KL, "
        "as a page and a PNG.",
    ),
    "resume": Page(
        "resume RUN",
        "Continue a stopped run from its last checkpoint, with its own configuration. The result is the same bit for "
        "bit at equal threads and versions.",
        (JSON, ALLOW_CODE),
    ),
    "recipes": Page(
        "recipes [--json] | recipes copy NAME [FILE]",
        "List the recipes by command, with model, data and what to expect; or write one as YAML, to change it. A file "
        "that exists is not overwritten.",
        (JSON,),
    ),
    "runs": Page(
        "runs [DIR] [--json]",
        "List run directories below DIR (by default runs/), newest first: verdict, metric before and after, age.",
        (JSON,),
    ),
}


def help_text(verb: str, arguments: Sequence[str]) -> str:
    """The help of a command. `arguments` may choose kinds, such as --loss.kind simpo; others are ignored.

    Raises:
        UserError: a kind is unknown.
    """
    page = PAGES[verb]
    lines = [f"usage: treeward {page.usage}", "", *textwrap.wrap(page.about, _width())]
    flags: list[tuple[str, str]] = [("--help", "show this help"), *page.flags]
    config = _config(verb, arguments)
    if config is not None:
        kinds = _kinds(verb, config, arguments)
        rows = fields.options(config, kinds)
        if "[RECIPE]" in page.usage:
            names = [name for name in settings.recipes() if settings.recipe(name).get("command") == verb]
            text = f"recipes (treeward recipes): {', '.join(names)}"
            lines += ["", *textwrap.wrap(text, _width(), subsequent_indent="  ", break_on_hyphens=False)]
        for title, options in _grouped(verb, rows, page.elsewhere).items():
            heading = f"{title} ({_chosen(options[0], kinds)})" if options[0].kinds else title
            lines += ["", heading, *(line for option in options for line in _option_lines(verb, option, kinds))]
        for name, text in page.elsewhere.items():
            lines += ["", _title(name), *_columns(f"--{name}.KEY", text)]
    lines += ["", "Flags", *(line for flag, meaning in flags for line in _columns(flag, meaning))]
    return "\n".join(lines)


def _config(verb: str, arguments: Sequence[str]) -> type[Any] | str | None:
    """The config class of a command, as text where it need not be imported; None for a command without one."""
    if verb == "train":
        verb = dict(parse(arguments, _flag_names(verb)).options).get("method", verb)
    return config_class(verb) if ".py:" in verb else CONFIGS.get(verb)


def _flag_names(verb: str) -> list[str]:
    """The flags of a command, which take no value."""
    return ["help", "-h", *(flag.split()[0].removeprefix("--") for flag, _ in PAGES[verb].flags if " " not in flag)]


def _kinds(verb: str, config: type[Any] | str, arguments: Sequence[str]) -> dict[str, str]:
    """The kinds that a command line chooses, by the key of their group."""
    flags = _flag_names(verb)
    texts = {key.replace("-", "_"): text for key, text in parse(arguments, flags).options}
    kinds = {key.removesuffix(".kind"): text for key, text in texts.items() if key.endswith(".kind")}
    unions = {option.key: option.kinds for option in fields.options(config, kinds) if option.kinds}
    for key, kind in kinds.items():
        names = unions.get(f"{key}.kind")
        if names is not None and kind not in names:
            close = get_close_matches(kind, names, 1, 0.5)
            nearest = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{key}.kind is {kind!r}{nearest}; it may be {', '.join(names)}")
    return kinds


def _grouped(verb: str, rows: Sequence[Option], elsewhere: Mapping[str, str]) -> dict[str, list[Option]]:
    """The options by the title of their group, in the order of `GROUPS`."""
    groups: dict[str, list[Option]] = {}
    for option in rows:
        group, dot, _ = option.key.partition(".")
        if not dot:
            group = "run" if option.owner.startswith(("treeward.runner", "treeward.methods.method")) else "training"
        if group not in elsewhere:
            groups.setdefault(group, []).append(option)
    order = sorted(groups, key=lambda name: GROUPS.index(name) if name in GROUPS else len(GROUPS) - 1.5)
    return {_title(name) if name != "run" or is_method(verb) else "Options": groups[name] for name in order}


def _title(group: str) -> str:
    return group.upper() if group in METHODS else group.replace("_", " ").capitalize()


def _chosen(option: Option, kinds: Mapping[str, str]) -> str:
    """The kind whose options are shown, of a `.kind` option."""
    return kinds.get(option.key.removesuffix(".kind"), option.default or option.kinds[0])


def _option_lines(verb: str, option: Option, kinds: Mapping[str, str]) -> list[str]:
    """An option as one entry; of a `.kind` also its values, and how to see the options of another one."""
    flag = f"--{option.key.replace('_', '-')}"
    meaning = option.meaning if option.default is None else f"{option.meaning} [{option.default}]"
    if not option.kinds:
        unnamed = [choice for choice in option.choices if choice not in option.meaning]
        return _columns(flag, f"{meaning}\nOne of: {', '.join(option.choices)}." if unnamed else meaning)
    group = option.key.removesuffix(".kind")
    another = next(kind for kind in option.kinds if kind != _chosen(option, kinds))
    outer = [
        f"--{key}.kind {kind} " for key, kind in kinds.items() if option.key.startswith(f"{key}.") and key != group
    ]
    more = f"The options of another kind: treeward {verb} --help {''.join(outer)}{flag} {another}"
    return _columns(flag, f"{meaning}\nOne of: {', '.join(option.kinds)}.\n{more}")


def _columns(left: str, right: str) -> list[str]:
    """An entry in two columns; a long left side has a line of its own."""
    wrapped = [
        line
        for paragraph in right.splitlines()
        for line in textwrap.wrap(paragraph, _width() - COLUMN, break_on_hyphens=False, break_long_words=False)
    ]
    first = f"  {left}"
    if len(first) >= COLUMN - 1 or not wrapped:
        return [first, *(" " * COLUMN + line for line in wrapped)]
    return [first.ljust(COLUMN) + wrapped[0], *(" " * COLUMN + line for line in wrapped[1:])]


def _width() -> int:
    return min(WIDTH, shutil.get_terminal_size((80, 24)).columns)
