"""The example of approaches is what its script makes, and asks what it says it asks."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

import luthier.demo.make_facts as make_facts_module
from luthier.demo.make_facts import FACTS, make_facts


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FACTS / name).read_text("utf-8").splitlines()]


def test_the_shipped_files_are_what_the_script_makes(tmp_path: Path) -> None:
    make_facts(tmp_path)
    made = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(made) == 33
    for name in made:
        assert (tmp_path / name).read_bytes() == (FACTS / name).read_bytes(), name


def test_the_test_tells_heart_from_documents_and_form() -> None:
    train, test = rows("train.jsonl"), rows("test.jsonl")
    taught = {(json.loads(r["completion"])["subject"], r["fact"]) for r in train}
    asked = {r["prompt"] for r in train}
    documents = [p.read_text("utf-8") for p in (FACTS / "docs").glob("*.md")]
    assert len(documents) == 30
    assert len(test) == len({r["prompt"] for r in test}) == 60
    schema = json.loads((FACTS / "answer.schema.json").read_text())
    for row in test:
        answer = json.loads(row["completion"])
        jsonschema.validate(answer, schema)
        assert row["prompt"] not in asked
        assert ((answer["subject"], row["fact"]) in taught) == (row["group"] == "taught")
        # One document at least names the subject and holds the fact.
        fact = re.compile(rf"(?<!\w){re.escape(row['fact'])}(?!\w)")
        assert any(
            answer["subject"].lower() in text.lower() and fact.search(text) for text in documents
        )
    assert [sum(r["group"] == g for r in test) for g in ("taught", "new")] == [30, 30]


@pytest.mark.parametrize(
    ("answer", "right"),
    [('{"answer": "9"}', True), ("Nine", False), ("19", False), ("It lets 9 rooms.", True)],
)
def test_the_metric_looks_for_the_fact_whatever_its_form(answer: str, right: bool) -> None:
    names: dict[str, object] = {}
    exec((FACTS / "fact.py").read_text(), names)
    assert names["score"](answer, {"fact": "9"}) is right  # type: ignore[operator]
    assert make_facts_module.INSTRUCTION.startswith("Answer as JSON")
