"""Errors that are the user's to mend: one clear line each, never a traceback."""


def first_line(error, length=150) -> str:
    """What an exception says, on one line; its type where it says nothing."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line[:length]


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and how to mend it."""


class BadRecord(UserError):
    """One example cannot be read or decoded; a pipeline may replace it and count it."""


class Unhealthy(Exception):
    """A run cannot go on, but may when started again; nothing of it was saved. Exit code 1."""


class Preempted(Exception):
    """A run was asked to end and is saved: the same command goes on. Exit code 75 (EX_TEMPFAIL)."""
