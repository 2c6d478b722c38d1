"""The parts of the engine against slow references."""

import random
from typing import Any

import pytest
import torch
from data.thinkers import GPT_OSS, R1, SWITCH, TOKENS
from families import CHAT_FAMILIES, make_model, make_tokenizer
from transformers import DynamicCache, TopPLogitsWarper

from luthier.data.thoughts import answer_shape
from luthier.errors import UserError
from luthier.generate.answer import Sampling
from luthier.generate.sampling import nucleus
from luthier.serve.choose import Choice, Chooser
from luthier.serve.grammar import Vocabulary
from luthier.serve.limits import Limits
from luthier.serve.protocol import answer_room
from luthier.serve.server import check_address
from luthier.serve.text import TextStream
from luthier.serve.weights import CHUNK, Weights

BATCHED = [
    "llama",
    "mistral",
    "mistral-window",
    "qwen2",
    "qwen3",
    "gemma3",
    "phi3",
    "gpt2",
    "mixtral",
]


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("family", [*BATCHED, "gemma2"])
def test_rows_of_a_batch_are_as_each_alone(
    family: str, decoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joining and leaving at different times, past the window where there is one.

    By `generate`'s decoder where it knows the family, and by Transformers.
    """
    if not decoder:
        monkeypatch.setattr("luthier.serve.weights.find_decoder", lambda _model: None)
    weights = Weights(make_model(family))
    assert weights.batched == (family in BATCHED)
    reference = make_model(family)
    draw = random.Random(0)
    prompts = [[draw.randrange(640) for _ in range(n)] for n in (3, 17, 30)]
    expected = []
    for prompt in prompts:
        cache = DynamicCache(config=reference.config)
        ids, rows = prompt, []
        with torch.no_grad():
            for step in range(12):
                rows.append(reference(torch.tensor([ids]), past_key_values=cache).logits[0, -1])
                ids = [step]
        expected.append(rows)
    memories, made = {}, [0] * 3
    for step in range(12 + 2):
        for number, prompt in enumerate(prompts):
            if number == step:  # one joins at each of the first steps
                reading = weights.begin(prompt, None, 12)
                first = weights.read(reading)
                assert first is not None
                torch.testing.assert_close(first, expected[number][0], atol=1e-4, rtol=1e-4)
                memories[number] = weights.remember(reading, 12)
        now = [n for n in memories if made[n] < 11]
        logits = weights.step([memories[n] for n in now], [made[n] for n in now], [None] * len(now))
        for number, row in zip(now, logits, strict=True):
            made[number] += 1
            torch.testing.assert_close(row, expected[number][made[number]], atol=1e-4, rtol=1e-4)
    assert made == [11, 11, 11]


def test_a_long_prompt_is_read_in_pieces() -> None:
    model = make_model("llama")
    model.config.max_position_embeddings = 2048
    weights, prompt = Weights(model), [i * 7 % 640 for i in range(2 * CHUNK + 5)]
    reading = weights.begin(prompt, None, 12)
    assert weights.read(reading) is None
    assert weights.read(reading) is None
    last = weights.read(reading)
    assert last is not None
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_the_nucleus_is_transformers(top_p: float, spread: float) -> None:
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * spread
    expected = TopPLogitsWarper(top_p)(None, scores[None])[0]  # type: ignore[arg-type]
    got = nucleus(scores[None], top_p)[0]
    # Sums in another order may differ on the token at the border.
    assert int((got.isinf() != expected.isinf()).sum()) <= (1 if top_p < 0.99 else 3)
    assert got.argmax() == scores.argmax()


def test_draws_are_those_of_multinomial() -> None:
    logits = torch.randn(640, generator=torch.Generator().manual_seed(1)) * 3
    chooser = Chooser(Choice(Sampling(temperature=0.8, seed=11)), [1], None)
    torch.manual_seed(11)
    chances = (logits / 0.8).softmax(-1)
    expected = [int(torch.multinomial(chances[None], 1)) for _ in range(20)]
    assert [chooser.choose(logits).token for _ in range(20)] == expected


@pytest.mark.parametrize("family", ["chatml", "gemma", "mistral", "llama3"])
def test_streamed_text_is_the_text(family: str) -> None:
    """Of random tokens, broken characters and special tokens among them."""
    tokenizer = make_tokenizer(CHAT_FAMILIES[family])
    draw = random.Random(3)
    for _ in range(60):
        said = "".join(draw.choice("aé🙂 \n漢x") for _ in range(draw.randrange(12)))
        ids = tokenizer(said, add_special_tokens=False).input_ids
        ids += [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(6))]
        stream = TextStream(tokenizer)
        pieces = [stream.add(token) for token in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("stops", [["lo w"], ["é🙂"], ["🙂", "é"], ["never"], ["d", "orl"], ["h"]])
def test_stops_hold_back_and_cut(stops: list[str]) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    text = "hello wé🙂 world"
    stream, pieces = TextStream(tokenizer, stops), []
    for token in tokenizer(text).input_ids:
        pieces.append(stream.add(token))
        assert not any(stop in "".join(pieces) for stop in stops)
        if stream.stopped:
            break
    pieces.append(stream.finish())
    at = [text.index(stop) for stop in stops if stop in text]
    assert "".join(pieces) == text[: min(at, default=len(text))]
    assert stream.stopped == bool(at)


@pytest.mark.parametrize(
    ("template", "written", "thought", "content"),
    [
        (SWITCH, "<think>\n\n</think>\n\nRome, é🙂", "", "Rome, é🙂"),
        (SWITCH, "<think>\nIt is old.\n</think>\n\nRome", "It is old.", "Rome"),
        (SWITCH, "Rome", "", "Rome"),
        (SWITCH, "<think>\nnever closed", "", "<think>\nnever closed"),
        (R1, "It is old.\n</think>\n\nRome", "It is old.", "Rome"),
        (GPT_OSS, "<|channel|>final<|message|>Rome", "", "Rome"),
    ],
)
def test_what_the_template_writes_before_the_content_is_not_streamed(
    template: str, written: str, thought: str, content: str
) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[template]})
    tokenizer.chat_template = template
    stream = TextStream(tokenizer, ["never mind"], answer_shape(tokenizer))
    pieces, thoughts = [], []
    for token in tokenizer(written, add_special_tokens=False).input_ids:
        pieces.append(stream.add(token))
        thoughts.append(stream.take_thought())
    pieces.append(stream.finish())
    thoughts.append(stream.take_thought())
    assert ("".join(thoughts), "".join(pieces)) == (thought, content)


def test_grammars_refuse_what_is_no_schema() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    vocabulary = Vocabulary(tokenizer, 700, [2])
    bad: list[Any] = [
        {"type": "x"},
        {"$ref": "http://nowhere/x"},
        {"type": "string", "pattern": "("},
    ]
    for schema in bad:
        with pytest.raises(UserError, match="JSON schema cannot be used"):
            vocabulary.grammar(schema)
    allowed = vocabulary.grammar(None).allowed(700)
    assert allowed.shape == (700,)
    assert not allowed[len(tokenizer) :].any()
    assert vocabulary.bytes_of(tokenizer("{").input_ids[0]) == b"{"


def test_room_for_an_answer() -> None:
    limits = Limits(new_tokens=100)
    assert answer_room(None, 10, 512, limits) == 100
    assert answer_room(None, 500, 512, limits) == 12
    assert answer_room(50, 10, None, limits) == 50
    for wanted, prompt in ((101, 1), (50, 500), (None, 512), (1, 512)):
        with pytest.raises(UserError):
            answer_room(wanted, prompt, 512, limits)


def test_only_a_key_opens_the_server_to_others() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"):
        check_address(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(UserError, match="key"):
            check_address(host, None)
        check_address(host, "k")
