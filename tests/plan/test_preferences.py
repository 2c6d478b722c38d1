"""The simulated step of preferences: the reference's pass is in it, and it is a real step's memory."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import make_model
from transformers import AutoModelForCausalLM

from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.objectives.choose import choose
from luthier.objectives.reference import AdapterOff
from luthier.plan.catalogues import Accelerator
from luthier.plan.estimate import make_plan
from luthier.plan.fake import storages
from luthier.plan.flops import CountWork
from luthier.plan.job import Job, job_from_lengths, job_from_shape
from luthier.plan.live import LiveStorage
from luthier.plan.simulate import Workload, _batch, simulate
from luthier.recipe import KernelsGroup, MethodGroup, ObjectiveGroup, parse_recipe

NAMES = ("dpo", "ipo", "kto", "orpo", "simpo", "reward")


def work(name: str, asks: bool = False) -> Workload:
    return Workload(
        [64] * 4,
        100,
        torch.float32,
        "sgd",
        objective=ObjectiveGroup(name=name),
        asks_reference=asks,
    )


def test_a_simulated_step_with_a_reference_is_a_real_one() -> None:
    method = MethodGroup(lora_dropout=0)
    config = make_model("llama", 96).config
    wanted = work("dpo", asks=True)
    predicted = simulate(config, method, wanted)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    model.config.use_cache = False
    trained = attach_adapter(model, method)
    head = install(trained, KernelsGroup()).head
    objective = choose(wanted.objective, True, head, AdapterOff())
    batch = _batch(wanted, 96)
    positions = torch.arange(32).repeat(8)[None]
    batch = replace(batch, position_ids=positions, predicts=torch.arange(100) + 2)
    live, counter = LiveStorage(), CountWork()
    live.add(storages(trained))
    with live, counter:
        loss, _ = objective.loss(trained, batch)
        loss.backward()
        del loss
    assert predicted.peak == pytest.approx(live.peak, rel=0.05)
    assert predicted.flops == pytest.approx(counter.flops, rel=0.01)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_objective_can_be_simulated(name: str, method: str) -> None:
    config = make_model("qwen3", 96).config
    chosen = MethodGroup(name=method, lora_dropout=0)  # type: ignore[arg-type]
    step = simulate(deepcopy(config), chosen, work(name))
    assert step.peak > 0 and step.trainable > 0
    if method == "lora" and work(name).objective.has_reference:
        asking = simulate(config, chosen, work(name, asks=True))
        assert 1.2 * step.flops < asking.flops < 1.6 * step.flops  # one more forward pass


def test_jobs_count_pairs_and_say_where_the_reference_is(tiny_model: Path) -> None:
    def recipe(*more: str) -> object:
        return parse_recipe("", [f"model.source={tiny_model}", "data.train=x", *more])

    config = make_model("llama", 96).config
    dpo = recipe("objective.name=dpo", "train.per_device_train_batch_size=2", "data.max_length=64")
    items = [[10, 12], [20, 25], [5, 6], [7, 9]]
    job = job_from_lengths(dpo, config, torch.float32, items, supervised=40)  # type: ignore[arg-type]
    assert job.largest == (45, 22)
    assert job.tokens == 94 * 3
    assert job.reference is not None and "adapter off" in job.reference
    assert job.tokens_of_work == job.tokens
    full = job.with_method("full")
    assert full.reference is not None and "kept" in full.reference
    assert full.tokens_of_work == pytest.approx(job.tokens + 94 / 3)
    shaped = job_from_shape(dpo, config, torch.float32, rows=10)  # type: ignore[arg-type]
    assert shaped.largest == (128, 128)
    sft = job_from_lengths(recipe(), config, torch.float32, items, supervised=40)  # type: ignore[arg-type]
    assert sft.reference is None


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_teacher_is_in_words_and_not_in_the_steps(tiny_model: Path, method: str) -> None:
    def job(*more: str) -> Job:
        sets = [f"model.source={tiny_model}", "data.train=x", f"method.name={method}", *more]
        config = make_model("llama", 640).config
        return job_from_lengths(parse_recipe("", sets), config, torch.float32, [[64]] * 9, 90)

    machine = Accelerator("a GPU", 16)
    distilled = job("objective.name=distill", f"objective.teacher={tiny_model}")
    taught, plain = (make_plan(each, machine) for each in (distilled, job()))
    assert plain.reference is None and distilled.teacher_parameters > 0
    assert taught.memory.peak == pytest.approx(plain.memory.peak, rel=0.1)
    assert taught.work.flops == pytest.approx(plain.work.flops, rel=0.01)
    said = taught.reference
    assert said is not None and "its top 64 of 90 tokens take 0.0 MiB" in said
    assert "more than the steps" not in said
    large = replace(distilled, teacher_parameters=10**9, taught=10**6)
    said = make_plan(large, machine).reference
    assert said is not None and "take 492.1 MiB" in said
    assert "needs about 4." in said and "more than the steps" in said
