"""Catalogues of models and accelerators, to plan for without having them."""

import copy
import difflib
import re
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PreTrainedConfig

from luthier.errors import UserError
from luthier.models.load import load_config
from luthier.models.source import resolve
from luthier.yaml_text import parse_yaml

_OTHER = {"laptop", "max", "nvl", "pcie", "super", "ti"}


@dataclass(frozen=True)
class Accelerator:
    """One entry of ``hardware.yaml``: GB, GB/s, dense TFLOP/s, watts, US dollars per hour.

    ``link`` is what it sends to another of its machine, ``network`` to one of another machine, GB/s.

    What is unknown (of ``--memory GB``, of this machine) is None.
    """

    name: str
    memory: float
    bandwidth: float | None = None
    bfloat16: float | None = None
    float32: float | None = None
    watts: float | None = None
    price_per_hour: float | None = None
    is_cpu: bool = False
    link: float | None = None
    network: float | None = None
    float8: float | None = None

    @property
    def lacks_float8(self) -> bool:
        """Whether it is a card that is known to multiply no 8-bit numbers."""
        return not self.is_cpu and self.float8 == 0

    @property
    def bytes(self) -> int:
        """Memory as a program sees it: cards are sold by GiB, and a part is the driver's."""
        return int(self.memory * 2**30 * (1 if self.is_cpu else 0.985))

    def tflops(self, dtype: str) -> float | None:
        """Dense TFLOP/s of matrix products in ``dtype``."""
        return {"float32": self.float32, "float8": self.float8}.get(dtype, self.bfloat16)


@cache
def _read(name: str) -> dict[str, dict[str, Any]]:
    text = files("luthier.plan").joinpath(f"catalogue/{name}.yaml").read_text("utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return entries


def accelerators(overrides: Path | None = None) -> dict[str, Accelerator]:
    """All of the catalogue, by short name, with the entries of a YAML file laid over it.

    An entry of the file changes the keys it gives of the one of that name, or is a new one.

    Raises:
        UserError: the file cannot be read, or an entry is wrong.
    """
    # What a catalogue's card says nothing of it has not; of a file's own nothing is known then.
    entries = {key: {"float8": 0.0} | entry for key, entry in _read("hardware").items()}
    for key, entry in _read_overrides(overrides).items() if overrides else ():
        entries[key] = {"name": key, **entries.get(key, {}), **entry}
    return {key: _accelerator(key, entry) for key, entry in entries.items()}


def _read_overrides(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = parse_yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the hardware file {path}: {error}") from None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise UserError(
            f"{path}: a hardware file is a mapping such as "
            "'my-card: {memory: 24, bfloat16: 120, price_per_hour: 0.5}'"
        )
    return entries


def _accelerator(key: str, entry: dict[str, Any]) -> Accelerator:
    known = {field.name: field for field in fields(Accelerator)}
    for name, value in entry.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; keys: {', '.join(known)}"
            raise UserError(f"hardware '{key}': unknown key '{name}'{hint}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in ("name", "is_cpu") and not (number and value >= 0):
            raise UserError(f"hardware '{key}': {name} is {value!r}, not a number")
    if not entry.get("memory"):
        raise UserError(f"hardware '{key}' needs 'memory', in GB")
    return Accelerator(**entry)


def find_accelerator(name: str, overrides: Path | None = None) -> Accelerator:
    """The accelerator of a short name, however spelled (``RTX 4090``, ``rtx4090``).

    Raises:
        UserError: there is none; the message has the nearest.
    """
    known = accelerators(overrides)
    plain = {_plain(key): key for key in known}
    wanted = _plain(name)
    if wanted in plain:
        return known[plain[wanted]]
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.4)
    hint = f"; did you mean '{plain[near[0]]}'?" if near else ""
    raise UserError(f"unknown GPU '{name}'{hint}; known: {', '.join(known)}, or give --memory GB")


def card_named(name: str, memory: float) -> Accelerator | None:
    """The accelerator that CUDA calls ``name``, of ``memory`` GiB; None for one that is not known.

    All words of the key must be words of the name, so that no card is taken for its neighbour. Of a
    name that adds a word of ``_OTHER`` it is another card, slower or faster.
    """
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    for key, known in accelerators().items():
        parts = [part for part in key.split("-") if part != str(known.memory)]
        other = words & (_OTHER if "SXM" in known.name else _OTHER - {"pcie"})
        near = abs(known.memory - memory) < 0.15 * known.memory
        if words.issuperset(parts) and near and not other and not known.is_cpu:
            return known
    return None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def models() -> dict[str, int]:
    """Names of the catalogue's models and their parameters."""
    return {name: int(entry["parameters"]) for name, entry in _read("models").items()}


def find_config(source: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a catalogue model (name or hub id), else of any ``model.source``.

    No weights are fetched for a model of the catalogue.

    Raises:
        UserError: there is no such model.
    """
    entries = _read("models")
    by_hub_id = {str(entry["hub_id"]).lower(): name for name, entry in entries.items()}
    name = by_hub_id.get(source.lower(), source.lower())
    if name in entries:
        entry = {k: v for k, v in entries[name].items() if k not in ("hub_id", "parameters")}
        config: PreTrainedConfig = AutoConfig.for_model(entry.pop("model_type"), **entry)
        return config
    try:
        return load_config(resolve(source, weights=False).folder, trust_remote_code)
    except UserError as error:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; catalogue: {', '.join(entries)}"
        raise UserError(f"{error}{hint}") from None


def as_on_gpu(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config`` as it holds memory on a GPU.

    Fused attention draws its dropout from a seed there and keeps neither scores nor mask; on a CPU
    dropout in attention (GPT-2's) makes PyTorch keep both.
    """
    changed = copy.deepcopy(config)
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(changed, name):
            setattr(changed, name, 0.0)
    return changed
