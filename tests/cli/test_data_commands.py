"""`luthier data …` as a person types it."""

import json
import random
import re
from pathlib import Path

import pytest
from data.thinkers import SWITCH
from families import save_tiny
from helpers import Cli, write_rows

ROOT = Path(__file__).parents[2]
TASK = ROOT / "src/luthier/demo/task/train.jsonl"


@pytest.fixture
def work(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    write_rows(tmp_path / "my.jsonl", [*rows, rows[0], {**rows[1], "output": "another"}])
    return tmp_path


def test_check(cli: Cli, work: Path, tiny_model: Path) -> None:
    done = cli("data", "check", "my.jsonl", "--model", tiny_model, "--html", "r.html", cwd=work)
    assert done.returncode == 1, done.stderr  # fewer than 500 rows is an error
    for text in ("62 rows, alpaca", "repeat an earlier row", "line 61: as line 1", "median tokens"):
        assert text in done.stdout
    assert "<svg" in (work / "r.html").read_text()
    report = json.loads(cli("data", "check", "my.jsonl", "--json", cwd=work).stdout)
    counts = {finding["id"]: finding["count"] for finding in report["findings"]}
    assert counts["exact_duplicates"] == 1
    assert counts["conflicting_answers"] == 2
    assert report["lengths"]["unit"] == "characters"


def test_long_work_in_a_pipe_says_how_far_it_is(cli: Cli, tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(2000)]
    rows = [
        {
            "instruction": f"{number} {' '.join(draw.choices(words, k=30))}",
            "output": " ".join(draw.choices(words, k=30)),
        }
        for number in range(20_000)
    ]
    write_rows(tmp_path / "my.jsonl", rows)
    done = cli("data", "check", "my.jsonl", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["rows"]["read"] == 20_000
    first, *_, last = [line for line in done.stderr.splitlines() if "examining rows" in line]
    assert re.fullmatch(r"examining rows: ([\d,]+ rows, )?([\d,]+/s|0:0\d so far)", first)
    assert re.fullmatch(r"examining rows: 20,000 rows in \d:\d\d", last)
    assert "\x1b" not in done.stderr and "\r" not in done.stderr


def test_check_of_real_rows_passes_without_errors(cli: Cli, tmp_path: Path) -> None:
    lines = TASK.read_text("utf-8").splitlines()
    (tmp_path / "parts").mkdir()
    for part in range(2):  # a folder, one file compressed by convert
        write_rows(tmp_path / f"{part}.jsonl", [json.loads(line) for line in lines[part::2]])
    cli("data", "convert", "0.jsonl", "--to", "messages", "--out", "parts/0.jsonl.gz", cwd=tmp_path)
    cli("data", "convert", "1.jsonl", "--to", "messages", "--out", "parts/1.parquet", cwd=tmp_path)
    report = json.loads(cli("data", "check", "parts", "--json", cwd=tmp_path).stdout)
    assert report["rows"] == {"read": len(lines), "usable": len(lines)}
    assert [file["rows"] for file in report["files"]] == [len(lines) // 2, len(lines) // 2]
    assert {f["id"] for f in report["findings"] if f["severity"] == "error"} == {"too_few"}


def test_columns_of_any_names(cli: Cli, tmp_path: Path, tiny_model: Path) -> None:
    table = "Frage;Antwort\n" + "".join(f"q{i}?;a{i}\n" for i in range(4))
    (tmp_path / "my.csv").write_text(table)
    done = cli("data", "check", "my.csv", cwd=tmp_path, COLUMNS="300")
    assert "set data.columns: {prompt: Frage, completion: Antwort}" in done.stdout
    mapping = ("--columns", "prompt=Frage, completion=Antwort")
    done = cli("data", "check", "my.csv", *mapping, cwd=tmp_path)
    said = "my.csv: 4 rows, prompt_completion, reads 'Frage' as prompt, 'Antwort' as completion (train)"
    assert said in done.stdout
    shown = cli("data", "show", "my.csv", "-m", tiny_model, *mapping, cwd=tmp_path)
    assert "q0?" in shown.stdout
    assert "with 'Frage' as prompt" in shown.stdout
    done = cli(
        "data", "convert", "my.csv", "--to", "messages", "--out", "o.jsonl", *mapping, cwd=tmp_path
    )
    assert "read 'Frage' as prompt, 'Antwort' as completion\n4 rows" in done.stdout
    turns = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[3])["messages"]
    assert [turn["content"] for turn in turns] == ["q3?", "a3"]
    for wrong, why in (
        ("Frage", "'Frage' is not FIELD=COLUMN"),
        ("ask=x", "no format has a field 'ask'"),
    ):
        done = cli("data", "check", "my.csv", "--columns", wrong, cwd=tmp_path)
        assert (done.returncode, why in done.stderr) == (2, True)


def test_show(cli: Cli, work: Path, tiny_model: Path) -> None:
    done = cli("data", "show", "my.jsonl", "--model", tiny_model, "--row", "3", cwd=work)
    assert "⟦<|im_start|>⟧user" in done.stdout
    assert "my.jsonl:3, format alpaca, template model" in done.stdout
    shown = json.loads(
        cli("data", "show", "my.jsonl", "-m", tiny_model, "--row", "3", "--json", cwd=work).stdout
    )
    learned = "".join(token["text"] for token in shown["tokens"] if token["supervised"])
    assert learned == "2 3 4<|im_end|>"
    far = cli("data", "show", "my.jsonl", "-m", tiny_model, "--row", "99", cwd=work)
    assert far.returncode == 2
    assert "has no row 99: it has 62" in far.stderr


def test_switches_of_the_template(cli: Cli, work: Path, tmp_path: Path) -> None:
    """Shown and checked with them, as a run with `data.template_kwargs` would train."""
    model = save_tiny(tmp_path / "model")
    (model / "chat_template.jinja").write_text(SWITCH)

    def tokens(*more: str) -> str:
        done = cli("data", "show", "my.jsonl", "-m", model, "--json", *more, cwd=work)
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)["tokens"]
        return "".join(token["text"] for token in shown if token["supervised"])

    off = ("--template-kwargs", "enable_thinking=false")
    assert tokens().startswith("<think>") and not tokens(*off).startswith("<think>")
    report = [
        json.loads(cli("data", "check", "my.jsonl", "-m", model, "--json", *more, cwd=work).stdout)
        for more in ((), off)
    ]
    answers = [each["lengths"]["answer"]["p50"] for each in report]
    assert answers[0] > answers[1]
    for wrong, message in (
        ("thinking", "'thinking' is not NAME=VALUE"),
        ("enable_thinking=[1", "not valid YAML"),
        ("a=false", "'a', which the chat template does not read"),
    ):
        for command in (("show",), ("check",)):
            done = cli(
                "data", *command, "my.jsonl", "-m", model, "--template-kwargs", wrong, cwd=work
            )
            assert done.returncode == 2 and message in done.stderr, done.stderr


def test_fix_convert_split_and_mix_one_after_another(cli: Cli, work: Path) -> None:
    steps = [
        ["fix", "my.jsonl", "--out", "ok.jsonl", "--apply", "drop-exact-duplicates,keep-first-of-conflicts"],
        ["convert", "ok.jsonl", "--to", "messages", "--out", "chat.parquet"],
        ["split", "chat.parquet", "--out", "parts", "--fraction", "0.2"],
        ["mix", "parts/train.jsonl=3", "parts/validation.jsonl=1", "--out", "m.jsonl", "--rows", "40"],
    ]  # fmt: skip
    results = []
    for step in steps:
        done = cli("data", *step, "--json", cwd=work)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert results[0]["changes"] == {"drop-exact-duplicates": 1, "keep-first-of-conflicts": 1}
    assert results[1]["written"] == 60
    assert results[2] == {"out": "parts", "train": 48, "validation": 12}
    assert [part["taken"] for part in results[3]["sources"]] == [30, 10]
    assert len((work / "m.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "none.jsonl"], "no data file at none.jsonl"),
        (["fix", "my.jsonl", "--out", "o.jsonl", "--apply", "magic"], "unknown remedy 'magic'"),
        (["convert", "my.jsonl", "--to", "xml", "--out", "o.jsonl"], "unknown format 'xml'"),
        (["mix", "my.jsonl", "--out", "o.jsonl"], "is not PATH=WEIGHT"),
        (["mix", "my.jsonl=1", "--out", "o.jsonl", "--columns", "x=y"], "has a field 'x'"),
        (["split", "none.jsonl", "--out", "parts"], "no data file at none.jsonl"),
    ],
)
def test_bad_requests(arguments: list[str], said: str, cli: Cli, work: Path) -> None:
    done = cli("data", *arguments, cwd=work)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (work / "o.jsonl").exists()
