"""Several processes on paper: the published formulas, and what follows from them."""

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import make_model

from luthier.plan.catalogues import find_accelerator
from luthier.plan.job import job_from_shape
from luthier.plan.ranks import STRATEGIES, Ranks, Traffic, peak, plan_ranks, sizes, traffic
from luthier.recipe import model_recipe


def job(method: str = "full", **train: Any) -> Any:
    recipe = model_recipe(
        "tiny", method={"name": method, "lora_r": 4}, data={"max_length": 32}, train=train
    )
    return job_from_shape(recipe, make_model("llama", 96).config, torch.float32, rows=64)


def test_bytes_are_those_of_zero_and_of_rings() -> None:
    """ZeRO section 7: stages 0 to 2 send twice the parameters, stage 3 three times (one micro-batch)."""
    for strategy, times in zip(STRATEGIES, (2, 2, 3, 3), strict=True):
        assert traffic(strategy, 4000, 4000, 4, 2, 1).bytes == pytest.approx(times * 3000)
        assert traffic(strategy, 4000, 4000, 1, 2, 1) == Traffic(0.0, 0)
    # Gradients are added up first where each rank has all of them, and weights gathered again where not.
    assert traffic("ddp", 4000, 4000, 4, 2, 8).bytes == 6000
    assert traffic("fsdp2", 4000, 4000, 4, 2, 8).bytes == 8 * 9000
    assert traffic("zero2", 4000, 4000, 4, 2, 8).bytes == 9 * 3000
    # What is outside of the layers is gathered once by FSDP2, since the loss needs it in between.
    assert traffic("fsdp2", 4000, 4000, 4, 2, 1, outside=1000).bytes == 9000 - 750
    assert traffic("zero3", 4000, 4000, 4, 2, 1, outside=1000).bytes == 9000


@pytest.mark.parametrize("method", ["full", "lora"])
def test_only_what_trains_is_reduced(method: str) -> None:
    planned = job(method, gradient_accumulation_steps=1)
    largest, typical = steps = planned.steps_of_both()
    trained = 4 * typical.trainable
    card = find_accelerator("h100")
    sent = {
        p.strategy: p.traffic.bytes for p in plan_ranks(planned, steps, None, Ranks(2), card, 0)
    }
    assert sent["ddp"] == sent["zero2"] == trained
    table = 96 * planned.config.hidden_size * 4 * (1 if planned.config.tie_word_embeddings else 2)
    assert sent["zero3"] == largest.weights + trained / 2
    assert sent["fsdp2"] == sent["zero3"] - table / 2
    assert (trained == largest.adapter) == (method == "lora")


def test_memory_of_each_rank_falls_by_what_is_parted() -> None:
    planned = job()
    step = planned.step(planned.largest)
    assert peak("ddp", step, 8, planned) == step.peak
    alone = job(gradient_accumulation_steps=1)
    first = alone.step(alone.largest)
    assert first.forward_peak + first.gradients == step.forward_peak  # its buckets are there, too
    assert peak("ddp", first, 8, alone) == step.forward_peak > first.peak
    assert step.peak - peak("zero2", step, 8, planned) == pytest.approx(
        7 / 8 * (step.gradients + step.optimizer), abs=1
    )
    falling = [peak("fsdp2", step, size, planned) for size in (2, 8, 64)]
    assert falling == sorted(falling, reverse=True)
    for strategy in STRATEGIES:
        assert peak(strategy, step, 1, planned) == step.peak


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    sent = Traffic(1e9, 10)
    within = Ranks(8, 1, link=100, network=10)
    assert sent.seconds(within) == pytest.approx(0.01 + 10 * within.message)
    assert sent.seconds(replace(within, nodes=2)) == pytest.approx(0.1 + 10 * within.message)
    assert sent.seconds(replace(within, nodes=2, network=None)) is None
    assert sent.seconds(Ranks(1, 2, network=10)) == pytest.approx(0.1 + 10 * within.message)
    assert sent.seconds(Ranks(1)) == 0


def test_a_step_hides_sending_or_does_not() -> None:
    planned = job(gradient_accumulation_steps=2)
    steps = planned.steps_of_both()
    ranks, card = Ranks(4, 1, link=1e-3), find_accelerator("h100")
    for found in plan_ranks(planned, steps, (0.01, 0.02), ranks, card, 0):
        assert found.sending is not None
        assert found.step == (max(0.01, found.sending), 0.02 + found.sending)
        assert found.efficiency is not None
        assert 0 < found.efficiency[0] < found.efficiency[1] <= 1
        tokens = 4 * 2 * sum(planned.typical)
        assert found.tokens_per_second == (tokens / found.step[1], tokens / found.step[0])
    unknown = next(plan_ranks(planned, steps, None, Ranks(2), card, 0))
    assert unknown.step is unknown.sending is unknown.efficiency is None


def test_scaling_doubles_ranks_up_to_a_thousand() -> None:
    found = list(sizes(Ranks(8, 1, 450, 50)))
    assert [each.size for each in found] == [2**n for n in range(11)]
    assert [each.nodes for each in found][:6] == [1, 1, 1, 1, 2, 4]
    assert found[2].nproc == 4


def test_the_command_plans_for_ranks(cli: Any) -> None:
    line = ("plan", "--model", "gpt2", "--method", "full", "--seq-len", "64", "--batch-size", "1")
    done = cli(*line, "--gpu", "h100", "--nproc", "8", "--nodes", "2", "--json")
    assert done.returncode == 0, done.stderr
    ranks = json.loads(done.stdout)["ranks"]["full"]
    assert [each["strategy"] for each in ranks] == list(STRATEGIES)
    assert {each["ranks"] for each in ranks} == {16}
    refused = cli(*line, "--nodes", "2")
    assert "--nodes needs --nproc" in refused.stderr


def test_scaling_is_drawn(cli: Any) -> None:
    line = ["plan", "--model", "gpt2", "--method", "lora", "--seq-len", "64", "--gpu", "h100"]
    drawn = cli(*line, "--scaling").stdout
    bars = re.findall(r"^ *(\w+) +([▁-█]{11}) +([▁-█]{11}) *$", drawn, re.M)
    assert [strategy for strategy, *_ in bars] == [*STRATEGIES]
    assert all(least[0] == most[0] == "█" for _, least, most in bars)  # one sends nothing
    assert all(a >= b for _, least, _ in bars for a, b in itertools.pairwise(least))
