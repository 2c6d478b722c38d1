"""The commands as a person types them, on the tiny model."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Cli, write_rows

from luthier.recipe import Recipe

LIMIT = 150_000


@pytest.fixture(scope="module")
def finished(
    cli: Cli, tiny_model: Path, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with recipe.yaml, rows.jsonl and the finished run runs/first."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "rows.jsonl", rows)
    (folder / "recipe.yaml").write_text(
        f"model: {{source: {tiny_model}, dtype: float32}}\n"
        "data: {train: rows.jsonl, max_length: 128}\n"
        "train: {max_steps: 6, learning_rate: 1.0e-2}\n"
        "evaluate: {max_new_tokens: 6, probe: false}\n"
    )
    done = cli("train", "recipe.yaml", "--set", "run.name=first", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "next: luthier evaluate runs/first" in done.stdout
    assert "60 rows, format alpaca" in done.stderr
    assert "step 6/6" in done.stderr  # plain lines in a pipe
    assert "\x1b" not in done.stderr + done.stdout
    return folder


def test_train_prints_json(cli: Cli, finished: Path) -> None:
    done = cli("train", "runs/first", "--json", cwd=finished)
    result = json.loads(done.stdout)
    assert result["run"] == "runs/first"
    assert result["steps"] == 6
    assert (finished / "runs" / "first" / result["weights"]).is_dir()


def test_a_finished_run_says_so(cli: Cli, finished: Path) -> None:
    done = cli("train", "recipe.yaml", "--set", "run.name=first", cwd=finished)
    assert done.returncode == 0
    assert "had already finished" in done.stdout


def test_other_settings_need_another_name(cli: Cli, finished: Path) -> None:
    done = cli(
        "train", "recipe.yaml", "--set", "run.name=first", "--set", "train.seed=1", cwd=finished
    )
    assert done.returncode == 2
    assert "train.seed: 42 -> 1" in done.stderr


def test_evaluate(cli: Cli, finished: Path) -> None:
    shown = cli("evaluate", "runs/first", "--samples", "1", cwd=finished)
    assert shown.returncode == 0, shown.stderr
    for word in ("perplexity", "exact match", "ROUGE-L", "chrF", "reference", "base", "tuned"):
        assert word in shown.stdout
    as_json = json.loads(cli("evaluate", "runs/first", "--json", cwd=finished).stdout)
    kept = json.loads((finished / "runs/first/evaluation.json").read_text())
    assert as_json["tuned"] == kept["tuned"]
    assert as_json["tuned"]["loss"] < as_json["base"]["loss"]


def test_generate(cli: Cli, finished: Path) -> None:
    asked = ["generate", "runs/first", "-p", "Repeat 3", "-p", "-", "--max-new-tokens", "5"]
    done = cli(*asked, "--compare", "--json", stdin="Repeat 4", cwd=finished)
    answers = json.loads(done.stdout)
    assert [a["prompt"] for a in answers] == ["Repeat 3", "Repeat 4"]
    assert all(set(a) == {"prompt", "base", "tuned"} for a in answers)
    assert any(a["base"] != a["tuned"] for a in answers)
    plain = cli(*asked, "--base", stdin="Repeat 4", cwd=finished)
    assert plain.stdout.split() == " ".join(a["base"] for a in answers).split()


def test_chat(cli: Cli, finished: Path) -> None:
    said = (
        "Repeat 3\n/base\nRepeat 3\n/compare\n/system Be brief.\nagain\n/nonsense\n/reset\n/quit\n"
    )
    done = cli("chat", "runs/first", "--max-new-tokens", "5", "--temperature", "0", stdin=said,
               cwd=finished)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tuned:" in done.stdout
    assert "there is no command /nonsense" in done.stderr
    ended = cli("chat", "runs/first", stdin="", cwd=finished)
    assert ended.returncode == 0


def test_models_list(cli: Cli, tmp_path: Path) -> None:
    listed = json.loads(cli("models", "list", "--json", LUTHIER_CACHE=str(tmp_path)).stdout)
    assert listed[0]["name"] == "smollm2-135m"
    assert listed[0]["folder"] is None
    assert "smollm2-135m" in cli("models", "list").stdout


@pytest.mark.parametrize(
    "command", ["", "train", "evaluate", "generate", "chat", "demo", "models", "models pull"]
)
def test_help_teaches(cli: Cli, command: str) -> None:
    done = cli(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert len(done.stdout.split()) > 40


def test_version(cli: Cli) -> None:
    from luthier import __version__

    assert cli("--version").stdout == f"luthier {__version__}\n"


BROKEN = '{"instruction": "q", "output": "a"}\n' * 16 + '{"instruction": "q", "outp\n'

BAD: list[tuple[str, str, list[str], list[str]]] = [
    ("missing file", "", ["data.train=none.jsonl"], ["no data file at none.jsonl"]),
    ("empty file", "", ["data.train=bad.jsonl"], ["bad.jsonl is empty"]),
    ("broken line 17", BROKEN, ["data.train=bad.jsonl"], ["bad.jsonl:17: not valid JSON"]),
    (
        "wrong keys",
        '{"Frage": "q", "Antwort": "a"}\n',
        ["data.train=bad.jsonl"],
        ["Frage, Antwort match no known format", "set data.columns: {prompt: Frage"],
    ),
    (
        "too long",
        json.dumps({"instruction": "q", "output": "word " * 400}) + "\n",
        ["data.train=bad.jsonl"],
        ["1 are longer than data.max_length 128"],
    ),
    ("unknown key", "", ["train.learning_rat=1"], ["did you mean 'train.learning_rate'"]),
    ("unknown model", "", ["model.source=smollm-135m"], ["did you mean 'smollm2-135m'"]),
    ("unknown method", "", ["method.name=lorra"], ["'method.name' is 'lorra'", "'qlora'"]),
    ("wrong target", "", ["method.target_modules=[x]"], ["q_proj"]),
    ("float16 here", "", ["model.dtype=float16"], ["float16 needs a CUDA GPU"]),
    ("a file for a folder", "", ["run.dir=rows.jsonl"], ["rows.jsonl"]),
]


@pytest.mark.parametrize(("content", "sets", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_gives_one_clear_message_and_writes_nothing(
    content: str, sets: list[str], said: list[str], cli: Cli, finished: Path, tmp_path: Path
) -> None:
    for name in ("recipe.yaml", "rows.jsonl"):
        (tmp_path / name).write_text((finished / name).read_text())
    (tmp_path / "bad.jsonl").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    overrides = [part for item in sets for part in ("--set", item)]
    done = cli("train", "recipe.yaml", "--set", "run.name=bad", *overrides, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    for text in said:
        assert text in done.stderr
    after = [p for p in sorted(tmp_path.rglob("*")) if p.name != "runs"]
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "none.yaml"], "no recipe at none.yaml"),
        (["evaluate", "runs/none"], "runs there: first"),
        (["generate", "runs", "-p", "x"], "not a run folder"),
        (["models", "pull", "gpt-5"], "known: smollm2-135m"),
        (["train", "runs/first", "--set", "train.seed=1"], "a run's settings cannot change"),
        (["trian"], "trian"),
    ],
)
def test_other_bad_commands(arguments: list[str], said: str, cli: Cli, finished: Path) -> None:
    done = cli(*arguments, cwd=finished)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_for_a_checkpoint(
    cli: Cli, finished: Path, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    """The kernel refuses to write past a size, as a full disk would; then there is room again."""
    (tmp_path / "r.yaml").write_text(make_recipe("train.save_steps=2").to_yaml())
    resource_before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource_before[1]))
    try:
        full = cli("train", tmp_path / "r.yaml", "--set", "train.report_to=[]")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, resource_before)
    assert full.returncode == 2, full.stderr
    assert "cannot write the checkpoint" in full.stderr
    assert "Traceback" not in full.stderr
    run = tmp_path / "runs" / "run"
    assert not list(run.rglob("*.tmp"))
    assert not list((run / "checkpoints").iterdir())
    again = cli("train", tmp_path / "r.yaml", "--set", "train.report_to=[]")
    assert again.returncode == 0, again.stderr
