"""Runs of the tiny model, and a server over them for each file of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import write_rows
from openai import OpenAI
from safetensors.torch import load_file, save_file
from serving import KEY, client_of, running

from luthier.recipe import parse_recipe
from luthier.run import Run, claim_run
from luthier.serve.limits import Limits
from luthier.serve.models import Models


@pytest.fixture(scope="session")
def runs(
    tiny_model: Path, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of the finished runs `one` and `two` (LoRA), `dora`, and `whole` (full)."""
    from luthier.train.fit import fit

    folder = tmp_path_factory.mktemp("served")
    data = write_rows(folder / "rows.jsonl", rows)
    for name, method in (("one", "lora"), ("two", "lora"), ("dora", "lora"), ("whole", "full")):
        recipe = parse_recipe(
            "",
            [
                f"model.source={tiny_model}",
                "model.dtype=float32",
                f"method.name={method}",
                f"method.use_dora={name == 'dora'}".lower(),
                f"data.train={data}",
                "data.max_length=128",
                "train.max_steps=1",
                "train.warmup_ratio=0",
                f"run.dir={folder}",
                f"run.name={name}",
            ],
        )
        run: Run = claim_run(recipe, "test")
        fit(recipe, run)
        _make_its_own(run.weights_path(recipe), name)
    return folder


def _make_its_own(weights: Path, name: str) -> None:
    """Large random changes: what one step teaches a tiny model would not show in its answers."""
    draw = torch.Generator().manual_seed(sum(name.encode()))
    (path,) = weights.glob("*.safetensors")
    tensors = {
        key: tensor + 0.3 * torch.randn(tensor.shape, generator=draw)
        if "lora_B" in key or (name == "whole" and "proj" in key)
        else tensor
        for key, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture(scope="session")
def models(runs: Path) -> Models:
    return Models([str(runs / "one"), f"second={runs / 'two'}"])


@pytest.fixture(scope="module")
def address(models: Models, runs: Path) -> Iterator[str]:
    with running(models, Limits(new_tokens=400), KEY, runs) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return client_of(address)
