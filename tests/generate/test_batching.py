"""Rows that come and go, share what they can and guess ahead: as each would be alone."""

from typing import Any

import psutil
import pytest
import torch
from families import make_model

from luthier.generate import batching, cache
from luthier.generate.batching import Batch, Task
from luthier.generate.cache import Cache, Piece
from luthier.generate.decoder import Decoder, find_decoder
from luthier.generate.lookup import Lookup
from luthier.generate.sampling import Sampling, choose, nucleus


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3")


@pytest.fixture
def found(model: Any) -> Decoder:
    decoder = find_decoder(model)
    assert decoder is not None
    return decoder


def reference(model: Any, prompt: list[int], count: int, stop: int) -> list[int]:
    """Greedy, one token at a time, no cache."""
    made: list[int] = []
    with torch.no_grad():
        while len(made) < count:
            logits = model(input_ids=torch.tensor([prompt + made]), use_cache=False).logits
            made.append(int(logits[0, -1].argmax()))
            if made[-1] == stop:
                break
    return made


def prompts_with_a_start(count: int, start: int, seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)

    def some(n: int) -> list[int]:
        tokens: list[int] = torch.randint(400, (n,), generator=draw).tolist()
        return tokens

    common = some(start)
    return [common + some(1 + i % 5) for i in range(count)]


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_rows_come_and_go(model: Any, found: Decoder, slots: int) -> None:
    prompts = prompts_with_a_start(9, 20) + prompts_with_a_start(4, 1, seed=5) + [[3]]
    alone = [reference(model, prompt, 3 + i, -1) for i, prompt in enumerate(prompts)]
    stop = alone[4][3]  # ends some of them early
    expected = {i: reference(model, p, 3 + i, stop) for i, p in enumerate(prompts)}
    tasks = [Task(i, prompt, 3 + i, None) for i, prompt in enumerate(prompts)]
    got = dict(Batch(found, tasks, Sampling(), [stop], slots).run())
    assert got == expected


def test_a_common_start_is_read_once(found: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Decoder.read

    def counts(self: Decoder, pieces: Any, *rest: Any) -> Any:
        read.append(sum(len(piece.tokens) for piece in pieces))
        return real(self, pieces, *rest)

    monkeypatch.setattr(Decoder, "read", counts)
    prompts = prompts_with_a_start(12, 60)
    tasks = [Task(i, prompt, 1, None) for i, prompt in enumerate(prompts)]
    assert len(dict(Batch(found, tasks, Sampling(), [], 4).run())) == 12
    assert sum(read) == 60 + sum(len(prompt) - 60 for prompt in prompts)


@pytest.mark.parametrize("gain", [1, 10**9])
def test_what_another_adapter_has_read_is_not_shared(
    gain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generate.test_decoder import adapted

    monkeypatch.setattr(cache, "_GAIN", gain)

    tuned = adapted("llama")
    decoder = find_decoder(tuned)
    assert decoder is not None
    prompts = [prompt for prompt in prompts_with_a_start(3, 40) for _ in range(2)]
    names = [None, "default"] * 3
    together = [Task(i, p, 12, names[i]) for i, p in enumerate(prompts)]
    got = dict(Batch(decoder, together, Sampling(), [], 4).run())
    for task in together:
        alone = dict(Batch(decoder, [task], Sampling(), [], 1).run())
        assert got[task.number] == alone[task.number]


def test_long_prompts_are_read_in_chunks(
    model: Any, found: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_CHUNK", 16)
    prompts = prompts_with_a_start(3, 50) + prompts_with_a_start(3, 7, seed=2)
    tasks = [Task(i, prompt, 6, None) for i, prompt in enumerate(prompts)]
    got = dict(Batch(found, tasks, Sampling(), [], 3).run())
    assert got == {i: reference(model, p, 6, -1) for i, p in enumerate(prompts)}


def test_a_row_draws_what_it_would_alone(found: Decoder) -> None:
    prompts = prompts_with_a_start(5, 9)
    sampling = Sampling(temperature=1.2, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=4)
    tasks = [Task(i, prompt, 10, None, draw=i) for i, prompt in enumerate(prompts)]
    together = dict(Batch(found, tasks, sampling, [], 3).run())
    for task in tasks:
        assert (
            dict(Batch(found, [task], sampling, [], 1).run())[task.number] == together[task.number]
        )


def test_draws_are_those_of_transformers(model: Any, found: Decoder) -> None:
    from transformers import set_seed

    prompt = prompts_with_a_start(1, 9)[0]
    options = {"temperature": 1.2, "top_p": 0.9, "top_k": 80, "repetition_penalty": 1.2}
    set_seed(4)
    theirs = model.generate(
        torch.tensor([prompt]), do_sample=True, max_new_tokens=12, eos_token_id=None, **options
    )
    task = Task(0, prompt, 12, None)
    ((_, made),) = Batch(found, [task], Sampling(seed=4, **options), [], 1).run()
    assert made == theirs[0, len(prompt) :].tolist()


class Parrot:
    """Instead of a model: says its prompt again and again, and counts its steps."""

    def __init__(self, said: list[int]) -> None:
        self.said = said
        self.steps = 0

    def cache(self, slots: int, room: int) -> Cache:
        return Cache(1, 1, 1, slots, room, torch.float32, torch.device("cpu"))

    def read(self, pieces: list[Piece], wanted: Any = None) -> torch.Tensor:
        self.steps += 1
        at = [place for piece in pieces for place in range(piece.start, piece.end)]
        at = [at[index] for index in wanted]
        logits = torch.zeros(len(at), 100)
        for row, place in zip(logits, at, strict=True):
            row[self.said[(place + 1) % len(self.said)]] = 1.0
        return logits


def test_an_answer_that_copies_takes_few_steps() -> None:
    said = list(range(40))
    parrot = Parrot(said)
    tasks = [Task(0, said, 100, None)]
    ((_, made),) = Batch(parrot, tasks, Sampling(), [], 1).run()  # type: ignore[arg-type]
    assert made == [said[i % 40] for i in range(100)]
    assert parrot.steps < 20


def test_guesses_that_are_wrong_are_given_up() -> None:
    tokens = [1, 2, 3, 4, 5] * 3
    lookup = Lookup(tokens)
    tried = 0
    for _ in range(60):
        guess = lookup.guess(1, 50)
        lookup.learn(len(guess), 0, said=9)
        tried += len(guess)
        tokens += [1, 2, 3]
    assert 0 < tried < 30
    assert (
        Lookup(list(tokens)).guess(step=16, room=8) == []
    )  # a dear guess, of which little is known
    assert Lookup(list(tokens)).guess(step=1, room=0) == []


@pytest.mark.parametrize(("others", "pays"), [(40, True), (128, False)])
def test_a_row_that_repeats_is_guessed_among_others(others: int, pays: bool) -> None:
    """What would have been guessed is compared with what came, at no cost.

    Beside so many that their products take all the time, no guess gains any.
    """
    tokens = [1, 2, 3, 4, 5] * 3
    lookup = Lookup(tokens)
    guesses = []
    for _ in range(12):
        guesses.append(lookup.guess(step=others, room=50))
        said = tokens[-5]
        lookup.learn(0, 0, said)
        tokens.append(said)
    assert guesses[0] == []
    assert guesses[-1] == (tokens[-6:-1] if pays else [])


def test_fewer_rows_where_memory_is_short(
    found: Decoder, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_with_a_start(6, 9)
    row = found.cache(1, 14 + 5).layers[0].nbytes * model.config.num_hidden_layers
    free = type("Memory", (), {"available": 4 * 3 * row + 1})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    batch = Batch(found, [Task(i, p, 5, None) for i, p in enumerate(prompts)], Sampling(), [], 64)
    assert dict(batch.run()) == {i: reference(model, p, 5, -1) for i, p in enumerate(prompts)}
    assert found.cache(64, 14 + 5).slots == 3


def test_the_nucleus_is_transformers() -> None:
    from transformers import TopPLogitsWarper

    scores = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[0.1], [1.0], [3.0], [9.0]]
    )
    for top_p in (0.1, 0.5, 0.95):
        expected = TopPLogitsWarper(top_p)(None, scores)  # type: ignore[arg-type]
        got = nucleus(scores, top_p)
        # Sums in another order may differ on the token at the border.
        assert int((got.isinf() != expected.isinf()).sum()) <= 4


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    assert choose(logits, Sampling(temperature=1e-7), [[], []], []) == logits.argmax(-1).tolist()
