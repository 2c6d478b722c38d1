"""The environment of a process. Each case has a process of its own: it is set once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.runtime import World, peak_memory, threads_in_words, world

OURS = (
    "OMP_WAIT_POLICY",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "LRU_CACHE_CAPACITY",
    "PYTORCH_ALLOC_CONF",
)
SPINS = "GOMP_SPINCOUNT"


def in_a_process(code: str, **env: str) -> "subprocess.CompletedProcess[str]":
    free = {k: v for k, v in os.environ.items() if k not in (*OURS, SPINS)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**free, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_prepare_sets_what_is_not_set_and_may_be_called_again() -> None:
    code = (
        "import os, sys; from luthier import runtime; runtime.prepare(); runtime.prepare();"
        f"print(*[os.environ[name] for name in {OURS}], 'torch' in sys.modules)"
    )
    assert in_a_process(code).stdout.split() == [
        "PASSIVE",
        "64",
        "64",
        "expandable_segments:True",
        "False",
    ]
    chosen = in_a_process(code, OMP_WAIT_POLICY="ACTIVE", LRU_CACHE_CAPACITY="7")
    assert chosen.stdout.split()[:3] == ["ACTIVE", "64", "7"]
    code = "import os; from luthier import runtime; runtime.prepare(); print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    mine = in_a_process(code, PYTORCH_CUDA_ALLOC_CONF="garbage_collection_threshold:0.8")
    assert mine.stdout.split() == ["None"]
    assert chosen.stderr == ""


def test_the_door_prepares_before_torch_is_imported() -> None:
    """Torch reads at its import how threads wait; a program that imports luthier first relies on it."""
    code = """
import os, sys
import luthier
print(os.environ.get("OMP_WAIT_POLICY"))
luthier.train
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    assert in_a_process(code).stdout.split() == ["None", "PASSIVE", "False"]


@pytest.mark.parametrize(
    ("load", "env", "spins"),
    [
        (0.1, {}, "100000"),
        (99.0, {}, "None"),
        (0.1, {"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
        (0.1, {SPINS: "7"}, "7"),
    ],
)
def test_threads_spin_for_a_moment_where_nobody_else_wants_the_cores(
    load: float, env: dict[str, str], spins: str
) -> None:
    code = (
        f"import os, psutil; psutil.getloadavg = lambda: ({load}, 0, 0)\n"
        f"from luthier import runtime; runtime.prepare(); print(os.environ.get('{SPINS}'))"
    )
    assert in_a_process(code, **env).stdout.split() == [spins]


@pytest.mark.parametrize(
    ("load", "threads", "env", "warns"),
    [
        (99.0, "2", {}, True),
        (0.1, "2", {}, False),
        (99.0, "1", {}, False),
        (99.0, "2", {"OMP_WAIT_POLICY": "PASSIVE"}, False),
    ],
)
def test_it_warns_once_where_torch_was_first_and_others_are_busy(
    load: float, threads: str, env: dict[str, str], warns: bool
) -> None:
    code = (
        f"import psutil; psutil.getloadavg = lambda: ({load}, 0, 0)\n"
        "import torch\nfrom luthier import runtime\nfor _ in range(3): runtime.prepare()"
    )
    told = in_a_process(code, OMP_NUM_THREADS=threads, **env).stderr
    assert told.count("OMP_WAIT_POLICY=PASSIVE") == (1 if warns else 0), told


def test_onednn_forgets_old_shapes_also_where_torch_was_imported_first() -> None:
    # Convolutions go through oneDNN on every processor; products only where it is the faster way.
    code = """
import torch
from luthier import runtime
runtime.prepare()
weight = torch.ones(64, 32, 3, 3)
def all_shapes():
    for size in range(40, 110):
        torch.nn.functional.conv2d(torch.ones(1, 32, size, size), weight)
with torch.no_grad():
    all_shapes()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
        all_shapes()
"""
    ours = in_a_process(code).stdout
    if "create:cache" not in ours:
        pytest.skip("this PyTorch convolves without oneDNN")
    assert "cache_miss,cpu,convolution" in ours
    roomy = in_a_process(code, ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024").stdout
    assert "cache_miss,cpu,convolution" not in roomy


def test_functions_of_others_are_compiled_at_their_first_call() -> None:
    code = """
import sys
from luthier import runtime
runtime.prepare(); runtime.prepare()
import torch
made = []
torch.compile = mine = lambda function, **options: made.append((function, options)) or function
import peft
assert torch.compile is mine and not made
from bitsandbytes.backends.default import ops
double = ops._dequantize_blockwise_compute
rows, scale = torch.arange(6, dtype=torch.uint8), torch.tensor([2.0, 3.0])
for _ in range(2):
    print(double(rows, scale, torch.arange(256.0), 4, torch.float32).tolist())
((function, options),) = made
assert function.__name__ == double.__name__ and options == {"dynamic": False}, made
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler was imported"
"""
    assert in_a_process(code).stdout.splitlines() == ["[0.0, 2.0, 4.0, 6.0, 12.0, 15.0]"] * 2


def test_the_command_line_prepares(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.argv = ['luthier', '--version']\n"
        "from luthier.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(os.environ['OMP_WAIT_POLICY'])"
    )
    assert in_a_process(code).stdout.split()[-1] == "PASSIVE"


def test_world_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World(rank=0, local_rank=0, size=1)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert world() == World(rank=5, local_rank=1, size=8)


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "1"},
        {"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "0", "LOCAL_RANK": "-1", "WORLD_SIZE": "2"},
    ],
)
def test_a_world_that_does_not_fit_together_is_refused(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"RANK={told['RANK']}"):
        world()


def test_peak_memory_never_falls() -> None:
    before = peak_memory()
    held = bytearray(os.urandom(1)) * (before + 2**27)
    during = peak_memory()
    assert during - before >= 2**26
    del held
    assert peak_memory() >= during


@pytest.mark.parametrize(("count", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_threads_are_counted_in_words(
    count: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: count)
    assert threads_in_words() == words
