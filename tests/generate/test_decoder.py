"""The decoder against Transformers: the same logits, the same greedy tokens, family by family."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from families import CHAT_FAMILIES, MODEL_FAMILIES, make_model, make_tokenizer, save_tiny
from peft import PeftModel

from luthier.generate import answer, decoder
from luthier.generate import cache as cache_module
from luthier.generate.answer import Ask, Sampling, answer_all, answer_each, encode_prompt
from luthier.generate.cache import Piece
from luthier.generate.decoder import Decoder, find_decoder
from luthier.generate.products import Unknown, can_pack
from luthier.models.adapters import add_adapter, attach_adapter, save_adapter
from luthier.recipe import MethodGroup

KNOWN = [name for name in MODEL_FAMILIES if name not in ("gpt2", "mixtral")]
TOKENIZER = make_tokenizer(CHAT_FAMILIES["chatml"])
TOKENIZER.pad_token = TOKENIZER.eos_token
PROMPTS = [
    ({"role": "user", "content": text},)
    for text in ("hi", "List the files of the folder", "a b c d e f g", "?", "hi you", "hi you too")
]


def adapted(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
    chosen = {"lora_dropout": 0.0, "lora_r": 4, "lora_alpha": 12} | changes
    model = attach_adapter(make_model(family, len(TOKENIZER)).to(dtype), MethodGroup(**chosen))
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3
    return model.eval()


def by_transformers(model: Any, asks: list[Ask], sampling: Sampling) -> list[str]:
    """One prompt at a time, by Transformers' own `generate`."""
    with mock.patch.object(answer, "find_decoder", lambda _model: None):
        return in_order(answer_each(model, TOKENIZER, asks, sampling, 1))


def in_order(answers: Any) -> list[str]:
    return [text for _, text in sorted(answers)]


@pytest.mark.parametrize("family", KNOWN)
def test_greedy_answers_are_those_of_transformers(family: str) -> None:
    """Plain, by an adapter, and both in one batch; past the window where there is one."""
    model = adapted(family)
    assert find_decoder(model) is not None
    asks = [Ask(encode_prompt(TOKENIZER, p), base) for p in PROMPTS for base in (True, False)]
    sampling = Sampling(max_new_tokens=24)
    expected = by_transformers(model, asks, sampling)
    assert in_order(answer_each(model, TOKENIZER, asks, sampling, 5)) == expected
    assert expected[::2] != expected[1::2]
    with model.disable_adapter():
        assert answer_all(model, TOKENIZER, PROMPTS, sampling, 4) == expected[::2]
    assert answer_all(model, TOKENIZER, PROMPTS, sampling, 4) == expected[1::2]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", KNOWN)
def test_logits_are_those_of_transformers(family: str, packed: bool) -> None:
    """Rows of unequal length, read in pieces and several at once; float32, 1e-4 of a spread."""
    model = adapted(family)
    base = model.get_base_model()
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(len(TOKENIZER), (n,), generator=draw).tolist() for n in (30, 11, 23)]
    found = Decoder(model)
    if packed:
        found.pack()
    cache = found.cache(3, 32)
    found.read([Piece(cache, slot, 0, row[:-6], "default") for slot, row in enumerate(rows)])
    got: list[list[torch.Tensor]] = [[], [], []]
    for step in range(3):  # one token of each
        pieces = [
            Piece(cache, slot, len(row) - 6 + step, [row[step - 6]], "default")
            for slot, row in enumerate(rows)
        ]
        for seen, logits in zip(got, found.read(pieces), strict=True):
            seen.append(logits)
    last = [Piece(cache, slot, len(row) - 3, row[-3:], "default") for slot, row in enumerate(rows)]
    for slot, logits in enumerate(found.read(last, range(9)).split(3)):
        got[slot] += list(logits)
    for row, ours in zip(rows, got, strict=True):
        with torch.no_grad():
            theirs = base(input_ids=torch.tensor([row]), use_cache=False).logits[0, -6:]
        torch.testing.assert_close(torch.stack(ours), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_bfloat16(family: str, packed: bool) -> None:
    """Adapters stay in float32; the logits are those of Transformers up to its rounding."""
    model = adapted(family, torch.bfloat16)
    row = list(range(20, 60, 2))
    found = Decoder(model)
    if packed:
        found.pack()
    got = found.read([Piece(found.cache(1, 20), 0, 0, row, "default")]).float()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([row])).logits[0, -1:].float()
    assert (got - theirs).abs().max() < 0.05 * theirs.std()


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_other_families_run_by_transformers(family: str) -> None:
    model = make_model(family, len(TOKENIZER))
    with pytest.raises(Unknown):
        Decoder(model)
    asks = [Ask(encode_prompt(TOKENIZER, prompt)) for prompt in PROMPTS]
    sampling = Sampling(max_new_tokens=12)
    expected = by_transformers(model, asks, sampling)
    assert answer_all(model, TOKENIZER, PROMPTS, sampling, 4) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_other_adapters_run_by_transformers(changes: dict[str, Any]) -> None:
    model = adapted("qwen2", **changes)
    assert find_decoder(model) is None
    sampling = Sampling(max_new_tokens=8)
    asks = [Ask(encode_prompt(TOKENIZER, p), base) for p in PROMPTS for base in (True, False)]
    both = in_order(answer_each(model, TOKENIZER, asks, sampling, 4))
    with model.disable_adapter():
        assert answer_all(model, TOKENIZER, PROMPTS, sampling, 4) == both[::2]
    assert answer_all(model, TOKENIZER, PROMPTS, sampling, 4) == both[1::2]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"target_modules": ["k_proj", "up_proj", "down_proj"]},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_kinds_of_adapters(changes: dict[str, Any]) -> None:
    model = adapted("qwen2", **changes)
    assert find_decoder(model) is not None
    asks = [Ask(encode_prompt(TOKENIZER, p), base) for p in PROMPTS for base in (True, False)]
    sampling = Sampling(max_new_tokens=12)
    expected = by_transformers(model, asks, sampling)
    assert in_order(answer_each(model, TOKENIZER, asks, sampling, 12)) == expected


def test_two_adapters_and_the_base_in_one_step(tmp_path: Path) -> None:
    model = adapted("llama")
    other = adapted("llama", lora_r=2, target_modules=["v_proj", "gate_proj"])
    save_adapter(other, tmp_path)
    add_adapter(model, tmp_path, "other")
    model.eval()
    found = find_decoder(model)
    assert found is not None
    row = list(range(30))
    cache = found.cache(3, len(row))
    names = ["default", None, "other"]
    got = found.read([Piece(cache, slot, 0, row, name) for slot, name in enumerate(names)])
    with torch.no_grad():
        theirs = [model(input_ids=torch.tensor([row])).logits[0, -1]]
        with model.disable_adapter():
            theirs.append(model(input_ids=torch.tensor([row])).logits[0, -1])
        theirs.append(other(input_ids=torch.tensor([row])).logits[0, -1])
    torch.testing.assert_close(got, torch.stack(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", KNOWN)
def test_keys_that_rows_have_in_common_are_read_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without an adapter by turns; where layers see all, in two parts, to the same logits."""
    found = Decoder(adapted(family))
    start, names = list(range(40, 65)), [None, "default"] * 3
    caches = [found.cache(6, 40) for _ in range(2)]
    for cache in caches:
        for slot, name in enumerate(names):
            found.read([Piece(cache, slot, 0, [*start, *range(slot + 1)], name)])
    parts: list[int] = []
    real = cache_module._attention_in_two

    def counted(*args: Any) -> torch.Tensor:
        parts.append(args[1].common)
        return real(*args)

    monkeypatch.setattr(cache_module, "_attention_in_two", counted)
    monkeypatch.setattr(cache_module, "_GAIN", 1)
    alone, together = (
        found.read([Piece(cache, s, 26 + s, [7 + s], name, common) for s, name in enumerate(names)])
        for cache, common in zip(caches, (0, 25), strict=True)
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    seeing_all = found._windows.count(None) if family != "gemma2" else 0  # its scores are capped
    assert parts == [25] * seeing_all


def test_weights_in_one_piece_are_still_the_layers_own(tmp_path: Path) -> None:
    """The model computes, learns and is saved as before."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "a"))
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    for _ in range(2):  # the second finds them in one piece
        found = find_decoder(model)
        assert found is not None
    attention = model.model.layers[0].self_attn
    start = attention.q_proj.weight.data_ptr()
    assert attention.k_proj.weight.data_ptr() == start + 4 * attention.q_proj.weight.numel()
    assert torch.equal(model(input_ids=ids).logits, before)
    model.save_pretrained(tmp_path / "b")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(again(input_ids=ids).logits, before)
    with torch.no_grad():
        attention.k_proj.weight.mul_(2)
    expected = model(input_ids=ids).logits[0, -1:]
    got = found.read([Piece(found.cache(1, 3), 0, 0, [5, 6, 7])])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this CPU gains nothing by packing"
)
def test_packed_weights_fit_into_memory_or_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by a change of the weights, which a copy does not have."""
    model: Any = make_model("llama", len(TOKENIZER))
    first, second, third = (Decoder(model) for _ in range(3))
    first.pack()
    monkeypatch.setattr(decoder, "free_memory", lambda _device: 1000.0)
    second.pack(first)
    third.pack()

    def logits(found: Decoder) -> torch.Tensor:
        return found.read([Piece(found.cache(1, 3), 0, 0, [5, 6, 7])])

    before = [logits(found) for found in (first, second, third)]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    after = [logits(found) for found in (first, second, third)]
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[0])
    assert not torch.allclose(after[2], before[2])


def test_a_decoder_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda x, cos, sin: x * cos - x * sin  # noqa: E731
    monkeypatch.setattr(decoder, "_rotate", wrong)
    assert find_decoder(make_model("llama")) is None
