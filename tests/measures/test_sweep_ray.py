"""A sweep over Ray's actors: the table of one process, though one is killed; bad input in a sentence."""

import functools
import os
import signal
import sys

import numpy as np
import pandas as pd
import pytest

import mechsteer as ms
from mechsteer import _ray
from mechsteer.activations import _job
from mechsteer.measures import _sweep

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def tiny():
    return ms.load("tiny", device="cpu", dtype="float32")


def sweep(model, **options) -> pd.DataFrame:
    """Two strengths of two clips of 3 s, a cell a batch; the clips take two directions in turn."""
    vectors = np.random.default_rng(0).normal(size=(2, model.d_model))
    steerings = {"two directions": [ms.Steering(v, layers=[1], norm=5.0) for v in vectors]}
    options = {"duration": 3.0, "batch_size": 2, "progress": False} | options
    return ms.dose_response(model, steerings, ["jazz piano", None], [0.5, 1.0], 2, 5, **options)


def test_two_workers_give_the_table_of_one_process_though_one_is_killed(tiny, cluster, tmp_path, monkeypatch):
    victim = tmp_path / "victim"

    class Mortal(_sweep.Worker):
        """The first worker that has made a steered piece is killed before it hands it over."""

        def process(self, at, cells):
            found = super().process(at, cells)
            if at:
                try:
                    victim.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return found

    alone, over_actors = sweep(tiny, out=tmp_path / "alone"), _ray.over_actors
    monkeypatch.setattr(_ray, "over_actors", lambda worker, *given: over_actors(Mortal, *given))
    spread = sweep(tiny, out=tmp_path / "spread", engine="ray", workers=2)
    assert victim.exists()
    exactly = functools.partial(pd.testing.assert_frame_equal, check_exact=True)
    exactly(spread.drop(columns="texture"), alone.drop(columns="texture"))
    np.testing.assert_array_equal(np.stack(spread["texture"]), np.stack(alone["texture"]))
    assert all(texture.flags.writeable for texture in spread["texture"]), "nothing lies in Ray's memory"
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("alone", "spread")]
    assert names[0] == names[1] and len(names[0]) == 3
    (tmp_path / "spread" / names[0][0]).unlink()
    exactly(sweep(tiny, out=tmp_path / "spread")["nll"].to_frame(), alone["nll"].to_frame())


def test_a_model_that_a_worker_cant_load_again_is_one_sentence(tiny, cluster, monkeypatch):
    monkeypatch.setattr(tiny, "hash", "another")
    with pytest.raises(ValueError, match="^tiny is .* on this worker and another where the call was made$"):
        sweep(tiny, engine="ray", workers=1)
    monkeypatch.setattr(tiny.musicgen, "name", "made by hand")
    with pytest.raises(FileNotFoundError, match="^no model 'made by hand'"):
        _job.again(tiny)(gpu=False)  # as a worker does


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
