"""The errors that users see."""


class UserError(ValueError):
    """Something that the user can correct: it names the field, its value and the fix.

    The command line prints it in one line and exits with code 2. Any other exception is a fault of Treeward: it keeps
    its traceback, and the exit code is 1.
    """
