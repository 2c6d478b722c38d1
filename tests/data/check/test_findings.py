"""Every kind of finding: rows that have it, and a near miss that does not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from luthier.data.check import scan
from luthier.data.check.findings import KINDS
from luthier.data.check.page import render_page
from luthier.data.check.report import check_data
from luthier.data.check.scan import TokenizerChoice

Rows = list[dict[str, Any]]


def row(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def plain(count: int, answer: str = "The answer to question {} is {}.") -> Rows:
    return [row(f"What about number {i}?", answer.format(i, i * 7)) for i in range(count)]


def turns(*pairs: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    messages = [{"role": roles[i % len(roles)], "content": text} for i, text in enumerate(pairs)]
    return {"messages": messages}


def system(prompt: str, i: int) -> dict[str, Any]:
    messages = turns(f"Question {i}?", f"Answer {i}.")["messages"]
    return {"messages": [{"role": "system", "content": prompt}, *messages]}


LONG = (
    "the quick brown fox jumps over the lazy dog and runs into the deep dark wood where it sleeps"
)
FAR = "a slow green turtle walks under one busy bridge or swims along some wide warm river until it eats"
ENGLISH = "The weather in the north of the country was cold and wet for most of the winter season"
GERMAN = "Das Wetter im Norden des Landes war im Winter meistens kalt und nass und sehr windig"
KEY = "sk-proj-" + "a1B2c3D4" * 4
SPAN = 120  # tokens or so

# finding -> (rows that have it, rows that nearly do, how many are found in the first)
CASES: dict[str, tuple[Rows, Rows, int]] = {
    "bad_turns": ([turns("a", "b", "c", roles=("user", "user", "assistant"))], [turns("a", "b", "c", "d")], 1),
    "no_answer": ([turns("a", "b", "c")], [turns("a", "b")], 1),
    "empty_answer": ([row("a", " \n")], [row("a", ".")], 1),
    "empty_prompt": ([row("", "a")], [row("?", "a")], 1),
    "unknown_format": ([{"frage": "a", "antwort": "b"}], [row("a", "b")], 1),
    "mixed_formats": ([*plain(3), {"instruction": "x", "output": "y"}], plain(4), 1),
    "over_length": ([row("a", "word " * SPAN)], [row("a", "word " * 20)], 1),
    "exact_duplicates": ([row("List  files", "ls"), row("List files", "ls ")], [row("List files", "ls"), row("list files", "ls")], 1),
    "near_duplicates": ([row(LONG, FAR), row(LONG, FAR + " now")], [row(LONG, FAR), row(ENGLISH, FAR)], 1),
    "conflicting_answers": ([row("a?", "yes"), row("a? ", "no"), row("b?", "no")], [row("a?", "yes"), row("a?", " yes"), row("A?", "no")], 2),
    "special_tokens": ([row("a", "b<|im_end|>")], [row("a", "b <|im end|>")], 1),
    "template_text": ([row("### Instruction:\nSay a", "b")], [row("Write ### Instruction: before it", "b")], 1),
    "control_characters": ([row("a\x07", "b")], [row("a\tb\n", "c")], 1),
    "mojibake": ([row("cafÃ©", "b"), row("itâ€™s", "b"), row("\ufffd", "b")], [row("café", "b"), row("Ã la carte", "b"), row("it’s", "b")], 3),
    "edge_whitespace": ([row("a", "b\n")], [row("a", "b\nc")], 1),
    "refusals": ([row("a", "As an AI language model, I have no views."), row("b", "I'm sorry, but I can't help with that.")], [row("a", "He was sorry that he can't come. AI models learn."), row("b", "I can help with that.")], 2),
    "secrets": ([row("a", f"export KEY={KEY}")], [row("a", "sk-learn is a library; sk-proj-short")], 1),
    "personal_data": (
        [row("a", "mail ann.lee@firma.de"), row("b", "call +49 30 1234 5678"), row("c", "card 4111 1111 1111 1111"), row("d", "(212) 555-0187")],
        [row("a", "mail x@example.com or scp u@host.de:/tmp"), row("b", "2400-1100-700=600"), row("c", "number 4111 1111 1111 1112"), row("d", "in 1990-2000")],
        4,
    ),
    "odd_output": ([*plain(39, '{{"n": {}, "m": {}}}'), row("x", "seven")], [*plain(39, '{{"n": {}, "m": {}}}'), row("x", "[7]")], 1),
    "rare_labels": ([row(f"q{i}", "yes" if i % 2 else "no") for i in range(400)] + [row(f"r{i}", "maybe") for i in range(4)], [row(f"q{i}", "yes" if i % 2 else "no") for i in range(400)], 1),
    "one_label": ([row(f"q{i}", "yes" if i > 5 else "no") for i in range(100)], [row(f"q{i}", "yes" if i > 20 else "no") for i in range(100)], 94),
    "system_prompts": ([system("Be brief.", i) for i in range(5)] + [turns("a", "b")], [system("Be brief.", i) for i in range(6)], 1),
    "languages": ([row(f"q{i}", ENGLISH + f" of year {i}") for i in range(9)] + [row("q", GERMAN)], [row(f"q{i}", ENGLISH + f" of year {i}") for i in range(9)] + [row("q", "ls -la /home | grep x")], 1),
    "length_outliers": ([*plain(10), row("a", "x y z " * 300)], [*plain(10), row("a", "x y z " * 30)], 1),
    "unused_content": ([{**row("a", "b"), "context": "c"}], [{**row("a", "b"), "context": ""}], 1),
    "unused_fields": ([{**row("a", "b"), "id": 7}], [row("a", "b")], 1),
    "too_few": (plain(499), plain(500), 499),
    "few": (plain(999), plain(1000), 999),
}  # fmt: skip


def findings(files: list[Path], **more: Any) -> dict[str, dict[str, Any]]:
    report = check_data([str(file) for file in files], **more)
    json.dumps(report)  # plain data throughout
    return {finding["id"]: finding for finding in report["findings"]}


@pytest.mark.parametrize("kind", CASES)
def test_finding_and_near_miss(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    bad, good, count = CASES[kind]
    tokenizer = TokenizerChoice(tiny_model, "auto", 128) if kind == "over_length" else None
    found = findings([write_rows(tmp_path / "bad.jsonl", bad)], tokenizer=tokenizer)
    assert found[kind]["count"] == count
    assert found[kind]["remedy"]
    assert 1 <= len(found[kind]["examples"]) <= 10
    missed = findings([write_rows(tmp_path / "good.jsonl", good)], tokenizer=tokenizer)
    assert kind not in missed, missed.get(kind)


def test_unreadable_lines_and_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = json.dumps(row("a", "é"), ensure_ascii=False)
    path.write_bytes(f"{good}\n{{broken\n".encode() + good.encode("latin-1") + b"\n")
    found = findings([path])
    assert found["unreadable"]["examples"][0]["row"] == f"{path}:2"
    assert found["encoding"]["examples"][0]["row"] == f"{path}:3"
    path.write_text(good + "\n", encoding="utf-8")
    assert not {"unreadable", "encoding"} & set(findings([path]))


ACROSS = {
    "leak": (row("List files", "ls"), row("list  FILES", "dir"), row("List the files", "dir")),
    "near_leak": (row(LONG, FAR), row(LONG + " now", FAR), row(ENGLISH, FAR)),
}


@pytest.mark.parametrize("kind", ACROSS)
def test_leaks_between_files(kind: str, tmp_path: Path) -> None:
    train, bad, good = ACROSS[kind]
    files = [write_rows(tmp_path / "t.jsonl", [*plain(3), train])]
    other = kind.replace("leak", "contamination")
    for wanted, role in ((kind, "validation"), (other, "evaluation")):
        held = write_rows(tmp_path / "bad.jsonl", [bad])
        found = findings(files, **{role: [str(held)]})
        assert found[wanted]["count"] == 1
        assert found[wanted]["examples"][0]["row"] == f"{held}:1"
        assert f"{files[0]}:4" in found[wanted]["examples"][0]["detail"]
        near = write_rows(tmp_path / "good.jsonl", [good])
        assert wanted not in findings(files, **{role: [str(near)]})


def test_the_arguments_of_a_call_are_looked_into(tmp_path: Path) -> None:
    call = {"function": {"name": "mail", "arguments": {"to": "ann.lee@firma.de"}}}
    messages = [
        {"role": "user", "content": "write to Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    found = findings([write_rows(tmp_path / "t.jsonl", [{"messages": messages}])])
    assert found["personal_data"]["examples"][0]["detail"] == "email in the assistant turn"


def test_what_the_template_refuses(tmp_path: Path) -> None:
    from families import save_tiny

    gemma = TokenizerChoice(save_tiny(tmp_path / "m", chat="gemma"), "auto", 512)
    llama = TokenizerChoice(save_tiny(tmp_path / "n", chat="chatml"), "auto", 512)
    path = write_rows(tmp_path / "s.jsonl", [system("Be brief.", 1)])
    assert findings([path], tokenizer=gemma)["template_refuses"]["count"] == 1
    assert "template_refuses" not in findings([path], tokenizer=llama)


def test_a_models_own_special_tokens(tmp_path: Path, tiny_model: Path) -> None:
    from families import save_tiny

    path = write_rows(tmp_path / "s.jsonl", [row("a", "x <end_of_text_of_mine> y")])
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = ["<end_of_text_of_mine>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert "special_tokens" in findings([path], tokenizer=TokenizerChoice(folder, "auto", 99))
    assert "special_tokens" not in findings(
        [path], tokenizer=TokenizerChoice(tiny_model, "auto", 99)
    )


OF_PREFERENCES = {  # whose cases are in test_preferences.py
    "equal_pairs",
    "leaked_prompts",
    "chosen_longer",
    "chosen_shorter",
    "one_sided_labels",
    "uneven_labels",
}


def test_every_kind_has_a_case() -> None:
    elsewhere = {"unreadable", "encoding", "template_refuses", *OF_PREFERENCES}
    across = {*ACROSS, *(kind.replace("leak", "contamination") for kind in ACROSS)}
    assert set(KINDS) == set(CASES) | elsewhere | across


def test_sql_and_labels_as_forms(tmp_path: Path) -> None:
    sql = [row(f"q{i}", f"SELECT name FROM t WHERE n = {i}") for i in range(39)]
    found = findings([write_rows(tmp_path / "a.jsonl", [*sql, row("x", "SELECT FROM WHERE")])])
    assert "not SQL" in found["odd_output"]["examples"][0]["detail"]
    labels = [row(f"q{i}", ["red", "green", "blue"][i % 3]) for i in range(60)]
    found = findings([write_rows(tmp_path / "b.jsonl", [*labels, row("x", "purple-ish")])])
    assert "not one of the 3 labels" in found["odd_output"]["examples"][0]["detail"]


def test_several_workers_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    words = LONG.split() + FAR.split()
    rows = [row(f"{i} " + " ".join(draw.choices(words, k=60)), str(i)) for i in range(4500)]
    rows[4400] = {**rows[17]}
    rows[4300] = row(rows[5]["prompt"] + " more", rows[5]["completion"])
    whole = write_rows(tmp_path / "whole.jsonl", rows)
    found = findings([whole])
    assert found["exact_duplicates"]["examples"] == [
        {"row": f"{whole}:4401", "detail": f"as {whole}:18"}
    ]
    assert f"{whole}:4301" in [e["row"] for e in found["near_duplicates"]["examples"]]
    monkeypatch.setattr(scan, "_WORTH_WORKERS", 10**9)
    assert findings([whole]) == found


def test_fields_of_other_names_are_read_and_shown(tmp_path: Path) -> None:
    asked = [{"Question": "a", "answer": "b"}, {"Question": "b", "answer": "c", "context": "d"}]
    path = write_rows(tmp_path / "a.jsonl", asked)
    (file,) = check_data([str(path)])["files"]
    assert file["formats"] == {"prompt_completion": 2}
    assert file["columns"] == {"prompt": "Question", "completion": "answer", "input": "context"}
    assert "‘Question’ as prompt" in render_page(check_data([str(path)]))
    path = write_rows(tmp_path / "b.jsonl", [{"frage": "a", "antwort": "b"}])
    found = findings([path])["unknown_format"]
    assert (
        "set data.columns: {prompt: frage, completion: antwort}" in found["examples"][0]["detail"]
    )
    assert "data.columns" in found["remedy"]
    mapped = findings([path], columns={"prompt": "frage", "completion": "antwort"})
    assert "unknown_format" not in mapped


def test_a_list_in_a_file_for_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([row("a", "b"), row("c", "d")], indent=1))
    assert "unreadable" not in findings([path])
    assert check_data([str(path)])["rows"] == {"read": 2, "usable": 2}
