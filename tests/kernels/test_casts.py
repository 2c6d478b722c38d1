"""Adapters cast once for each update: how often, and that the gradients are those of fresh casts."""

from typing import Any

import pytest
import torch
from adapting import fill_up
from families import make_model
from helpers import gradients, random_rows
from torch import Tensor

from luthier.data.batches import collate
from luthier.kernels.casts import casts_of
from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup, MethodGroup, TrainGroup
from luthier.train.optimizers import make_optimizer
from luthier.train.setup import recompute_activations

GROUPS = 8  # four in each of two layers
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def adapted(family: str = "llama") -> Any:
    """The adapters of a Mixtral are on its experts alone, both stacks of each of two layers."""
    method = MethodGroup(lora_dropout=0.0, lora_r=4, lora_alpha=8)
    if family == "mixtral":
        changes = {"target_modules": [], "target_parameters": EXPERTS}
        method = method.model_copy(update=changes)
    model = attach_adapter(make_model(family, 96).to(torch.bfloat16), method)
    fill_up(model)
    install(model, KernelsGroup())
    return model.train()


@pytest.mark.parametrize(("family", "groups"), [("llama", GROUPS), ("mixtral", 4)])
def test_a_step_casts_each_group_once(
    family: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two micro-batches, forward, computed again and backward; after an update once more."""
    cast: list[int] = []
    right = torch._foreach_copy_

    def counted(targets: list[Tensor], sources: list[Tensor]) -> None:
        cast.append(len(sources))
        right(targets, sources)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    batch = collate([[row] for row in random_rows(3)])
    models = adapted(family), adapted(family)
    for kept in casts_of(models[1]):
        kept.keeps = False
    optimizers = []
    for model in models:
        recompute_activations(model)
        optimizers.append(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    times = []
    for _ in range(2):
        found = []
        for model, optimizer in zip(models, optimizers, strict=True):
            cast.clear()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_sum(model, batch) + loss_sum(model, batch)
            found.append(gradients(model, loss))
            times.append(len(cast))
            optimizer.step()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert times == [groups, 6 * groups, groups, 6 * groups]
    (memory,) = {t.dtype for kept in casts_of(models[0]) for t in kept.kept()}
    assert memory == torch.bfloat16


@pytest.mark.parametrize(
    "optim", ["adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd", "adamw_torch_fused"]
)
def test_every_optimizer_is_noticed(optim: str) -> None:
    """Some change weights without a word to PyTorch; the next step takes what they have become."""
    batch = collate([[row] for row in random_rows(3)])
    train = TrainGroup(learning_rate=0.05, weight_decay=0.0)
    found = []
    for keeps in (True, False):
        model = adapted()
        for kept in casts_of(model):
            kept.keeps = keeps
        optimizer = make_optimizer(model, train, optim)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_sum(model, batch)
            found.append(loss.item())
            gradients(model, loss)
            optimizer.step()
    assert found[0] != found[1]
    assert found[:2] == found[2:]


def test_float32_adapters_are_not_kept_twice() -> None:
    model = attach_adapter(make_model("llama", 96), MethodGroup(lora_dropout=0.0))
    install(model, KernelsGroup())
    loss_sum(model, collate([[row] for row in random_rows(3)])).backward()
    assert len(list(casts_of(model))) == GROUPS
    assert not [t for kept in casts_of(model) for t in kept.kept()]
