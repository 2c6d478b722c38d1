"""`luthier recipe` as a person, a script and an editor use it."""

import itertools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import Cli
from jsonschema import Draft7Validator
from recipe_tables import PAGE, page

from luthier.recipe import known_keys, load_recipe, parse_recipe
from luthier.recipe.json_schema import SCHEMA_PATH, json_schema, json_schema_text
from luthier.recipe.keys import all_keys

ROOT = Path(__file__).parents[2]
OURS = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "src/luthier/demo").rglob("recipe.yaml")]
NAMED = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


def test_the_shipped_schema_is_the_one_of_the_classes(cli: Cli, tmp_path: Path) -> None:
    """After a change of a key: `luthier recipe schema --out src/luthier/recipe/recipe.schema.json`."""
    assert SCHEMA_PATH.read_text("utf-8") == json_schema_text()
    done = cli("recipe", "schema")
    assert (done.returncode, done.stdout) == (0, json_schema_text())
    assert cli("recipe", "schema", "--out", "s.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "s.json").read_text("utf-8") == json_schema_text()


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    Draft7Validator.check_schema(schema)
    described = []
    for group, entry in schema["properties"].items():
        fields = schema["$defs"][entry["$ref"].rpartition("/")[2]]["properties"]
        for name, field in fields.items():
            assert field["description"][0].isalpha(), (group, name)
            described.append(f"{group}.{name}")
    assert described == list(known_keys())
    rate = schema["$defs"]["TrainGroup"]["properties"]["learning_rate"]["description"]
    assert rate.endswith("default: 2e-05 for full, 0.0003 for lora, 0.0002 for qlora")


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"train": {"learning_rate": None, "save_steps": 7}}, True),
        ({"data": {"train": ["a", "b"], "replay": {"source": "g"}}}, True),
        ({"train": {"sed": 1}}, False),
        ({"trian": {}}, False),
        ({"method": {"name": "dpo"}}, False),
        ({"train": {"seed": -1}}, False),
        ({"data": {"validation": "v"}}, False),  # and no training data
    ],
)
def test_the_schema_accepts_what_we_read(change: dict[str, Any], accepted: bool) -> None:
    recipe = {"model": {"source": "m"}, "data": {"train": "t"}} | change
    assert Draft7Validator(json_schema()).is_valid(recipe) == accepted


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_recipes_name_the_schema_and_meet_it(path: Path) -> None:
    text = path.read_text("utf-8")
    named = NAMED.match(text)
    assert named is not None
    assert (path.parent / named[1]).resolve() == ROOT / "src/luthier/recipe/recipe.schema.json"
    Draft7Validator(json_schema()).validate(yaml.safe_load(text))


def check_written(path: Path) -> None:
    """An editor finds the schema, and every line of a key has its comment."""
    text = path.read_text("utf-8")
    named = NAMED.match(text)
    assert named is not None
    assert named[1] == SCHEMA_PATH.as_uri()
    Draft7Validator(json_schema()).validate(yaml.safe_load(text))
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert " # " in line or before.lstrip().startswith("# "), line
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_new_recipe_from_options(cli: Cli, tmp_path: Path, method: str) -> None:
    options = ["--data", "my rows.jsonl", "--method", method, "--name", "first"]
    done = cli("recipe", "new", *options, "--out", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "luthier data check 'my rows.jsonl'" in done.stdout
    assert "luthier train mine.yaml" in done.stdout
    check_written(tmp_path / "mine.yaml")
    recipe = load_recipe(tmp_path / "mine.yaml")
    usual = parse_recipe(
        "model: {source: smollm2-135m}\ndata: {train: t}", [f"method.name={method}"]
    )
    assert recipe.differences(usual) == [
        "data.train: my rows.jsonl -> t",
        "train.early_stopping_patience: 3 -> None",
    ]
    assert recipe.run.name == "first"


def test_other_keys_of_a_new_recipe(cli: Cli, tmp_path: Path) -> None:
    sets = ["data.replay={source: 'a: b.jsonl', share: 0.2}", "data.validation_fraction=0"]
    sets += ["kernels.norm=false", "train.num_train_epochs=1", "run.name='007'"]
    options = [part for text in sets for part in ("--set", text)]
    options += ["--data", "a.jsonl", "--data", "b.csv", "-m", "owner/name"]
    done = cli("recipe", "new", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_written(tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.replay is not None
    assert recipe.data.replay.model_dump() == {"source": "a: b.jsonl", "share": 0.2}
    assert recipe.train_files == ["a.jsonl", "b.csv"]
    assert (recipe.kernels.norm, recipe.run.name) == (False, "007")
    assert recipe.train.early_stopping_patience is None  # nothing is held out


def test_a_file_is_never_overwritten_unasked(cli: Cli, tmp_path: Path) -> None:
    done = cli("recipe", "new", "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "recipe.yaml").read_text("utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").train_files == ["my.jsonl"]
    done = cli("recipe", "new", "--yes", "--method", "full", cwd=tmp_path)
    assert (done.returncode, "recipe.yaml exists" in done.stderr) == (2, True)
    assert (tmp_path / "recipe.yaml").read_text("utf-8") == written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no training data: give --data FILE"),
        (["--yes", "--method", "dpo"], "'method.name' is 'dpo'"),
        (["--yes", "--set", "train.sed=1"], "did you mean 'train.seed'"),
        (["--yes", "--max-length", "2"], "'data.max_length' is 2"),
    ],
)
def test_what_is_wrong_is_told(cli: Cli, tmp_path: Path, options: list[str], said: str) -> None:
    done = cli("recipe", "new", *options, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def in_a_terminal(typed: list[str], folder: Path, *options: str) -> tuple[int, str]:
    """Exit code, and what the terminal showed."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli.main", "recipe", "new", *options],
        stdin=child,
        stdout=subprocess.DEVNULL,
        stderr=child,
        cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(child)
    os.write(parent, "".join(f"{line}\n" for line in typed).encode())
    shown = bytearray()
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    return process.wait(timeout=60), shown.decode()


def test_in_a_terminal_it_asks(tmp_path: Path) -> None:
    """A mistake is asked again; what an option answers is not asked; a file is overwritten on 'y'."""
    typed = ["", "a.jsonl, b.jsonl", "", "qlroa", "qlora", "4", "256", "first"]
    code, shown = in_a_terminal(typed, tmp_path)
    assert code == 0, shown
    assert "'method.name' is 'qlroa'" in shown
    assert "'data.max_length' is '4'" in shown
    check_written(tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.model.source, recipe.method.name) == ("smollm2-135m", "qlora")
    assert recipe.train_files == ["a.jsonl", "b.jsonl"]
    assert (recipe.data.max_length, recipe.run.name) == (256, "first")
    assert recipe.train.learning_rate == 2e-4
    code, shown = in_a_terminal(["n"], tmp_path)
    assert code == 2, shown
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    code, shown = in_a_terminal(["y", "", "", "", "", ""], tmp_path, "--method", "full")
    assert code == 0, shown
    assert "Which method" not in shown
    assert load_recipe(tmp_path / "recipe.yaml").method.name == "full"


def test_a_key_is_explained(cli: Cli) -> None:
    done = cli("recipe", "explain", "train.learning_rate")
    assert done.returncode == 0, done.stderr
    for text in ("peak learning rate", "number", "full 2e-05", "--set train.learning_rate=0.0001"):
        assert text in done.stdout, text
    found = json.loads(cli("recipe", "explain", "train.optim", "--json").stdout)
    assert found["by_method"]["qlora"] == "paged_adamw_8bit"
    assert "adafactor" in found["allowed"]
    done = cli("recipe", "explain", "learning_rat")
    assert (done.returncode, "did you mean 'train.learning_rate'" in done.stderr) == (2, True)


def test_all_keys_are_listed(cli: Cli) -> None:
    shown = cli("recipe", "explain").stdout
    for key in known_keys():
        assert key in shown, key
    listed = json.loads(cli("recipe", "explain", "--json").stdout)
    assert [entry["key"] for entry in listed] == list(known_keys())
    shown = cli("recipe", "explain", "run").stdout
    assert "run.dir" in shown
    assert "train.seed" not in shown


# Keys that take a value only beside another, as their descriptions say.
BESIDE = {
    "train.optimizer_in_backward": [
        "train.gradient_accumulation_steps=1",
        "train.max_grad_norm=0",
    ],
    "data.streaming": ["train.max_steps=9"],
    "data.validation_rows": ["data.streaming=true", "train.max_steps=9"],
    "train.lr_scheduler_kwargs": ["train.lr_scheduler_type=cosine_with_min_lr"],
    "method.train_modules": ["method.name=full"],
    "method.freeze_modules": ["method.name=full"],
    "objective.beta": ["objective.name=dpo"],
    "objective.simpo_gamma": ["objective.name=simpo"],
    "objective.desirable_weight": ["objective.name=kto"],
    "objective.undesirable_weight": ["objective.name=kto"],
    "objective.center_rewards_coefficient": ["objective.name=reward"],
    "objective.teacher": ["objective.name=distill"],
    "objective.top_k": ["objective.name=distill", "objective.teacher=t"],
    "objective.temperature": ["objective.name=distill", "objective.teacher=t"],
    "objective.alpha": ["objective.name=distill", "objective.teacher=t"],
    "objective.precompute_ref_log_probs": ["objective.name=dpo"],
    "evaluate.win_rate": ["evaluate.reward_model=runs/reward"],
}


@pytest.mark.parametrize("key", list(all_keys()), ids=lambda key: key.path)
def test_every_example_is_taken_and_is_not_the_default(key: Any) -> None:
    sets = ["model.source=m", "data.train=t", *BESIDE.get(key.path, ())]
    recipe = parse_recipe("", [*sets, f"{key.path}={key.example}"])
    if not key.required:
        assert getattr(getattr(recipe, key.group), key.name) != key.default


def test_the_page_tells_every_key_as_it_is() -> None:
    """After a change of a key: `python tests/recipe_tables.py`."""
    text = PAGE.read_text("utf-8")
    assert text == page(text)


def test_the_page_holds(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe, its commands and its program, as they stand there."""
    text = PAGE.read_text("utf-8")
    example, longer = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert parse_recipe(example).train_files == ["my.jsonl"]
    assert parse_recipe(longer, ["data.train=my.jsonl"]).data.max_length == 32768
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    for line in block.splitlines():
        done = cli(*line.split()[1:], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "recipe.schema.json").read_text("utf-8") == json_schema_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["recipe"].train.max_steps == 100
    assert names["full"].method.name == "full"
