"""What the guides tell people to type works as it stands there, on a tiny model in the small one's place."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from families import save_tiny
from forked import Forked
from helpers import write_rows
from preferences import preference_rows

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    str(page.relative_to(DOCS))
    for page in (DOCS / "index.md", *DOCS.glob("*/*.md"))
    if page.parent.name != "reference"
)
# These end with 1 where something falls short: too few rows, a model that learned nothing.
MAY_FALL_SHORT = (["data", "check"], ["gate"])


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """Language, title and text of each fenced block."""
    text = (DOCS / page).read_text("utf-8")
    for fence in re.finditer(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```', text, re.M | re.S):
        yield fence[1], fence[2] or "", fence[3]


def typed(block: str) -> Iterator[list[str]]:
    """The commands of an sh block; a quoted text may go over several lines."""
    line = ""
    for part in block.splitlines():
        line = f"{line}\n{part}" if line else part
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        line = ""
        if words:
            yield words
    assert not line, line


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """`luthier` where the cache has a tiny model under the name of the small one."""
    cache = tmp_path_factory.mktemp("cache")
    tiny = save_tiny(cache / "models" / "smollm2-135m")
    config = (tiny / "config.json").read_text("utf-8")
    longer = re.sub(r'"max_position_embeddings": \d+', '"max_position_embeddings": 2048', config)
    (tiny / "config.json").write_text(longer, "utf-8")
    (tiny / "luthier.json").write_text('{"origin": "a tiny model", "files": {}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(cache))
        forked = Forked()
        yield forked
        forked.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of what the pages name, with fewer rows and shorter answers, and files of the reader's."""
    for folder in ("recipes", "examples", "src/luthier/demo"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for recipe in tmp_path.rglob("*.yaml"):
        text = recipe.read_text("utf-8")
        if "\nmodel:" in text:
            # The tiny model's tokens are single letters.
            text = re.sub(r"max_length: \d+", "max_length: 1024", text)
            text = re.sub(r"max_new_tokens: \d+", "max_new_tokens: 8", text)
            short = "max_rows: 4\n  max_new_tokens: 8\n  probe: false\n"
            recipe.write_text(text if "\nevaluate:" in text else f"{text}evaluate:\n  {short}")
    for made in tmp_path.glob("examples/*/make_data.py"):
        text = made.read_text("utf-8")
        made.write_text(text.replace("320", "40").replace("60:420", "60:120"), "utf-8")
    task = tmp_path / "src/luthier/demo/task/train.jsonl"
    task.write_text("".join(task.read_text("utf-8").splitlines(keepends=True)[:40]), "utf-8")
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n % 9}."} for n in range(40)]
    write_rows(tmp_path / "my.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows[::6])
    write_rows(tmp_path / "pairs.jsonl", preference_rows(20))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/support.json").write_text(json.dumps(rows))
    chat = [{"speaker": "user", "said": "Hello?"}, {"speaker": "assistant", "said": "Hello."}]
    write_rows(tmp_path / "chats.jsonl", [{"turns": chat}] * 3)
    return tmp_path


@pytest.fixture
def first(stand_in: Forked, workspace: Path) -> None:
    """The run of the first page, where a page goes on from it."""
    line = ["train", "recipes/lora.yaml", "--set", "data.train=my.jsonl", "--set", "run.name=first"]
    done = stand_in.run([*line, "--set", "train.max_steps=2"], "", workspace)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_page_holds(
    page: str,
    stand_in: Forked,
    workspace: Path,
    narrow_model: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files are written, then its commands and programs run, in their order."""
    found = list(blocks(page))
    if "runs/first" in (DOCS / page).read_text("utf-8") and page != "index.md":
        request.getfixturevalue("first")
    monkeypatch.chdir(workspace)
    for _, title, text in found:
        if title:
            (workspace / title).parent.mkdir(exist_ok=True)
            shallow = text.replace('"num_hidden_layers": 32', '"num_hidden_layers": 2')
            (workspace / title).write_text(shallow, "utf-8")
    for language, title, text in found:
        if language == "sh" and not title:
            for words in typed(text):
                run(words, stand_in, workspace, narrow_model)
        elif language == "python":
            exec(compile(text, page, "exec"), {})


def run(words: list[str], stand_in: Forked, workspace: Path, narrow: Path) -> None:
    program, *args = words
    if args[0] == "plan":  # of a model with a tenth of the layers
        for recipe in (workspace / arg for arg in args if arg.endswith(".yaml")):
            text = recipe.read_text("utf-8")
            recipe.write_text(text.replace("source: smollm2-135m", f"source: {narrow}"), "utf-8")
        args = [str(narrow) if arg == "smollm2-135m" else arg for arg in args]
    if program == "python":
        subprocess.run([sys.executable, *args], check=True, cwd=workspace, capture_output=True)
        return
    assert program == "luthier", words
    done = stand_in.run(args, "", workspace)
    if args[0] == "plan":
        for recipe in (workspace / arg for arg in args if arg.endswith(".yaml")):
            text = recipe.read_text("utf-8")
            recipe.write_text(text.replace(f"source: {narrow}", "source: smollm2-135m"), "utf-8")
    short = any(args[: len(name)] == name for name in MAY_FALL_SHORT)
    assert done.returncode in ((0, 1) if short else (0,)), (words, done.stdout[-500:], done.stderr)
    assert "error:" not in done.stderr, (words, done.stderr)


@pytest.mark.parametrize("page", [page for page in PAGES if "/from-" in page])
def test_the_recipe_shown_is_the_one_that_is_made(
    page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.recipe.convert import convert_recipe
    from luthier.recipe.convert.writing import converted_recipe

    monkeypatch.chdir(workspace)
    found = list(blocks(page))
    for _, title, text in found:
        if title:
            Path(title).write_text(text, "utf-8")
    (shown,) = (text for language, title, text in found if language == "yaml" and not title)
    (source,) = (title for _, title, _ in found if title and "dataset_info" not in title)
    done = convert_recipe(Path(source), None, (), Path("recipe.yaml"))
    made = converted_recipe(done, Path(source), Path("recipe.yaml"))
    assert yaml.safe_load(shown) == yaml.safe_load(made)


@pytest.mark.parametrize(
    ("page", "outcomes"),
    [
        ("guides/why.md", ["prepare", "few-shot", "fine-tune"]),
        ("guides/rag-or-tuning.md", ["rag", "hybrid"]),
    ],
)
def test_the_advice_ends_where_the_page_says(
    page: str, outcomes: list[str], stand_in: Forked, tmp_path: Path
) -> None:
    (block,) = (text for language, _, text in blocks(page) if language == "sh")
    said = [stand_in.run([*words[1:], "--json"], "", tmp_path).stdout for words in typed(block)]
    assert [json.loads(advice)["outcome"] for advice in said] == outcomes


def test_the_names_are_those_that_the_conversion_knows() -> None:
    """After a change: `python tests/recipe_tables.py`."""
    from recipe_tables import FROM, page

    for path, tools in FROM.items():
        assert path.read_text("utf-8") == page(path.read_text("utf-8"), tools), path.name


@pytest.mark.parametrize("page", PAGES)
def test_recipes_in_pages_have_known_keys(page: str) -> None:
    from luthier.recipe import known_keys

    known = set(known_keys())
    for language, title, text in blocks(page):
        if language == "yaml" and not title:
            for group, keys in yaml.safe_load(text).items():
                for key in keys:
                    assert f"{group}.{key}" in known, (group, key)
    named = re.findall(
        r"`((?:model|method|data|objective|train|evaluate|run)\.[a-z0-9_]+)",
        (DOCS / page).read_text("utf-8"),
    )
    assert set(named) - known == set(), page
