"""What the documents tell people to type works as it stands there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from families import save_tiny
from helpers import Cli, write_rows
from preferences import preference_rows
from typer.testing import CliRunner

from luthier.recipe import Recipe, load_recipe
from luthier.run import Run
from luthier.sweep.space import parse_space

ROOT = Path(__file__).parents[2]


def commands(document: str) -> list[list[str]]:
    """The `luthier …` lines of its sh blocks."""
    text = (ROOT / document).read_text("utf-8")
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("luthier ")]


@pytest.mark.real
def test_the_readmes_path_on_the_real_model(cli: Cli, real_model: Path, tmp_path: Path) -> None:
    """Pull, train, evaluate, generate and chat, word for word, on a few rows; answers are short."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    lora = tmp_path / "recipes" / "lora.yaml"  # without the general probe, which takes minutes
    text = lora.read_text("utf-8")
    assert "\nevaluate:" not in text
    lora.write_text(f"{text}evaluate:\n  probe: false\n  max_new_tokens: 32\n")
    # Real rows: the shortest of the demo's own task.
    task = (ROOT / "src/luthier/demo/task/train.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "my.jsonl").write_text("\n".join(sorted(task, key=len)[:22]) + "\n", "utf-8")
    typed = commands("README.md")
    assert [line[0] for line in typed] == ["models", "train", "evaluate", "generate", "chat"]
    for line in typed:
        short = ["--max-new-tokens", "16"] if line[0] == "generate" else []
        done = cli(*line, *short, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    run = Run(tmp_path / "runs" / "first")
    check_improved(run)
    check_loads_without_us(run, real_model)


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_the_programs_run_as_they_stand(
    document: str, tiny_model: Path, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Word for word; the recipe that they name is of a tiny model."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "lora.yaml").write_text(
        f"model: {{source: {tiny_model}, dtype: float32}}\n"
        "data: {train: other.jsonl, max_length: 128}\n"
        "train: {max_steps: 4, learning_rate: 0.01}\n"
        "evaluate: {probe: false, max_rows: 4, max_new_tokens: 8}\n"
    )
    write_rows(tmp_path / "my.jsonl", rows)
    text = (ROOT / document).read_text("utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert programs
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "runs" / "from-python").finished


def test_the_commands_of_the_data_guide(
    cli: Cli, real_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.yaml").write_text(
        f"model: {{source: {tiny_model}}}\ndata: {{train: my.jsonl, max_length: 256}}\n"
        "train: {max_steps: 1, warmup_ratio: 0, per_device_train_batch_size: 2}\nevaluate: {probe: false}\n", "utf-8"
    )  # fmt: skip
    task = (ROOT / "src/luthier/demo/task/train.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "my.jsonl").write_text("\n".join(task) + "\n", "utf-8")
    typed = commands("docs/data.md")
    shown = ["check", "show", "fix", "convert", "split", "mix", "my.yaml", "tokenize"]
    assert [line[1] for line in typed] == [*shown, "my.yaml"]
    for line in typed:
        done = cli(*line, cwd=tmp_path)
        fell_short = 1 if line[1] == "check" else 0  # the task has fewer than 500 rows
        assert done.returncode == fell_short, (line, done.stderr)


def test_the_commands_of_the_plan_guide(cli: Cli, narrow_model: Path, tmp_path: Path) -> None:
    """Word for word, but that plans are of a narrow model of three layers."""
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n}."} for n in range(1200)]
    write_rows(tmp_path / "my.jsonl", rows)
    typed = commands("docs/plan.md")
    assert [line[0] for line in typed] == ["advise", *["plan"] * 5]
    for line in typed:
        if "--calibrate" not in line:  # has a test of its own, and would time a busy machine
            if line[0] == "plan":
                named = ("smollm2-135m", "llama-3.1-8b")
                line = [str(narrow_model) if part in named else part for part in line]
                recipe = (tmp_path / "my.yaml").read_text("utf-8")
                (tmp_path / "my.yaml").write_text(
                    recipe.replace('source: "smollm2-135m"', f"source: {narrow_model}"), "utf-8"
                )
            done = cli(*line, cwd=tmp_path)
            assert done.returncode == 0, (line, done.stderr)


def test_the_commands_of_the_preference_guide(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", preference_rows(40))
    (tmp_path / "recipes").mkdir()
    text = (ROOT / "recipes" / "dpo.yaml").read_text("utf-8")
    text = text.replace("smollm2-135m", str(tiny_model)).replace("dtype: auto", "dtype: float32")
    text = text.replace("max_length: 1024", "max_length: 128")
    text += "evaluate: {probe: false, max_rows: 2, max_new_tokens: 4}\n"
    (tmp_path / "recipes" / "dpo.yaml").write_text(text, "utf-8")
    typed = commands("docs/preference.md")
    assert [line[0] for line in typed] == ["data", *["train", "evaluate"] * 2]
    for line in typed:
        done = cli(*line, cwd=tmp_path)
        fell_short = 1 if line[1] == "check" else 0  # there are fewer than 500 rows
        assert done.returncode == fell_short, (line, done.stderr)
    assert "chosen answer has the higher reward" in done.stdout
    assert "win rate against the base" in done.stdout


def test_the_commands_of_the_launch_guide(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {source: tiny}\ndata: {train: my.jsonl}\n")
    typed = commands("docs/launch.md")
    assert [line[:4] for line in typed] == [
        ["launch", "recipe.yaml", "--on", engine] for engine in ("slurm", "ray", "skypilot", "ssh")
    ]
    for line in typed:
        done = cli(*line, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        assert "luthier.cli.main train runs/.recipe-" in done.stdout


def test_the_commands_of_the_processes_guide(tiny_model: Path, tmp_path: Path) -> None:
    """Each launcher, word for word; a run of its own for each."""
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n % 9}."} for n in range(20)]
    write_rows(tmp_path / "my.jsonl", rows)
    text = (ROOT / "docs/processes.md").read_text("utf-8")
    typed = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)).splitlines()
    assert [line.split()[0] for line in typed] == ["luthier", "torchrun", "accelerate"]
    modules = {
        "luthier": "luthier.cli.main",
        "torchrun": "torch.distributed.run",
        "accelerate": "accelerate.commands.accelerate_cli",
    }
    figures = []
    for line in typed:
        program, *arguments = shlex.split(line)
        (tmp_path / "my.yaml").write_text(
            f"model: {{source: {tiny_model}, dtype: float32}}\n"
            "method: {lora_dropout: 0}\n"
            "data: {train: my.jsonl, max_length: 128}\n"
            "train: {max_steps: 2, report_to: none}\n"
            f"evaluate: {{probe: false}}\nrun: {{name: {program}}}\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", modules[program], *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stderr.count("2 processes: 32 rows per step") == 1
        assert done.stdout.count("next: luthier evaluate") == 1
        figures.append([line.loss for line in Run(tmp_path / "runs" / program).metrics()])
    assert figures[0] == figures[1] == figures[2]


def test_the_commands_of_the_distillation_guide(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n % 9}."} for n in range(40)]
    write_rows(tmp_path / "my.jsonl", rows)
    save_tiny(tmp_path / "runs" / "large" / "model", "qwen3")
    (tmp_path / "my.yaml").write_text(
        f"model: {{source: {tiny_model}, dtype: float32}}\n"
        "data: {train: my.jsonl, max_length: 128}\ntrain: {max_steps: 2}\n"
        "evaluate: {probe: false, max_rows: 2, max_new_tokens: 4}\n"
    )
    typed = commands("docs/distill.md")
    assert [line[0] for line in typed] == ["plan", "train", "evaluate"]
    for line in typed:
        done = cli(*line, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        assert line[0] != "plan" or "asked once before the first step" in done.stdout


def test_the_commands_of_the_evaluation_guide(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n % 9}."} for n in range(60)]
    write_rows(tmp_path / "my.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows[::6])
    (tmp_path / "my_metric.py").write_text("def score(answer, row):\n    return len(answer)\n")
    sets = ["data.train=my.jsonl", "run.name=first", f"model.source={tiny_model}"]
    sets += ["train.max_steps=4", "evaluate.max_new_tokens=4", "model.dtype=float32"]
    sets += ["data.max_length=128"]
    overrides = [part for item in sets for part in ("--set", item)]
    trained = cli("train", ROOT / "recipes/lora.yaml", *overrides, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    text = (ROOT / "docs/evaluate.md").read_text("utf-8")
    (task,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "mine.yaml").write_text(task)
    question = {"question": "Number 3?", "choices": ["It is 3.", "It is 7."], "gold": 0}
    write_rows(tmp_path / "questions.jsonl", [question] * 6)
    typed = commands("docs/evaluate.md")
    assert [line[0] for line in typed] == ["evaluate", "gate", "report", "evaluate"]
    for line in typed:
        done = cli(*line, cwd=tmp_path)
        fell_short = 1 if line[0] == "gate" else 0  # four steps teach nothing
        assert done.returncode == fell_short, (line, done.stderr)
    assert "mine acc" in (tmp_path / "runs/first/report.html").read_text("utf-8")


def test_the_commands_of_the_export_guide(
    tiny_model: Path,
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Word for word, in this process, on two runs of the tiny model."""
    from luthier.cli.main import app

    short = ("train.max_steps=2", "train.eval_steps=2", "train.save_steps=2")
    for name in ("first", "second"):
        train(make_recipe(*short, f"run.name={name}"))
    write_rows(tmp_path / "questions.jsonl", [{"prompt": f"Number {n}?"} for n in range(3)])
    shutil.copytree(tmp_path / "runs" / "first" / "adapter", tmp_path / "their-adapter")
    monkeypatch.chdir(tmp_path)
    typed = commands("docs/export.md")
    shapes = [line[3] for line in typed if line[0] == "export"]
    assert shapes == ["gguf", "ollama", "adapter-gguf", "safetensors"]
    for line in typed:
        # The base in the guide is the real model; the adapter here is of the tiny one.
        line = [str(tiny_model) if part == "smollm2-135m" else part for part in line]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, (line, done.output, done.exception)
    for made in ("merged", "both", *(f"runs/first/{shape}" for shape in shapes)):
        assert (tmp_path / made).is_dir(), made
    assert (tmp_path / "answers.jsonl").read_text("utf-8").count("\n") == 3


@pytest.mark.real
def test_the_commands_of_the_rag_guide(cli: Cli, real_model: Path, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    typed = commands("docs/rag.md")
    assert [line[0] for line in typed] == ["rag", "rag", "compare"]
    said = []
    for line in typed:
        done = cli(*line, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        said.append(done.stdout)
    assert "30 passages of 30 files" in said[0]
    assert "[1] │ harl-light.md:1-5" in said[1]  # the right document comes first
    comparison = json.loads((tmp_path / "isle" / "comparison.json").read_text())
    zero_shot, rag = comparison["approaches"]
    assert rag["prompt_tokens"] > zero_shot["prompt_tokens"]
    for sample in comparison["samples"]:  # asked with the document that holds the answer
        subject = json.loads(sample["reference"])["subject"]
        document = ROOT / "src/luthier/demo/facts/docs" / sample["passages"][0].split(":")[0]
        assert document.read_text("utf-8").lower().startswith(f"# {subject}".lower())


def test_the_commands_of_the_comparison_guide(cli: Cli, recipe_file: Path) -> None:
    typed = commands("docs/compare.md")
    assert [line[0] for line in typed] == ["compare", "compare"]
    short = ("train.max_steps=3", "evaluate.max_new_tokens=4", "evaluate.max_rows=4")
    for line in typed:
        sets = [part for key in short for part in ("--set", key)]
        done = cli(*line, *sets, cwd=recipe_file.parent)
        assert done.returncode == 0, (line, done.stderr)


def test_the_commands_of_the_sweep_guide(cli: Cli, recipe_file: Path) -> None:
    text = (ROOT / "docs/sweep.md").read_text("utf-8")
    (space,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    parse_space([str(_written(recipe_file.parent / "space.yaml", space))], load_recipe(recipe_file))
    typed = commands("docs/sweep.md")
    assert [line[0] for line in typed] == ["sweep"] * 3
    for line in typed:
        done = cli(*line, "--set", "train.max_steps=3", cwd=recipe_file.parent)
        assert done.returncode == 0, (line, done.stderr)
    assert len(list(recipe_file.parent.glob("sweeps/first/trials/*/recipe.yaml"))) == 6


def _written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_the_commands_of_the_boards_guide(cli: Cli) -> None:
    (line,) = commands("docs/board.md")
    done = cli(*line)
    assert done.returncode == 0 and "--runs" in done.stdout, done.stderr


def check_improved(run: Run) -> None:
    evaluation = json.loads(run.evaluation_path.read_text())
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"] - 0.2


def check_loads_without_us(run: Run, base_folder: Path) -> None:
    """The programs of docs/run-folder.md, run as they stand; the second needs no Luthier."""
    text = (ROOT / "docs/run-folder.md").read_text("utf-8")
    ours, plain = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names = {"base_folder": base_folder}
    for snippet in (ours, plain):
        exec(snippet.replace("runs/first", str(run.root)), names)
    model = names["model"]
    lora = [p for n, p in model.named_parameters() if "lora_B" in n]  # type: ignore[attr-defined]
    assert len(lora) == 210  # seven linear layers in each of thirty blocks
    assert all(p.abs().sum() > 0 for p in lora)


def test_the_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"make ([\w-]+)", (ROOT / document).read_text("utf-8")):
            assert re.search(rf"^{target}:", makefile, re.M), (document, target)


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text("utf-8")):
            assert (document.parent / link).exists(), (document.name, link)


def test_shipped_recipes_name_keys_in_their_examples() -> None:
    from luthier.recipe import known_keys

    known = set(known_keys())
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        comments = [line for line in recipe.read_text("utf-8").splitlines() if "#" in line]
        for key in re.findall(r"\b((?:model|method|data|train|run)\.[a-z_]+)", "\n".join(comments)):
            assert key in known, (recipe.name, key)
