"""Jobs for other machines: what would be submitted, and what the engines' clients are given."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import Cli

from luthier.errors import UserError
from luthier.launch.engine import Engine
from luthier.launch.job import Job, Needs, make_job
from luthier.launch.on_ray import OnRay
from luthier.launch.skypilot import SkyPilot
from luthier.launch.slurm import Slurm
from luthier.launch.ssh import Ssh
from luthier.recipe import Recipe, parse_recipe

RECIPE = "model: {source: tiny}\ndata: {train: my rows.jsonl}\nrun: {dir: my runs}\n"


def recipe() -> Recipe:
    return parse_recipe(RECIPE, [])


ONE = Needs()


def a_job(workdir: Path, needs: Needs = ONE, python: str = sys.executable) -> Job:
    return make_job(
        recipe(), "my", needs, workdir=str(workdir), python=python, setup=["export SET_UP=yes"]
    )


def program(folder: Path, name: str, body: str) -> Path:
    """A program of that name for PATH."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines, which SLURM reads until the first line of another kind that is no comment."""
    found = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#SBATCH"):
            break
        key, _, value = line.removeprefix("#SBATCH --").partition("=")
        found[key] = value
    return found


SKY = SkyPilot("s3://my-runs", "H100")
ENGINES: list[Engine] = [Slurm(), Ssh("host"), OnRay(), SKY]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("needs", [Needs(), Needs(nproc=4, gpus=4)])
def test_scripts_are_shell(engine: Engine, needs: Needs, tmp_path: Path) -> None:
    script = engine.render(a_job(tmp_path, needs))
    if engine is SKY:
        script = yaml.safe_load(script)["run"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    by_torchrun = needs.nproc > 1 and not isinstance(engine, OnRay)
    assert ("torch.distributed.run" in script) is by_torchrun
    assert "export SET_UP=yes\n" in script


def test_the_same_recipe_has_the_same_folder_wherever_it_runs(tmp_path: Path) -> None:
    first, again = a_job(tmp_path), a_job(tmp_path / "elsewhere", Needs(gpus=8))
    assert first.name == again.name == recipe().default_name("my")
    named = make_job(
        recipe().changed(run={"name": "mine"}), "my", Needs(), workdir="/", python="python"
    )
    assert named.name == "mine"


def test_a_slurm_job_says_what_it_needs(tmp_path: Path) -> None:
    needs = Needs(nodes=2, nproc=4, gpus=4, cpus=16, memory="64G", time="12:00:00")
    script = Slurm("gpu", "us").render(a_job(tmp_path, needs))
    job = a_job(tmp_path)
    assert options(script) == {
        "requeue": "", "job-name": job.name, "nodes": "2", "ntasks-per-node": "1",
        "gpus-per-node": "4", "cpus-per-task": "16", "mem": "64G", "time": "12:00:00",
        "partition": "gpu", "account": "us", "chdir": str(tmp_path), "open-mode": "append",
        "output": f"{job.name}.slurm-%j.txt", "signal": "B:TERM@180",
    }  # fmt: skip
    assert "srun --kill-on-bad-exit=1" in script
    assert "--nnodes 2 --nproc-per-node 4 --rdzv-backend c10d" in script
    assert '--rdzv-endpoint "$head:29400" -m luthier.cli.main train' in script


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no SLURM here")
def test_slurm_takes_the_script(tmp_path: Path) -> None:
    script = Slurm().render(a_job(tmp_path, Needs(cpus=1, memory="1G", time="1:00:00")))
    done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_batch_script_runs_saves_when_told_and_queues_itself_again(tmp_path: Path) -> None:
    """The script itself, with a training that ends on SIGTERM as ours does."""
    python = program(
        tmp_path,
        "python",
        'echo "$SET_UP $*" > ran; cat "$4" > seen; trap "exit 130" TERM; touch up\n'
        "while :; do sleep 0.05; done",
    )
    program(tmp_path, "scontrol", 'echo "$*" > requeued')
    work = tmp_path / "work"
    work.mkdir()
    script = Slurm().render(a_job(work, python=str(python)))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    batch = subprocess.Popen(["bash", "-c", script], env=env)
    until = time.monotonic() + 60
    while not (work / "up").exists():
        assert time.monotonic() < until and batch.poll() is None
        time.sleep(0.02)
    batch.terminate()
    assert batch.wait(60) != 0
    assert (work / "requeued").read_text().strip() == "requeue 7"
    assert (work / "ran").read_text().startswith("yes -m luthier.cli.main train my runs/.my-")
    told = yaml.safe_load((work / "seen").read_text())
    assert told["data"]["train"] == "my rows.jsonl"
    assert told["run"] == {"name": recipe().default_name("my"), "dir": "my runs"}


def test_sbatch_is_given_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "sbatch", f'cat > {tmp_path}/given; echo "42;cluster"')
    job = a_job(tmp_path)
    said = Slurm().submit(job)
    assert said.startswith("job 42;") and f"tail -f {tmp_path}/my-" in said
    assert (tmp_path / "given").read_text() == Slurm().render(job)
    program(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(UserError, match="refused the job: sbatch: error: invalid partition"):
        Slurm("nowhere").submit(job)


def test_over_ssh_a_lost_training_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real script, by an `ssh` that stays on this machine."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "ssh", f'echo "$1" > {tmp_path}/host; shift; exec bash -c "$*"')
    python = program(
        tmp_path,
        "python",
        'echo x >> tries; [ "$(wc -l < tries)" = 3 ] && touch done && exit 0; kill -KILL $$',
    )
    work = tmp_path / "work"
    work.mkdir()
    said = Ssh("gpu-box", retries=3).submit(a_job(work, python=str(python)))
    assert said.startswith("process ") and "on gpu-box" in said
    assert (tmp_path / "host").read_text().strip() == "gpu-box"
    until = time.monotonic() + 60
    while not (work / "done").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert len((work / "tries").read_text().splitlines()) == 3
    program(tmp_path, "ssh", "echo 'Permission denied' >&2; exit 255")
    with pytest.raises(UserError, match="gpu-box did not start the job: Permission denied"):
        Ssh("gpu-box").submit(a_job(work))


def test_one_machine_is_not_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out --nodes"):
        Ssh("host").render(a_job(tmp_path, Needs(nodes=2)))


def test_a_ray_job_says_what_each_task_needs(tmp_path: Path) -> None:
    script = OnRay().render(a_job(tmp_path, Needs(nodes=2, nproc=4, gpus=4, cpus=16)))
    assert script.startswith("# Ray at auto, tasks: 8, each with 4 CPU, 1 GPU\n")
    with pytest.raises(UserError, match="4 processes cannot share 6 GPUs evenly"):
        OnRay().render(a_job(tmp_path, Needs(nproc=4, gpus=6)))


def test_a_sky_task_says_what_it_needs(tmp_path: Path) -> None:
    needs = Needs(nodes=2, nproc=8, gpus=8, memory="64+")
    task = yaml.safe_load(SkyPilot("my-volume", "H100", "k8s").render(a_job(tmp_path, needs)))
    script = task.pop("run")
    assert task == {
        "name": a_job(tmp_path).name, "workdir": str(tmp_path), "num_nodes": 2,
        "resources": {"infra": "k8s", "accelerators": "H100:8", "memory": "64+",
                      "job_recovery": {"max_restarts_on_errors": 3}},
        "volumes": {"~/sky_workdir/my runs": "my-volume"},
    }  # fmt: skip
    assert script.startswith("cd ~/sky_workdir || exit 2\n")
    assert 'head=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")\n' in script
    assert '--rdzv-endpoint "$head:29400"' in script
    one = yaml.safe_load(SKY.render(a_job(tmp_path)))
    mounted = {"source": "s3://my-runs", "mode": "MOUNT_CACHED"}
    assert one["file_mounts"] == {"~/sky_workdir/my runs": mounted}
    for engine, asked, sentence in (
        (SKY, needs, "give --storage the name of a volume"),
        (SkyPilot("s3://my-runs"), Needs(gpus=1), "name them with --accelerator"),
        (SKY, Needs(time="1:00"), "leave out --time"),
    ):
        with pytest.raises(UserError, match=sentence):
            engine.render(a_job(tmp_path, asked))


@pytest.mark.skipif(shutil.which("sky") is None, reason="there is no SkyPilot here")
@pytest.mark.parametrize(
    ("storage", "needs"), [("s3://my-runs", Needs(gpus=1)), ("my-volume", Needs(nodes=2, cpus=4))]
)
def test_skypilot_reads_the_task(storage: str, needs: Needs, tmp_path: Path) -> None:
    """By its own reader, in the environment of its client."""
    path = tmp_path / "task.yaml"
    path.write_text(SkyPilot(storage, "H100").render(a_job(tmp_path, needs)))
    code = "import sky, sys; t = sky.Task.from_yaml(sys.argv[1]); print(t.name, t.num_nodes)"
    python = Path(shutil.which("sky") or "").resolve().with_name("python")
    done = subprocess.run([python, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split() == [a_job(tmp_path).name, str(needs.nodes)], done.stderr


def test_sky_is_given_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "sky", f'echo "$1 $2 $3 $4" > {tmp_path}/asked; cat "$5" > {tmp_path}/given')
    job = a_job(tmp_path)
    assert f"sky jobs logs --name {job.name}" in SKY.submit(job)
    assert (tmp_path / "asked").read_text() == "jobs launch --yes --detach-run\n"
    assert (tmp_path / "given").read_text() == SKY.render(job)
    program(tmp_path, "sky", "echo 'no cloud is enabled' >&2; exit 1")
    with pytest.raises(UserError, match="sky refused the job: no cloud is enabled"):
        SKY.submit(job)


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(RECIPE)
    typed = ("launch", "my.yaml", "--on", "slurm", "--gpus", "1", "--set", "run.name=first")
    done = cli(*typed, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert options(done.stdout)["gpus-per-node"] == "1"
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
    told = json.loads(cli(*typed, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert (told["name"], told["on"], told["submitted"]) == ("first", "slurm", None)
    assert told["script"] == done.stdout
    assert not (tmp_path / "my runs").exists()
    lost = cli("launch", "my.yaml", "--on", "ssh", cwd=tmp_path)
    assert lost.returncode == 2 and "needs --host" in lost.stderr
    lost = cli("launch", "my.yaml", "--on", "skypilot", cwd=tmp_path)
    assert lost.returncode == 2 and "needs --storage" in lost.stderr
