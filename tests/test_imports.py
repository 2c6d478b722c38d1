"""Imports flow one way; see the layout in CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

import luthier

ROOT = Path(luthier.__file__).parent

# What each part may import of ours; those in FREE are free to all. `demo` plays the whole path as
# the command line does.
ALLOWED = {
    "compile_late": set(),
    "errors": set(),
    "files": set(),
    "yaml_text": set(),
    "credentials": set(),
    "plugins": set(),
    "extras": set(),
    "recipe": {"plugins"},
    "records": set(),
    "tables": set(),
    "perplexity": set(),
    "sockets": set(),
    "events": {"records"},
    "trust": {"recipe"},
    "run": {"recipe", "records", "trust"},
    "models": {"recipe", "run"},
    "data": {"recipe", "run", "models"},
    "kernels": {"recipe", "models"},
    "advise": {"recipe", "data"},
    "runtime": set(),
    "sinks": {"recipe", "run", "plugins"},
    "objectives": {"recipe", "plugins", "models", "data", "kernels"},
    "train": {"recipe", "run", "models", "data", "kernels", "objectives", "sinks", "plugins"},
    "plan": {"recipe", "run", "models", "data", "kernels", "objectives", "train"},
    "runs": {"recipe", "run", "plan", "train", "evaluate", "trust"},
    "generate": {"recipe", "run", "models", "data"},
    "serve": {"recipe", "run", "models", "data", "generate", "export"},
    "evaluate": {"plugins", "recipe", "run", "models", "data", "kernels", "objectives", "generate"},
    "retrieve": {"run", "models", "data", "generate"},
    "compare": {
        *("recipe", "run", "models", "data", "advise"),
        *("runs", "train", "generate", "serve", "evaluate", "retrieve"),
    },
    "sweep": {
        *("recipe", "run", "models", "data", "kernels"),
        *("train", "plan", "evaluate", "compare"),
    },
    "launch": {"recipe"},
    "export": {"recipe", "run", "models", "data", "kernels", "objectives", "generate"},
    "demo": {"api", "recipe", "run", "evaluate"},  # evaluate: the scripts that make its task
    "board": {"api", "recipe", "run"},
    "cli": {"api", "recipe", "run", "trust", "demo", "board"},
    "api": {
        *("recipe", "run", "runs", "models", "data", "advise", "plan"),
        *(
            "train",
            "generate",
            "serve",
            "evaluate",
            "retrieve",
            "compare",
            "sweep",
            "export",
            "launch",
        ),
    },
}
FREE = {
    "compile_late",
    "errors",
    "files",
    "yaml_text",
    "credentials",
    "events",
    "records",
    "tables",
    "extras",
    "runtime",
    "perplexity",
    "sockets",
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


def imports_rich(source: str) -> bool:
    """Whether a module imports Rich, at the top or inside functions."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return any(name.split(".")[0] == "rich" for name in names)


def wrong_imports(part: str, source: str) -> set[str]:
    return imported_parts(source) - ALLOWED[part] - FREE - {part}


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert wrong_imports(part, read(path)) == set()


def test_a_planted_violation_is_found() -> None:
    planted = "def f():\n    from luthier.train.fit import fit\n    import luthier.cli.main"
    assert wrong_imports("data", planted) == {"train", "cli"}


def test_rich_lives_in_the_command_line_alone() -> None:
    users = {path.relative_to(ROOT).parts[0] for path in modules() if imports_rich(read(path))}
    assert users == {"cli"}
    for planted in ("import rich", "def f():\n    from rich.live import Live", "import rich.table"):
        assert imports_rich(planted)
    assert not imports_rich("import richer\nfrom luthier.rich import table")


def read(path: Path) -> str:
    return path.read_text("utf-8")
