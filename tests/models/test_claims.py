"""Models that lie: each is one clear error, in bounds of time and memory, and no traceback."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Cli

from luthier.errors import UserError
from luthier.models import claims, tryout
from luthier.models.load import load_config, load_model, load_tokenizer

Make = Callable[..., Path]
TOKENIZERS = Path(__file__).parents[3] / "shared" / "tokenizers"


@pytest.fixture
def lying(tiny_model: Path, tmp_path: Path) -> Make:
    """A copy of the tiny model with other values in one of its files."""

    def make(name: str, **changes: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}))
        return folder

    return make


def nested(levels: int) -> str:
    return '{"a": ' * levels + "1" + "}" * levels


@pytest.mark.parametrize("levels", [100, 900, 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_nested_too_deeply(lying: Make, name: str, levels: int) -> None:
    folder = lying(name)
    (folder / name).write_text(nested(levels))
    with pytest.raises(UserError, match=f"{name} is nested too deeply"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "\xff", "9" * 5000, '{"a": 1e', "{]"]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_files_that_are_no_json_object(lying: Make, name: str, text: str) -> None:
    folder = lying(name)
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"{name} (is not JSON|must hold a JSON object)"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"num_labels": 2147483647}, "'num_labels' is 2.14748e[+]09, and no model has more than 100,000"),
        ({"text_config": {"num_labels": 1e300}}, "'num_labels'"),
        ({"num_hidden_layers": 2147483647}, "'num_hidden_layers'"),
        ({"num_hidden_layers": 9_999}, "'num_hidden_layers' is 9999, and no model has more than 2,000"),
        ({"num_local_experts": 10**9}, "'num_local_experts'"),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has(lying: Make, claims: dict[str, Any], said: str) -> None:
    folder = lying("config.json", **claims)
    for load in (load_config, load_tokenizer, lambda f: load_model(f, torch.float32)):
        with pytest.raises(UserError, match=said):
            load(folder)


@pytest.mark.parametrize(
    "claims",
    [
        {"vocab_size": 2147483647},
        {"hidden_size": 2**20},
        {"intermediate_size": 2**31 - 1},
        {"hidden_size": 4096, "num_hidden_layers": 2_000},
    ],
)
def test_a_model_far_larger_than_its_weights(lying: Make, claims: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"describes a model of about .* they do not belong together"
    ):
        load_model(lying("config.json", **claims), torch.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eos_token": 7}, "'eos_token' must be text or an object or null, not a number"),
        ({"eos_token": {"content": 7}}, "'eos_token' must have a text 'content'"),
        ({"chat_template": 7}, "'chat_template' must be text"),
        ({"chat_template": [{"name": "x"}]}, "needs the texts name and template"),
        ({"model_max_length": "long"}, "'model_max_length' must be a number or null, not text"),
        ({"add_bos_token": "yes"}, "'add_bos_token' must be true or false or null, not text"),
        ({"padding_side": "up"}, "'padding_side' must be left or right, not 'up'"),
        ({"added_tokens_decoder": [1]}, "'added_tokens_decoder' must be an object or null"),
        (
            {"added_tokens_decoder": {"x": {"content": "a"}}},
            "has 'x' where the id of a token must be",
        ),
        ({"added_tokens_decoder": {"1": "a"}}, "token 1 must be an object, not text"),
        ({"additional_special_tokens": "x"}, "'additional_special_tokens' must be a list"),
        ({"additional_special_tokens": [1]}, "a token of 'additional_special_tokens' must be text"),
        ({"tokenizer_class": ["x"]}, "'tokenizer_class' must be text or null, not a list"),
        ({"auto_map": "x.Y"}, "'auto_map' must be an object"),
    ],
)
def test_values_of_the_wrong_type(lying: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_tokenizer(lying("tokenizer_config.json", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 7}, {"model": {"type": "BPE", "vocab": [], "merges": {}}}, {"normalizer": "x"},
        {"pre_tokenizer": {"type": "Nothing"}}, {"decoder": [1]}, {"version": {}},
        {"post_processor": {"type": "TemplateProcessing", "single": "x", "special_tokens": 3}},
        {"padding": "yes", "truncation": -1}, {"added_tokens": {"a": 1}}, {"added_tokens": [{"id": 1}]},
        {"added_tokens": [{"content": "x", "id": 2**32 - 1}]},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated",
                           "invert": False}},
    ],
)  # fmt: skip
def test_tokenizers_of_the_wrong_form(lying: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        load_tokenizer(lying("tokenizer.json", **changes))


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def replace(text: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": by}


HARMFUL = {
    "a group that repeats": {"pre_tokenizer": split("(a+)+$")},
    "two in a group": {"pre_tokenizer": split("(x+x+)+y")},
    "in a sequence": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("(?:a|aa)*c|(b*)*c")]}},
    "in a normalizer": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"}
    },
    "forty doublings": {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}},
    "a letter becomes a book": {"normalizer": replace("a", "a" * 10**6)},
    "nothing becomes something": {"normalizer": replace("", "a")},
    "a book before": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "padding": {"padding": {"strategy": {"Fixed": 2**31 - 1}, "direction": "Right", "pad_id": 0,
                            "pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "x"}},
    "many tokens around": {"post_processor": {
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {}}},
    "a decoder": {"decoder": {"type": "Sequence", "decoders": [replace("a", "a" * 10**5)]}},
}  # fmt: skip


@pytest.mark.parametrize("changes", HARMFUL.values(), ids=HARMFUL.keys())
def test_tokenizers_that_would_not_end(lying: Make, changes: dict[str, Any]) -> None:
    folder = lying("tokenizer.json", **changes)
    before = _peak()
    with pytest.raises(
        UserError, match=r"tokenizer\.json cannot be used: .*; tried on short texts, "
    ):
        load_tokenizer(folder)
    assert _peak() < max(3 * 2**20, before + 1)  # other tests of this process may have used more


def _peak() -> int:
    """KiB that this process, or one that it started, has used at most so far."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in both)


def test_an_odd_tokenizer_that_does_no_harm_is_used(
    lying: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    real = tryout.try_out
    monkeypatch.setattr(claims, "try_out", lambda path, why: (tried.append(why), real(path, why)))
    folder = lying("tokenizer.json", pre_tokenizer={
        "type": "Sequence", "pretokenizers": [split("(?:[0-9]{1,3})+|x"), {"type": "ByteLevel",
        "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]})  # fmt: skip
    assert load_tokenizer(folder)("12 boats").input_ids
    load_tokenizer(folder)
    assert tried == [["'pre_tokenizer' has the regular expression '(?:[0-9]{1,3})+|x'"]]  # once


def test_usual_tokenizers_are_not_tried(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "try_out", lambda *_: pytest.fail("tried"))
    load_tokenizer(tiny_model)
    for folder in TOKENIZERS.glob("*/"):
        assert tryout.suspicions(json.loads((folder / "tokenizer.json").read_bytes())) == []


def test_a_command_says_so(lying: Make, cli: Cli, tmp_path: Path) -> None:
    folder = lying("config.json", num_labels=2147483647)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    for command in (
        ["train", "r.yaml"],
        ["plan", "r.yaml"],
        ["data", "check", rows, "--model", folder],
    ):
        (tmp_path / "r.yaml").write_text(f"model: {{source: {folder}}}\ndata: {{train: {rows}}}\n")
        done = cli(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "'num_labels' is 2.14748e+09" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
