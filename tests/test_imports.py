"""Imports flow one way; see the layout in CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

import luthier

ROOT = Path(luthier.__file__).parent

# What each part may import of ours; those in FREE are free to all. `demo` plays the whole
# path as the command line does.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "yaml_text": set(),
    "credentials": set(),
    "extras": set(),
    "recipe": set(),
    "records": set(),
    "events": {"records"},
    "run": {"recipe", "records"},
    "models": {"recipe", "run"},
    "data": {"recipe", "run", "models"},
    "kernels": {"recipe", "models"},
    "advise": {"recipe", "data"},
    "runtime": set(),
    "sinks": {"recipe", "run"},
    "objectives": {"models", "data", "kernels"},
    "train": {"recipe", "run", "models", "data", "kernels", "objectives", "sinks"},
    "plan": {"recipe", "run", "models", "data", "kernels", "objectives", "train"},
    "runs": {"recipe", "run", "plan", "train", "evaluate"},
    "generate": {"recipe", "run", "models", "data"},
    "serve": {"recipe", "run", "models", "data", "generate"},
    "evaluate": {"recipe", "run", "models", "data", "kernels", "objectives", "generate"},
    "retrieve": {"run", "models", "data", "generate"},
    "compare": {
        *("recipe", "run", "models", "data", "advise"),
        *("runs", "train", "generate", "serve", "evaluate", "retrieve"),
    },
    "export": {"recipe", "run", "models", "data", "kernels", "objectives", "generate"},
    "demo": {"recipe", "run", "train", "evaluate"},
    "cli": {
        *("recipe", "run", "runs", "models", "data", "advise", "plan"),
        *("train", "generate", "serve", "evaluate", "retrieve", "compare", "export", "demo"),
    },
}
FREE = {
    *("errors", "files", "yaml_text", "credentials", "events", "records", "extras", "runtime"),
    "__version__",
}


def imported_parts(source: str) -> set[str]:
    """Our parts that a module names in its imports, at the top or inside functions."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("luthier.")}
    return parts


def wrong_imports(part: str, source: str) -> set[str]:
    return imported_parts(source) - ALLOWED[part] - FREE - {part}


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert wrong_imports(part, path.read_text("utf-8")) == set()


def test_a_planted_violation_is_found() -> None:
    planted = "def f():\n    from luthier.train.fit import fit\n    import luthier.cli.main"
    assert wrong_imports("data", planted) == {"train", "cli"}
