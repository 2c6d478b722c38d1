"""Fine-tune language models: advise, plan, prepare data, train, prove, ship.

    import luthier

    run = luthier.train("recipes/lora.yaml", data={"train": "my.jsonl"}, on_event=print)
    print(luthier.evaluate(run))
    print(luthier.generate(run, ["List files over 1 MB"]))

Nothing heavy is imported before it is used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from luthier.api import advise as advise
    from luthier.api import check_data as check_data
    from luthier.api import compare as compare
    from luthier.api import evaluate as evaluate
    from luthier.api import export as export
    from luthier.api import generate as generate
    from luthier.api import load as load
    from luthier.api import merge as merge
    from luthier.api import plan as plan
    from luthier.api import sweep as sweep
    from luthier.api import tokenize_data as tokenize_data
    from luthier.api import train as train
    from luthier.errors import Interrupted as Interrupted
    from luthier.errors import UserError as UserError
    from luthier.recipe import Recipe as Recipe
    from luthier.recipe import as_recipe as as_recipe
    from luthier.run import Run as Run
    from luthier.run import open_run as open_run

_DOOR = {
    **dict.fromkeys(
        ("advise", "check_data", "compare", "evaluate", "export", "generate", "load"), "luthier.api"
    ),
    **dict.fromkeys(("merge", "plan", "sweep", "tokenize_data", "train"), "luthier.api"),
    **dict.fromkeys(("Interrupted", "UserError"), "luthier.errors"),
    **dict.fromkeys(("Recipe", "as_recipe"), "luthier.recipe"),
    **dict.fromkeys(("Run", "open_run"), "luthier.run"),
}
__all__ = ["__version__", *sorted(_DOOR)]


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    return getattr(import_module(_DOOR[name]), name)


class _Door(ModuleType):
    """Keeps `luthier.train` the function, also once the package `luthier.train` was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _DOOR and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door


def __dir__() -> list[str]:
    return sorted(__all__)
