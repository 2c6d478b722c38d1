"""`luthier plan`, and the plan that `luthier train` writes and is held to."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Cli, Notes

from luthier.recipe import Recipe
from luthier.run import claim_run
from luthier.runs import train_run


@pytest.fixture
def shape(narrow_model: Path) -> list[str]:
    return ["--model", str(narrow_model), "--seq-len", "128", "--batch-size", "2"]


def test_a_recipe_is_planned_with_its_own_rows(cli: Cli, recipe_file: Path) -> None:
    done = cli("plan", recipe_file, "--method", "all", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    methods = [plan["method"] for plan in found["plans"]]
    assert methods == ["full", "lora", "qlora"]
    for plan in found["plans"]:
        assert plan["work"]["steps"] == 6
        assert plan["fits"]
        assert plan["memory"]["peak"] == max(plan["memory"]["phases"].values())
    assert {room["device"] for room in found["fits"]["lora"]} > {"RTX 4090", "H100 SXM"}
    # Of the demo's rows none has the length of data.max_length.
    assert found["plans"][1]["largest_batch_tokens"] < 2 * 128


def test_shape_gpu_and_money(cli: Cli, shape: list[str]) -> None:
    options = ["--method", "lora", "--gpu", "rtx 3060", "--api-price", "2", "--sweep", "3"]
    done = cli("plan", *shape, *options)
    assert done.returncode == 0, done.stderr
    for text in ("RTX 3060", "3 runs", "peak", "breaks even after", "optimiser state"):
        assert text in done.stdout, text


def test_what_does_not_fit_shows_what_would(cli: Cli, narrow_model: Path) -> None:
    shape = ["--model", narrow_model, "--seq-len", "1024", "--batch-size", "8"]
    done = cli("plan", *shape, "--method", "full", "--memory", "1.5")
    assert done.returncode == 0, done.stderr
    assert "full does not fit" in done.stdout
    assert "recompute activations" in done.stdout


def test_other_hardware(cli: Cli, tmp_path: Path, shape: list[str]) -> None:
    mine = "my-card: {memory: 33, bandwidth: 900, bfloat16: 120, price_per_hour: 1}"
    (tmp_path / "mine.yaml").write_text(mine)
    shape += ["--method", "lora", "--hardware", str(tmp_path / "mine.yaml")]
    shape += ["--gpu", "my-card", "--api-price", "2", "--sweep", "3"]
    found = json.loads(cli("plan", *shape, "--json").stdout)
    (plan,) = found["plans"]
    assert plan["device"] == "my-card"
    assert found["sweep"]["lora"]["cost"][1] == pytest.approx(3 * plan["cost"][1])
    assert plan["cost"][0] < plan["cost"][1]
    assert found["break_even"]["lora"]["tokens"][0] > 0
    (tmp_path / "mine.yaml").write_text("my-card: {memroy: 33}\n")
    done = cli("plan", *shape)
    assert (done.returncode, "did you mean 'memory'" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "llama-3.1-8", "--gpu", "h100"], "did you mean 'llama-3.1-8b'"),
        (["--model", "gpt2", "--gpu", "rtx-4091"], "did you mean 'rtx-4090'"),
        (["--model", "gpt2", "--seq-len", "2048"], "exceeds the 1,024 positions of gpt2"),
        (["--model", "smollm2-135m", "--method", "lora", "--lora-r", "4096"], "rank"),
        (["--model", "gpt2", "--method", "dpo"], "--method must be all, full, lora or qlora"),
        (["--model", "gpt2", "--gpu", "t4", "--memory", "3"], "not both"),
        (["--model", "gpt2", "--optim", "adam"], "train.optim"),
        ([], "give either a RECIPE or --model"),
    ],
)
def test_bad_input_is_explained(cli: Cli, options: list[str], message: str) -> None:
    done = cli("plan", *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_held_to_its_plan(make_recipe: Callable[..., Recipe]) -> None:
    notes = Notes()
    recipe = make_recipe()
    run = claim_run(recipe, "test")
    train_run(recipe, run, notes)
    plan = json.loads(run.plan_path.read_text())
    measured = json.loads(run.measured_path.read_text())
    error = measured["plan_errors"]["peak_memory"]
    peak = measured["peak_memory_bytes"]
    assert error == pytest.approx(plan["memory"]["peak"] / peak - 1, abs=1e-3)
    assert any(note.startswith("planned: ") for note in notes.notes)
