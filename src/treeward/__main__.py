"""`python -m treeward` is the command."""

import os
import sys
import threading
import time

from treeward.cli.main import run


def main() -> None:
    """The command's entry: parse, run, exit with the run's code."""
    parent = os.environ.pop("TREEWARD_PARENT", None)
    if parent is not None:
        threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it. Python must not write the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def end_with(parent: int) -> None:
    """End this process once its parent has died: a member of `treeward warp` does not outlive the command."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
