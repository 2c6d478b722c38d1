"""GGUF files as sources: what Transformers loads whole, tensor by tensor, and what it cannot load."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter, RopeScalingType
from ggufs import add_tokens, finish, write_llama, write_minimax
from shipping import ask_llama_cpp, needs_llama_cpp
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models import gguf
from luthier.models.load import load_config, load_model

LIMIT = 2**14


@pytest.mark.parametrize(("write", "tied"), [(write_llama, True), (write_minimax, False)])
def test_a_file_is_converted_tensor_by_tensor(
    write: Callable[..., Any], tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what Transformers loads whole, with a part of it in memory at a time."""
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    write(file, quantised=True)
    whole = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=file.name).state_dict()
    folder.mkdir()
    monkeypatch.setattr(gguf, "_SHARD", LIMIT)
    held: list[int] = []
    save = gguf.save_file

    def counted(tensors: dict[str, torch.Tensor], *args: object, **more: object) -> None:
        held.append(sum(tensor.nbytes for tensor in tensors.values()))
        save(tensors, *args, **more)

    monkeypatch.setattr(gguf, "save_file", counted)
    gguf.convert_gguf(file, folder)
    found = load_model(folder, torch.float32).state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    largest = max(tensor.nbytes for tensor in whole.values())
    assert len(held) > 2
    assert max(held) < LIMIT + largest
    stored = (t.nbytes for name, t in whole.items() if not (tied and name == "lm_head.weight"))
    assert sum(held) == sum(stored)


def test_experts_of_minimax_are_the_models_own(tmp_path: Path) -> None:
    """To the bit, where the file is in float32, and the config with them."""
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    model = write_minimax(file)
    folder.mkdir()
    gguf.convert_gguf(file, folder)
    found, wanted = load_model(folder, torch.float32).state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    config = load_config(folder)
    assert config.rope_parameters == model.config.rope_parameters
    assert config.num_experts_per_tok == model.config.num_experts_per_tok


@needs_llama_cpp
def test_llama_cpp_computes_the_same_of_minimax(tmp_path: Path) -> None:
    """An implementation with nothing in common with Transformers reads the same file."""
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    write_minimax(file)
    folder.mkdir()
    gguf.convert_gguf(file, folder)
    model, prompts = load_model(folder, torch.float32), [[5, 9, 3, 22], [1, 2, 3, 4, 5, 6]]
    answer = ask_llama_cpp(file, prompts=prompts, new=1, top=60)
    for prompt, top in zip(prompts, answer["top"], strict=True):
        expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert len(top) == 60
        assert all(abs(value - expected[int(token)]) < 1e-4 for token, value in top.items())


def test_memory_does_not_grow_with_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What NumPy allocates, of which tensors are made, between one piece that is written and the next."""
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    model = write_minimax(file, quantised=True, layers=6)
    folder.mkdir()
    monkeypatch.setattr(gguf, "_SHARD", LIMIT)
    peaks: list[int] = []
    save = gguf.save_file

    def counted(*args: Any, **more: Any) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        save(*args, **more)

    monkeypatch.setattr(gguf, "save_file", counted)
    tracemalloc.start()
    try:
        gguf.convert_gguf(file, folder)
    finally:
        tracemalloc.stop()
    a_layer = sum(p.nbytes for p in model.model.layers[0].parameters())
    third = len(peaks) // 3  # two layers
    assert max(peaks[2 * third :]) - max(peaks[third : 2 * third]) < a_layer / 10


def test_gpt_oss_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Transformers takes the length of a key for its value; where that is mended, this can be, too."""
    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "gpt-oss")
    add_tokens(writer)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    finish(writer)
    with pytest.raises(TypeError):
        AutoConfig.from_pretrained(str(tmp_path), gguf_file=file.name)
    with pytest.raises(UserError, match=r"is a gpt-oss model, .* openai/gpt-oss-20b"):
        gguf.convert_gguf(file, tmp_path / "folder")


def test_a_file_that_lacks_a_weight_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    write_llama(file)
    folder.mkdir()
    right = gguf._tensors
    monkeypatch.setattr(gguf, "_tensors", lambda *a: list(right(*a))[1:])
    with pytest.raises(UserError, match=r"it lacks .* of the model's weights"):
        gguf.convert_gguf(file, folder)
