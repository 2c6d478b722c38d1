"""Packages that only some commands need."""

from importlib.util import find_spec

from luthier.errors import UserError


def need(*packages: str, extra: str, what: str) -> None:
    """Call before the import of optional packages.

    Args:
        packages: the names they are imported by.
        extra: the extra of pyproject.toml that installs them.
        what: what the user asked for, the subject of the message.

    Raises:
        UserError: one of them is not installed.
    """
    if any(find_spec(package) is None for package in packages):
        raise UserError(f"{what} needs the extra '{extra}': pip install 'luthier[{extra}]'")
