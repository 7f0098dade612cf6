"""Run a collection over Ray: actors with a model each take blocks of clips and write them into one store.

`ray.init()` finds the cluster that `RAY_ADDRESS` names, else starts one on this machine. All workers must see
the store under the same path, and the model under the same name.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..model.model import load
from ._job import Job
from ._store import Store

__all__ = ["run"]

ATTEMPTS = 3  # at a block whose worker dies; then the block is taken to be what kills it


class Worker:
    """One model, for many blocks; becomes a Ray actor."""

    def __init__(self, source: str, dtype: str, weights: str, where: str, job: Job, device: str | None):
        self.model, self.job, self.store = load(source, device=device, dtype=dtype), job, Store.at(where)
        if (here := self.model.hash) != weights:
            raise ValueError(f"{source} is {here} on this worker and {weights} where the call was made")

    def process(self, block: int, rows: pd.DataFrame) -> int:
        """Collect and write one block; its number of clips."""
        self.store.write(block, *self.job.run(self.model, rows))
        return len(rows)


def begin(tries: int = 4, **options) -> None:
    """`ray.init`, again where a busy machine doesn't get Ray's processes up in the 30 s they are given."""
    import ray

    for left in range(tries - 1, -1, -1):
        try:
            ray.init(log_to_driver=False, logging_level="error", include_dashboard=False, **options)
            return
        except Exception as error:
            ray.shutdown()
            if left == 0 or "timed out during startup" not in str(error):
                raise


def run(source, model, job: Job, table: pd.DataFrame, store: Store, workers: int, show: bool) -> None:
    """Collect all blocks that aren't done with `workers` actors; one that dies is replaced.

    Raises
    ------
    ImportError  if Ray isn't installed.
    RuntimeError  if workers died `ATTEMPTS` times over one block. Errors that a worker raises are raised
    here.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: `uv sync --extra ray`, or pip install ray") from error
    began_here = not ray.is_initialized()
    if began_here:
        begin()
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    actor = ray.remote(num_gpus=gpus)(Worker)
    if Path(source).is_dir():
        source = str(Path(source).resolve())  # a worker may start in another folder
    where, dtype = str(store.where.resolve()), str(model.dtype).removeprefix("torch.")
    start = lambda: actor.remote(source, dtype, model.hash, where, job, None if gpus else model.device.type)
    todo = store.todo()[::-1]
    tried, busy = dict.fromkeys(todo, 0), {}

    def give(worker) -> None:
        if todo:
            block = todo.pop()
            tried[block] += 1
            busy[worker.process.remote(block, table.iloc[store.rows(block)])] = worker, block

    try:
        with store.bar(show) as bar:
            for _ in range(min(workers, len(todo))):
                give(start())
            while busy:
                (done, *_), _ = ray.wait(list(busy), num_returns=1)
                worker, block = busy.pop(done)
                try:
                    bar.update(ray.get(done))
                except ray.exceptions.RayActorError as error:
                    if error.actor_init_failed:  # it can't load the model; another couldn't either
                        raise
                    if tried[block] == ATTEMPTS:
                        died = f"workers died {ATTEMPTS} times over block {block}; the rest is kept"
                        raise RuntimeError(died) from error
                    todo.append(block)
                    worker = start()
                give(worker)
    finally:
        for worker, _ in busy.values():
            ray.kill(worker)
        if began_here:
            ray.shutdown()
