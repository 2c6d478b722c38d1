"""Rates, jobs and money: the maths."""

from pathlib import Path

import pytest
import torch

from luthier.events import Event, Progress
from luthier.plan import calibrate as calibration
from luthier.plan.catalogues import Accelerator, find_accelerator, find_config
from luthier.plan.estimate import make_plan
from luthier.plan.from_recipe import job_of_shape
from luthier.plan.job import Job, job_from_lengths, spread
from luthier.plan.money import break_even
from luthier.plan.rates import Rates, Units, fit_rates, stated_seconds
from luthier.recipe import model_recipe, parse_overrides

CARD = Accelerator("card", 24, bandwidth=1000, bfloat16=100, watts=400, price_per_hour=0.5)


def job(*overrides: str, rows: int = 8, model: str = "smollm2-135m") -> Job:
    given = ["method.name=lora", "data.max_length=128", *overrides]
    recipe = model_recipe(model, **parse_overrides(given))
    return job_of_shape(recipe, torch.float32, rows, on_gpu=False)


def test_planted_rates_are_recovered() -> None:
    planted = Rates(matmul=2e-12, attention=5e-12, byte=1e-11, operation=8e-6, update=3e-10)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(12, 5, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([1e12, 1e11, 1e10, 1e4, 1e9], dtype=torch.float64)
    steps: list[Units] = [tuple(row) for row in (draws * sizes).tolist()]  # type: ignore[misc]
    found = fit_rates(steps, [planted.of(step) for step in steps])
    assert vars(found) == pytest.approx(vars(planted), rel=1e-6)


def test_no_rate_is_negative() -> None:
    steps: list[Units] = [(1, 0, 5, 0, 0), (2, 0, 4, 0, 0), (3, 0, 3, 0, 0)]
    found = fit_rates(steps, [1.0, 2.0, 3.0])
    assert vars(found) == pytest.approx(
        {"matmul": 1, "attention": 0, "byte": 0, "operation": 0, "update": 0}
    )


def test_spread_keeps_the_mean() -> None:
    assert spread([1, 2, 3, 4, 5, 6], 3) == (2, 4, 6)  # halves round to even
    assert spread([7], 1) == (7,)
    assert sum(spread(list(range(100)), 4)) / 4 == pytest.approx(49.5, abs=0.5)


def test_steps_and_tokens_of_a_job() -> None:
    recipe = model_recipe(
        "smollm2-135m",
        train={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
        },
    )
    items = [[n] for n in range(10, 30)]  # 20 rows, 8 a step: three steps an epoch
    config = find_config("smollm2-135m")
    made = job_from_lengths(recipe, config, torch.float32, items, supervised=195)
    assert (made.steps, made.tokens) == (9, 3 * sum(range(10, 30)))
    assert made.largest == (29, 28, 27, 26)
    assert made.supervised == pytest.approx(0.5)
    by_steps = recipe.changed(train={"max_steps": 2})
    made = job_from_lengths(by_steps, config, torch.float32, items, supervised=195)
    assert (made.steps, made.tokens) == (2, round(2 / 3 * sum(range(10, 30))))


def test_with_rows_keeps_the_effective_batch() -> None:
    one = job("train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2")
    assert one.with_rows(1).gradient_accumulation_steps == 8
    assert one.with_rows(1).largest == (128,)


def test_operations_against_the_rule() -> None:
    """6N a token for full and about 4N for LoRA, beside attention."""
    full = make_plan(job("method.name=full"), CARD)
    lora = make_plan(job(), CARD)
    for work, tolerance in ((full.work, 0.01), (lora.work, 0.15)):
        assert work.flops * (1 - work.attention_share) == pytest.approx(work.by_rule, rel=tolerance)
    assert full.work.by_rule / full.work.tokens == pytest.approx(6 * 134_515_008, rel=0.01)
    assert lora.work.by_rule / lora.work.tokens == pytest.approx(4 * 134_515_008, rel=0.01)
    assert 0 < lora.work.attention_share < 0.3


def test_time_cost_and_energy_follow_from_the_data_sheet() -> None:
    card = Accelerator("card", 24, float32=10, watts=400, price_per_hour=0.5)
    plan = make_plan(job(), card)
    assert plan.seconds == stated_seconds(plan.work.flops, card, "lora", "float32")
    assert plan.seconds is not None
    assert plan.cost is not None
    assert plan.energy is not None
    low, high = plan.seconds
    assert plan.cost == pytest.approx((low / 3600 * 0.5, high / 3600 * 0.5))
    assert plan.energy == pytest.approx((low / 3600 * 0.4, high / 3600 * 0.4))
    unknown = make_plan(job(), Accelerator("a GPU of 24 GB", 24))
    assert (unknown.seconds, unknown.cost, unknown.basis) == (None, None, "unknown: not calibrated")


def test_break_even_by_hand() -> None:
    # 8 rows × 0.6 × 1000 GB/s over 2 GB: 2,400 tokens/s, $0.5 an hour: $0.0579 a million.
    even = break_even((10, 20), 2.0, CARD, 2 * 10**9)
    assert even is not None
    assert even.own_price == pytest.approx(0.5 / 3600 / 2400 * 1e6)
    assert even.tokens is not None
    assert even.tokens[0] == pytest.approx(10 / (2 - even.own_price) * 1e6)
    never = break_even((10, 20), 0.01, CARD, 2 * 10**9)
    assert never is not None
    assert never.tokens is None
    assert break_even((10, 20), 2.0, Accelerator("x", 24), 1) is None


def test_calibration_is_kept_and_explains_its_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    sample = calibration.Sample
    monkeypatch.setattr(calibration, "_REPEATS", 3)
    monkeypatch.setattr(
        calibration,
        "_SAMPLES",
        (
            sample(128, 1, 512, "full", 64),
            sample(128, 2, 512, "lora", 256, True),
            sample(128, 1, 512, "qlora", 64),
        ),
    )
    said: list[Event] = []
    found = calibration.calibrate(said.append)
    assert said[-1] == Progress("calibrating", 3, 3, "samples")
    assert max(vars(found.rates).values()) > 0
    dtype = getattr(torch, found.dtype)
    assert calibration.load_calibration(dtype) == found
    assert calibration.load_calibration(torch.float16) is None
    plan = make_plan(job(), find_accelerator("cpu"), found)
    if found.dtype == "float32":
        assert plan.basis.startswith("calibrated")
