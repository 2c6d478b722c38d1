"""MLflow: a tracking server or a local database, as MLFLOW_TRACKING_URI says."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from luthier.events import Stopped
from luthier.extras import need
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.tracker import PROJECT, Tracker

_AT_ONCE = 1000  # metrics that MLflow takes in a call
_LONGEST = 6000  # characters of a parameter that it takes
_TRIES, _TIMEOUT = 3, 20  # of a request, and its seconds; MLflow's own 7 and 120 hold a run up
_PATIENCE = 60.0  # seconds to wait for it at the end


def mlflow_sink(recipe: Recipe, run: Run) -> Tracker:
    """The sink of MLflow.

    Raises:
        UserError: it is not installed.
    """
    need("mlflow", "sqlalchemy", "alembic", extra="trackers", what="train.report_to mlflow")
    return Tracker("MLflow", _Client(), recipe, run)


class _Client:
    """A thread sends, so that a slow server does not slow the run; what cannot be sent waits."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self.sending: Future[None] | None = None

    def start(self, run: Run, config: dict[str, Any], known: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.environment_variables import (
            MLFLOW_HTTP_REQUEST_MAX_RETRIES,
            MLFLOW_HTTP_REQUEST_TIMEOUT,
        )

        for setting, value in (
            (MLFLOW_HTTP_REQUEST_MAX_RETRIES, _TRIES),
            (MLFLOW_HTTP_REQUEST_TIMEOUT, _TIMEOUT),
        ):
            if not setting.is_set():
                setting.set(value)
        self.client = MlflowClient()
        if known is not None:
            self.run_id = known
            self.client.update_run(known, "RUNNING")
            return known
        made = self.client.create_run(self._experiment(), run_name=run.root.name)
        self.run_id = made.info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(config)]
        self.client.log_batch(self.run_id, params=params)
        return self.run_id

    def _experiment(self) -> str:
        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self.client.create_experiment(name)

    def log(self, figures: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.waiting += [Metric(name, value, now, step) for name, value in figures.items()]
        if self.sending is None or self.sending.done():
            before, self.sending = self.sending, self.pool.submit(self._send)
            if before is not None:
                before.result()  # raises what went wrong

    def _send(self) -> None:
        while batch := self.waiting[:_AT_ONCE]:
            self.client.log_batch(self.run_id, metrics=batch)
            del self.waiting[: len(batch)]

    def end(self, results: dict[str, float] | None, stopped: Stopped | None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        if results is not None:
            last = int(results["steps"])
            self.waiting += [
                Metric(f"measured/{name}", value, now, last) for name, value in results.items()
            ]
        status = "FINISHED" if results is not None else "FAILED"
        if stopped is not None and stopped.interrupted:
            status = "KILLED"
        ended = self.pool.submit(self._end, status)
        self.pool.shutdown(wait=False)
        try:
            ended.result(_PATIENCE)
        except TimeoutError:
            ended.cancel()
            raise TimeoutError(
                f"{len(self.waiting)} figures were not sent within {_PATIENCE:.0f} s"
            ) from None

    def _end(self, status: str) -> None:
        self._send()
        self.client.set_terminated(self.run_id, status)


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for group, keys in config.items():
        for key, value in keys.items():
            yield f"{group}.{key}", value
