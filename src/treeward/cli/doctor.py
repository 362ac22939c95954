"""`treeward doctor [--model PATH] [--tokenizer PATH] [--init random]`."""

from collections.abc import Sequence

from treeward.cli.help import PAGES
from treeward.cli.parse import parse
from treeward.errors import UserError
from treeward.runner import doctor


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print what the machine can do, and a model if one is named."""
    words = parse(arguments, ())
    options = dict(words.options)
    unknown = [*words.places, *(options.keys() - {"model", "tokenizer", "init"})]
    if unknown:
        raise UserError(f"doctor does not take {unknown[0]!r}; usage: treeward {PAGES[verb].usage}")
    facts = doctor.machine()
    if "model" in options:
        facts |= doctor.model(doctor.model_config(options["model"], options.get("tokenizer"), options.get("init")))
    for name, value in facts.items():
        print(f"{name:<10} {value}")
    return 0
