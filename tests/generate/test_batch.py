"""`luthier generate --input`: every row answered, in order, whatever happens on the way."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import CHAT_FAMILIES, make_model, make_tokenizer
from helpers import Cli, write_rows

from luthier.data.conversation import Origin
from luthier.data.questions import to_question
from luthier.data.readers import BadRow
from luthier.errors import UserError
from luthier.generate import batch as batch_module
from luthier.generate.answer import Sampling, answer_all
from luthier.generate.batch import answer_file
from luthier.recipe import Recipe
from luthier.run import Run

SAMPLING = Sampling(max_new_tokens=6, temperature=1.0, seed=3)
TOKENIZER = make_tokenizer(CHAT_FAMILIES["chatml"])
TOKENIZER.pad_token = TOKENIZER.eos_token  # as load_tokenizer does
MODEL = make_model("llama", len(TOKENIZER))


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Number {n}" + " again" * (n * 7 % 11), "id": n} for n in range(count)]


def go(source: Path, output: Path, **changes: Any) -> Any:
    options = {"sampling": SAMPLING, "batch_size": 2, "who": "tiny", **changes}
    return answer_file(MODEL, TOKENIZER, str(source), output, **options)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("row", "prompt", "reference"),
    [
        ({"instruction": "a", "input": "b"}, [("user", "a")], None),
        ({"instruction": "a", "output": "c"}, [("user", "a")], "c"),
        ({"instruction": "a", "output": ""}, [("user", "a")], None),
        ({"prompt": "a"}, [("user", "a")], None),
        ({"prompt": [{"role": "user", "content": "a"}]}, [("user", "a")], None),
        ({"messages": [{"role": "user", "content": "a"}]}, [("user", "a")], None),
        (
            {"messages": '[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]'},
            [("system", "s"), ("user", "a")],
            None,
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "c"}]},
            [("user", "a")],
            "c",
        ),
    ],
)
def test_rows_of_any_format_are_questions(
    row: dict[str, Any], prompt: list[tuple[str, str]], reference: str | None
) -> None:
    question = to_question(row, Origin("f", 1))
    assert [(m["role"], m["content"]) for m in question.prompt] == prompt  # type: ignore[index]
    assert question.reference == reference


def test_plain_text_is_gone_on_from_and_nonsense_is_refused() -> None:
    assert to_question({"text": "Once"}, Origin("f", 1)).prompt == "Once"
    for row in ({"foo": 1}, {"messages": []}, {"prompt": 7}, {"prompt": "  "}):
        with pytest.raises(BadRow):
            to_question(row, Origin("f", 1))


def test_rows_of_any_names(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"frage": "Number 1", "antwort": "b"}])
    columns = {"prompt": "frage", "completion": "antwort"}
    assert go(source, tmp_path / "out.jsonl", columns=columns).errors == 0
    (line,) = read(tmp_path / "out.jsonl")
    assert (line["prompt"][0]["content"], line["reference"]) == ("Number 1", "b")


def test_every_row_in_its_order(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", rows(21))
    done = go(source, tmp_path / "out.jsonl", sampling=Sampling(max_new_tokens=6))
    lines = read(tmp_path / "out.jsonl")
    assert (done.rows, done.errors, done.resumed) == (21, 0, 0)
    assert [line["extra"]["id"] for line in lines] == list(range(21))
    assert [line["row"] for line in lines] == [f"{source}:{n}" for n in range(1, 22)]
    prompts = [tuple(line["prompt"]) for line in lines]
    one_by_one = answer_all(MODEL, TOKENIZER, prompts, Sampling(max_new_tokens=6), 1)
    assert [line["answer"] for line in lines] == one_by_one
    assert not (tmp_path / "out.jsonl.part").exists()


@pytest.mark.parametrize("cut", ["between rows", "in a row", "in the first line"])
def test_stopped_and_gone_on_with_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Sampled answers too: the chunks, and so the draws, are those of a run never stopped."""
    source = write_rows(tmp_path / "in.jsonl", rows(21))
    go(source, tmp_path / "whole.jsonl")
    real, calls = batch_module.answer_all, 0

    def stopping(*args: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(batch_module, "answer_all", stopping)
    with pytest.raises(KeyboardInterrupt):
        go(source, tmp_path / "out.jsonl")
    monkeypatch.undo()
    part = tmp_path / "out.jsonl.part"
    assert not (tmp_path / "out.jsonl").exists() and len(read(part)) == 1 + 8
    if cut == "in a row":  # as a kill in the middle of a write leaves it
        part.write_bytes(part.read_bytes()[:-20])
    if cut == "in the first line":
        part.write_bytes(part.read_bytes()[:20])
    done = go(source, tmp_path / "out.jsonl")
    assert done.resumed == {"between rows": 8, "in a row": 0, "in the first line": 0}[cut]
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_rows_that_cannot_be_asked_say_why(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    long = {"prompt": "word " * 3000}
    lines = [json.dumps({"prompt": "a"}), "{broken", json.dumps({"foo": 1}), json.dumps(long)]
    source.write_text("\n".join([*lines, json.dumps({"prompt": "b"})]) + "\n")
    done = go(source, tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert done.errors == 3 and len(found) == 5
    assert ["answer" in line for line in found] == [True, False, False, False, True]
    assert "not valid JSON" in found[1]["error"] and "match no known format" in found[2]["error"]
    assert "positions" in found[3]["error"]


def test_a_long_prompt_does_not_shorten_its_neighbours_answers(tmp_path: Path) -> None:
    """In one batch, what room the longest leaves would bound them all."""
    near_full = {"prompt": "a" * 480}
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "Hi"}, near_full, {"prompt": "Ho"}])
    sampling = Sampling(max_new_tokens=40)
    go(source, tmp_path / "out.jsonl", sampling=sampling, batch_size=3)
    found = read(tmp_path / "out.jsonl")
    alone = [{"role": "user", "content": "Hi"}]
    assert found[0]["answer"] == answer_all(MODEL, TOKENIZER, [tuple(alone)], sampling, 1)[0]
    assert "answer" in found[1]


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", rows(3))
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="exists already"):
        go(source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"
    (tmp_path / "two.jsonl.part").write_text(json.dumps({"input": "other", "rows": 3}) + "\n")
    with pytest.raises(UserError, match="other settings"):
        go(source, tmp_path / "two.jsonl")


def test_killed_by_the_system_and_asked_again(
    cli: Cli, make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    """The command, killed without warning while it answers, and run again."""
    run = train(make_recipe("train.max_steps=2", "train.eval_steps=2", "train.save_steps=2"))
    source = write_rows(tmp_path / "in.jsonl", rows(400))
    output = tmp_path / "out.jsonl"
    typed = ["generate", run.root, "--input", source, "--output", output, "--batch-size", "2"]
    typed += ["--max-new-tokens", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli.main", *map(str, typed)], stderr=subprocess.DEVNULL
    )
    part = tmp_path / "out.jsonl.part"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (
        part.exists() and part.read_bytes().count(b"\n") > 9
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    done = cli(*typed, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 400 and 8 <= told["resumed"] < 400
    assert [line["extra"]["id"] for line in read(output)] == list(range(400))


def test_the_command_says_what_does_not_go_together(
    cli: Cli, make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(
        make_recipe(
            *("train.max_steps=1", "train.eval_steps=1", "train.save_steps=1"),
            "train.warmup_ratio=0",
        )
    )
    for typed in ([], ["--input", "x"], ["-p", "a", "--input", "x", "--output", "y"]):
        done = cli("generate", run.root, *typed)
        assert done.returncode == 2 and "either --prompt" in done.stderr
