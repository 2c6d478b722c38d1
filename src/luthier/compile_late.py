"""Leaves PyTorch's compiler unimported until something is compiled.

bitsandbytes, which PEFT imports, compiles a few functions of its own when it is imported. They are of
its 8-bit products and optimisers, which few processes use; but ``torch.compile`` imports all of the
compiler at once, which costs each command more time than it takes to import torch itself.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

_LIBRARY = "bitsandbytes"


def compile_late() -> None:
    """Let bitsandbytes compile its functions at their first call; without effect once it is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the library where Python does, and adds to how it is imported."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _LIBRARY:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = functools.partial(_import, execute)  # type: ignore[method-assign]
        return spec


def _import(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    import torch

    at_once = torch.compile

    def late(model: Any = None, **options: Any) -> Any:
        if not isinstance(model, FunctionType):  # of another thread, say
            return at_once(model, **options)
        compiled = functools.cache(lambda: at_once(model, **options))

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    torch.compile = late
    try:
        execute(module)
    finally:
        torch.compile = at_once
