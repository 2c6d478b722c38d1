"""llama.cpp behind our routes: what our own engine answers, it answers too."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers import Notes
from openai import OpenAI
from serving import KEY, client_of, running, started
from shipping import llama_cpp_python

from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.serve import which
from luthier.serve.limits import Limits
from luthier.serve.llama_cpp import LlamaCppEngine, LlamaCppModels
from luthier.serve.models import Models

LIMITS = Limits(new_tokens=400, context=512)


def packages() -> str | None:
    """The folder of `xllamacpp`: here, or in the environment that `make llama-cpp` makes."""
    if find_spec("xllamacpp") is not None:
        return ""
    python = llama_cpp_python()
    if python is None:
        return None
    code = "import xllamacpp, pathlib; print(pathlib.Path(xllamacpp.__file__).parents[1])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


FOLDER = packages()
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="no llama.cpp here: `make llama-cpp` installs one"
)


@pytest.fixture(scope="module", autouse=True)
def found() -> Iterator[None]:
    """`xllamacpp` can be imported, here and in processes that are started."""
    with pytest.MonkeyPatch.context() as patch:
        if FOLDER:
            # After ours, since that environment has other versions of what both have.
            patch.setattr(sys, "path", [*sys.path, FOLDER])
            paths = [*filter(None, [os.environ.get("PYTHONPATH")]), FOLDER]
            patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


def named(runs: Path) -> list[str]:
    return [str(runs / "one"), f"second={runs / 'two'}", str(runs / "dora"), str(runs / "whole")]


@pytest.fixture(scope="module")
def theirs(runs: Path) -> Iterator[OpenAI]:
    """llama.cpp with two adapters over one base, one that is merged, and a full run; in float32."""
    models = LlamaCppModels(named(runs), LIMITS, "f32")
    with running(models, LIMITS, KEY, backend=LlamaCppEngine(models, LIMITS)) as url:
        yield client_of(url)


@pytest.fixture(scope="module")
def ours(runs: Path) -> Iterator[OpenAI]:
    with running(Models(named(runs)), LIMITS, KEY) as url:
        yield client_of(url)


def chat(client: OpenAI, model: str, text: str, **more: Any) -> Any:
    turns: Any = [{"role": "user", "content": text}]
    asked = {"temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(model=model, messages=turns, **asked)


def text_of(answer: Any) -> str:
    """Without the character in whose middle an answer was cut: llama.cpp leaves that out."""
    return str(answer.choices[0].message.content).rstrip("\ufffd")


def names(client: OpenAI) -> list[str]:
    return [model.id for model in client.models.list()]


def test_greedy_answers_are_ours(theirs: OpenAI, ours: OpenAI) -> None:
    assert set(names(theirs)) == set(names(ours))
    answers = set()
    for model in names(ours):
        for text in ("Repeat the number 3", "What now?"):
            one, other = (chat(client, model, text) for client in (ours, theirs))
            assert text_of(other) == text_of(one)
            assert other.choices[0].finish_reason == one.choices[0].finish_reason
            assert other.usage == one.usage
            answers.add((text, text_of(one)))
    assert len(answers) >= 8  # each adapter is used


def test_streams_and_batches_and_stops(theirs: OpenAI, ours: OpenAI) -> None:
    whole = chat(theirs, "one", "Repeat 5").choices[0].message.content
    chunks = chat(theirs, "one", "Repeat 5", stream=True, stream_options={"include_usage": True})
    pieces = list(chunks)
    text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
    assert text == whole and pieces[-1].usage.completion_tokens > 0
    stop = whole[len(whole) // 2 :][:3]
    stopped = [chat(c, "one", "Repeat 5", stop=[stop]).choices[0] for c in (ours, theirs)]
    assert stopped[0].message.content == stopped[1].message.content == whole.partition(stop)[0]
    assert stopped[1].finish_reason == "stop"
    texts = [f"Repeat {n}" for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        models = ["one", "second"] * 4
        together = list(pool.map(lambda a: chat(theirs, *a), zip(models, texts, strict=True)))
    for model, text, answer in zip(models, texts, together, strict=True):
        assert text_of(answer) == text_of(chat(ours, model, text))


def test_completions_take_tokens_and_texts(theirs: OpenAI, ours: OpenAI) -> None:
    for prompt in ("Repeat the", [5, 6, 7, 90]):
        one, other = (
            client.completions.create(
                model="one", prompt=prompt, max_tokens=9, temperature=0, logprobs=2
            )
            for client in (ours, theirs)
        )
        assert other.choices[0].text.rstrip("\ufffd") == one.choices[0].text.rstrip("\ufffd")
        found: Any = [each.choices[0].logprobs for each in (one, other)]
        # llama.cpp tells nothing of tokens that are a part of a character.
        pairs = zip(found[0].tokens, found[0].token_logprobs, found[0].top_logprobs, strict=True)
        known = {token: (logprob, set(top)) for token, logprob, top in pairs}
        assert found[1].tokens
        told = zip(found[1].tokens, found[1].token_logprobs, found[1].top_logprobs, strict=True)
        for token, logprob, top in told:
            if "\ufffd" in token:  # it may be one of several
                continue
            assert logprob == pytest.approx(known[token][0], abs=2e-3)
            assert set(top) == known[token][1]


def test_sampling_is_by_the_seed(theirs: OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = chat(theirs, "one", "x", temperature=1.5, seed=seed, max_tokens=12)
        return str(answer.choices[0].message.content)

    assert ask(1) == ask(1) and len({ask(seed) for seed in range(5)}) > 1
    several = chat(theirs, "one", "x", temperature=1.5, seed=1, n=3, max_tokens=12)
    assert len({choice.message.content for choice in several.choices}) > 1


def test_json_schemas_are_kept(theirs: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    bias = {str(token): 0 for token in range(3)}
    answer = chat(theirs, "one", "x", response_format=form, max_tokens=300, logit_bias=bias)
    text = answer.choices[0].message.content
    if answer.choices[0].finish_reason == "stop":
        assert set(json.loads(text)) == {"n", "ok"}
    assert re.match(r'\{\s*"n"\s*:\s*-?\d', text)


def test_limits_and_keys_are_ours(runs: Path) -> None:
    limits = Limits(batch=1, queue=1, context=256, new_tokens=200, seconds=1.0)
    models = LlamaCppModels([str(runs / "one")], limits, "f32")
    backend = LlamaCppEngine(models, limits)
    with running(models, limits, KEY, backend=backend) as url:
        client = client_of(url)
        wrong = OpenAI(base_url=f"{url}/v1", api_key="no", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        for asked in ({"max_tokens": 201}, {"max_tokens": 255}):
            with pytest.raises(openai.BadRequestError):
                chat(client, "one", "x", **asked)
        with pytest.raises(openai.RateLimitError):
            chat(client, "one", "x", n=3)
        (gguf,) = models.files
        assert gguf.slots == 1 and gguf.positions == 256
        stream = chat(client, "one", "x", stream=True, max_tokens=200)
        next(iter(stream))
        stream.close()  # its place is free again
        assert chat(client, "one", "x", max_tokens=2).usage.completion_tokens <= 2
        gguf._process.kill()
        gguf._process.wait()
        with pytest.raises(openai.APIStatusError):
            chat(client, "one", "x")
        assert not backend.alive


def test_the_files_are_written_once(runs: Path) -> None:
    folder = runs / "one" / "llama-cpp"
    LlamaCppModels([str(runs / "one"), str(runs / "two")], LIMITS, "f32").close()
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.gguf")}
    assert {"base-f32.gguf", "adapter.gguf"} <= before.keys()
    assert not (runs / "two" / "llama-cpp" / "base-f32.gguf").exists()
    LlamaCppModels([str(runs / "one")], LIMITS, "f32").close()
    assert {f.name: f.stat().st_mtime_ns for f in folder.glob("*.gguf")} == before
    weights = runs / "one" / "adapter" / "adapter_model.safetensors"
    os.utime(weights, ns=(0, time.time_ns()))
    LlamaCppModels([str(runs / "one")], LIMITS, "f32").close()
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.gguf")}
    assert after["adapter.gguf"] > before["adapter.gguf"]
    assert after["base-f32.gguf"] == before["base-f32.gguf"]


def test_what_cannot_be_served_is_said(runs: Path) -> None:
    notes = Notes()
    LlamaCppModels([str(runs / "dora")], LIMITS, "f32", notes).close()
    assert any("dora is served merged into its base: llama.cpp does not" in n for n in notes.notes)
    with pytest.raises(UserError, match="two models would be called 'one'"):
        LlamaCppModels([str(runs / "one")] * 2, LIMITS, "f32")


def test_the_command_says_which_engine_and_why(runs: Path) -> None:
    with started(runs / "one", "--engine", "auto", "--gguf-type", "f32") as (process, url):
        client = OpenAI(base_url=url, api_key="-", max_retries=0)
        assert chat(client, "one", "hi").usage.completion_tokens > 0
        process.terminate()
        process.wait(30)
        said = process.stderr.read()
    assert "served by llama.cpp: llama.cpp is the fastest on a CPU, and is installed" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("device", "installed", "engine", "why"),
    [
        ("cuda", {"vllm"}, "vllm", "vLLM is installed"),
        ("cuda", set(), "own", "pip install vllm"),
        ("cpu", {"xllamacpp", "gguf"}, "llama-cpp", "fastest on a CPU"),
        ("cpu", {"gguf"}, "own", r"luthier\[llama-cpp\]"),
        ("mps", {"xllamacpp", "gguf"}, "own", "run on mps"),
    ],
)
def test_auto_picks_by_the_machine(
    monkeypatch: pytest.MonkeyPatch, device: str, installed: set[str], engine: str, why: str
) -> None:
    import torch

    monkeypatch.setattr(which, "pick_device", lambda: torch.device(device))
    monkeypatch.setattr(which, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(which.shutil, "which", lambda name: name if name in installed else None)
    found = which.pick_engine()
    assert found[0] == engine and re.search(why, found[1])
    assert which.pick_engine(own_only="--base")[0] == "own"


@pytest.mark.real
def test_the_real_model_answers_as_ours_does(
    real_model: Path, make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    """Greedy, float32 weights in both: the same text."""
    run = train(
        make_recipe(
            f"model.source={real_model}", "train.max_steps=2", "train.learning_rate=1e-3",
            "train.gradient_accumulation_steps=1",
        )
    )  # fmt: skip
    limits = Limits(context=512, batch=4)
    prompts = ["Name 3 things one finds at sea.", "What is the capital of France?", "Say hi."]
    texts = []
    models = LlamaCppModels([str(run.root)], limits, "f32")
    for made, backend in (
        (models, LlamaCppEngine(models, limits)),
        (Models([str(run.root)]), None),
    ):
        with running(made, limits, backend=backend) as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
            asked = [chat(client, "run", p, max_tokens=12) for p in prompts]
            texts.append([answer.choices[0].message.content for answer in asked])
    assert texts[0] == texts[1]
