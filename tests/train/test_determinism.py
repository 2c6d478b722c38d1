"""Two runs of a recipe are compared to the byte, and a difference is told."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from helpers import Cli
from safetensors.torch import load_file, save_file

from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.determinism import differences


def test_the_command_finds_the_same_bytes(cli: Cli, recipe_file: Path, tmp_path: Path) -> None:
    done = cli("train", recipe_file, "--verify-determinism", "--json")
    assert done.returncode == 0, done.stderr
    assert '"same": true' in done.stdout
    assert not (tmp_path / "runs").exists()  # nothing of it stays


def test_a_recipe_that_cannot_train_is_an_error(cli: Cli, recipe_file: Path) -> None:
    done = cli("train", recipe_file, "--verify-determinism", "--set", "data.max_length=4096")
    assert done.returncode == 2
    assert "more than the 512 positions" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_difference_is_told(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(make_recipe())
    other = Run(shutil.copytree(run.root, tmp_path / "other"))
    assert differences(run, other) == []
    last = other.checkpoint_path(max(other.checkpoints()))
    weights = load_file(last / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name].view(torch.int32)[0, 0] ^= 1  # the last bit of one number
    save_file(weights, last / "adapter_model.safetensors")
    lines = other.metrics_path.read_text().splitlines()
    other.metrics_path.write_text(
        "\n".join([*lines[:2], lines[2].replace('"loss": ', '"loss": 1')])
    )
    provenance = other.provenance_path.read_text().replace("float32", "bfloat16")
    other.provenance_path.write_text(provenance)
    found = differences(run, other)
    assert found[0].startswith("dtype: float32 and bfloat16")
    assert found[1].startswith("step 3: loss ")
    assert found[2] == "adapter_model.safetensors after 6 steps"
