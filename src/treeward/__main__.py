"""`python -m treeward` is the command."""

import sys

from treeward.cli.main import run


def main() -> None:
    """The command's entry: parse, run, exit with the run's code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
