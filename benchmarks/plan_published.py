"""Predicted memory against torchtune's published measurements, with that table's settings.

    python benchmarks/plan_published.py

Facts: the README of pytorch/torchtune, "Memory and training speed": Llama 3.1 8B on an RTX 4090,
batch 2, rows packed to 2,048 tokens, compiled. Its configs: bfloat16, activations recomputed, LoRA
r=8 on q, v, o and all three of the MLP; the loss in eight chunks; full fine-tuning keeps bfloat16
weights only, 8-bit paged states, and updates each weight as soon as its gradient is there.
"""

import torch

from luthier.plan.from_recipe import job_of_shape
from luthier.plan.simulate import Step
from luthier.recipe import model_recipe, parse_overrides

PUBLISHED = {"lora": 16.2, "qlora": 7.4, "full": 18.9}  # GiB
THEIR_TARGETS = "[q_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"


def simulate(method: str, *more: str) -> Step:
    settings = [
        f"method.name={method}",
        "method.lora_r=8",
        f"method.target_modules={THEIR_TARGETS}",
        "method.lora_dropout=0",
        "data.max_length=2048",
        "train.per_device_train_batch_size=2",
        "train.gradient_checkpointing=true",
        *more,
    ]
    recipe = model_recipe("llama-3.1-8b", **parse_overrides(settings))
    job = job_of_shape(recipe, torch.bfloat16, 2, on_gpu=True)
    return job.step(job.largest)


def main() -> None:
    print(f"{'':8}{'published':>10}{'predicted':>11}{'without logits':>16}   GiB")
    for method in ("lora", "qlora"):
        step = simulate(method)
        shown = [(b) / 2**30 for b in (step.peak, step.peak - step.logits)]
        print(
            f"{method:8}{PUBLISHED[method]:10.1f}{shown[0]:11.2f}{shown[1]:16.2f}"
            f"   weights {step.weights / 2**30:.2f}, activations {step.activations / 2**30:.2f}, "
            f"logits {step.logits / 2**30:.2f}"
        )
    step = simulate(
        "full",
        "train.optim=adamw_bf16",
        "train.optimizer_in_backward=true",
        "train.gradient_accumulation_steps=1",
        "train.max_grad_norm=0",
    )
    print(
        f"{'full':8}{PUBLISHED['full']:10.1f}{step.peak / 2**30:11.2f}"
        f"   weights {step.weights / 2**30:.2f}, states {step.optimizer / 2**30:.2f}, which they page "
        f"to host memory: {(step.peak - step.optimizer) / 2**30:.2f} without"
    )


if __name__ == "__main__":
    main()
