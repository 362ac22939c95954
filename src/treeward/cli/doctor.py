"""`treeward doctor [--model PATH] [--tokenizer PATH] [--init random]`."""

from collections.abc import Sequence

from treeward.cli.parse import parse
from treeward.errors import UserError
from treeward.runner import doctor

USAGE = "treeward doctor [--model PATH|ID] [--tokenizer PATH|ID] [--init pretrained|random]"


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print what the machine, and a model if one is named, can do."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print(USAGE)
        return 0
    given = dict(words.options)
    unknown = [*words.places, *(given.keys() - {"model", "tokenizer", "init"})]
    if unknown:
        raise UserError(f"doctor does not take {unknown[0]!r}; usage: {USAGE}")
    facts = doctor.machine()
    if "model" in given:
        facts |= doctor.model(doctor.named(given["model"], given.get("tokenizer"), given.get("init")))
    for name, value in facts.items():
        print(f"{name:<10} {value}")
    return 0
