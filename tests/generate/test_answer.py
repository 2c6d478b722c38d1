"""Generation against its slow reference: one prompt at a time, one token at a time, no cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import CHAT_FAMILIES, make_model, make_tokenizer, save_tiny

from luthier.data.spans import stop_token_ids
from luthier.data.template import render
from luthier.errors import UserError
from luthier.generate.answer import Sampling, answer_all, encode_prompt, stream_answer
from luthier.models.load import load_model, load_tokenizer

PROMPTS = [
    ({"role": "user", "content": text},)
    for text in ("hi", "List the files of the folder", "a b c d e f g", "?")
]


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.pad_token = tokenizer.eos_token
    return make_model(request.param, len(tokenizer)), tokenizer


def greedy_reference(model: Any, tokenizer: Any, prompt: Any, count: int) -> str:
    ids = tokenizer(
        render(tokenizer, prompt, add_generation_prompt=True), add_special_tokens=False
    ).input_ids
    made: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1]
            made.append(int(logits.argmax()))
            if made[-1] in stop_token_ids(tokenizer):
                break
    return str(tokenizer.decode(made, skip_special_tokens=True))


def test_batched_greedy_answers_equal_the_reference(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    sampling = Sampling(max_new_tokens=12)
    answers = answer_all(model, tokenizer, PROMPTS, sampling, 3)
    assert answers == [greedy_reference(model, tokenizer, prompt, 12) for prompt in PROMPTS]


def test_a_stream_says_the_same(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    pieces: list[str] = []
    whole = stream_answer(model, tokenizer, PROMPTS[1], Sampling(max_new_tokens=12), pieces.append)
    assert "".join(pieces).strip() == whole.strip()
    assert [whole] == answer_all(model, tokenizer, PROMPTS[1:2], Sampling(max_new_tokens=12), 1)


def test_sampling_follows_its_seed(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair

    def draw(seed: int) -> list[str]:
        sampling = Sampling(max_new_tokens=12, temperature=1.5, top_p=0.99, seed=seed)
        return answer_all(model, tokenizer, PROMPTS, sampling, 4)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_top_k_of_one_is_greedy(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    greedy = answer_all(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8), 4)
    top = Sampling(max_new_tokens=8, temperature=1.0, top_k=1, seed=0)
    assert answer_all(model, tokenizer, PROMPTS, top, 4) == greedy


def test_settings_that_ship_with_a_model_do_not_slip_in(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    plain = answer_all(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8), 4)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.max_new_tokens = 2
    assert answer_all(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8), 4) == plain


def test_a_prompt_that_fills_the_model_is_told(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    with pytest.raises(UserError, match="fills the model's 512 positions"):
        answer_all(model, tokenizer, ["word " * 600], Sampling(), 1)


def test_a_long_prompt_leaves_the_others_their_room(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    positions = model.config.get_text_config().max_position_embeddings
    long = ({"role": "user", "content": "a " * positions},)
    while len(encode_prompt(tokenizer, long)) > positions - 4:
        long = ({"role": "user", "content": long[0]["content"][:-2]},)
    room = positions - len(encode_prompt(tokenizer, long))
    answers = answer_all(model, tokenizer, [*PROMPTS, long], Sampling(max_new_tokens=12), 8)
    assert answers[:-1] == [greedy_reference(model, tokenizer, each, 12) for each in PROMPTS]
    assert answers[-1] == greedy_reference(model, tokenizer, long, room)


def test_plain_text_is_gone_on_from(pair: tuple[Any, Any]) -> None:
    _, tokenizer = pair
    assert tokenizer.decode(encode_prompt(tokenizer, "Once upon")) == "Once upon"
