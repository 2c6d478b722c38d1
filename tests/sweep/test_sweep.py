"""A sweep from its question to its page, on the tiny model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import save_tiny
from helpers import Cli, Notes, wait_for_step, write_rows
from safetensors.torch import load_file

import luthier
from luthier.errors import Interrupted, UserError
from luthier.evaluate.statistics import paired_test
from luthier.events import Event
from luthier.recipe import Recipe, load_recipe
from luthier.records.sweep import Span, Sweep
from luthier.run import Run, open_run
from luthier.sweep import results, study
from luthier.sweep.folder import SweepFolder
from luthier.sweep.shared import Shared, find_ground
from luthier.sweep.sweep import ask
from luthier.sweep.trial import Watcher, trial_recipe
from luthier.sweep.verdict import judge
from luthier.sweep.work import share_of_machine
from luthier.train import learning
from luthier.train.fit import fit
from luthier.train.session import Materials

MakeRecipe = Callable[..., Recipe]

SPACE = {"train.learning_rate": "1e-4..3e-1:log", "method.lora_r": [2, 4, 8]}
SHORT = {"max_steps": 5, "eval_steps": 1, "save_steps": 5}


@pytest.fixture(scope="module")
def base(
    tiny_model: Path, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A recipe that takes a second, its rate a bad one."""
    data = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)
    return {
        "model": {"source": str(tiny_model), "dtype": "float32"},
        "method": {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0},
        "data": {"train": str(data), "max_length": 128, "validation_fraction": 0.5},
        "train": {**SHORT, "learning_rate": 2e-4, "report_to": []},
        "evaluate": {"probe": False},
    }


@pytest.fixture(scope="module")
def on_the_way() -> list[Sweep]:
    """What sweep.json said while ``swept`` was made."""
    return []


@pytest.fixture(scope="module")
def swept(
    base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, on_the_way: list[Sweep]
) -> tuple[Sweep, Notes]:
    notes = Notes()
    folder = SweepFolder(tmp_path_factory.mktemp("sweeps") / "first")

    def look(event: Event) -> None:
        notes(event)
        if folder.record_path.is_file():
            on_the_way.append(Sweep.from_file(folder.record_path))

    return luthier.sweep(base, space=SPACE, trials=9, out=folder.root, on_event=look), notes


def test_the_default_comes_first_and_the_best_is_better(swept: tuple[Sweep, Notes]) -> None:
    sweep, _ = swept
    assert [trial.number for trial in sweep.trials] == list(range(9))
    assert [trial.default for trial in sweep.trials] == [True] + [False] * 8
    assert sweep.ended == "all 9 trials were run"
    default, best = sweep.default_trial, sweep.best_trial
    assert default is not None
    assert best is not None
    assert default.values == {"train.learning_rate": 2e-4, "method.lora_r": 2}
    finished = [t.loss for t in sweep.trials if t.state == "finished" and t.loss is not None]
    assert best.loss == min(finished)
    # A rate of 2e-4 teaches nothing in five steps, so that a verdict is easy.
    assert sweep.verdict is not None
    assert sweep.verdict.test.verdict == "better"
    assert sweep.verdict.test.high < 0
    assert best.values["train.learning_rate"] > 1e-3
    assert next(iter(sweep.importance)) == "train.learning_rate"
    assert sum(sweep.importance.values()) == pytest.approx(1)


def test_a_warning_of_every_trial_is_given_once(base: dict[str, Any], tmp_path: Path) -> None:
    notes = Notes()
    recipe = {**base, "data": {**base["data"], "max_length": 48}}
    luthier.sweep(recipe, space=SPACE, trials=2, out=tmp_path / "sweep", on_event=notes)
    assert sum("longer than data.max_length" in text for text in notes.warnings) == 1


def test_the_rows_that_judge_took_no_part(swept: tuple[Sweep, Notes]) -> None:
    sweep, _ = swept
    judged = [json.loads(line) for line in SweepFolder(Path(sweep.folder)).judged_path.open("rb")]
    assert sweep.verdict is not None
    assert len(judged) == sweep.judging_rows == sweep.verdict.test.rows
    judges = {line["row"] for line in judged}
    for trial in sweep.trials:
        run = open_run(Path(sweep.folder) / trial.folder)
        seen = [*run.train_path.open("rb"), *run.validation_path.open("rb")]
        assert judges.isdisjoint(_origin(line) for line in seen)
        report = run.data_report()
        assert report is not None
        assert report.rows.validation == sweep.choosing_rows
    again = paired_test(
        [line["default"] for line in judged],
        [line["best"] for line in judged],
        [line["tokens"] for line in judged],
        higher_is_better=False,
    )
    assert again == sweep.verdict.test


def _origin(line: bytes) -> str:
    from luthier.data.conversation import Conversation

    return str(Conversation.from_row(json.loads(line)).origin)


def test_trials_are_run_folders_and_only_two_keep_their_weights(
    swept: tuple[Sweep, Notes],
) -> None:
    sweep, _ = swept
    kept = []
    for trial in sweep.trials:
        run = open_run(Path(sweep.folder) / trial.folder)
        recipe = run.recipe()
        assert recipe.method.lora_r == trial.values["method.lora_r"]
        assert recipe.train.learning_rate == trial.values["train.learning_rate"]
        assert [x.eval_loss for x in run.metrics() if x.eval_loss is not None] == trial.curve
        assert run.finished == (trial.state == "finished")
        kept += [trial.number] if run.adapter_path.exists() else []
        assert run.checkpoints_path.exists() == run.adapter_path.exists()
    assert kept == sorted({0, sweep.best})
    best = open_run(Path(sweep.folder) / f"trials/{sweep.best:03}")
    assert luthier.generate(best, ["Repeat 3"], max_new_tokens=2)


def test_the_best_recipe_is_the_recipe_with_the_best_values(
    swept: tuple[Sweep, Notes], base: dict[str, Any]
) -> None:
    sweep, _ = swept
    best = sweep.best_trial
    assert best is not None
    assert sweep.recipe is not None
    values = best.values
    wanted = luthier.as_recipe(
        base,
        train={"learning_rate": values["train.learning_rate"]},
        method={"lora_r": values["method.lora_r"]},
    )
    assert load_recipe(Path(sweep.recipe)).differences(wanted) == []
    text = Path(sweep.recipe).read_text()
    assert f"# trial {best.number:03} of the sweep first; it was 0.0002" in text


def test_the_page_stands_alone(swept: tuple[Sweep, Notes]) -> None:
    sweep, notes = swept
    page = (Path(sweep.folder) / "sweep.html").read_text()
    assert page.count("<svg") == 4  # by trial, on the way, and a slice per key
    assert "http" not in page.replace("https://", "", page.count("yaml-language-server"))
    assert "is better than the recipe as it was given" in page
    assert Sweep.from_file(Path(sweep.folder) / "sweep.json") == sweep
    assert any("9 like it take" in note for note in notes.notes)
    assert not notes.warnings


def test_a_trial_trains_as_a_run_that_shares_nothing(
    swept: tuple[Sweep, Notes], base: dict[str, Any], tmp_path: Path
) -> None:
    """To the last bit: rows prepared once, the base loaded once, one process for all."""
    sweep, _ = swept
    ground = find_ground(luthier.as_recipe(base))
    alone = Materials(prepare=lambda *_: ground.prepared)
    for number in {0, sweep.best}:
        run = open_run(Path(sweep.folder) / f"trials/{number:03}")
        recipe = run.recipe().changed(run={"dir": str(tmp_path), "name": f"alone-{number}"})
        other = Run(tmp_path / f"alone-{number}")
        fit(recipe, other, materials=alone)
        mine, theirs = (
            load_file(one.adapter_path / "adapter_model.safetensors") for one in (run, other)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert [x.eval_loss for x in run.metrics()] == [x.eval_loss for x in other.metrics()]


@pytest.mark.parametrize(
    "method",
    [
        {"name": "full"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "eva"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_a_base_is_as_it_was_for_the_next_trial(
    method: dict[str, Any], base: dict[str, Any], tmp_path: Path
) -> None:
    """Twice the same run with what is shared, and once without: the same losses."""
    recipe = luthier.as_recipe(base, method=method, train={"learning_rate": 1e-2, "max_steps": 2})
    ground = find_ground(recipe)
    shared, curves = Shared(ground, SweepFolder(tmp_path)), []
    for number, materials in enumerate(
        (shared.materials(recipe), shared.materials(recipe), Materials(lambda *_: ground.prepared))
    ):
        run = Run(tmp_path / str(number))
        fit(recipe, run, materials=materials)
        curves.append([(line.loss, line.eval_loss) for line in run.metrics()])
    assert curves[0] == curves[1] == curves[2]


def test_a_teacher_is_asked_once_for_all_trials(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save_tiny(tmp_path / "teacher", "qwen3")
    recipe = luthier.as_recipe(
        base, objective={"name": "distill", "teacher": str(teacher)}, train={"max_steps": 2}
    )
    ground, folder = find_ground(recipe), SweepFolder(tmp_path / "sweep")
    asked: list[Path] = []
    real = learning.load_teacher

    def counted(*given: Any) -> Any:
        ask = real(*given)

        def write() -> None:
            asked.append(given[5].root)
            ask()

        return write

    monkeypatch.setattr(learning, "load_teacher", counted)
    curves = []
    for name in ("000", "001"):
        run = folder.trial(name)
        fit(recipe, run, materials=Shared(ground, folder).materials(recipe))
        curves.append([(line.loss, line.eval_loss) for line in run.metrics()])
    assert asked == [folder.trial("000").root]
    files = [folder.trial(name).teacher_path for name in ("000", "001")]
    assert files[0].read_bytes() == files[1].read_bytes()
    alone = Run(tmp_path / "alone")
    fit(recipe, alone, materials=Materials(lambda *_: ground.prepared))
    curves.append([(line.loss, line.eval_loss) for line in alone.metrics()])
    assert curves[0] == curves[1] == curves[2]
    # Jobs that begin together: each has loaded the teacher, and one asks it.
    shared = Shared(ground, SweepFolder(tmp_path / "other"))
    told: list[str] = []
    trials = [SweepFolder(tmp_path / "other").trial(name) for name in ("000", "001")]

    def load(run: Run) -> Any:
        def ask() -> None:
            told.append(run.root.name)
            run.teacher_path.parent.mkdir(parents=True)
            run.teacher_path.write_bytes(files[0].read_bytes())
            run.provenance_path.write_bytes(folder.trial("000").provenance_path.read_bytes())

        return lambda: ask

    (tmp_path / "other").mkdir()
    for write in [shared._teach(run, "float32", load(run)) for run in trials]:
        write()
    assert told == ["000"]
    assert trials[1].teacher_path.read_bytes() == files[0].read_bytes()


class FakeTrial:
    """Optuna's side of a trial; it prunes at an evaluation."""

    def __init__(self, prunes_at: int = 0) -> None:
        self.prunes_at, self.reported, self.attrs = prunes_at, dict[int, float](), {}

    def report(self, value: float, step: int) -> None:
        self.reported[step] = value

    def should_prune(self) -> bool:
        return len(self.reported) == self.prunes_at

    def set_user_attr(self, key: str, value: Any) -> None:
        self.attrs[key] = value


def test_a_pruned_run_saves_and_stops_and_can_go_on(base: dict[str, Any], tmp_path: Path) -> None:
    recipe, run = luthier.as_recipe(base), Run(tmp_path / "run")
    trial: Any = FakeTrial(prunes_at=2)
    watcher = Watcher(trial, run, True, None, Notes())
    with pytest.raises(Interrupted):
        fit(recipe, run, watcher, stop=watcher.stop)
    assert watcher.why is not None
    assert "at step 2 of 5 is above the median" in watcher.why
    # At once where the best weights were saved anyway.
    assert list(run.checkpoints())[-1] in (2, 3)
    # Killed and continued: what was measured before is told again, each once.
    again: Any = FakeTrial()
    watcher = Watcher(again, run, True, None, Notes())
    fit(recipe, run, watcher, stop=watcher.stop)
    assert sorted(again.reported) == [1, 2, 3, 4, 5]
    assert {n: again.reported[n] for n in trial.reported} == trial.reported


def test_the_default_and_the_last_step_are_never_pruned(
    base: dict[str, Any], tmp_path: Path
) -> None:
    for prunable, at in ((False, 2), (True, 5)):
        trial: Any = FakeTrial(prunes_at=at)
        run = Run(tmp_path / f"{prunable}")
        watcher = Watcher(trial, run, prunable, None, Notes())
        fit(luthier.as_recipe(base), run, watcher, stop=watcher.stop)
        assert watcher.why is None


def test_trials_above_the_median_are_pruned(base: dict[str, Any], tmp_path: Path) -> None:
    import optuna

    asked = _ask(base, tmp_path, trials=6)
    made = study.open_study(asked)
    for rank in range(5):  # losses that no trial here can reach
        made.add_trial(
            optuna.create_trial(
                params={"train.learning_rate": 1e-2, "method.lora_r": "4"},
                distributions={
                    "train.learning_rate": optuna.distributions.FloatDistribution(
                        1e-4, 3e-1, log=True
                    ),
                    "method.lora_r": optuna.distributions.CategoricalDistribution(["2", "4", "8"]),
                },
                value=0.1 + rank / 100,
                intermediate_values=dict.fromkeys(range(1, 6), 0.2),
                user_attrs={"default": rank == 0, "folder": f"{rank:03}", "place": "elsewhere"},
            )
        )
    from luthier.sweep.sweep import run_sweep

    sweep = run_sweep(asked)
    (pruned,) = [trial for trial in sweep.trials if trial.state == "pruned"]
    assert pruned.number == 5
    assert len(pruned.curve) == 2
    assert pruned.why is not None
    assert "above the median" in pruned.why
    run = open_run(Path(sweep.folder) / pruned.folder)
    assert not run.finished
    assert not run.checkpoints_path.exists()
    # The best ran elsewhere, and its weights are not here.
    assert sweep.verdict is None
    assert sweep.no_verdict is not None


def _ask(base: dict[str, Any], tmp_path: Path, **options: Any) -> Any:
    asked = ask(luthier.as_recipe(base), "x", out=tmp_path / "sweep", space=SPACE, **options)
    asked.folder.trials_path.mkdir(parents=True, exist_ok=True)  # as its lock does
    return asked


def test_a_killed_trial_is_first_in_line_and_goes_on_in_its_folder(
    base: dict[str, Any], tmp_path: Path
) -> None:
    from optuna.trial import TrialState

    asked = _ask(base, tmp_path)
    made = study.open_study(asked)
    study.begin(made, asked)

    def start(place: str, name: str) -> None:
        """As a process does that then dies."""
        trial = made._pop_waiting_trial_id()
        assert trial is not None
        made._storage.set_trial_user_attr(trial, "place", place)
        made._storage.set_trial_user_attr(trial, "folder", name)

    for name, values in (("000", {"train.learning_rate": 2e-4, "method.lora_r": "2"}), ("007", {})):
        for tries in range(1, 4):
            start(asked.folder.place, name)
            study.begin(made, asked)
            present = {study.folder_of(trial): trial for trial in study.present(made)}[name]
            # The default is tried whenever the command is given again: without it there is no sweep.
            given_up = tries == 3 and name != "000"
            assert present.state == (TrialState.FAIL if given_up else TrialState.WAITING)
            assert present.system_attrs["fixed_params"] == values
        made._pop_waiting_trial_id()
        made.enqueue_trial({})
    # A trial of another machine is left alone.
    start("other:/there", "009")
    study.begin(made, asked)
    (running, other) = made.get_trials(states=(TrialState.RUNNING,))
    assert other.user_attrs["place"] == "other:/there"
    assert running.user_attrs["default"]


def test_a_recipe_that_failed_may_be_mended_in_the_same_folder(
    base: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    with pytest.raises(UserError, match="no layer called"):
        luthier.sweep(base, space=SPACE, trials=2, out=out, method={"target_modules": ["no_proj"]})
    sweep = luthier.sweep(base, space=SPACE, trials=2, out=out)
    assert [trial.state for trial in sweep.trials] == ["finished"] * 2


def test_it_goes_on_after_a_kill_and_after_a_stop_as_if_nothing_had_happened(
    cli: Cli, base: dict[str, Any], tmp_path: Path
) -> None:
    """The same proposals and losses as an undisturbed sweep, whose trials are not repeated."""
    recipe = tmp_path / "recipe.yaml"
    longer = {"max_steps": 30, "eval_steps": 10, "save_steps": 5}
    recipe.write_text(luthier.as_recipe(base, train={**base["train"], **longer}).to_yaml())
    options = [f"--space={key}={_text(value)}" for key, value in SPACE.items()]
    command = ["sweep", str(recipe), *options, "--trials", "4", "--json", "--out"]
    whole = cli(*command, "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    folder = SweepFolder(tmp_path / "cut")
    for name, number, code in (("001", signal.SIGKILL, -9), ("003", signal.SIGTERM, 130)):
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.cli.main", *command, "cut"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        wait_for_step(folder.trial(name), 1)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        if code == 130:
            assert "go on with: luthier sweep" in said
    cut = cli(*command, "cut", cwd=tmp_path)
    assert cut.returncode == 0, cut.stderr
    found, wanted = (json.loads(done.stdout) for done in (cut, whole))
    for key in ("values", "loss", "curve", "state"):
        assert [t[key] for t in found["trials"]] == [t[key] for t in wanted["trials"]], key
    # A try that was killed has used up a number.
    assert [t["number"] for t in found["trials"]] == [0, 1, 3, 5]
    assert found["verdict"]["test"] == wanted["verdict"]["test"]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def test_who_looks_on_sees_what_stands_so_far(
    swept: tuple[Sweep, Notes], on_the_way: list[Sweep]
) -> None:
    states = {trial.state for found in on_the_way for trial in found.trials}
    assert states == {"running", *(trial.state for trial in swept[0].trials)}
    begun = [found for found in on_the_way if found.ended is None]
    assert max(len(found.trials) for found in begun) == 9
    for found in begun:
        assert (found.verdict, found.recipe) == (None, None)
        assert found.no_verdict == "the sweep has not ended"


def test_other_settings_need_another_folder_and_more_trials_go_further(
    swept: tuple[Sweep, Notes], base: dict[str, Any]
) -> None:
    sweep, _ = swept
    out = Path(sweep.folder)
    with pytest.raises(UserError, match=r"train\.max_steps: 5 -> 6"):
        luthier.sweep(base, space=SPACE, out=out, train={**base["train"], "max_steps": 6})
    with pytest.raises(UserError, match=r"--space method\.lora_r: 2, 4, 8 -> 2, 4"):
        luthier.sweep(base, space={**SPACE, "method.lora_r": [2, 4]}, out=out)
    again = luthier.sweep(base, space=SPACE, trials=9, out=out)
    assert again.trials == sweep.trials
    assert again.verdict == sweep.verdict
    folder = SweepFolder(out)
    with folder.locked(), pytest.raises(UserError, match="another command is at work"):
        luthier.sweep(base, space=SPACE, out=out)
    before: list[Sweep] = []
    further = luthier.sweep(
        base,
        space=SPACE,
        trials=10,
        out=out,
        on_event=lambda _event: before.append(Sweep.from_file(folder.record_path)),
    )
    assert len(further.trials) == 10
    # Its verdict stays while a sweep goes further, as how often one looked is in it.
    assert {found.ended for found in before} == {None, sweep.ended}
    assert all(found.verdict == sweep.verdict for found in before)


def test_jobs_run_at_a_time_and_none_too_many(
    base: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes = Notes()
    sweep = luthier.sweep(
        base, space=SPACE, trials=5, jobs=2, out=tmp_path / "sweep", on_event=notes
    )
    assert len(sweep.trials) == 5
    assert len({json.dumps(trial.values) for trial in sweep.trials}) == 5
    assert sweep.trials[0].default
    assert all(trial.state in ("finished", "pruned") for trial in sweep.trials)
    assert sum("like it take" in note for note in notes.notes) == 1
    assert capfd.readouterr().err == ""


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert share_of_machine(0, 3) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert share_of_machine(3, 4)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert share_of_machine(0, 2)["CUDA_VISIBLE_DEVICES"] == "4"


def test_a_budget_ends_it(base: dict[str, Any], tmp_path: Path) -> None:
    sweep = luthier.sweep(
        base,
        space=SPACE,
        trials=9,
        budget_cost=1e-9,
        price_per_hour=1.0,
        out=tmp_path / "sweep",
    )
    (only,) = sweep.trials
    assert (only.default, only.state) == (True, "finished")
    assert sweep.ended.startswith("0.00 of 0.00 hours of the budget are used")
    assert sweep.cost == pytest.approx(sweep.seconds / 3600, abs=1e-4)
    assert sweep.no_verdict is not None
    assert "no trial reached a lower" in sweep.no_verdict


def test_a_trial_beyond_the_budget_is_stopped(base: dict[str, Any], tmp_path: Path) -> None:
    trial: Any = FakeTrial()
    run = Run(tmp_path / "run")
    watcher = Watcher(trial, run, True, 0.0, Notes())
    with pytest.raises(Interrupted):
        fit(luthier.as_recipe(base), run, watcher, stop=watcher.stop)
    assert watcher.why == "the budget was used up"


def test_trials_that_cannot_be_trained_are_told_and_end_it(
    base: dict[str, Any], tmp_path: Path
) -> None:
    notes = Notes()
    space = {"method.target_modules": [["no_proj"], ["not_proj"], ["none_proj"]]}
    sweep = luthier.sweep(base, space=space, trials=9, out=tmp_path / "sweep", on_event=notes)
    assert [trial.state for trial in sweep.trials] == ["finished", *["failed"] * 3]
    assert sweep.ended.startswith("the last 3 trials failed: method.target_modules")
    assert sum("failed: method.target_modules: this model has no" in w for w in notes.warnings) == 3
    assert "failed" in (tmp_path / "sweep/sweep.html").read_text()


def test_a_recipe_that_cannot_be_trained_is_an_error(base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be trained as it was given.*no layer called"):
        luthier.sweep(
            base, space=SPACE, out=tmp_path / "sweep", method={"target_modules": ["no_proj"]}
        )
    with pytest.raises(UserError, match=r"set data\.validation or"):
        luthier.sweep(
            base,
            space=SPACE,
            out=tmp_path / "b",
            data={
                "validation_fraction": 0.0,
                **{key: base["data"][key] for key in ("train", "max_length")},
            },
        )
    with pytest.raises(UserError, match=r"validation rows of two prompts at least"):
        luthier.sweep(
            base,
            space=SPACE,
            out=tmp_path / "c",
            data={
                "validation_fraction": 0.001,
                **{key: base["data"][key] for key in ("train", "max_length")},
            },
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 1}, "two trials at least"),
        ({"budget_hours": 1, "budget_cost": 1}, "not both"),
        ({"budget_cost": 1}, "give --price-per-hour"),
        ({"storage": "nosuch://host/db"}, "the storage nosuch://host/db cannot be opened"),
        ({"storage": "nosuch://me:hunter2@host/db"}, r"nosuch://\[secret\]@host/db cannot"),
    ],
)
def test_wrong_options_are_told(
    options: dict[str, Any], message: str, base: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        luthier.sweep(base, space=SPACE, out=tmp_path / "sweep", **options)
    assert "hunter2" not in str(error.value)


def test_a_space_without_the_recipes_own_values_has_the_default_all_the_same(
    base: dict[str, Any], tmp_path: Path
) -> None:
    sweep = luthier.sweep(
        base, space={"train.learning_rate": "1e-2..1e-1:log"}, trials=2, out=tmp_path / "sweep"
    )
    assert sweep.trials[0].values == {"train.learning_rate": 2e-4}
    run = open_run(Path(sweep.folder) / "trials/000")
    assert run.recipe().train.learning_rate == 2e-4


def test_general_questions_are_asked_where_they_stop_a_run(
    base: dict[str, Any], tmp_path: Path
) -> None:
    asked = _ask({**base, "evaluate": {"probe": True}}, tmp_path)
    assert not trial_recipe(asked, {}, "000").evaluate.probe
    stops = {**base["train"], "stop_on_forgetting": 0.1}
    asked = _ask({**base, "evaluate": {"probe": True}, "train": stops}, tmp_path)
    assert trial_recipe(asked, {}, "000").evaluate.probe


def test_what_chance_chose_is_not_called_better() -> None:
    """Many trials that differ by noise alone: rows that chose would be fooled, those that judge not."""
    draw = np.random.default_rng(0)
    fooled = wrong = 0
    for _ in range(200):
        default = draw.normal(size=(2, 40))
        trials = draw.normal(size=(30, 2, 40))
        best = trials[trials[:, 0].mean(axis=1).argmin()]
        tests = [
            paired_test(default[half], best[half], higher_is_better=False, resamples=500)
            for half in (0, 1)
        ]
        fooled += tests[0].verdict == "better"
        wrong += tests[1].verdict == "better"
    assert fooled >= 40
    assert wrong <= 10


def test_equal_runs_are_not_told_apart_and_looks_widen(
    swept: tuple[Sweep, Notes], base: dict[str, Any], tmp_path: Path
) -> None:
    sweep, _ = swept
    ground = find_ground(luthier.as_recipe(base))
    folder = SweepFolder(Path(sweep.folder))
    default, best = folder.trial("000"), folder.trial(f"{sweep.best:03}")
    elsewhere = SweepFolder(tmp_path)
    same = judge(elsewhere, default, default, ground.judging, 1)
    assert (same.test.verdict, same.test.difference) == ("no evidence", 0)
    once, often = (judge(elsewhere, default, best, ground.judging, n) for n in (1, 5))
    assert often.test.confidence == pytest.approx(0.99)
    assert often.test.low < once.test.low
    assert often.test.high > once.test.high


def test_importance_finds_the_key_that_matters() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    made.optimize(
        lambda t: (t.suggest_float("a", 0, 1) - 0.3) ** 2 + 1e-4 * t.suggest_float("b", 0, 1), 16
    )
    assert next(iter(results.importance(made.get_trials()))) == "a"
    assert results.importance(made.get_trials()[:3]) == {}


def test_values_are_drawn_as_people_write_them() -> None:
    import optuna

    from luthier.sweep.trial import suggest

    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    rate = suggest(trial, Span(key="r", low=1e-5, high=1e-3, log=True))
    assert rate == float(f"{rate:.3g}")
    rank = suggest(trial, Span(key="k", low=4, high=64, log=True, whole=True))
    assert isinstance(rank, int)


def test_the_command_shows_the_trials_and_the_verdict(
    cli: Cli, base: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(luthier.as_recipe(base).to_yaml())
    options = ("--space", "train.learning_rate=1e-3..1e-1:log", "--trials", "3", "--keep-all")
    done = cli("sweep", recipe, *options, cwd=tmp_path, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert folder.name.startswith("recipe-")
    for word in ("default", "validation loss", "on 15 rows that chose nothing", "best.yaml"):
        assert word in " ".join(done.stdout.split())
    assert "trial 000: the recipe as it was given" in done.stderr
    assert len(list(folder.glob("trials/*/adapter"))) == 3
    wrong = cli("sweep", recipe, "--space", "train.learning_rat=1,2", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "did you mean 'train.learning_rate'?" in " ".join(wrong.stderr.split())
