"""The training step against its slow reference, for any objective, over ranks, skipped or scaled."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import MODEL_FAMILIES, make_model
from helpers import random_rows
from steps import DPO, adapted, learner, micro_batches

from luthier.data.batches import IGNORED, collate
from luthier.objectives.sft import SFT
from luthier.train.loop import train_step
from luthier.train.optimizers import step_in_backward
from luthier.train.skips import NonFinite

HERE = Path(__file__).parent


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_step_is_one_update_by_the_gradient_of_the_mean_over_all_its_tokens(family: str) -> None:
    torch.manual_seed(1)
    model, slow = make_model(family, 96), make_model(family, 96)
    slow.load_state_dict(model.state_dict())
    for module in [*model.modules(), *slow.modules()]:
        if isinstance(module, torch.nn.Dropout):  # GPT-2's own
            module.p = 0.0
    rows = random_rows(6, seed=4)
    batches = [collate([rows[:1]]), collate([rows[1:4]]), collate([rows[4:]])]
    result = train_step(learner(model=model), batches)

    slow.train()
    losses = []
    for row in rows:  # each alone, from all logits
        labels = torch.tensor(
            [t if s else IGNORED for t, s in zip(row.input_ids, row.supervised, strict=True)]
        )
        logits = slow(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
        losses.append(F.cross_entropy(logits, labels[1:], reduction="sum"))
    mean = torch.stack(losses).sum() / sum(sum(row.supervised) for row in rows)
    mean.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in slow.parameters() if p.grad is not None])
    with torch.no_grad():
        for parameter in slow.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert result.loss == pytest.approx(mean.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert result.tokens == sum(map(len, rows))
    assert (result.learning_rate, result.skipped, result.parts) == (0.1, False, {})
    for (name, ours), theirs in zip(model.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_clipped_to_the_norm_and_told_before_it() -> None:
    free, clipped = learner(), learner(max_grad_norm=0.01)
    before = [p.detach().clone() for p in clipped.model.parameters()]
    norms = [train_step(one, micro_batches()).grad_norm for one in (free, clipped)]
    assert norms[0] == norms[1] > 0.1
    moved = [
        (old - new.detach()) / 0.1
        for old, new in zip(before, clipped.model.parameters(), strict=True)
    ]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(0.01, rel=1e-3)


class Poisoned(SFT):
    """The loss of the second micro-batch is NaN."""

    def loss(self, model: Any, batch: Any) -> Any:
        loss, parts = super().loss(model, batch)
        return (loss * math.nan if len(batch.row_lengths) == 4 else loss), parts


def test_a_non_finite_step_changes_nothing_but_the_schedule() -> None:
    mine = learner(Poisoned())
    before = [p.detach().clone() for p in mine.model.parameters()]
    looked: list[int] = []
    result = train_step(mine, micro_batches(), lambda: looked.append(1))
    assert result.skipped
    assert math.isnan(result.loss)
    assert looked == []
    assert all(map(torch.equal, before, mine.model.parameters()))
    assert mine.scheduler.last_epoch == 1
    assert not train_step(mine, micro_batches()[:1], lambda: looked.append(1)).skipped
    assert looked == [1]
    assert not all(map(torch.equal, before, mine.model.parameters()))


def test_an_optimiser_in_the_backward_pass_never_sees_a_non_finite_loss() -> None:
    mine = learner(Poisoned(), steps_in_backward=True)
    step_in_backward(mine.optimizer)
    before = [p.detach().clone() for p in mine.model.parameters()]
    with pytest.raises(NonFinite):
        train_step(mine, micro_batches()[1:2])
    assert all(map(torch.equal, before, mine.model.parameters()))


def test_a_scaled_loss_gives_the_same_step_and_an_overflow_waits() -> None:
    plain = learner()
    scaled = learner(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    results = [train_step(one, micro_batches()) for one in (plain, scaled)]
    assert results[0].loss == pytest.approx(results[1].loss)
    for ours, theirs in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert scaled.scheduler.last_epoch == 1

    overflow = learner(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**127))
    before = [p.detach().clone() for p in overflow.model.parameters()]
    result = train_step(overflow, micro_batches())
    assert math.isfinite(result.loss)
    assert not result.skipped  # the scaler's own business: it tries again with a lower scale
    assert overflow.scheduler.last_epoch == 0
    assert all(map(torch.equal, before, overflow.model.parameters()))


def test_half_precision_runs_under_autocast() -> None:
    full, half = learner(), learner()
    half.dtype = torch.bfloat16
    losses = [train_step(one, micro_batches()).loss for one in (full, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


def test_a_preference_objective_with_a_reference_needs_nothing_of_the_loop() -> None:
    model = adapted()
    mine = learner(DPO(), model)
    batches = [collate([random_rows(4, seed=8)]), collate([random_rows(2, seed=9)])]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    objective = DPO()
    with torch.no_grad():
        sums = [objective.loss(model, batch) for batch in batches]
    first = train_step(mine, batches)
    assert first.loss == pytest.approx(sum(loss.item() for loss, _ in sums) / 3, rel=1e-5)
    assert first.parts == {
        name: pytest.approx(sum(parts[name].item() for _, parts in sums) / 3, abs=1e-6)
        for name in ("margin", "accuracy")
    }
    for _ in range(20):
        last = train_step(mine, batches)
    assert last.loss < first.loss
    assert last.parts["margin"] > first.parts["margin"]
    frozen = [n for n in before if "lora_" not in n]
    assert all(torch.equal(before[n], dict(model.named_parameters())[n]) for n in frozen)
