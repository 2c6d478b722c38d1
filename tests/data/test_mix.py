import json
from pathlib import Path

import pytest
from helpers import write_rows

from luthier.data.mix import mix_data, split_data
from luthier.errors import UserError


def rows(name: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{name}{i}", "completion": "x"} for i in range(count)]


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_split_keeps_every_row_and_lets_no_prompt_cross(tmp_path: Path) -> None:
    data = [*rows("a", 40), *rows("A", 10), {"prompt": "b", "completion": "y", "id": 7}]
    source = write_rows(tmp_path / "in.jsonl", data)
    train, validation = split_data([str(source)], tmp_path / "out", 0.2, 1)
    written = [read(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "validation")]
    assert [len(part) for part in written] == [train, validation]
    assert sorted(map(json.dumps, [*written[0], *written[1]])) == sorted(map(json.dumps, data))
    prompts = [{row["prompt"].lower() for row in part} for part in written]
    assert not prompts[0] & prompts[1]
    assert 7 <= validation <= 11
    with pytest.raises(UserError, match="exists"):
        split_data([str(source)], tmp_path / "out", 0.2, 1)


def test_mix_follows_the_weights_and_repeats_nothing(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.jsonl", rows("a", 50))
    b = write_rows(tmp_path / "b.jsonl", rows("b", 50))
    mixed = mix_data([(str(a), 3), (str(b), 1)], 40, tmp_path / "m.jsonl", 5)
    assert [(m.taken, m.available) for m in mixed] == [(30, 50), (10, 50)]
    prompts = [row["prompt"] for row in read(tmp_path / "m.jsonl")]
    assert len(set(prompts)) == 40
    assert sum(p.startswith("a") for p in prompts) == 30
    assert prompts != sorted(prompts)
    mix_data([(str(a), 3), (str(b), 1)], 40, tmp_path / "again.jsonl", 5)
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "m.jsonl").read_text()
    most = mix_data([(str(a), 3), (str(b), 1)], None, tmp_path / "most.jsonl", 5)
    assert [m.taken for m in most] == [50, 16]


def test_mix_of_rows_with_names_of_their_own(tmp_path: Path) -> None:
    """Read by the mapping, written as they are; a source with the format's names may be among them."""
    odd = [{"frage": f"q{n}", "antwort": "a"} for n in range(4)]
    usual = [{"prompt": f"p{n}", "completion": "a"} for n in range(4)]
    sources = [
        (str(write_rows(tmp_path / "odd.jsonl", odd)), 1.0),
        (str(write_rows(tmp_path / "usual.jsonl", usual)), 1.0),
    ]
    with pytest.raises(UserError, match="different formats"):
        mix_data(sources, None, tmp_path / "m.jsonl", 0)
    columns = {"prompt": "frage", "completion": "antwort"}
    mix_data(sources, None, tmp_path / "m.jsonl", 0, columns=columns)
    assert sorted(map(str, read(tmp_path / "m.jsonl"))) == sorted(map(str, odd + usual))


def test_wrong_mixtures(tmp_path: Path) -> None:
    a = str(write_rows(tmp_path / "a.jsonl", rows("a", 5)))
    chat = str(write_rows(tmp_path / "c.jsonl", [{"instruction": "x", "output": "y"}]))
    out = tmp_path / "m.jsonl"
    with pytest.raises(UserError, match="has 5 rows, but 10 are needed"):
        mix_data([(a, 1)], 10, out, 0)
    with pytest.raises(UserError, match="different formats"):
        mix_data([(a, 1), (chat, 1)], None, out, 0)
    with pytest.raises(UserError, match="weights must be positive"):
        mix_data([(a, 0)], None, out, 0)
    assert not out.exists()
