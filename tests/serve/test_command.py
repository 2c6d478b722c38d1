"""`luthier serve` and `luthier chat` as a person starts them, and the server on the real model."""

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from families import save_tiny
from helpers import Cli
from openai import OpenAI
from serving import running, started

from luthier.errors import UserError
from luthier.generate.answer import Sampling, answer_all
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.run import Run, claim_run, open_run
from luthier.serve import vllm
from luthier.serve.limits import Limits
from luthier.serve.models import Models
from luthier.sockets import bind
from luthier.train.fit import fit


def test_sigterm_lets_a_stream_finish(runs: Path) -> None:
    with started(runs / "one", "--api-key-env", "TEST_KEY") as (process, url):
        client = OpenAI(base_url=url, api_key="k", max_retries=0)
        bias = {"2": -100, "1": -100, "0": -100}
        stream = client.chat.completions.create(
            model="one", messages=[{"role": "user", "content": "hi"}], stream=True,
            max_tokens=400, logit_bias=bias,
        )  # fmt: skip
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        finishes = [chunk.choices[0].finish_reason for chunk in stream]
        assert finishes[-1] == "length"
        assert len(finishes) > 300
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{runs}/none"], "no run folder at"),
        (["{runs}/one", "--host", "0.0.0.0"], "set an API key"),
        (["{runs}/one", "--engine", "vllm"], "vLLM is not installed"),
    ],
)
def test_bad_input_is_said(arguments: list[str], said: str, cli: Cli, runs: Path) -> None:
    filled = [argument.format(runs=runs) for argument in arguments]
    done = cli("serve", *filled, "--port", "0")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_other_bad_input(runs: Path) -> None:
    for names, said in (
        ([f"{runs}/one", f"{runs}/one"], "two models would be called 'one'"),
        ([f"a b={runs}/one"], "is not a valid model name"),
    ):
        with pytest.raises(UserError, match=said):
            Models(names)
    with pytest.raises(UserError, match="cannot run DoRA"):
        vllm.command([f"{runs}/dora"], "127.0.0.1", 8000, None)
    with pytest.raises(UserError, match="start one server for each"):
        vllm.command([f"{runs}/whole", f"{runs}/one"], "127.0.0.1", 8000, None)
    with pytest.raises(UserError, match="cannot listen"):
        bind("203.0.113.7", 0)


def test_vllms_command(cli: Cli, runs: Path) -> None:
    done = cli("serve", runs / "one", f"b={runs / 'two'}", "--engine", "vllm", "--dry-run")
    line = shlex.split(done.stdout)
    assert line[:2] == ["vllm", "serve"]
    assert (Path(line[2]) / "config.json").is_file()
    assert line[line.index("--max-lora-rank") + 1] == "16"
    modules = [json.loads(module) for module in line[line.index("--lora-modules") + 1 :][:2]]
    assert modules == [
        {"name": "one", "path": str(runs / "one" / "adapter")},
        {"name": "b", "path": str(runs / "two" / "adapter")},
    ]
    tokenizer = Path(line[line.index("--tokenizer") + 1])
    assert (tokenizer / "chat_template.jinja").is_file()
    full = vllm.command([str(runs / "whole")], "127.0.0.1", 8000, 99)
    assert full[2] == str(runs / "whole" / "model")
    assert full[full.index("--max-model-len") + 1] == "99"
    known = json.loads((Path(__file__).parent / "vllm_flags.json").read_text("utf-8"))
    for command in (line, full):
        assert {option for option in command if option.startswith("--")} <= set(known["options"])
        for option, values in known["choices"].items():
            if option in command:
                assert command[command.index(option) + 1] in values
    assert [str(rank) for rank in vllm._RANKS] == [
        r for r in known["choices"]["--max-lora-rank"] if r != "1"
    ]


def test_vllm_runs_no_4_bit_weights(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("name: lora", "name: qlora"), "utf-8")
    with pytest.raises(UserError, match="4-bit"):
        vllm.command([str(tmp_path / "run")], "127.0.0.1", 8000, None)


def test_chat_in_a_pipe(cli: Cli, runs: Path, tmp_path: Path) -> None:
    said = (
        '/base\nRepeat 3\n/base\n"""\ntwo\nlines\n"""\n/save a.jsonl\n/compare\nRepeat 4\n/tuned\n'
        "/save a.jsonl\n/save\n/nonsense\n/help\n/system Be brief.\n/save b.jsonl\nhi\n"
        "/save rows.jsonl\n/reset\n/quit\nnever read\n"
    )
    (tmp_path / "rows.jsonl").write_text("mine")
    done = cli("chat", runs / "one", "--max-new-tokens", "5", "--temperature", "0", stdin=said,
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ask something first") == 2
    assert done.stdout.count("base:") == done.stdout.count("tuned:") == 2
    assert "there is no command /nonsense" in done.stderr
    assert "/save FILE" in done.stderr
    assert "rows.jsonl already exists" in done.stderr
    assert (tmp_path / "rows.jsonl").read_text() == "mine"
    assert not (tmp_path / "b.jsonl").exists()
    (row,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 3
    assert row["messages"][2]["content"] == "two\nlines"
    # The first question had the same answer from `/base`'s left column as `generate --base` gives.
    base = cli("generate", runs / "one", "-p", "Repeat 3", "--base", "--max-new-tokens", "5")
    assert f"base:\n{base.stdout.strip()}" in done.stdout or not base.stdout.strip()


@pytest.mark.real
def test_eight_at_once_on_the_real_model(
    real_model: Path, make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    """Greedy, float32: 8 concurrent answers, one by one, and `generate`'s are the same text."""
    run = train(
        make_recipe(
            f"model.source={real_model}", "train.max_steps=2", "train.learning_rate=1e-3",
            "train.gradient_accumulation_steps=1",
        )
    )  # fmt: skip
    tuned = load_tuned(run)
    prompts = [
        ({"role": "user", "content": f"Name {n} things one finds {place}."},)
        for n, place in enumerate(
            [
                "at sea",
                "in a kitchen",
                "in Paris",
                "on Mars",
                "in a shed",
                "at school",
                "in SQL",
                "on ice",
            ],
            2,
        )
    ]
    expected = answer_all(tuned.tuned, tuned.tokenizer, prompts, Sampling(12), 1)
    with running(Models([str(run.root)]), Limits()) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)

        def ask(prompt: Any) -> str:
            answer = client.chat.completions.create(
                model="run", messages=list(prompt), temperature=0, max_tokens=12
            )
            return str(answer.choices[0].message.content)

        alone = [ask(prompt) for prompt in prompts]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, prompts))
    assert together == alone == expected
    assert len(set(expected)) == 8


def test_the_commands_of_the_serve_guide(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but on a free port of this machine alone; then the snippet for the client."""
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)).splitlines()
    typed = [shlex.split(line)[1:] for line in blocks if line.startswith("luthier ")]
    assert [line[0] for line in typed] == ["serve", "serve", "chat"]
    (tmp_path / "runs").mkdir()
    shutil.copytree(runs / "one", tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_API_KEY", "k")
    with started(*typed[0][1:]) as (_, url):
        (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        names: dict[str, Any] = {}
        exec(snippet.replace("http://127.0.0.1:8000/v1", url), names)
        assert names["answer"].usage.completion_tokens > 0
    with started(*typed[1][1:], "--host", "127.0.0.1") as (_, url):
        assert "first" in [model.id for model in OpenAI(base_url=url, api_key="k").models.list()]
    done = cli(*typed[2], stdin="hi\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_adapter_with_biases_is_served_without_its_base(runs: Path, tmp_path: Path) -> None:
    """The biases are in the base, so that its answers would be the adapter's."""
    of_one = open_run(runs / "one").recipe()
    of_one = of_one.changed(model={"source": str(save_tiny(tmp_path / "qwen2", "qwen2"))})
    made = []
    for bias in ("all", "none"):
        recipe = of_one.changed(method={"bias": bias}, run={"dir": str(tmp_path), "name": bias})
        run = claim_run(recipe, "test")
        fit(recipe, run)
        made.append(str(run.root))
    served = Models(made).by_name
    assert (served["all"].parent, served["none"].parent) == (None, "qwen2")
    assert served["none"].weights is not served["all"].weights
