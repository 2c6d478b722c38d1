import shutil
from pathlib import Path

import pytest
import torch
from families import make_model
from ggufs import write_llama

from luthier.errors import UserError
from luthier.models import gguf as gguf_module
from luthier.models.load import load_config, load_model, load_tokenizer
from luthier.models.source import resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_local_folder(tiny_model: Path) -> None:
    assert resolve(str(tiny_model)).folder == tiny_model


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("nothing like it", "not a known name"),
        ("./no/such/folder", "not a folder or file here"),
    ],
)
def test_an_unknown_model_says_what_is_known(source: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(source)
    assert said in str(error.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        resolve(str(tmp_path))


def test_a_hub_id_comes_as_the_hub_lays_it_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client finds a snapshot in its cache, as after a download, with no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    folder = resolve("acme/tiny").folder
    assert folder == repository / "snapshots" / commit
    assert load_config(folder).model_type == "llama"


def test_a_hub_id_that_nobody_answers_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub does not answer"):
        resolve("acme/none")


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    write_llama(file)
    folder = resolve(str(file)).folder
    model = load_model(folder, torch.float32)
    expected = make_model("llama", 64).state_dict()["model.norm.weight"]
    assert torch.equal(model.state_dict()["model.norm.weight"], expected)
    assert load_tokenizer(folder).eos_token == "<|endoftext|>"

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf_module, "convert_gguf", never)
    assert resolve(str(file)).folder == folder
    assert resolve(str(tmp_path)).folder == folder  # a folder that holds this one file


def test_what_is_not_gguf(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not at all")
    with pytest.raises(UserError, match="is not a GGUF file"):
        resolve(str(tmp_path / "x.gguf"))
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(UserError, match="is a damaged GGUF file"):
        resolve(str(tmp_path / "y.gguf"))
    assert [p.name for p in (cache / "models" / "gguf").iterdir() if p.is_dir()] == []


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        load_model(folder, torch.float32)


def test_code_that_ships_with_a_model_does_not_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    shutil.copytree(tiny_model, folder)
    flag = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(flag)!r}, 'w')\n")
    (folder / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}'
    )
    with pytest.raises(UserError, match="trust_remote_code"):
        load_config(folder)
    assert not flag.exists()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_weights_load_in_each_dtype(name: str, tiny_model: Path) -> None:
    dtype = getattr(torch, name)
    model = load_model(tiny_model, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_tokenizer_without_an_end_token_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "endless"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(folder)
