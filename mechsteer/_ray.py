"""Spread pieces of work over Ray: actors that each hold something costly, such as a model, for many pieces.

`ray.init()` finds the cluster that `RAY_ADDRESS` names, else starts one on this machine.
"""

from collections.abc import Iterator, Mapping


def over_actors(worker: type, options: tuple, pieces: Mapping, workers: int) -> Iterator:
    """Yield what `worker(*options, gpu).process(key, piece)` returns for each {key: piece}, as they get done.

    `workers` actors make a `worker` (a class) each, with a GPU where the cluster has any (`gpu` says so);
    one that dies is replaced, and its piece done again. ImportError if Ray isn't installed. What a worker
    raises while it processes is raised here as it was, and Ray's RayActorError if three died over one piece.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: `uv sync --extra ray`, or pip install ray") from error
    if began_here := not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    actors = []
    try:
        gpu = ray.cluster_resources().get("GPU", 0) > 0
        actor = ray.remote(num_gpus=int(gpu), max_restarts=-1, max_task_retries=2)(worker)
        actors += [actor.remote(*options, gpu) for _ in range(min(workers, len(pieces)))]
        give = lambda actor, key: actor.process.remote(key, pieces[key])
        yield from ActorPool(actors).map_unordered(give, list(pieces))
    except ray.exceptions.RayTaskError as error:  # which would say it amid two tracebacks
        raise error.cause from error
    finally:
        for actor in actors:
            ray.kill(actor)
        if began_here:
            ray.shutdown()
