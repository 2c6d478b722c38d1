"""Simulated steps that are kept: the same again, and none from other code or another question."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import config_of

from luthier.plan import kept_steps
from luthier.plan.kept_steps import step_of
from luthier.plan.simulate import Workload, simulate
from luthier.recipe import KernelsGroup, MethodGroup


def test_a_step_is_simulated_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    asked: list[Workload] = []

    def counted(config, method, work):  # type: ignore[no-untyped-def]
        asked.append(work)
        return simulate(config, method, work)

    monkeypatch.setattr(kept_steps, "step_by_layers", counted)
    config, method = config_of("llama", 96), MethodGroup(lora_r=4)
    work = Workload([8, 5], 6, torch.float32, "adamw_torch_fused")
    first = step_of(config, method, work)
    assert step_of(config, method, work) == first
    assert len(asked) == 1
    assert first == simulate(config_of("llama", 96), method, work)

    others = [
        (config, method, replace(work, lengths=[8, 6])),
        (config, method, replace(work, dtype=torch.bfloat16)),
        (config, method, replace(work, kernels=KernelsGroup(loss=False))),
        (config, MethodGroup(lora_r=8), work),
        (config_of("llama", 128), method, work),
    ]
    for other in others:
        step_of(*other)
    assert len(asked) == 6

    (file, *_) = tmp_path.rglob("*.json")
    for broken in tmp_path.rglob("*.json"):
        broken.write_text(file.read_text()[:40])
    assert step_of(config, method, work) == first
    assert len(asked) == 7
    monkeypatch.setattr(kept_steps, "_code", lambda: "other code")
    assert step_of(config, method, work) == first
    assert len(asked) == 8
