"""The errors that people see. Anything else that escapes is a bug in Luthier."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and what to do.

    The command line prints the message alone (no traceback) and exits with 2.
    """


class Interrupted(Exception):
    """The user stopped a run and everything was saved; the command line exits with 130."""


class CheckFailed(UserError):
    """What was made does not pass its own check, so it was not written; the message is complete."""
