"""Errors that are the user's to mend: one clear line each, never a traceback."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and how to mend it."""


class BadRecord(UserError):
    """One example cannot be read or decoded; a pipeline may replace it and count it."""
