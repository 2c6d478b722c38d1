"""Every architecture whose attention is replaced: packed rows give what each row gives alone."""

import pytest
import torch
from families import WINDOW, small_config
from helpers import gradients, random_rows
from transformers import AutoModelForCausalLM, set_seed

from luthier.data.batches import collate
from luthier.kernels import attention
from luthier.objectives.supervised import loss_sum


@pytest.mark.parametrize("kind", sorted(attention.KNOWN))
def test_rows_are_as_they_are_alone(kind: str) -> None:
    set_seed(7)
    model = AutoModelForCausalLM.from_config(small_config(kind), dtype=torch.float32).eval()
    model.config.use_cache = False
    rows = random_rows(6)
    assert max(map(len, rows)) > WINDOW
    alone = sum(loss_sum(model, collate([[row]])) for row in rows)
    wanted = gradients(model, alone)
    assert attention.install(model)
    together = loss_sum(model, collate([[row] for row in rows]))
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    for name, found in gradients(model, together).items():
        assert (found - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6, name
