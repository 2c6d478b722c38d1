"""What fits does, what does not does not, and changes come in order of what they cost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luthier.errors import UserError
from luthier.plan import capacity, tables
from luthier.plan.capacity import capacities, changes_to_fit, sharded_peak
from luthier.plan.catalogues import Accelerator, accelerators
from luthier.plan.from_recipe import job_of_shape
from luthier.plan.job import Job
from luthier.plan.machine import framework_bytes
from luthier.plan.planning import find_target, plan_jobs
from luthier.plan.tables import _TABLE, classic_tables
from luthier.recipe import model_recipe, parse_overrides

MakeJob = Callable[..., Job]


@pytest.fixture
def job(narrow_model: Path) -> MakeJob:
    def make(*overrides: str) -> Job:
        given = ["method.name=lora", "data.max_length=256", *overrides]
        recipe = model_recipe(str(narrow_model), **parse_overrides(given))
        return job_of_shape(recipe, torch.bfloat16, 8, on_gpu=True)

    return make


@pytest.mark.parametrize("memory", [1.2, 2.0])
def test_the_largest_batch_fits_and_a_larger_one_does_not(memory: float, job: MakeJob) -> None:
    card = Accelerator("card", memory)
    one = job()
    (found,) = capacities(one, [card])
    room = card.bytes - framework_bytes(card)
    assert found.rows == found.tokens // 256
    assert one.step([256] * found.rows).peak <= room
    assert one.step([256] * (2 * found.rows + 1)).peak > room
    assert found.sequence == min(found.tokens, one.positions or 0)


def test_nothing_fits_where_weights_do_not(job: MakeJob) -> None:
    (found,) = capacities(job(), [Accelerator("card", 0.85)])
    assert (found.tokens, found.rows, found.sequence) == (0, 0, 0)


def test_changes_are_tried_in_order_and_stop_where_one_fits(job: MakeJob) -> None:
    full = job("method.name=full", "train.per_device_train_batch_size=8")
    peak = full.step(full.largest).peak
    framework = framework_bytes(Accelerator("card", 8))

    def changes(share: float) -> list[str]:
        room = (framework + share * peak) / 0.985 / 2**30
        tried = changes_to_fit(full, Accelerator("card", room))
        assert [c.fits for c in tried[:-1]] == [False] * (len(tried) - 1)
        return [c.what for c in tried]

    assert changes(0.9)[0] == "recompute activations"
    little = changes(0.01)
    # With micro-batches of 2 the optimiser's step has the peak: of 1 nothing is gained.
    assert little[:7] == [
        "recompute activations",
        "micro-batches of 4",
        "micro-batches of 2",
        "8-bit paged optimiser",
        "bfloat16 weights and states, rounded stochastically",
        "lora instead of full",
        "qlora instead of full",
    ]
    assert little[7].startswith("2 of them, sharded")


def test_what_saves_almost_nothing_is_left_unless_the_job_fits_by_it(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By made-up peaks in MB: recomputation saves 3,000 of 10,000; each setting after it less than 1%."""

    def peak(_: object, job: Job) -> int:
        saved = 3_000 * job.gradient_checkpointing + 20 * (4 - len(job.largest))
        saved += 50 * ("8bit" in job.optim) if job.method.name == "lora" else 2_000
        return (10_000 - saved) * 10**6

    monkeypatch.setattr(capacity._Search, "_peak", peak)
    lora = job("train.per_device_train_batch_size=4")

    def settings(room: int) -> list[str]:
        card = Accelerator("card", (room * 10**6 + 1) / 0.985 / 2**30)
        return [c.setting.split()[0] for c in changes_to_fit(lora, card)]

    recomputes, alone = "train.gradient_checkpointing=true", "train.per_device_train_batch_size=1"
    assert settings(7_000) == [recomputes]
    assert settings(6_945) == [recomputes, alone]  # which is enough
    assert settings(6_895) == [recomputes, alone, "train.optim=paged_adamw_8bit"]
    assert settings(6_885) == [recomputes, "method.name=qlora"]


def test_frozen_weights_in_8_bits_come_before_those_in_4(job: MakeJob) -> None:
    """On a card that multiplies them, and where the recipe can have them."""
    able = Accelerator("card", 0.81, bfloat16=100, float8=200)

    def settings(job: Job, card: Accelerator) -> list[str]:
        return [change.setting for change in changes_to_fit(job, card)]

    tried = changes_to_fit(job(), able)
    *_, before, eight, four, _ = [c for c in tried if not c.setting.endswith("GPUs")] + [tried[-1]]
    assert before.what == "micro-batches of 1"  # states of an adapter in 8 bits save too little
    assert (eight.setting, four.setting) == (
        "kernels.fp8_base=true",
        "method.name=qlora train.optim=paged_adamw_8bit kernels.fp8_base=false",
    )
    assert eight.peak < before.peak
    assert "kernels.fp8_base=true" not in settings(job(), replace(able, float8=None))
    for unable in ("kernels.lora=false", "kernels.fp8_base=true"):
        assert "kernels.fp8_base=true" not in settings(job(unable), able)
    assert not job("kernels.fp8_base=true").with_method("qlora").kernels.fp8_base


@pytest.mark.parametrize("method", ["full", "lora"])
def test_all_changes_together_are_a_recipe_that_needs_what_the_last_says(
    method: str, job: MakeJob
) -> None:
    """As the board sets them."""
    card = Accelerator("card", 0.81, bfloat16=100, float8=200)
    tried = [
        c for c in changes_to_fit(job(f"method.name={method}"), card) if "GPUs" not in c.setting
    ]
    assert tried[-1].setting.startswith("method.name=qlora")
    asked = job(f"method.name={method}", *" ".join(c.setting for c in tried).split())
    assert asked.step(asked.largest).peak + framework_bytes(card) == tried[-1].peak


def test_8_bits_are_left_out_where_no_layer_can_have_them(job: MakeJob) -> None:
    """Adapters on the embedding alone: qlora and more cards are tried all the same."""
    asked = job("method.target_modules=[embed_tokens]")
    tried = changes_to_fit(asked, Accelerator("card", 0.81, bfloat16=100, float8=200))
    assert "kernels.fp8_base=true" not in [c.setting for c in tried]
    assert tried[-1].setting == "64 GPUs"


def test_of_a_card_of_a_file_nothing_is_known_that_it_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("gh200: {memory: 96, bfloat16: 989}\na10: {memory: 25}\n")
    found = accelerators(tmp_path / "own.yaml")
    assert not found["gh200"].lacks_float8
    assert found["a10"].lacks_float8


def test_a_card_that_multiplies_no_8_bits_is_refused(job: MakeJob) -> None:
    eight = [job("kernels.fp8_base=true")]
    with pytest.raises(UserError, match="A100 80GB does not multiply 8-bit numbers"):
        plan_jobs(eight, find_target("a100-80"), capacity=False)
    plain, small = (
        plan_jobs(jobs, find_target("h100"), capacity=False).plans[0] for jobs in ([job()], eight)
    )
    assert small.weight_bytes < plain.weight_bytes
    assert plain.seconds is not None
    assert small.seconds is not None
    assert plain.seconds[0] / 2 < small.seconds[0] < 0.9 * plain.seconds[0]
    assert "never measured" in small.basis
    # Of a card that nobody knows only the memory is told.
    unknown = plan_jobs(eight, find_target(memory=24), capacity=False).plans[0]
    assert unknown.memory.peak == small.memory.peak
    assert unknown.seconds is None


def test_sharding_splits_what_stays(job: MakeJob) -> None:
    full = job("method.name=full")
    step = full.step(full.largest)
    peaks = [sharded_peak(step, k, full.config) for k in (2, 4)]
    stays = step.weights + step.optimizer + step.gradients
    assert peaks[0] - peaks[1] == pytest.approx(stays / 4, rel=0.01)


def test_the_tables_small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple(row for row in _TABLE if row[0] == "gpt2")
    monkeypatch.setattr(tables, "_TABLE", small)
    (row,) = classic_tables()
    # 16 bytes for each of 124 million numbers, and CUDA's 0.8 GiB.
    assert 16 * 0.1244e9 / 2**30 + 0.8 < row.least < row.usual
    assert row.verdict.startswith("too low by")
    low, high = replace(small[0][2], gigabytes=1e6), replace(small[0][2], gigabytes=3.5)
    monkeypatch.setattr(tables, "_TABLE", ((*small[0][:2], low), (*small[0][:2], high)))
    assert [r.verdict.split(",")[0][:8] for r in classic_tables()] == ["too high", "in the r"]
