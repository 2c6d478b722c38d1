"""Models and accelerators that can be planned for without having them."""

import difflib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from transformers import AutoConfig, PreTrainedConfig

from luthier.errors import UserError
from luthier.models.load import load_config
from luthier.models.source import resolve


@dataclass(frozen=True)
class Accelerator:
    """One entry of ``hardware.yaml``: GB, GB/s, dense TFLOP/s, watts, US dollars an hour."""

    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    watts: float
    price_per_hour: float

    @property
    def bytes(self) -> int:
        """Memory as a program sees it: cards are sold by GiB, and a part is the driver's."""
        return int(self.memory * 2**30 * 0.985)


@cache
def _read(name: str) -> dict[str, dict[str, Any]]:
    text = files("luthier.plan").joinpath(f"catalogue/{name}.yaml").read_text("utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return entries


def accelerators() -> dict[str, Accelerator]:
    """All of the catalogue, by short name."""
    return {key: Accelerator(**entry) for key, entry in _read("hardware").items()}


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of a short name, however spelled (``RTX 4090``, ``rtx4090``).

    Raises:
        UserError: there is none; the message has the nearest.
    """
    known = accelerators()
    plain = {key.replace("-", ""): key for key in known}
    wanted = "".join(c for c in name.lower() if c.isalnum())
    if wanted in plain:
        return known[plain[wanted]]
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.4)
    hint = f"; did you mean '{plain[near[0]]}'?" if near else ""
    raise UserError(f"unknown GPU '{name}'{hint}; known: {', '.join(known)}, or give --memory GB")


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
        return load_config(resolve(source).folder, trust_remote_code)
    except UserError as error:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; catalogue: {', '.join(entries)}"
        raise UserError(f"{error}{hint}") from None
