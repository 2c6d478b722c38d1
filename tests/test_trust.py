"""Consent to what a run folder asks for: it belongs to a person on this machine, never to a folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import Cli

import luthier
from luthier import trust
from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe, known_keys, parse_recipe
from luthier.run import Run, claim_run, open_run
from luthier.runs import train_run
from luthier.serve.models import Models
from luthier.trust import Untrusted

SECURITY = (Path(__file__).parent.parent / "SECURITY.md").read_text("utf-8")


@pytest.fixture
def other_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, consent is that of somebody who has trained nothing here."""

    def become() -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
        monkeypatch.setattr(trust, "_granted", set())

    return become


@pytest.fixture
def sent(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    other_person: Callable[[], None],
    tmp_path: Path,
) -> Callable[..., Run]:
    """A finished run as it comes from a stranger: ``sent({"model.trust_remote_code": True})``."""

    def make(changes: dict[str, Any]) -> Run:
        run = train(make_recipe("train.max_steps=1", "train.warmup_ratio=0", "evaluate.max_rows=2"))
        edit(run, changes)
        other_person()
        return run

    return make


def edit(run: Run, changes: dict[str, Any]) -> None:
    tree = yaml.safe_load(run.recipe_path.read_text("utf-8"))
    for key, value in changes.items():
        group, _, name = key.partition(".")
        tree[group][name] = value
    run.recipe_path.write_text(yaml.safe_dump(tree), "utf-8")


def with_code(run: Run, mark: Path) -> None:
    """Python beside the adapter, in the tokenizer's name, as a model may ship it."""
    (run.adapter_path / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class T(PreTrainedTokenizerFast):\n    pass\n"
    )
    path = run.adapter_path / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "evil.T"]}}
    path.write_text(json.dumps(config))


def test_code_in_a_run_folder_runs_only_with_consent(
    sent: Callable[..., Run], tmp_path: Path
) -> None:
    run, mark = sent({"model.trust_remote_code": True}), tmp_path / "ran"
    with_code(run, mark)
    with pytest.raises(Untrusted, match=r"model\.trust_remote_code: adapter/evil\.py") as refused:
        load_tuned(run)
    assert "model.trust_remote_code: true (runs the Python code" in str(refused.value)
    assert "--trust (trust=True in Python)" in str(refused.value)
    with pytest.raises(Untrusted):
        Models([str(run.root)])
    assert not mark.exists()
    luthier.load(run.root, trust=True)
    assert mark.exists()  # the code is real
    luthier.load(run.root)  # asked once


def test_consent_ends_where_the_code_changes(sent: Callable[..., Run], tmp_path: Path) -> None:
    run, mark = sent({"model.trust_remote_code": True}), tmp_path / "ran"
    with_code(run, mark)
    run.trust()
    run.require_trust()
    moved = Run(tmp_path / "moved")
    shutil.move(run.root, moved.root)
    moved.require_trust()
    (moved.adapter_path / "evil.py").write_text("import os\n")
    with pytest.raises(Untrusted, match=r"adapter/evil\.py") as refused:
        moved.require_trust()
    assert "true (runs" not in str(refused.value)  # only what changed
    config = moved.adapter_path / "tokenizer_config.json"
    config.write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "evil/repo--evil.T"]}}))
    with pytest.raises(Untrusted, match="evil/repo--evil"):
        moved.require_trust()


def test_a_metric_runs_only_with_consent(sent: Callable[..., Run], tmp_path: Path) -> None:
    metric, mark = tmp_path / "evil.py", tmp_path / "ran"
    metric.write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef score(a, row): return 1\n"
    )
    run = sent({"evaluate.metrics": [str(metric)]})
    with pytest.raises(Untrusted, match=r"evaluate\.metrics: .*evil\.py \(runs this Python file\)"):
        evaluate_run(run, probe=False)
    assert not mark.exists()
    luthier.evaluate(run, probe=False, trust=True)
    assert mark.exists()


def test_a_metric_inside_the_run_is_trusted_as_it_is(sent: Callable[..., Run]) -> None:
    run = sent({})
    metric = run.root / "m.py"
    metric.write_text("def score(a, row): return 1\n")
    edit(run, {"evaluate.metrics": [str(metric)]})
    run.trust()
    run.require_trust()
    metric.write_text("def score(a, row): return 2\n")
    with pytest.raises(Untrusted, match=r"m\.py"):
        run.require_trust()


def test_a_judge_gets_no_secret_without_consent(
    sent: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.evaluate import judge

    monkeypatch.setenv("ANY_SECRET", "hush")
    monkeypatch.setattr(judge, "_client", lambda _: pytest.fail("a client was made"))
    run = sent(
        {
            "evaluate.judge_model": "m",
            "evaluate.judge_url": "http://evil.example/v1",
            "evaluate.judge_key_env": "ANY_SECRET",
        }
    )
    # Also where the metric is only named by whoever evaluates.
    with pytest.raises(Untrusted) as refused:
        evaluate_run(run, metrics=["judge"], probe=False)
    assert "evaluate.judge_url: http://evil.example/v1 (sends questions" in str(refused.value)
    assert "evaluate.judge_key_env: ANY_SECRET (sends the value of this" in str(refused.value)
    run.trust()
    # Another variable, or another address, is another consent.
    edit(run, {"evaluate.judge_key_env": "OTHER_SECRET"})
    with pytest.raises(Untrusted, match="OTHER_SECRET"):
        run.recipe()


def test_commands_ask_and_the_option_answers(sent: Callable[..., Run], cli: Cli) -> None:
    run = sent({"model.allow_pickle": True})
    for command in (
        ["generate", run.root, "-p", "hi"],
        ["chat", run.root],
        ["evaluate", run.root],
        ["merge", run.root, "--out", "x"],
        ["export", run.root, "--to", "gguf"],
        ["serve", run.root, "--port", "0"],
        ["train", run.root],
    ):
        done = cli(*command)
        assert done.returncode == 2, (command, done.stderr)
        told = " ".join(done.stderr.split())
        assert "model.allow_pickle: true (opens pickled weights" in told, command
        assert "Traceback" not in done.stderr
    told = " ".join(cli("train", run.root).stderr.split())
    assert "rows.jsonl (reads it, and copies its rows into the run folder)" in told
    said = cli("generate", run.root, "-p", "hi", "--max-new-tokens", "2", "--trust")
    assert said.returncode == 0, said.stderr
    again = cli("generate", run.root, "-p", "hi", "--max-new-tokens", "2")
    assert again.returncode == 0, again.stderr
    # Reading what a run has measured acts on nothing.
    assert cli("report", run.root).returncode == 0


def test_a_person_is_asked_once_in_a_terminal(
    sent: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.cli import trusting

    run = sent({"model.allow_pickle": True})
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(trusting.err, "_force_terminal", True)
    answers = [False, True]
    monkeypatch.setattr(trusting.typer, "confirm", lambda *_, **__: answers.pop(0))
    with pytest.raises(Untrusted):
        trusting.open_trusted(run.root, False)
    assert trusting.open_trusted(run.root, False) == run
    assert trusting.open_trusted(run.root, False) == run
    assert answers == []


def test_a_run_made_here_needs_no_question(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    other_person: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_person()  # whose consent is empty, and who trains now
    metric = tmp_path / "mine.py"
    metric.write_text("def score(answer, row): return 1\n")
    recipe = make_recipe(
        "train.max_steps=1", "train.warmup_ratio=0", "evaluate.max_rows=2", "model.trust_remote_code=true",
        f"evaluate.metrics=[{metric}]",
    )  # fmt: skip
    run = claim_run(recipe, "x")
    train_run(recipe, run)
    monkeypatch.setattr(trust, "_granted", set())  # another process
    run.require_trust(to_train=True)
    assert evaluate_run(run, probe=False).metrics["mine"].tuned.mean == 1
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.root, copy.root)
    copy.require_trust(to_train=True)
    # Edited: only the keys that can do something ask again, and by name.
    edit(copy, {"train.learning_rate": 1.0, "evaluate.max_rows": 3})
    copy.require_trust(to_train=True)
    edit(copy, {"evaluate.json_schema": "/etc/passwd"})
    with pytest.raises(Untrusted, match=r"json_schema: /etc/passwd \(reads this file\)") as refused:
        copy.recipe()
    assert "mine.py" not in str(refused.value)
    assert claim_run(recipe, "x") == run  # and it resumes


def test_no_consent_to_code_that_lies_in_the_folder_of_a_run(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    """Whoever can write to your run folder cannot run code, also where the run trusts its model."""
    recipe = make_recipe(
        "train.max_steps=1", "train.warmup_ratio=0", "model.trust_remote_code=true"
    )
    run = train(recipe)
    run.require_trust()
    with_code(run, tmp_path / "ran")
    train_run(recipe, claim_run(recipe, "x"))  # it had finished
    with pytest.raises(Untrusted, match=r"evil\.py"):
        load_tuned(run)


def test_where_consent_cannot_be_kept(
    sent: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = sent({"model.allow_pickle": True})
    (tmp_path / "other").write_text("no folder")
    run.trust()
    assert "what you trust cannot be kept" in caplog.text
    run.require_trust()


def test_a_damaged_record_of_consent_is_no_consent(
    sent: Callable[..., Run], tmp_path: Path
) -> None:
    run = sent({"model.allow_pickle": True})
    path = tmp_path / "other" / "luthier" / "trust.json"
    path.parent.mkdir(parents=True)
    for content in ("{", "[]"):
        path.write_text(content)
        with pytest.raises(UserError, match="delete it to be asked again"):
            run.recipe()


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(UserError, match="no run folder at"):
            open_run(tmp_path / name)


# --- every key ---


def table() -> dict[str, str]:
    """The keys of SECURITY.md that can do something, and what guards each."""
    part = SECURITY.split("Every key that can run, read, write or send something:")[1]
    rows = [line.split("|") for line in part.split("The other keys")[0].splitlines() if "|" in line]
    return {key: row[3] for row in rows for key in re.findall(r"`(\w+\.\w+)`", row[1])}


def test_every_key_of_a_recipe_is_judged() -> None:
    harmless = SECURITY.split("The other keys say only how rows are read and what is computed:")[
        1
    ].split("\n\n")[0]
    listed = [*table(), *re.findall(r"`(\w+\.\w+)`", harmless)]
    assert sorted(listed) == sorted(known_keys()), "add new keys to a table of SECURITY.md"


def test_what_the_table_says_needs_consent_is_asked_about(tmp_path: Path) -> None:
    recipe = parse_recipe(
        "",
        [
            "model.source=m", "model.trust_remote_code=true", "model.allow_pickle=true",
            "model.adapter=r", "data.train=[a.jsonl]", "data.validation=v.jsonl", "data.template=t.jinja",
            "data.replay={source: r.jsonl}", "train.report_to=[tensorboard, wandb]",
            "evaluate.metrics=[m.py, judge]", "evaluate.judge_model=j",
            "evaluate.sql_databases=d", "evaluate.json_schema=s.json", "evaluate.reward_model=r",
            "objective.name=distill", "objective.teacher=t",
        ],
    )  # fmt: skip
    recipe.objective.name = "plugged"
    asked = {risk.key for risk in trust.risks(recipe, tmp_path, to_train=True)}
    wanted = {key for key, guard in table().items() if "consent" in guard}
    assert asked == wanted - {"evaluate.judge_model"}  # which is a name alone
    plain = parse_recipe("", ["model.source=m", "data.train=[a.jsonl]"])
    assert trust.risks(plain, tmp_path) == []
    assert [risk.key for risk in trust.risks(plain, tmp_path, to_train=True)] == ["data.train"]
