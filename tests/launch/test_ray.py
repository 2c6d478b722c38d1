"""A training by two workers of a Ray cluster, of which one is killed: Ray begins them again, and it goes on."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from helpers import wait_for_step

from luthier.launch.job import Needs, make_job
from luthier.launch.on_ray import OnRay
from luthier.recipe import Recipe
from luthier.run import Run

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()


def test_a_killed_worker_is_replaced_and_the_run_goes_on(
    make_recipe: Callable[..., Recipe], tmp_path: Path, address: str
) -> None:
    recipe = make_recipe(
        "train.max_steps=14", "train.save_steps=2", "train.eval_steps=14", "run.name=far"
    )
    job = make_job(recipe, "far", Needs(nproc=2), workdir=str(tmp_path), python=sys.executable)
    run = Run(Path(recipe.run.dir) / "far")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(OnRay(address).submit, job)
        wait_for_step(run, 3)
        first = run.worker()
        assert first is not None
        worker = psutil.Process(first).parent()
        assert worker is not None and "ray::" in worker.cmdline()[0]
        worker.send_signal(signal.SIGKILL)
        assert done.result(300) == f"finished: {run.root}"
    assert not psutil.pid_exists(first)
    began = re.findall(r"training from step (\d+)", run.log_path.read_text())
    assert len(began) == 2 and int(began[1]) >= 2
    assert run.measured().steps == 14
