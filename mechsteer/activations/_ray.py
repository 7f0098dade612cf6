"""Run a collection over Ray: actors with a model each take blocks of clips and write them into one store.

`ray.init()` finds the cluster that `RAY_ADDRESS` names, else starts one on this machine. All workers must see
the store under the same path, and the model under the same name.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..model.model import Model, load
from ._job import Job
from ._store import Store

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


def begin(**options) -> None:
    """`ray.init`, again where a busy machine doesn't get Ray's processes up in the 30 s they are given."""
    import ray

    for last in (False, False, False, True):
        try:
            ray.init(log_to_driver=False, logging_level="error", include_dashboard=False, **options)
            return
        except Exception as error:
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise


def run(model: Model, job: Job, table: pd.DataFrame, store: Store, workers: int, show: bool) -> None:
    """Collect all blocks that aren't done with `workers` actors; Ray replaces one that dies.

    Raises
    ------
    ImportError  if Ray isn't installed.
    RuntimeError  if workers died `ATTEMPTS` times over one block. What a worker raises is raised here.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: `uv sync --extra ray`, or pip install ray") from error
    if began_here := not ray.is_initialized():
        begin()
    gpus, source = int(ray.cluster_resources().get("GPU", 0) > 0), model.musicgen.name
    if Path(source).is_dir():
        source = str(Path(source).resolve())  # a worker may start in another folder
    where, dtype = str(store.where.resolve()), str(model.dtype).removeprefix("torch.")
    options = (source, dtype, model.hash, where, job, None if gpus else model.device.type)
    actor = ray.remote(num_gpus=gpus, max_restarts=-1, max_task_retries=ATTEMPTS - 1)(Worker)
    todo, actors = store.todo(), []
    give = lambda worker, block: worker.process.remote(block, table.iloc[store.rows(block)])
    try:
        actors += [actor.remote(*options) for _ in range(min(workers, len(todo)))]
        with store.bar(show) as bar:
            for n_clips in ActorPool(actors).map_unordered(give, todo):
                bar.update(n_clips)
    except ray.exceptions.RayActorError as error:
        if error.actor_init_failed:  # it can't load the model; another couldn't either
            raise
        raise RuntimeError(f"workers died {ATTEMPTS} times over one block; the rest is kept") from error
    finally:
        for worker in actors:
            ray.kill(worker)
        if began_here:
            ray.shutdown()
