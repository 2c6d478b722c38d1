"""`luthier advise` as a person, a script and a terminal use it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from helpers import Cli, write_rows

from luthier.recipe import load_recipe

TUNES = ["--metric", "--budget", "--tasks", "one", "--few-shot", "not_enough", "--goals", "format"]
METHOD = ["--prompts-exhausted", "--model", "smollm2-135m", "--gpu-memory", "0"]


def test_a_recipe_comes_out_and_is_read_back(cli: Cli, narrow_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n}."} for n in range(1200)]
    data = write_rows(tmp_path / "my.jsonl", rows)
    given = [*TUNES, *METHOD, "--priority", "balanced", "--data", str(data)]
    done = cli("advise", *given, "--recipe", "out.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fine-tune — with lora")
    assert "luthier train out.yaml" in done.stdout
    recipe = load_recipe(tmp_path / "out.yaml")
    assert recipe.method.name == "lora"
    assert recipe.train_files == [str(data)]
    # Of a model with a tenth of the layers.
    planned = cli(
        "plan", "out.yaml", "--set", f"model.source={narrow_model}", "--json", cwd=tmp_path
    )
    assert planned.returncode == 0, planned.stderr


def test_json_and_precedence(cli: Cli, tmp_path: Path) -> None:
    """Options win over the file of answers."""
    (tmp_path / "a.json").write_text(json.dumps({"metric": False, "tasks": "one", "examples": 3}))
    done = cli("advise", "--answers", "a.json", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["outcome"], found["recipe"]) == ("prepare", None)
    assert len(found["ways"]) == 4
    done = cli("advise", "--answers", "a.json", "--metric", "--no-budget", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["outcome"] == "few-shot"


def test_what_is_missing_is_named(cli: Cli, tmp_path: Path) -> None:
    done = cli("advise", "--metric")
    assert done.returncode == 2
    assert "'budget' has no answer" in done.stderr
    assert "--budget or --no-budget" in done.stderr
    done = cli("advise", *TUNES, "--examples", "2000", *METHOD)
    assert "'priority' has no answer: accuracy, balanced, memory" in done.stderr
    (tmp_path / "a.json").write_text("{")
    done = cli("advise", "--answers", tmp_path / "a.json")
    assert done.returncode == 2
    assert "a.json, line 1: not JSON" in done.stderr


def test_in_a_terminal_it_asks(tmp_path: Path) -> None:
    """Numbers, names and a mistake, typed into a real terminal."""
    typed = ["y", "1", "3", "not", "5,zzz", "format", "2,000", "yes", "smollm2-135m", "0", "2"]
    parent, child = pty.openpty()
    typed[2] = "one"
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli.main", "advise", "--recipe", "out.yaml"],
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=child,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(child)
    os.write(parent, ("\n".join(typed) + "\n" * 5).encode())
    shown = bytearray()
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    assert b"not a valid answer" in shown
    assert b"question 1" in shown
    assert stdout.decode().startswith("fine-tune — with lora")
    assert load_recipe(tmp_path / "out.yaml").model.source == "smollm2-135m"
