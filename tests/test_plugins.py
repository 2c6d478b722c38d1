"""Plugins by entry points: the examples, installed by pip, and what is told of broken ones."""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from families import make_model
from helpers import Notes
from played import play
from steps import learner, micro_batches

from luthier import plugins
from luthier.data.conversation import Conversation, Origin
from luthier.errors import UserError
from luthier.evaluate.metrics import make_metrics
from luthier.objectives.supervised import supervised_logits
from luthier.recipe import Recipe, as_recipe
from luthier.run import Run, save_recipe
from luthier.sinks.all import stream_of
from luthier.train.loop import train_step

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all example packages in it, as pip installs them."""
    sources = tmp_path_factory.mktemp("sources")
    target = tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLES, sources, dirs_exist_ok=True)  # building leaves things behind
    packages = sorted(path.parent for path in sources.glob("*/pyproject.toml"))
    assert len(packages) == 3
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", target, *packages],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(examples: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(examples))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("luthier_"):
            del sys.modules[name]


def recipe_with(tmp_path: Path, **groups: dict[str, object]) -> Recipe:
    return as_recipe(
        {
            "model": {"source": "smollm2-135m"},
            "data": {"train": "my.jsonl"},
            "run": {"dir": str(tmp_path), "name": "first"},
        },
        **groups,
    )


def row(reference: str) -> Conversation:
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": reference})
    return Conversation(Origin("f", 1), messages)


@pytest.mark.usefixtures("installed")
def test_a_metric_of_a_package(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, evaluate={"metrics": ["chrf", "brevity"]})
    _, metric = make_metrics(recipe.evaluate.metrics, recipe.evaluate, [])
    assert (metric.name, metric.higher_is_better, metric.share) == ("brevity", False, False)
    assert metric.scores(["one two", ""], [row("a b c d"), row("a")]) == [0.5, 0]


@pytest.mark.usefixtures("installed")
def test_a_sink_of_a_package(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, train={"report_to": ["status-file"]})
    run = Run(tmp_path / "first")
    save_recipe(run, recipe)
    heard = Notes()
    status = run.root / "status.txt"
    with stream_of(recipe, run, heard) as stream:
        for event in play(run, 0, 3):
            stream(event)
        assert status.read_text() == f"smollm2-135m: step 3 of 4, loss {1 / 3}\n"
        for event in play(run, 3, 4):
            stream(event)
    assert status.read_text() == "smollm2-135m: finished: the weights of step 4 of 4 are kept\n"
    assert heard.warnings == []


@pytest.mark.usefixtures("installed")
def test_an_objective_of_a_package() -> None:
    assert plugins.names("luthier.objectives") == ["label-smoothing"]
    objective = plugins.load("luthier.objectives", "label-smoothing")()
    torch.manual_seed(0)
    model = make_model("llama", 96)
    batches = micro_batches()
    with torch.no_grad():  # by its formula
        total, plain, count = 0.0, 0.0, 0
        for batch in batches:
            logits, targets = supervised_logits(model, batch)
            chances = F.log_softmax(logits, -1)
            nll = -chances.gather(1, targets[:, None])[:, 0]
            total += (0.9 * nll - 0.1 * chances.mean(1)).sum().item()
            plain += nll.sum().item()
            count += len(targets)
    mine = learner(objective, model)
    first = train_step(mine, batches)
    assert first.loss == pytest.approx(total / count, rel=1e-5)
    assert first.parts == {"nll": pytest.approx(plain / count, rel=1e-5)}
    for _ in range(5):
        last = train_step(mine, batches)
    assert last.loss < first.loss


@pytest.mark.usefixtures("installed")
def test_a_recipe_trains_by_the_objective_of_a_package(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    own = train(make_recipe("objective.name=label-smoothing", "run.name=smooth"))
    usual = train(make_recipe("run.name=usual"))
    lines = [line for line in own.metrics() if line.loss is not None]
    assert [line.step for line in lines] == [1, 2, 3, 4, 5, 6]
    first = next(iter(usual.metrics()))
    assert lines[0].extra["nll"] == pytest.approx(first.loss, rel=1e-4)  # the same first step
    assert lines[0].grad_norm != pytest.approx(first.grad_norm, rel=1e-2)
    evaluated = [line for line in own.metrics() if line.eval_loss is not None]
    assert all(line.extra["eval_nll"] > 0 for line in evaluated)


def package(folder: Path, name: str, group: str, entry: str, code: str) -> None:
    """An installed package by hand."""
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    (folder / f"{name}.py").write_text(code)


@pytest.mark.parametrize(
    ("group", "target", "code", "said"),
    [
        (
            "luthier.metrics", "broken_one", "import nothing_of_this_name",
            "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        ("luthier.metrics", "broken_one", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("luthier.metrics", "broken_one:gone", "", "cannot be imported: AttributeError"),
        ("luthier.metrics", "broken_one", "score = 3", "has no function score"),
        (
            "luthier.objectives", "broken_one:Mine",
            "class Mine:\n    def collate(self): ...\n    def loss(self): ...",
            "has no function count",
        ),
        ("luthier.sinks", "broken_one:sink", "sink = 3", "cannot be called"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_told_with_its_package(
    group: plugins.Group,
    target: str,
    code: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package(tmp_path, "broken_one", group, f"mine = {target}", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(UserError) as error:
        plugins.load(group, "mine")
    sys.modules.pop("broken_one", None)
    assert said in str(error.value)
    assert str(error.value).startswith(f"the plugin 'mine' ({target}) of the package broken_one ")


def test_a_metric_that_fails_on_a_row_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def score(answer, row):\n    return row['gone']\n"
    package(tmp_path, "failing_metric", "luthier.metrics", "mine = failing_metric", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = recipe_with(tmp_path, evaluate={"metrics": ["mine"]})
    (metric,) = make_metrics(recipe.evaluate.metrics, recipe.evaluate, [])
    with pytest.raises(
        UserError,
        match=r"'mine' of the package failing_metric: score failed on f:1: KeyError: 'gone' \(line 2\)",
    ):
        metric.score("a", row("b"))


def test_two_packages_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one_of_two", "two_of_two"):
        package(tmp_path, name, "luthier.sinks", f"mine = {name}:make", "def make(*_): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="one_of_two and two_of_two both bring a plugin 'mine'"):
        plugins.load("luthier.sinks", "mine")


def test_a_name_that_nobody_brings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no plugin 'mine' of luthier\.sinks is installed"):
        plugins.load("luthier.sinks", "mine")
    for group, key, kind in (("evaluate", "metrics", "metric"), ("train", "report_to", "sink")):
        with pytest.raises(UserError, match=rf"'{group}\.{key}': no {kind} 'mine'; known are"):
            recipe_with(tmp_path, **{group: {key: ["mine"]}})
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        recipe_with(tmp_path, train={"report_to": "wanbd"})


def test_a_run_opens_without_the_plugins_it_was_trained_with(tmp_path: Path) -> None:
    run = Run(tmp_path / "first")
    save_recipe(run, recipe_with(tmp_path))
    text = run.recipe_path.read_text().replace("- tensorboard", "- not-here")
    run.recipe_path.write_text(text.replace("- chrf", "- nor-here"))
    recipe = run.recipe()
    assert recipe.train.report_to == ["not-here"]
    assert recipe.changed(data={"max_length": 64}).evaluate.metrics[-1] == "nor-here"
    with pytest.raises(UserError, match="no plugin 'not-here'"), stream_of(recipe, run, Notes()):
        pass
    with pytest.raises(UserError, match="no plugin 'nor-here'"):
        make_metrics(recipe.evaluate.metrics, recipe.evaluate, [])


@pytest.mark.parametrize(
    ("given", "kept"),
    [("none", []), ("wandb", ["wandb"]), (["mlflow", "mlflow"], ["mlflow"]), ([], [])],
)
def test_report_to_takes_what_transformers_takes(
    given: object, kept: list[str], tmp_path: Path
) -> None:
    assert recipe_with(tmp_path, train={"report_to": given}).train.report_to == kept
