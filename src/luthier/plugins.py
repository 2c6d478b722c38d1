"""Plugins: what other packages bring under an entry point, by name (docs/plugins.md)."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from luthier.errors import UserError

Group = Literal["luthier.metrics", "luthier.objectives", "luthier.sinks"]

# What an object must have to be of use; a sink is called itself, with the recipe and the run.
_NEEDED: dict[Group, tuple[str, ...]] = {
    "luthier.metrics": ("score",),
    "luthier.objectives": ("collate", "loss", "count"),
    "luthier.sinks": ("__call__",),
}


def names(group: Group) -> list[str]:
    """The names of the installed plugins of ``group``, sorted."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load(group: Group, name: str) -> Any:
    """The object that an installed package brings as ``name`` of ``group``.

    Raises:
        UserError: no package or more than one brings it, it cannot be imported, or it lacks what
            its group needs; the message names the package.
    """
    found = {entry.value: entry for entry in entry_points(group=group, name=name)}
    if not found:
        known = ", ".join(names(group)) or "none"
        raise UserError(
            f"no plugin '{name}' of {group} is installed; the installed ones are: {known}"
        )
    if len(found) > 1:
        packages = " and ".join(sorted(map(_package, found.values())))
        raise UserError(f"{packages} both bring a plugin '{name}' of {group}; uninstall one")
    (entry,) = found.values()
    where = f"the plugin '{name}' ({entry.value}) of the package {_package(entry)}"
    try:
        plugin = entry.load()
    except Exception as error:  # whatever the package raises is for its user to see
        raise UserError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    for attribute in _NEEDED[group]:
        if not callable(getattr(plugin, attribute, None)):
            lacks = (
                "cannot be called" if attribute == "__call__" else f"has no function {attribute}"
            )
            raise UserError(f"{where} {lacks}, which {group} needs")
    return plugin


def described(group: Group, name: str) -> str:
    """The plugin and its package, for messages."""
    packages = {_package(entry) for entry in entry_points(group=group, name=name)}
    return f"the plugin '{name}' of the package {', '.join(sorted(packages))}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown package"
