"""The Dockerfiles are well-formed, and what they name exists. (Nothing is built here.)"""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PAGE = (ROOT / "docs/how-to/docker.md").read_text("utf-8")


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.M))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line]


def allowed() -> set[str]:
    """What .dockerignore lets into the build."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint") or str(ROOT / ".venv/bin/hadolint")
    if not Path(hadolint).is_file():
        pytest.skip("hadolint has no package for this machine")
    done = subprocess.run([hadolint, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_it_names_exists(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = instructions(file)
    copied = {part for word, rest in found if word == "COPY" for part in rest.split()[:-1]}
    assert copied and all((ROOT / part).exists() for part in copied)
    assert copied <= allowed()
    (install,) = (rest for word, rest in found if word == "RUN" and "pip install" in rest)
    assert "--constraint constraints.txt" in install
    (extras,) = re.findall(r"'\.\[(.*)\]'", install)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    (entry,) = (rest for word, rest in found if word == "ENTRYPOINT")
    assert entry == '["luthier"]' and "luthier" in project["scripts"]
    (base,) = (rest for word, rest in found if word == "FROM")
    version = re.search(r"python:(\d\.\d+)", base)
    assert version and f"Python :: {version[1]}" in "".join(project["classifiers"])


def test_the_page_names_them_and_commands_that_exist() -> None:
    import typer

    from luthier.cli import main
    from luthier.cli.app import app

    assert main
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [line for line in PAGE.splitlines() if line.startswith("docker ")]
    built = [
        words[words.index("--file") + 1] for words in map(shlex.split, lines) if "--file" in words
    ]
    assert built == [f"docker/{file.name}" for file in FILES]
    for words in map(shlex.split, lines):
        if words[1] == "run":
            (image,) = (n for n, word in enumerate(words) if word in ("luthier", "luthier:cuda"))
            command = commands[words[image + 1]]
            options = {
                name
                for part in (command, *getattr(command, "commands", {}).values())
                for param in part.params
                for name in param.opts
            }
            assert {word for word in words[image + 2 :] if word.startswith("--")} <= options
    assert "NOT RUN on a GPU" in FILES[1].read_text("utf-8")
    assert "has not run on a GPU" in PAGE
