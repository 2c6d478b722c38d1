"""Triton's kernels are compiled to the machine code of cards, which needs none: only its interpreter runs here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreted import need_triton

_EACH = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from luthier.kernels.triton import adamw, cross_entropy, dropout, gate, rms_norm, rotary

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}

def type_of(value):
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if value < 2**31 else "i64"
    return "fp32"

def compiled(kernel, grid, *tensors, num_warps=4, **settings):
    values = dict(zip(kernel.arg_names, tensors)) | settings
    fixed = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    types = {n: "constexpr" if n in fixed else type_of(values[n]) for n in kernel.arg_names}
    source, target = ASTSource(kernel, types, fixed), GPUTarget("cuda", int(sys.argv[1]), 32)
    code = triton.compile(source, target=target, options={"num_warps": num_warps})
    print(kernel.fn.__module__.rpartition(".")[2] + kernel.__name__, len(code.asm["cubin"]))

for module in (adamw, cross_entropy, dropout, gate, rms_norm, rotary):
    module.launch = compiled

def numbers(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

rows, weight, scales = numbers(8, 4096), numbers(4096), numbers(8, dtype=torch.float32)
rms_norm.forward(rows, weight, 1e-6, rows)
rms_norm.backward(rows, rows, weight, scales, weighs=True, more=rows)
for kind in ("silu", "gelu_tanh"):
    gate.forward(rows, rows, kind)
    gate.backward(rows, rows, rows, kind)
angles = numbers(1, 1, 8, 128)
rotary.rotate(numbers(1, 32, 8, 128), numbers(1, 8, 8, 128), angles, angles)
dropout.drop(rows, 0.05, 2**62)
targets = numbers(8, dtype=torch.int64)
cross_entropy.losses_(numbers(8, 128_256), targets, softcap=30.0, slopes=True, scale=scales)
adamw.update(
    rows, rows, rows, rows, step=3, lr=1e-4, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, seed=2**62
)
"""


@pytest.mark.parametrize("capability", ["80", "90"])  # of A100 and H100
def test_every_kernel_compiles(capability: str, tmp_path: Path) -> None:
    need_triton()
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = tmp_path / "each.py"
    script.write_text(_EACH)
    done = subprocess.run(
        [sys.executable, script, capability],
        capture_output=True,
        text=True,
        env={**env, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lengths = dict(line.split() for line in done.stdout.splitlines())
    assert len(lengths) == 8
    assert all(int(length) > 1000 for length in lengths.values())
