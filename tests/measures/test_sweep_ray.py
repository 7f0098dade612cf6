"""A sweep over Ray's actors: the table of one process; bad input in a sentence."""

import functools
import sys

import numpy as np
import pandas as pd
import pytest

import mechsteer as ms
from mechsteer import _ray
from mechsteer.activations import _job

pytestmark = pytest.mark.xdist_group("ray")


def sweep(model, **options) -> pd.DataFrame:
    """Two strengths of two clips of 3 s, a cell a batch; the clips take two directions in turn."""
    vectors = np.random.default_rng(0).normal(size=(2, model.d_model))
    steerings = {"two directions": [ms.Steering(v, layers=[1], norm=5.0) for v in vectors]}
    options = {"duration": 3.0, "batch_size": 2, "progress": False} | options
    return ms.dose_response(model, steerings, ["jazz piano", None], [0.5, 1.0], 2, 5, **options)


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
    assert names[0] == names[1] and len(names[0]) == 3
    (tmp_path / "spread" / names[0][0]).unlink()
    exactly(sweep(tiny, out=tmp_path / "spread")["nll"].to_frame(), alone["nll"].to_frame())


def test_what_a_worker_raises_comes_as_it_was(cluster):
    class Light:
        """A worker that holds no model and refuses a piece; of one that is killed: tests/activations."""

        def __init__(self, wrong: str, gpu: bool):
            self.wrong = wrong

        def process(self, key, piece):
            if piece == self.wrong:
                raise ValueError(f"{key} is no piece for this worker")
            return key, piece

    pieces, done = {k: k * k for k in range(4)} | {7: "wrong"}, {}
    with pytest.raises(ValueError, match="^7 is no piece for this worker$"):
        for key, piece in _ray.over_actors(Light, ("wrong",), pieces, 1):
            done[key] = piece
    assert done == {k: k * k for k in range(4)}


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
