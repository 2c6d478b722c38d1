"""Several processes train as one: the same steps, one folder, and what one meets all know."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import save_tiny
from helpers import read_metrics, write_rows
from preferences import preference_rows
from safetensors.torch import load_file
from torch import Tensor

from luthier.errors import UserError
from luthier.events import ignore
from luthier.recipe import parse_recipe
from luthier.run import Run
from luthier.train.parallel import check_allowed, of_same_steps
from luthier.train.processes import Processes

HERE = Path(__file__).parent

# name -> family, in how many processes and by which ways of train.parallel, and what the recipe says
# besides. 14 rows in twos are 7 micro-batches: the last step of an epoch has one less than the others, so a
# process is idle in it.
ALIKE: dict[str, tuple[str, str, list[str]]] = {
    "full": ("llama", "2-ddp 2-zero2 2-fsdp2", ["method.name=full", "train.learning_rate=1e-3"]),
    "lora-packed": ("qwen3", "4-ddp 2-zero2", ["data.packing=true", "data.max_length=64"]),
    "lora-window": ("gemma3", "2-fsdp2", ["train.gradient_checkpointing=true"]),
    "qlora": ("llama", "2-fsdp2", ["method.name=qlora", "train.optim=adamw_torch_fused"]),
    "fp8": ("llama", "2-ddp 2-fsdp2", ["kernels.fp8_base=true"]),
    "full-experts": ("mixtral", "2-ddp", ["method.name=full", "train.learning_rate=1e-3"]),
    "lora-experts": ("mixtral", "2-fsdp2", ["method.target_parameters=[mlp.experts.gate_up_proj,mlp.experts.down_proj]",
                                            "train.gradient_checkpointing=true"]),
    "dpo": ("llama", "2-ddp", ["objective.name=dpo", "data.train=PAIRS"]),
    "dpo-kept": ("llama", "2-zero2", ["objective.name=dpo", "data.train=PAIRS", "method.name=full",
                                      "train.learning_rate=1e-4"]),
    "kto": ("llama", "2-fsdp2", ["objective.name=kto", "data.train=PAIRS"]),
    "stream": ("llama", "2-ddp 4-fsdp2", ["data.streaming=true"]),
    "reward": ("llama", "2-fsdp2", ["objective.name=reward", "data.train=PAIRS"]),
}  # fmt: skip
RUNS = [(name, way) for name, (_, ways, _) in ALIKE.items() for way in ways.split()]
BF16 = ["method.name=full", "train.optim=adamw_bf16", "model.dtype=bfloat16",
        "train.learning_rate=1e-3"]  # fmt: skip
TOLD = ("loss", "grad_norm", "eval_loss", "rewards/margins", "tokens", "epoch", "learning_rate")


class Together:
    """Runs by name, each made in so many processes."""

    def __init__(self, folder: Path, models: dict[str, Path], data: dict[str, Path]) -> None:
        self.folder, self.models, self.data = folder, models, data
        self.tasks: list[dict[str, Any]] = []
        self.ends: list[list[str]] = []

    def add(
        self,
        name: str,
        ranks: int,
        *more: str,
        family: str = "llama",
        accumulated: int | None = None,
        fault: tuple[str, int, int] | None = None,
    ) -> None:
        """``accumulated`` micro-batches of each process; where it is not said four of all."""
        given = [each.replace("PAIRS", str(self.data["pairs"])) for each in more]
        settings = [
            f"model.source={self.models[family]}",
            "model.dtype=float32",
            f"data.train={self.data['rows']}",
            f"data.validation={self.data['held-out' if 'PAIRS' in ''.join(more) else 'validation']}",
            "data.max_length=128",
            "method.lora_dropout=0",
            "train.per_device_train_batch_size=2",
            f"train.gradient_accumulation_steps={accumulated or 4 // ranks}",
            "train.per_device_eval_batch_size=2",
            "train.max_steps=4",
            "train.eval_steps=2",
            "train.save_steps=1",
            "train.warmup_ratio=0",
            "train.learning_rate=1e-2",
            "train.report_to=none",
            "evaluate.probe=false",
            f"run.dir={self.folder}",
            f"run.name={name}",
        ]
        path = self.folder / f"{name}.yaml"
        path.write_text(parse_recipe("", [*settings, *given]).to_yaml())
        self.tasks.append({"recipe": str(path), "ranks": ranks, "fault": fault, "name": name})

    def again(self, name: str, **changes: Any) -> None:
        """The same once more, without its fault; ``end`` knows it by one more "again" in its name."""
        last = [each for each in self.tasks if each["name"].split()[0] == name][-1]
        self.tasks.append({**last, "fault": None, **changes, "name": f"{last['name']} again"})

    def run(self) -> None:
        plan = self.folder / "plan.json"
        plan.write_text(json.dumps(self.tasks))
        paths = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(HERE / "together.py"), str(plan)],
            env=env,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        self.said = done.stderr
        self.ends = json.loads(plan.with_suffix(".done").read_text())

    def end(self, name: str) -> list[str]:
        """What each rank ended by; nothing where it went well."""
        names = [task["name"] for task in self.tasks]
        return self.ends[names.index(name)]

    def __getitem__(self, name: str) -> Run:
        return Run(self.folder / name)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Together:
    folder = tmp_path_factory.mktemp("together")
    families = dict.fromkeys(family for family, _, _ in ALIKE.values())
    models = {name: save_tiny(folder / f"model-{name}", name) for name in families}
    data = {
        "rows": write_rows(folder / "rows.jsonl", rows[:14]),
        "validation": write_rows(folder / "validation.jsonl", rows[30:37]),
        "pairs": write_rows(folder / "pairs.jsonl", preference_rows(21)[:14]),
        "held-out": write_rows(folder / "held-out.jsonl", preference_rows(21)[14:]),
    }
    made = Together(folder, models, data)
    for name, (family, _, more) in ALIKE.items():
        made.add(f"{name}-1", 1, *more, "train.save_steps=4", family=family)
    for name, way in RUNS:
        ranks, _, parallel = way.partition("-")
        family, _, more = ALIKE[name]
        more = [*more, f"train.parallel={parallel}", "train.save_steps=4"]
        made.add(f"{name}-{way}", int(ranks), *more, family=family)
    made.add("bf16-1", 1, *BF16)
    made.add("bf16-2", 2, *BF16, "train.parallel=fsdp2")
    for name, then in (("full", 4), ("lora-packed", 1)):  # begun in two processes
        family, _, more = ALIKE[name]
        parts = [*more, "train.parallel=fsdp2"]
        made.add(f"{name}-parted", 2, *parts, family=family, fault=("kill", 1, 5))
        made.again(f"{name}-parted", ranks=then)
    made.add("forgets", 2, "train.parallel=fsdp2", "train.stop_on_forgetting=0.1", "evaluate.probe=true",
             "train.eval_steps=1")  # fmt: skip
    made.add("eight-1", 1, "train.max_steps=2", accumulated=8)
    made.add("eight-8", 8, "train.max_steps=2", accumulated=1)
    # Two micro-batches of each process a step. One run is killed twice and stopped once.
    dropout = "method.lora_dropout=0.1"
    made.add("stream-hurt", 2, *ALIKE["stream"][2], fault=("kill", 1, 5))
    made.again("stream-hurt", ranks=4)
    made.add("let-be", 2, dropout)
    made.add("hurt", 2, dropout, fault=("kill", 1, 3))
    made.again("hurt", fault=("kill", 0, 3))
    made.again("hurt", fault=("stop", 1, 1))
    made.again("hurt")
    made.add("disk", 2, fault=("disk", 0, 2))
    made.add("nan", 2, fault=("nan", 1, 3))
    made.add("memory", 2, "train.auto_batch=true", fault=("memory", 1, 4))
    made.add("no-memory", 2, fault=("memory", 1, 4))
    made.add(
        "patience",
        2,
        "train.early_stopping_patience=1",
        "train.learning_rate=0.5",
        "train.eval_steps=1",
    )
    made.add("more", 1, *ALIKE["full"][2], fault=("kill", 0, 9))
    made.again("more", ranks=2)
    made.run()
    return made


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_several_processes_take_the_steps_of_one(together: Together, name: str, way: str) -> None:
    one, several = together[f"{name}-1"], together[f"{name}-{way}"]
    assert together.end(f"{name}-{way}") == [""] * int(way[0]), together.said
    assert len(read_metrics(one)) == 6
    # A last bit decides which of two numbers of 8 bits is the nearer one.
    if name == "fp8":
        same_figures(read_metrics(several), read_metrics(one), 1e-3)
        return
    same_figures(read_metrics(several), read_metrics(one))
    same_weights(several, one)


def same_figures(
    found: list[dict[str, Any]], wanted: list[dict[str, Any]], close: float = 1e-5
) -> None:
    """As far as a terminal prints them, where they are ``close`` enough for that."""
    assert len(found) == len(wanted)
    for line, other in zip(found, wanted, strict=True):
        for key in TOLD:
            assert (key in line) == (key in other)
            if key in line:
                assert line[key] == pytest.approx(other[key], rel=close, abs=1e-6), key
                if close <= 1e-5:
                    assert f"{line[key]:.3f}" == f"{other[key]:.3f}", key


def test_eight_processes_of_which_most_are_idle_at_the_end_of_an_epoch(together: Together) -> None:
    assert together.end("eight-8") == [""] * 8, together.said
    same_figures(read_metrics(together["eight-8"]), read_metrics(together["eight-1"]))


def test_one_folder_that_rank_0_alone_writes(together: Together) -> None:
    one, two = (together[name].root for name in ("full-1", "full-2-ddp"))

    def names(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    more = names(two) - names(one)
    assert {Path(name).name for name in more} == {"rng_state_1.pth"}
    assert names(one) <= names(two)
    beside = {path.name for path in two.parent.iterdir() if path.name.startswith(".full-2-ddp")}
    assert beside <= {".full-2-ddp.lock"}
    told = [json.loads(line)["event"] for line in (two / "events.jsonl").open()]
    assert told.count("started") == told.count("finished") == 1


def test_the_rows_per_step_are_said(together: Together) -> None:
    told = together["full-2-ddp"].events_path.read_text()
    assert (
        "2 processes: 8 rows per step (2 per micro-batch x 2 micro-batches x 2 processes)" in told
    )


def test_a_rank_that_is_killed_ends_all_and_the_run_resumes(together: Together) -> None:
    for dead, name in ((1, "hurt"), (0, "hurt again")):
        ends = together.end(name)
        assert ends[dead] == "SIGKILL"
        assert ends[1 - dead].startswith(f"UserError: rank {dead} (process ")
        assert "run the same command again" in ends[1 - dead]
    ends = together.end("hurt again again")  # a signal to one stops all after the same step
    assert ends[0] == ends[1]
    assert ends[0].startswith("Interrupted: stopped at step 3")
    assert together.end("hurt again again again") == ["", ""]
    same_bytes(together["hurt"], together["let-be"])


def test_a_stream_that_loses_a_rank_goes_on_in_another_number_of_them(together: Together) -> None:
    assert together.end("stream-hurt")[1] == "SIGKILL"
    assert together.end("stream-hurt again") == [""] * 4, together.said
    same_figures(read_metrics(together["stream-hurt"]), read_metrics(together["stream-1"]))
    same_weights(together["stream-hurt"], together["stream-1"])


def same_bytes(run: Run, other: Run) -> None:
    for part in ("adapter/adapter_model.safetensors", "checkpoints/step-4/optimizer.pt"):
        assert (run.root / part).read_bytes() == (other.root / part).read_bytes(), part


def test_an_error_of_one_rank_is_raised_by_all(together: Together) -> None:
    assert together.end("disk") == ["UserError: cannot write here"] * 2


def test_a_step_that_is_no_number_in_one_rank_is_skipped_by_all(together: Together) -> None:
    assert together.end("nan") == ["", ""]
    lines = [line for line in read_metrics(together["nan"]) if "eval_loss" not in line]
    assert [line.get("skipped") for line in lines] == [None, 1, None, None]


def test_a_rank_without_memory_has_all_go_on_with_smaller_micro_batches(
    together: Together,
) -> None:
    assert together.end("memory") == ["", ""], together.said
    assert together["memory"].provenance().micro_batch == 1
    assert together["memory"].measured().steps == 4
    ends = together.end("no-memory")
    assert ends[0] == ends[1]
    assert ends[0].startswith("UserError: out of memory with 2 rows per micro-batch")


def test_early_stopping_ends_all_at_once(together: Together) -> None:
    assert together.end("patience") == ["", ""]
    assert together["patience"].measured().stopped_early


def test_a_run_of_one_process_goes_on_in_two(together: Together) -> None:
    assert together.end("more") == ["SIGKILL"]
    assert together.end("more again") == ["", ""]
    same_figures(read_metrics(together["more"]), read_metrics(together["full-1"]))


def same_weights(run: Run, other: Run) -> None:
    """Of the files that other libraries read."""
    found, wanted = (weights_of(each) for each in (run, other))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)


def weights_of(run: Run) -> dict[str, Tensor]:
    path = run.root / "adapter" / "adapter_model.safetensors"
    return load_file(path if path.is_file() else run.root / "model" / "model.safetensors")


@pytest.mark.parametrize(("name", "then"), [("full", 4), ("lora-packed", 1)])
def test_parts_that_two_processes_wrote_are_read_by_any_number(
    together: Together, name: str, then: int
) -> None:
    assert together.end(f"{name}-parted")[1] == "SIGKILL"
    assert together.end(f"{name}-parted again") == [""] * then, together.said
    same_figures(read_metrics(together[f"{name}-parted"]), read_metrics(together[f"{name}-1"]))
    same_weights(together[f"{name}-parted"], together[f"{name}-1"])


def test_a_model_in_parts_is_rounded_by_chance_as_a_whole_one(together: Together) -> None:
    """Of bfloat16 weights a process has drawn for its own part: near, not the same."""
    assert together.end("bf16-2") == ["", ""], together.said
    one, two = read_metrics(together["bf16-1"]), read_metrics(together["bf16-2"])
    for line, other in zip(two, one, strict=True):
        for key in ("loss", "eval_loss"):
            assert line.get(key) == (pytest.approx(other[key], rel=1e-3) if key in other else None)
    found, wanted = weights_of(together["bf16-2"]), weights_of(together["bf16-1"])
    for name, tensor in wanted.items():
        # 4 steps of the rate, each rounded by at most one of bfloat16's 8 bits.
        torch.testing.assert_close(found[name], tensor, rtol=2**-5, atol=4e-3)


def test_all_stop_where_the_model_forgets(together: Together) -> None:
    assert together.end("forgets") == ["", ""], together.said
    assert together["forgets"].measured().steps == 1


class Two(Processes):
    size = 2


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            "train.optim=adamw_8bit train.parallel=fsdp2",
            "train.optim adamw_8bit does not work in 2",
        ),
        ("train.optim=adafactor train.parallel=zero2", "rows of a weight"),
        ("method.init_lora_weights=pissa train.parallel=fsdp2", "changes the base"),
        ("model.dtype=float16 train.parallel=zero2", "use bfloat16"),
        (
            "method.name=full train.optimizer_in_backward=true train.max_grad_norm=0 "
            "train.gradient_accumulation_steps=1",
            "train.optimizer_in_backward True",
        ),
        ("method.name=full train.optim=adamw_bf16", "rounds by chance"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(asked: str, sentence: str) -> None:
    recipe = parse_recipe("model: {source: x}\ndata: {train: y}\n", asked.split())
    check_allowed(recipe, Processes())
    with pytest.raises(UserError, match=sentence):
        check_allowed(recipe, Two())


def test_micro_batches_that_cannot_be_shared_are_refused() -> None:
    recipe = parse_recipe(
        "model: {source: x}\ndata: {train: y}\n", ["train.gradient_accumulation_steps=2"]
    )
    with pytest.raises(UserError, match="4 micro-batches per step in all, which 3 processes"):
        of_same_steps(recipe, 2, 3, ignore)
