"""Recipes, data and weights from strangers; SECURITY.md says what each of these defends."""

import gzip
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from families import save_tiny
from helpers import Cli, write_rows

from luthier.data import kinds, lines
from luthier.data.conversation import Conversation, Origin
from luthier.data.foreign import read_any
from luthier.data.readers import read_rows
from luthier.data.sources import find_files
from luthier.errors import UserError
from luthier.evaluate.metrics import sql_execution
from luthier.models.adapters import load_adapter
from luthier.models.load import load_config, load_model, load_tokenizer
from luthier.recipe import Recipe, parse_recipe
from luthier.run import Run
from luthier.train.checkpoints import write_manifest
from luthier.yaml_text import parse_yaml

ROW = {"prompt": "p", "completion": "c"}


class Attack:
    """A pickle that leaves a file where it was opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


# --- weights ---


def pickled(folder: Path, content: Any) -> Path:
    """A model folder whose weights are a pickle."""
    save_tiny(folder)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_and_read_as_tensors_where_allowed(tmp_path: Path) -> None:
    state = save_and_read(tmp_path / "good")
    folder = pickled(tmp_path / "pickled", state)
    with pytest.raises(UserError, match=r"pickled weights .*model\.allow_pickle: true"):
        load_model(folder, torch.float32)
    model = load_model(folder, torch.float32, allow_pickle=True)
    assert torch.equal(model.state_dict()["model.norm.weight"], state["model.norm.weight"])


def save_and_read(folder: Path) -> dict[str, torch.Tensor]:
    save_tiny(folder)
    return dict(load_model(folder, torch.float32).state_dict())


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_that_would_run_code_never_does(tmp_path: Path, allowed: bool) -> None:
    mark = tmp_path / "ran"
    folder = pickled(tmp_path / "evil", {"model.norm.weight": Attack(mark)})
    with pytest.raises(UserError):
        load_model(folder, torch.float32, allow_pickle=allowed)
    assert not mark.exists()
    # The pickle is a real one: opened without care it does run.
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


def test_a_pickled_adapter_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(UserError, match="pickle files are not read"):
        load_adapter(load_model(tiny_model, torch.float32), tmp_path)
    assert not mark.exists()


def test_code_that_ships_with_a_model_does_not_run(tmp_path: Path) -> None:
    folder, mark = save_tiny(tmp_path / "model"), tmp_path / "ran"
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        load_config(folder)
    with pytest.raises(UserError):
        load_model(folder, torch.float32)
    with suppress(UserError):
        load_tokenizer(folder)
    assert not mark.exists()


# --- recipes ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [{'*a, ' * 9}]\n".replace("*a", f"*b{n - 1}" if n else "*a") for n in range(9)), "aliases expand to over"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 2026-99-99", "a value cannot be read"),
        ("a: " + "9" * 5000, "a value cannot be read"),
        ('a: "\\ud800"', "contains something that is not text"),
        ("a: " + "[" * 3000, "nested too deeply"),
    ],
)  # fmt: skip
def test_yaml_that_would_harm_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_yaml(text, "recipe")


def test_run_names_stay_in_their_folder() -> None:
    for name in ("../x", "a/b", "..", "a\\b"):
        with pytest.raises(UserError, match="plain folder name"):
            parse_recipe("model: {source: m}\ndata: {train: a.jsonl}", [f"run.name={name}"])


SECRET = "hf_" + "q" * 34


@pytest.mark.parametrize(
    "override",
    [
        "model.source=https://me:hunter2@hub.example/model",
        f"data.train=[a.jsonl, {SECRET}]",
        "data.validation=from-the-environment",
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "from-the-environment")
    with pytest.raises(UserError, match="holds a password or token") as caught:
        parse_recipe("model: {source: m}\ndata: {train: a.jsonl}", [override])
    assert not any(s in str(caught.value) for s in ("hunter2", SECRET, "from-the-environment"))


def test_no_secret_of_the_environment_gets_into_a_run(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import Notes

    from luthier.events import Note
    from luthier.run import claim_run
    from luthier.train import fit as fit_module
    from luthier.train import session
    from luthier.train.fit import fit

    monkeypatch.setenv("HF_TOKEN", SECRET)
    real = session.open_session

    def leaks(asked: session.Asked) -> session.Session:
        leak = f"GET https://me:hunter2@hub.example/x with {SECRET}"
        logging.getLogger("transformers").warning(leak)
        asked.on_event(Note(f"a note: {leak}"))
        return real(asked)

    monkeypatch.setattr(fit_module, "open_session", leaks)
    recipe = make_recipe()
    run = claim_run(recipe, "x")
    fit(recipe, run, Notes())
    masked = "https://[secret]@hub.example/x with [secret]"
    assert run.log_path.read_text().count(masked) == 2
    assert masked in run.events_path.read_text()
    for path in run.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert b"hunter2" not in content, path


# --- data ---


def test_links_out_of_a_data_folder_are_refused(tmp_path: Path) -> None:
    private = write_rows(tmp_path / "private.jsonl", [ROW])
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "good.jsonl", [ROW])
    (folder / "inner.jsonl").symlink_to(folder / "good.jsonl")
    assert len(find_files(str(folder))) == 2  # a link within it is fine
    (folder / "evil.jsonl").symlink_to(private)
    with pytest.raises(UserError, match="is a link to a file outside its folder"):
        list(read_rows(str(folder)))
    # The hub's cache is made of links into its own blobs.
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "datasets--a--b" / "blobs"
    blobs.mkdir()
    write_rows(blobs / "abc", [ROW])
    (snapshot / "train.jsonl").symlink_to(blobs / "abc")
    assert find_files(str(snapshot))


def test_a_description_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "private.jsonl", [ROW])
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("../private.jsonl", str(tmp_path / "private.jsonl")):
        (folder / "dataset_info.json").write_text(json.dumps({"x": {"file_name": name}}))
        with pytest.raises(UserError, match="points outside the folder"):
            list(read_any(f"{folder / 'dataset_info.json'}:x"))


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/x", "..", "a\0b"])
def test_rows_cannot_name_databases_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.sql").write_text("CREATE TABLE t (x); INSERT INTO t VALUES (1);")
    (tmp_path / "dbs").mkdir()
    row = Conversation(
        Origin("f", 1),
        ({"role": "user", "content": "q"}, {"role": "assistant", "content": "SELECT x FROM t"}),
        extra={"database": name},
    )
    with pytest.raises(UserError, match="is not the name of a database"):
        sql_execution(tmp_path / "dbs")("SELECT x FROM t", row)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.gz", ".csv.gz", ".jsonl.zst", ".json.zst"])
def test_archives_that_unpack_to_too_much_are_refused(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_LARGE", 2**20)
    bomb = b" " * 2**24
    packed = gzip.compress(bomb) if ending.endswith("gz") else zstandard.compress(bomb)
    path = tmp_path / f"bomb{ending}"
    path.write_bytes(packed)
    with pytest.raises(UserError, match="unpacks to over 200 times its size"):
        list(read_rows(str(path)))


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".jsonl.gz"])
def test_a_line_without_end_is_refused(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST", 2**16)
    line = b'{"text": "' + os.urandom(2**17).hex().encode() + b'"}\n'
    path = tmp_path / f"long{ending}"
    path.write_bytes(gzip.compress(line) if ending.endswith("gz") else line)
    with pytest.raises(UserError, match=r"line 1: longer than|field larger than"):
        list(read_rows(str(path)))


def test_reports_escape_what_data_holds(tmp_path: Path, cli: Cli) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    path = write_rows(tmp_path / f"{'<b>'}.jsonl", [{"prompt": evil, "completion": evil}] * 3)
    page = tmp_path / "page.html"
    cli("data", "check", path, "--html", page)
    text = page.read_text()
    assert "<script>" not in text
    assert "<img" not in text
    assert "<b>.jsonl" not in text


def test_a_run_folder_opens_nothing_of_a_stranger(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    """A run that was sent: its optimiser state is a pickle, read by PyTorch as tensors alone."""
    run = train(make_recipe())
    run.measured_path.unlink()
    shutil.rmtree(run.checkpoint_path(6))
    mark = tmp_path / "ran"
    folder = run.checkpoint_path(3)
    torch.save(Attack(mark), folder / "optimizer.pt")
    (folder / "manifest.json").unlink()
    write_manifest(folder)  # a stranger would have made it fit
    with pytest.raises(UserError, match="holds more than tensors"):
        train(make_recipe())
    assert not mark.exists()
