import shutil
from pathlib import Path

import pytest
import torch
from families import make_model
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import AutoModelForCausalLM

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


def write_gguf(path: Path, quantised: bool = False) -> None:
    """A two-layer Llama as llama.cpp's converter lays it out, its matrices in 8 bits if ``quantised``."""
    model = make_model("llama", 64)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *(chr(0x21 + i) for i in range(62)), '!"'])
    writer.add_token_types([3] + [1] * 63)
    writer.add_token_merges(['! "'])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if quantised and tensor.ndim == 2:
            stored = quantize(tensor.numpy(), GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, stored, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
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


def test_a_gguf_file_is_converted_tensor_by_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what Transformers loads whole, with a part of it in memory at a time."""
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    write_gguf(file, quantised=True)
    whole = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=file.name).state_dict()
    folder.mkdir()
    limit = 2**14
    monkeypatch.setattr(gguf_module, "_SHARD", limit)
    held: list[int] = []
    write = gguf_module.save_file

    def counted(tensors: dict[str, torch.Tensor], *args: object, **more: object) -> None:
        held.append(sum(tensor.nbytes for tensor in tensors.values()))
        write(tensors, *args, **more)

    monkeypatch.setattr(gguf_module, "save_file", counted)
    gguf_module.convert_gguf(file, folder)
    found = load_model(folder, torch.float32).state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    largest = max(tensor.nbytes for tensor in whole.values())
    assert len(held) > 2
    assert max(held) < limit + largest
    assert sum(held) == sum(t.nbytes for name, t in whole.items() if name != "lm_head.weight")


def test_a_gguf_file_that_lacks_a_weight_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "folder"
    write_gguf(file)
    folder.mkdir()
    right = gguf_module._tensors
    monkeypatch.setattr(gguf_module, "_tensors", lambda *a: list(right(*a))[1:])
    with pytest.raises(UserError, match=r"it lacks .* of the model's weights"):
        gguf_module.convert_gguf(file, folder)
