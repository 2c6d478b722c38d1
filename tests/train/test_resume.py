"""A run cut off anywhere and run again ends with the same bytes as one that was let be."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import save_tiny
from helpers import Cli, read_metrics, wait_for_step, write_rows
from preferences import preference_rows

from luthier.data import stream
from luthier.recipe import Recipe, parse_recipe
from luthier.run import Run, claim_run
from luthier.train.fit import fit

HERE = Path(__file__).parent
WINDOW = 10  # rows, of a stream

KINDS: dict[str, list[str]] = {
    "lora": ["method.name=lora"],
    "fp8": ["kernels.fp8_base=true"],
    # Full: only tensors of 4,096 numbers and more have 8-bit state.
    "8bit": ["method.name=full", "train.optim=adamw_8bit", "train.learning_rate=1e-3"],
    "stops-early": ["method.name=full", "train.early_stopping_patience=2", "train.learning_rate=0.5", "train.eval_steps=1"],
    "stable-decay": ["method.name=lora", "train.warmup_steps=2", "train.lr_scheduler_type=warmup_stable_decay", "train.lr_scheduler_kwargs={num_decay_steps: 3}"],
    "dpo": ["objective.name=dpo", "data.train=PAIRS"],
    "dpo-kept": ["objective.name=dpo", "data.train=PAIRS", "method.name=full", "train.learning_rate=1e-3"],
    "kto": ["objective.name=kto", "data.train=PAIRS", "objective.precompute_ref_log_probs=true"],
    "distill": ["objective.name=distill", "objective.teacher=TEACHER", "objective.top_k=8", "objective.temperature=2"],
    # Three windows a pass and a bit: the kill is in the second pass, and in a window's middle.
    "stream": ["data.streaming=true", "data.validation_rows=36", "method.lora_dropout=0.1"],
    "stream-packed": ["data.streaming=true", "data.packing=true", "data.validation=VALIDATION"],
    "stream-dpo": ["objective.name=dpo", "data.train=PAIRS", "data.streaming=true", "data.validation_rows=4"],
    "min-rate": ["method.name=lora", "train.warmup_steps=1", "train.lr_scheduler_type=cosine_with_min_lr", "train.lr_scheduler_kwargs={min_lr_rate: 0.1}"],
}  # fmt: skip

# Two micro-batches a step, a checkpoint every second step: call 9 is in step 5.
CUTS = [
    ("lora", "step", 1),
    ("lora", "step", 9),
    ("lora", "step", 10),
    ("lora", "log", 4),
    ("lora", "evaluation", 2),
    ("lora", "save-weights", 2),
    ("lora", "save-optimizer", 2),
    ("lora", "save-state", 1),
    ("lora", "save-rename", 2),
    ("lora", "rotate", 1),
    ("lora", "finish-copy", 2),
    ("lora", "finish-last", 1),
    ("fp8", "step", 9),
    ("8bit", "step", 9),
    ("8bit", "save-state", 2),
    ("stable-decay", "step", 9),
    ("min-rate", "step", 9),
    ("dpo", "pair-step", 9),
    ("dpo", "save-state", 1),
    ("dpo-kept", "pair-step", 9),
    ("kto", "label-step", 10),
    ("distill", "teacher", 3),
    ("distill", "taught-step", 1),
    ("distill", "taught-step", 9),
    ("stream", "step", 9),
    ("stream", "step", 16),
    ("stream", "save-state", 2),
    ("stream", "finish-last", 1),
    ("stream-packed", "step", 9),
    ("stream-dpo", "pair-step", 13),
    ("stops-early", "step", 5),
    ("stops-early", "finish-last", 1),
]


@pytest.fixture(scope="module")
def recipes(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows: list[dict[str, str]]
) -> Callable[..., Recipe]:
    folder = tmp_path_factory.mktemp("resume")
    data = write_rows(folder / "rows.jsonl", rows)
    pairs = write_rows(folder / "pairs.jsonl", preference_rows(30))
    held_out = write_rows(folder / "held-out.jsonl", rows[:5])
    teacher = save_tiny(folder / "teacher", "qwen3")
    common = [
        f"model.source={tiny_model}", "model.dtype=float32", f"data.train={data}",
        "data.max_length=128", "train.per_device_train_batch_size=2",
        "train.gradient_accumulation_steps=2", "train.max_steps=8", "train.eval_steps=3",
        "train.save_steps=2", "train.save_total_limit=2", "train.learning_rate=1e-2",
        f"run.dir={folder / 'runs'}",
    ]  # fmt: skip

    def make(kind: str, name: str) -> Recipe:
        mine = [
            setting.replace("PAIRS", str(pairs))
            .replace("TEACHER", str(teacher))
            .replace("VALIDATION", str(held_out))
            for setting in KINDS[kind]
        ]
        return parse_recipe("", [*common, *mine, f"run.name={name}"])

    return make


@pytest.fixture(scope="module")
def whole(recipes: Callable[..., Recipe]) -> dict[str, Run]:
    """Uninterrupted runs by kind."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "WINDOW", WINDOW)
        for kind in KINDS:
            recipe = recipes(kind, f"whole-{kind}")
            runs[kind] = claim_run(recipe, "x")
            fit(recipe, runs[kind])
    return runs


@pytest.fixture(scope="module")
def killed(
    recipes: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What became of each cut, by (kind, point, nth)."""
    folder = tmp_path_factory.mktemp("plans")
    plan = []
    for number, (kind, point, nth) in enumerate(CUTS):
        file = folder / f"{number}.yaml"
        recipe = recipes(kind, f"cut-{number}")
        file.write_text(recipe.to_yaml())
        root = str(claim_run(recipe, "x").root)
        plan.append({"recipe": str(file), "root": root, "point": point, "nth": nth, "kind": kind})
    (folder / "plan.json").write_text(json.dumps({"window": WINDOW, "cuts": plan}))
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "killed_run.py"), str(folder / "plan.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "plan.done").read_text())
    return {(r["kind"], r["point"], r["nth"]): {**r, "stderr": done.stderr} for r in results}


def weights(run: Run) -> bytes:
    recipe = run.recipe()
    (file,) = run.weights_path(recipe).glob("*.safetensors")
    return file.read_bytes()


@pytest.mark.parametrize(("kind", "point", "nth"), CUTS)
def test_killed_and_resumed_is_bit_identical(
    kind: str,
    point: str,
    nth: int,
    whole: dict[str, Run],
    killed: dict[tuple[str, str, int], dict[str, Any]],
) -> None:
    result = killed[kind, point, nth]
    assert result["first"] == -signal.SIGKILL
    assert result["second"] == 0, result["stderr"]
    run = Run(Path(result["root"]))
    assert weights(run) == weights(whole[kind])
    timeless = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens")
    expected, got = (
        [{key: line[key] for key in timeless if key in line} for line in read_metrics(r)]
        for r in (whole[kind], run)
    )
    assert got == expected
    assert list(run.checkpoints()) == list(whole[kind].checkpoints())
    # Nothing of the killed process is left lying about.
    leftovers = [p for p in run.root.rglob(".*") if p.name.endswith(".tmp")]
    assert leftovers == []


def test_the_last_run_did_stop_early(whole: dict[str, Run]) -> None:
    assert json.loads(whole["stops-early"].measured_path.read_text())["stopped_early"]


def start(recipe_file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(recipe_file)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def longer(recipes: Callable[..., Recipe]) -> Callable[[str], Recipe]:
    def make(name: str) -> Recipe:
        made = recipes("lora", name)
        made.train.max_steps, made.train.save_steps = 120, 100
        return made

    return make


@pytest.fixture(scope="module")
def whole_longer(longer: Callable[[str], Recipe]) -> Run:
    recipe = longer("whole-longer")
    run = claim_run(recipe, "x")
    fit(recipe, run)
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    longer: Callable[[str], Recipe],
    whole_longer: Run,
    cli: Cli,
    tmp_path: Path,
) -> None:
    recipe = longer(f"stopped-{number.name}")
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    run = claim_run(recipe, "x")
    process = start(file)
    wait_for_step(run, 5)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "everything is saved in" in said
    assert re.search(r"go on with: .*train", said)
    assert not run.finished
    assert 5 <= max(run.checkpoints()) < 120
    resumed = cli("train", file)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(run) == weights(whole_longer)


def test_killed_from_outside_at_no_chosen_moment(
    recipes: Callable[..., Recipe], tmp_path: Path, whole: dict[str, Run], cli: Cli
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipes("lora", "outside").to_yaml())
    run = claim_run(recipes("lora", "outside"), "x")
    process = start(file)
    wait_for_step(run, 3)
    process.kill()
    process.communicate()
    assert not run.finished
    resumed = cli("train", run.root)  # a run folder goes on as well as the recipe
    assert resumed.returncode == 0, resumed.stderr
    assert weights(run) == weights(whole["lora"])


def test_a_run_does_not_go_on_with_other_data(
    recipes: Callable[..., Recipe], tmp_path: Path
) -> None:
    from luthier.errors import UserError

    recipe = recipes("lora", "edited")
    run = claim_run(recipe, "x")
    fit(recipe, run)
    run.measured_path.unlink()  # as if it had been cut off at the end
    lines = run.train_path.read_text().splitlines()
    run.train_path.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(UserError, match="changed since this run wrote it"):
        fit(recipe, run)
