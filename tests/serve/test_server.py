"""The server as OpenAI's own client sees it."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from serving import KEY, running

from luthier.generate.answer import Sampling, answer_all
from luthier.models.tuned import load_tuned
from luthier.run import Run
from luthier.serve.limits import Limits
from luthier.serve.models import Models

QUESTIONS = [f"Repeat the number {n}, please" for n in range(8)]
# Random draws say more about a model than its likeliest tokens, which of a tiny one are all alike.
DRAWN = {"temperature": 0.1, "seed": 5}


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def ask(client: OpenAI, text: str, model: str = "one", **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, **options}
    return client.chat.completions.create(model=model, messages=messages(text), **options)


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


@pytest.fixture(scope="module")
def by_generate(runs: Path) -> dict[str, list[str]]:
    """What `luthier generate` answers, each question alone."""
    answers = {}
    prompts = [tuple(messages(q)) for q in QUESTIONS]
    for name, folder in (("one", "one"), ("second", "two")):
        tuned = load_tuned(Run(runs / folder))
        sampling = Sampling(max_new_tokens=24, **DRAWN)  # type: ignore[arg-type]

        def alone(model: Any, tuned: Any = tuned, sampling: Sampling = sampling) -> list[str]:
            return [answer_all(model, tuned.tokenizer, [p], sampling, 1)[0] for p in prompts]

        answers[name] = alone(tuned.tuned)
        if name == "one":
            with tuned.as_base() as base:
                answers["base"] = alone(base)
    return answers


def test_models_are_listed_with_their_base(client: OpenAI, models: Models) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == set(models.by_name)
    assert {"one", "second"} < set(listed)
    base = listed["one"].parent  # type: ignore[attr-defined]
    assert base == listed["second"].parent  # type: ignore[attr-defined]
    assert client.models.retrieve(base).id == base
    assert models.by_name["one"].weights is models.by_name["second"].weights


def test_answers_are_those_of_generate_alone_and_together(
    client: OpenAI, models: Models, by_generate: dict[str, list[str]]
) -> None:
    """Two adapters and the base in one batch, as the answers one by one and as `generate`'s."""
    base = models.by_name["one"].parent
    names = {"one": "one", "second": "second", "base": str(base)}
    jobs = [(kind, i) for i in range(8) for kind in names]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(
            pool.map(lambda j: ask(client, QUESTIONS[j[1]], names[j[0]], **DRAWN), jobs)
        )
    for (kind, i), answer in zip(jobs, together, strict=True):
        assert text_of(answer) == by_generate[kind][i], (kind, i)
    assert text_of(ask(client, QUESTIONS[0], **DRAWN)) == by_generate["one"][0]
    # The comparison could tell the models apart.
    assert len({tuple(answers) for answers in by_generate.values()}) == 3


def test_greedy_answers_are_those_of_generate(client: OpenAI, runs: Path) -> None:
    tuned = load_tuned(Run(runs / "one"))
    prompts = [tuple(messages(q)) for q in QUESTIONS]
    expected = answer_all(tuned.tuned, tuned.tokenizer, prompts, Sampling(24), 1)
    with ThreadPoolExecutor(8) as pool:
        assert [text_of(a) for a in pool.map(lambda q: ask(client, q), QUESTIONS)] == expected


def test_a_seed_draws_what_generate_draws_whatever_else_runs(client: OpenAI, runs: Path) -> None:
    options = {"temperature": 1.3, "top_p": 0.9, "seed": 7, "max_tokens": 24}
    alone = text_of(ask(client, QUESTIONS[1], **options))
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(ask, client, q, "second", temperature=1.0) for q in QUESTIONS]
        crowded = text_of(ask(client, QUESTIONS[1], **options))
        for other in others:
            other.result()
    assert alone == crowded
    assert alone != text_of(ask(client, QUESTIONS[1], **{**options, "seed": 8}))
    tuned = load_tuned(Run(runs / "one"))
    sampling = Sampling(max_new_tokens=24, temperature=1.3, top_p=0.9, seed=7)
    prompt = tuple(messages(QUESTIONS[1]))
    assert [alone] == answer_all(tuned.tuned, tuned.tokenizer, [prompt], sampling, 1)


def test_a_stream_brings_the_same_text_and_the_usage(client: OpenAI) -> None:
    whole = ask(client, QUESTIONS[2])
    chunks = list(ask(client, QUESTIONS[2], stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == text_of(whole)
    assert len(chunks) > 4
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert set(finishes[:-1]) == {None}
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens > 10
    assert 0 < whole.usage.completion_tokens <= 24


def test_stop_sequences_across_tokens(client: OpenAI) -> None:
    """Every pair of neighbouring characters of an answer as a stop sequence, streamed and whole."""
    text = text_of(ask(client, QUESTIONS[3]))
    assert len(text) > 12
    for at in range(2, 12):
        stop = text[at : at + 3]
        expected = text[: text.index(stop)]
        answer = ask(client, QUESTIONS[3], stop=["never there", stop], logprobs=True)
        assert text_of(answer) == expected
        assert answer.choices[0].finish_reason == "stop"
        tokens = answer.choices[0].logprobs.content
        assert sum(len(t.token) for t in tokens[:-1]) <= len(expected)
        streamed = ask(client, QUESTIONS[3], stop=stop, stream=True)
        pieces = [c.choices[0].delta.content or "" for c in streamed]
        assert "".join(pieces) == expected


def test_logprobs_are_the_models_own(client: OpenAI, runs: Path) -> None:
    import torch

    answer = ask(client, QUESTIONS[4], logprobs=True, top_logprobs=3, temperature=0.5, seed=1)
    got = answer.choices[0].logprobs.content
    tuned = load_tuned(Run(runs / "one"))
    from luthier.generate.answer import encode_prompt

    ids = encode_prompt(tuned.tokenizer, tuple(messages(QUESTIONS[4])))
    model = tuned.tuned.get_base_model()  # type: ignore[operator]
    vocabulary = tuned.tokenizer.get_vocab()
    spelled = {tuned.tokenizer.decode([i]): i for i in vocabulary.values()}
    assert len(got) > 3
    for entry in got:
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        top = expected.topk(3)
        assert [t.logprob for t in entry.top_logprobs] == pytest.approx(
            top.values.tolist(), abs=1e-3
        )
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
        if entry.token not in spelled or "\ufffd" in entry.token:
            break
        assert entry.logprob == pytest.approx(float(expected[spelled[entry.token]]), abs=1e-3)
        ids.append(spelled[entry.token])


def test_completions_go_on_from_text_and_from_tokens(client: OpenAI, runs: Path) -> None:
    tuned = load_tuned(Run(runs / "one"))
    text = "List files over"
    expected = answer_all(tuned.tuned, tuned.tokenizer, [text], Sampling(max_new_tokens=9), 1)
    ids = tuned.tokenizer(text).input_ids
    for prompt in (text, ids):
        got = client.completions.create(
            model="one", prompt=prompt, temperature=0, max_tokens=9, logprobs=2
        )
        assert [got.choices[0].text] == expected
        assert got.usage is not None
        assert got.usage.prompt_tokens == len(ids)
        logprobs = got.choices[0].logprobs
        assert logprobs is not None
        assert len(logprobs.tokens or []) == len(logprobs.top_logprobs or []) > 0
    many = client.completions.create(
        model="one", prompt=[text, "SELECT"], n=2, temperature=1, seed=3, max_tokens=9
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    one, two, three, four = (choice.text for choice in many.choices)
    assert one != two  # answers to one prompt draw differently
    assert three != four


def test_json_mode_and_schemas(client: OpenAI) -> None:
    """The tiny model is random: only the grammar can make it write JSON."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"enum": ["boats", "files"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(4):
        answer = ask(client, "hi", response_format=form, temperature=1.5, seed=seed, max_tokens=60)
        value = json.loads(text_of(answer))
        assert value["name"] in ("boats", "files")
        assert 0 <= value["count"] <= 99
        assert answer.choices[0].finish_reason == "stop"
    free = text_of(ask(client, "hi", response_format={"type": "json_object"}, max_tokens=10))
    assert free.startswith("{")
    with pytest.raises(openai.BadRequestError, match="JSON schema"):
        broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}
        ask(client, "hi", response_format=broken)


def test_penalties_and_bias(client: OpenAI) -> None:
    plain = ask(client, "hi", max_tokens=40)
    assert plain.choices[0].finish_reason in ("stop", "length")
    once = client.completions.create(
        model="one", prompt="hi", temperature=0, max_tokens=40, frequency_penalty=2,
        presence_penalty=2, logit_bias={"2": -100}, logprobs=0,
    )  # fmt: skip
    free = client.completions.create(
        model="one", prompt="hi", temperature=0, max_tokens=40, logit_bias={"2": -100}, logprobs=0
    )

    def kinds(answer: Any) -> int:
        return len(set(answer.choices[0].logprobs.tokens))

    assert kinds(once) > kinds(free)
    always = client.completions.create(
        model="one", prompt="hi", temperature=0, max_tokens=5, logit_bias={"40": 100}
    )
    assert len(set(always.choices[0].text)) == 1


def test_a_replys_own_message_is_sent_back(client: OpenAI) -> None:
    """As OpenAI's client holds it, as a dictionary with its nulls, and as it came over the wire."""
    said = ask(client, "hi").choices[0].message
    forms = (said, said.model_dump(), {"role": "assistant", "content": said.content,
             "refusal": None, "annotations": [], "tool_calls": None, "audio": None})  # fmt: skip
    answers = set()
    for form in forms:
        turns: Any = [*messages("hi"), form, *messages("and then?")]
        answer = client.chat.completions.create(
            model="one", messages=turns, temperature=0, max_tokens=8
        )
        answers.add((text_of(answer), answer.usage.prompt_tokens))  # type: ignore[union-attr]
    assert len(answers) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []},
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "none"},
        {"tools": None, "tool_choice": "auto", "functions": [], "function_call": "none"},
        {"stop": None, "stream_options": None, "response_format": {"type": "text", "json_schema": None}},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_changes_nothing(address: str, more: dict[str, Any]) -> None:
    body = {"model": "one", "messages": messages("hi"), "temperature": 0, "max_tokens": 8}
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{address}/v1/chat/completions"
    plain, same = (
        httpx2.post(url, json=sent, headers=headers) for sent in (body, {**body, **more})
    )
    assert same.status_code == 200, same.text
    assert same.json()["choices"] == plain.json()["choices"]


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("no such model", {"model": "gpt-5"}, 404, "no model 'gpt-5' here"),
    ("hot", {"temperature": -1}, 400, "temperature"),
    ("not a number", {"temperature": "warm"}, 400, "temperature"),
    ("tools", {"tools": [{"type": "function"}]}, 400, "does not call tools"),
    ("a tool it must call", {"tool_choice": "required"}, 400, "tool_choice"),
    (
        "a call",
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        400,
        "tool_calls",
    ),
    ("no content", {"messages": [{"role": "user", "content": None}]}, 400, "content"),
    ("too long an answer", {"max_tokens": 401}, 400, "at most 400"),
    ("no room", {"max_tokens": 300, "messages": messages("word " * 200)}, 400, "do not fit"),
    ("a prompt too long", {"messages": messages("word " * 900)}, 400, "context is 512"),
    ("nothing said", {"messages": []}, 400, "messages"),
    ("a picture", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, ""),
    ("half a character", {"messages": messages("\ud800")}, 400, ""),
    ("too many", {"n": 17}, 400, "17 answers"),
    ("a token it has not", {"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ("an empty stop", {"stop": ""}, 400, "stop"),
]


@pytest.mark.parametrize(
    ("body", "status", "said"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_is_wrong_is_said_in_openais_form(
    address: str, body: dict[str, Any], status: int, said: str
) -> None:
    sent = json.dumps({"model": "one", "messages": messages("hi"), **body})
    got = httpx2.post(
        f"{address}/v1/chat/completions",
        content=sent,
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]


def test_the_key(address: str) -> None:
    for key in ("wrong", KEY + "x", "é"):
        with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
            OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0).models.list()
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        assert httpx2.get(address + path).status_code == 401
    assert httpx2.get(f"{address}/healthz").json() == {"status": "ok"}
    shown = httpx2.get(f"{address}/v1/nothing", headers={"Authorization": f"Bearer {KEY}"})
    assert shown.status_code == 404
    assert "error" in shown.json()


def test_bodies_are_bounded_also_those_that_do_not_say_their_length(address: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = f"{address}/v1/chat/completions"
    long = b" " * (1 << 20) + b"{}"
    assert httpx2.post(url, content=long, headers=headers).status_code == 413
    chunks = (b" " * 65536 for _ in range(20))
    assert httpx2.post(url, content=chunks, headers=headers).status_code == 413


def test_metrics_count(client: OpenAI, address: str) -> None:
    def value(name: str) -> float:
        shown = httpx2.get(f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        lines = [line for line in shown.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    name = 'luthier_generated_tokens_total{model="one"}'
    before = value(name)
    made = ask(client, "hi").usage.completion_tokens
    assert value(name) == before + made
    assert value("luthier_running") == value("luthier_waiting") == 0
    assert value("luthier_first_token_seconds_count") > 0


def test_adapters_come_and_go(client: OpenAI, address: str, runs: Path, models: Models) -> None:
    """DoRA beside LoRA: PEFT cannot mix those in one batch, so they take turns."""

    def post(verb: str, **body: str) -> Any:
        return post_adapter(address, verb, **body)

    before = text_of(ask(client, QUESTIONS[5], **DRAWN))
    assert post("load", lora_name="third", lora_path=str(runs / "dora")).status_code == 200
    try:
        tuned = load_tuned(Run(runs / "dora"))
        expected = answer_all(
            tuned.tuned,
            tuned.tokenizer,
            [tuple(messages(QUESTIONS[5]))],
            Sampling(24, temperature=0.1, seed=5),
            1,
        )
        with ThreadPoolExecutor(6) as pool:
            names = ["third", "one"] * 3
            got = pool.map(lambda name: ask(client, QUESTIONS[5], name, **DRAWN), names)
            answers = [text_of(answer) for answer in got]
        assert answers == [expected[0], before] * 3
        assert expected[0] != before
        assert post("load", lora_name="third", lora_path=str(runs / "dora")).status_code == 400
    finally:
        assert post("unload", lora_name="third").status_code == 200
    with pytest.raises(openai.NotFoundError):
        ask(client, "hi", "third")
    assert text_of(ask(client, QUESTIONS[5], **DRAWN)) == before
    assert post("load", lora_name="w", lora_path=str(runs / "whole")).status_code == 400
    assert post("unload", lora_name=str(models.by_name["one"].parent)).status_code == 400
    assert post("unload", lora_name="nobody").status_code == 404


def test_adapters_come_from_one_folder_alone(address: str, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "elsewhere")
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    try:
        for path, said in (
            ("/etc", "not in the folder"),
            (str(tmp_path / "elsewhere"), "not in the folder"),
            ("../elsewhere", "not in the folder"),
            ("link", "not in the folder"),
            (".", "not in the folder"),
            ("a" * 4000, "File name too long"),
            ("a" * 5000, "4096"),
            ("a\0b", "null"),
            ("none", "no run folder at"),
        ):
            got = post_adapter(address, "load", lora_name="x", lora_path=path)
            assert got.status_code == 400, (path[:40], got.text)
            assert said in got.json()["error"]["message"], got.text[:300]
    finally:
        (runs / "link").unlink()
    # Relative to that folder, and of a run that asks for nothing.
    assert post_adapter(address, "load", lora_name="x", lora_path="dora").status_code == 200
    assert post_adapter(address, "unload", lora_name="x").status_code == 200


def test_loading_never_consents(address: str, runs: Path) -> None:
    shutil.copytree(runs / "one", runs / "asks")
    recipe = runs / "asks" / "recipe.yaml"
    text = recipe.read_text("utf-8").replace("trust_remote_code: false", "trust_remote_code: true")
    recipe.write_text(text, "utf-8")
    try:
        got = post_adapter(address, "load", lora_name="x", lora_path="asks")
        assert got.status_code == 400
        assert (
            "model.trust_remote_code: true (runs the Python code" in got.json()["error"]["message"]
        )
    finally:
        shutil.rmtree(runs / "asks")


def test_loading_is_off_unless_a_folder_was_given(models: Models, runs: Path) -> None:
    with running(models, Limits(), KEY) as url:
        for verb, more in (("load", {"lora_path": str(runs / "dora")}), ("unload", {})):
            got = post_adapter(url, verb, lora_name="one", **more)
            assert got.status_code == 403
            assert "start it with --adapters DIR" in got.json()["error"]["message"]


def post_adapter(address: str, verb: str, **body: str) -> Any:
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx2.post(f"{address}/v1/{verb}_lora_adapter", json=body, headers=headers)


def test_a_full_run_and_its_base(runs: Path, by_generate: dict[str, list[str]]) -> None:
    with running(Models([str(runs / "whole")], base_of_full=True), Limits()) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
        names = [model.id for model in client.models.list()]
        assert len(names) == 2
        base = next(name for name in names if name != "whole")
        tuned = load_tuned(Run(runs / "whole"))
        expected = answer_all(
            tuned.tuned,
            tuned.tokenizer,
            [tuple(messages(QUESTIONS[0]))],
            Sampling(24, temperature=0.1, seed=5),
            1,
        )
        with ThreadPoolExecutor(2) as pool:
            got = pool.map(lambda n: ask(client, QUESTIONS[0], n, **DRAWN), ("whole", base))
            both = [text_of(answer) for answer in got]
        assert both == [expected[0], by_generate["base"][0]]
        assert httpx2.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
        # Without a key nobody loads models.
        refused = httpx2.post(
            f"{url}/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": str(runs / "one")}
        )
        assert refused.status_code == 403


def endless(client: OpenAI, **options: Any) -> Any:
    """A stream of 400 tokens: what ends an answer is forbidden."""
    bias = {"2": -100, "1": -100, "0": -100}
    return ask(client, "hi", stream=True, max_tokens=400, logit_bias=bias, **options)


def gauge(url: str, name: str, key: str = KEY) -> float:
    shown = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    return next(float(x.split()[1]) for x in shown.splitlines() if x.startswith(name + " "))


def test_a_client_that_goes_away_frees_its_place(client: OpenAI, address: str) -> None:
    for _ in range(3):
        stream = endless(client)
        next(iter(stream))
        stream.close()
    gone = OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        ask(gone, "hi", max_tokens=400, n=8, logit_bias={"2": -100})
    deadline = time.monotonic() + 20
    while gauge(address, "luthier_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gauge(address, "luthier_running") == 0
    assert text_of(ask(client, "hi"))


def test_a_full_queue_and_a_late_answer(models: Models) -> None:
    with running(models, Limits(batch=1, queue=1, new_tokens=400, seconds=60), KEY) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        streams = [endless(client, temperature=1)]
        next(iter(streams[0]))
        waits = threading.Thread(target=lambda: ask(client, "hi", max_tokens=1))
        waits.start()
        while not gauge(url, "luthier_waiting"):
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client, "hi")
        assert refused.value.response.headers["retry-after"] == "1"
        streams[0].close()
        waits.join(20)
        assert not waits.is_alive()
    with running(models, Limits(new_tokens=400, seconds=0.15), KEY) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        with pytest.raises(openai.InternalServerError, match="took longer"):
            ask(client, "hi", max_tokens=400, n=8, temperature=1, logit_bias={"2": -100})
        with pytest.raises(openai.APIError, match="took longer"):
            list(endless(client, n=8, temperature=1))


def test_shutting_down_finishes_a_stream(models: Models) -> None:
    text = []
    with running(models, Limits(new_tokens=400), KEY) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        stream = endless(client)
        next(iter(stream))
        reader = threading.Thread(
            target=lambda: text.extend(c.choices[0].finish_reason for c in stream)
        )
        reader.start()
    reader.join(20)
    assert text[-1] == "length"
    with pytest.raises(openai.APIConnectionError):
        ask(client, "hi")
