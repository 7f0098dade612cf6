"""Ray's actors: the store and the table of one process, though one is killed; bad input in a sentence."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import mechsteer as ms
from mechsteer import _ray
from mechsteer.activations import _job


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for two workers, again where a busy machine doesn't get it up in the time it allows."""
    import ray

    options = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    for last in (*[False] * 5, True):
        try:
            ray.init(num_cpus=2, num_gpus=0, **options)
            break
        except Exception as error:
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise
    yield
    ray.shutdown()


def sweep(model, **options) -> pd.DataFrame:
    """Two clips, which take two directions in turn, and their twins: a batch each. Nobody listens."""
    vectors = np.random.default_rng(0).normal(size=(2, model.d_model))
    steerings = {"two directions": [ms.Steering(v, layers=[1], norm=5.0) for v in vectors]}
    options = {"duration": 3.0, "ears": [], "batch_size": 2, "progress": False} | options
    return ms.dose_response(model, steerings, ["jazz piano", None], [1.0], 2, 5, **options)


def test_a_worker_writes_what_this_process_writes_though_it_is_killed(tiny, cluster, tmp_path, monkeypatch):
    model = tiny  # no text encoder of transformers, slow to import
    monkeypatch.setattr(_job, "BLOCK", 2)
    table = pd.DataFrame({"clip": [f"c{i}" for i in range(16)], "group": [f"g{i // 2}" for i in range(16)]})
    rng, sizes = np.random.default_rng(0), [(model.n_codebooks, 2 + i % 5) for i in range(16)]
    table["codes"] = [rng.integers(0, model.lm.card, size).astype(np.uint16) for size in sizes]
    table["duration"] = [frames / model.frame_rate for _, frames in sizes]
    victim = tmp_path / "victim"

    class Mortal(_job.Worker):
        """Killed in its second block, having written nothing of it; another takes its place."""

        blocks = 0

        def process(self, block, rows):
            self.blocks += 1
            if self.blocks == 2:
                try:
                    victim.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return super().process(block, rows)

    monkeypatch.setattr("mechsteer.activations.collect.Worker", Mortal)
    spread = ms.collect(model, table, out=tmp_path / "ray", engine="ray", workers=1, progress=False).load()
    assert victim.exists()
    alone = ms.collect(model, table, out=tmp_path / "alone", progress=False).load()
    xr.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)


def test_a_worker_gives_the_table_of_this_process_in_whatever_order_its_cells_come(
    tiny, cluster, tmp_path, monkeypatch
):
    alone, real = sweep(tiny, out=tmp_path / "alone"), _ray.over_actors
    monkeypatch.setattr(_ray, "over_actors", lambda *given: reversed(list(real(*given))))
    spread = sweep(tiny, out=tmp_path / "spread", engine="ray", workers=1)
    exactly = functools.partial(pd.testing.assert_frame_equal, check_exact=True)
    exactly(spread.drop(columns="texture"), alone.drop(columns="texture"))
    np.testing.assert_array_equal(np.stack(spread["texture"]), np.stack(alone["texture"]))
    assert all(texture.flags.writeable for texture in spread["texture"]), "nothing lies in Ray's memory"
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("alone", "spread")]
    assert names[0] == names[1] and len(names[0]) == 2, "what one has made serves the other"


def test_two_work_at_once_and_what_one_raises_comes_as_it_was(cluster, tmp_path):
    class Light:
        """Holds no model, waits for the other worker, and refuses a piece."""

        def __init__(self, wrong: str, folder: Path, gpu: bool):
            self.wrong, self.folder = wrong, folder

        def process(self, key, piece):
            (self.folder / str(os.getpid())).touch()
            while len(list(self.folder.iterdir())) < 2:
                time.sleep(0.02)
            if piece == self.wrong:
                raise ValueError(f"{key} is no piece for this worker")
            return key, piece

    pieces, done = {k: k * k for k in range(4)} | {7: "wrong"}, {}
    with pytest.raises(ValueError, match="^7 is no piece for this worker$"):
        for key, piece in _ray.over_actors(Light, ("wrong", tmp_path), pieces, 2):
            done[key] = piece
    assert len(done) >= 3 and done.items() <= pieces.items(), "the last is given when three have come"


def test_a_model_that_a_worker_cant_load_again_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "hash", "another")
    with pytest.raises(ValueError, match="^tiny is .* on this worker and another where the call was made$"):
        _job.again(tiny)(gpu=False)  # as a worker does
    monkeypatch.setattr(tiny.musicgen, "name", "made by hand")
    with pytest.raises(FileNotFoundError, match="^no model 'made by hand'"):
        _job.again(tiny)(gpu=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"engine": "spark"}, "engine='spark': choose 'local', or 'ray'", id="engine"),
        pytest.param({"engine": "ray", "workers": 0}, "workers=0 isn't a whole number", id="workers"),
    ],
)
def test_unknown_engines_and_too_few_workers_are_refused(tiny, options, says):
    with pytest.raises(ValueError, match=says):
        sweep(tiny, **options)


def test_without_ray_it_is_said_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="engine='ray' needs Ray: `uv sync --extra ray`"):
        sweep(tiny, engine="ray")
