"""The engines of `fastinfer bulk`: each calls Portions with the number of every portion, and repeats what a dead process had begun.

An engine that runs already, such as a cluster, is used as it is: RAY_ADDRESS, DASK_SCHEDULER_ADDRESS and spark-submit name one. Else one
is started on this machine with as many processes as workers. Its processes see the same files.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from ..backends import gpus
from ..errors import BackendError, FastinferError, InputError, required
from .portions import NUMBER, Portions

__all__ = ["ENGINES", "run"]

TASKS = 64  # that an engine is given for each worker at most: the last one should be a small part of the work
SPARK_TASKS = 16  # fewer, because each takes it 0.1 s
ATTEMPTS = 4  # of a task that its process does not survive, as on a cluster of Spark


def _local(portions: Portions, _: int) -> None:
    try:
        for number in range(portions.count):
            portions.make(number)
    finally:
        portions.close()


def _ray(portions: Portions, workers: int) -> None:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = required("ray", "--engine ray", "ray")
    given = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False, logging_level="ERROR", **given)
    try:
        how = {"num_gpus": min(1.0, len(gpus()) / workers)} if portions.embed.model.device.startswith("cuda") else {"num_cpus": 1}
        kind = ray.remote(Portions).options(max_restarts=-1, max_task_retries=ATTEMPTS - 1, **how)
        actors = [kind.remote(**vars(portions)) for _ in range(workers)]
        tasks, left = _tasks(portions, workers), portions.count
        waiting = {actor.__ray_ready__.remote(): (actor, 0) for actor in actors}  # one that never starts, in a full cluster, gets no task
        while left and not portions.failed():
            (ended,), _ = ray.wait(list(waiting))
            actor, made = waiting.pop(ended)
            ray.get(ended)
            left -= made
            numbers = next(tasks, None)
            if numbers:
                waiting[actor.__call__.remote({NUMBER: numbers})] = actor, len(numbers)
    finally:
        if mine:
            ray.shutdown()


def _tasks(portions: Portions, workers: int) -> Iterator[range]:
    """The numbers of portions for each task."""
    each = max(1, portions.count // (TASKS * workers))
    for first in range(0, portions.count, each):
        yield range(first, min(portions.count, first + each))


def _dask(portions: Portions, workers: int) -> None:
    frames = required("dask.dataframe", "--engine dask", "dask")
    distributed = required("distributed", "--engine dask", "dask")
    pandas = required("pandas", "--engine dask", "dask")
    from dask import config

    with contextlib.ExitStack() as stack:
        address = config.get("scheduler-address", None)
        if address is None:
            stack.enter_context(config.set({"distributed.worker.profile.enabled": False}))  # else each looks at its stack every 10 ms
            here = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": "CRITICAL"}
            address = stack.enter_context(distributed.LocalCluster(**here))
        stack.enter_context(distributed.Client(address))
        numbers = pandas.DataFrame({NUMBER: range(portions.count)})
        tasks = frames.from_pandas(numbers, npartitions=max(1, min(portions.count, TASKS * workers)))
        tasks.map_partitions(portions, meta=numbers[:0]).compute()


def _spark(portions: Portions, workers: int) -> None:
    pyspark = required("pyspark", "--engine spark", "spark")
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    mine = SparkSession.getActiveSession() is None
    settings = pyspark.SparkConf()
    settings.setIfMissing("spark.master", f"local[{workers},{ATTEMPTS}]")
    settings.setIfMissing("spark.ui.enabled", "false").setIfMissing("spark.ui.showConsoleProgress", "false")
    session = SparkSession.builder.config(conf=settings).getOrCreate()
    try:
        session.sparkContext.setLogLevel("OFF")
        numbers = session.range(0, portions.count, 1, max(1, min(portions.count, SPARK_TASKS * workers)))
        numbers.mapInPandas(portions, f"{NUMBER} long").write.format("noop").mode("overwrite").save()
    finally:
        if mine:
            session.stop()


@contextlib.contextmanager
def _explained(engine: str) -> Iterator[None]:
    """An error of an engine becomes a BackendError of one line."""
    try:
        yield
    except (FastinferError, OSError, MemoryError):
        raise
    except Exception as error:
        said = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise BackendError(f"{engine} stopped with {type(error).__name__}: {said[0]}") from error


RUNS: dict[str, Callable[[Portions, int], None]] = {"local": _local, "ray": _ray, "dask": _dask, "spark": _spark}
ENGINES = tuple(RUNS)


def run(engine: str, portions: Portions, workers: int) -> None:
    """Make all portions. Raises FastinferError for what cannot be embedded, or for an engine that stopped before all are made."""
    with _explained(engine), contextlib.redirect_stdout(sys.stderr):  # ray prints what becomes of its processes
        if portions.count:
            RUNS[engine](portions, workers)
    failed = portions.failed()
    if failed:
        raise InputError(failed)
    missing = portions.count - len(portions.made())
    if missing:
        raise BackendError(f"{engine} ended, and {missing} of {portions.count} portions are missing: go on with --resume")
