"""Exceptions and warnings of the package."""


class Error(Exception):
    """Something cannot be done; the message names the file, the tensor or the node, and what was expected."""


class UsageError(Error, ValueError):
    """An argument that cannot be."""


class Warning(UserWarning):
    """Something is strange, and it went on."""


for _class in (Error, UsageError, Warning):
    _class.__module__ = "lapidary"
