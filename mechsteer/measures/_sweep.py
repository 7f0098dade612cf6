"""A sweep as a value: what each cell generates and how it is measured, in this process or by Ray's actors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _ray

if TYPE_CHECKING:
    from ..model.generation import Generation
    from ..model.model import Model

Cell = tuple[str, float, tuple]
"""A name, a strength, and the steerings that its clips take in turn; (None,) where nothing is steered."""
PLAIN: Cell = ("unsteered", 0.0, (None,))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the cells of a sweep have in common; the same runs in this process and on other machines.

    Attributes
    ----------
    rows : what `Model.generate` takes one each of, for the clips of one cell
    settings : its other options
    n : clips per cell
    measure : (model, clips of a cell, their unsteered twins, name=, strength=) -> one row per clip
    """

    rows: dict[str, Any]
    settings: dict[str, Any]
    n: int
    measure: Callable[..., pd.DataFrame]

    def made(self, model: Model, cells: Sequence[Cell]) -> Generation:
        """The clips of some cells, in their order, from one call."""
        every = {key: [x for _ in cells for x in values] for key, values in self.rows.items()}
        if "audio_prompt" in every:
            every["audio_prompt"] = np.stack(every["audio_prompt"])
        each = [steerings[i % len(steerings)] for _, _, steerings in cells for i in range(self.n)]
        return model.generate(steering=each, progress=False, **every, **self.settings)

    def run(self, model: Model, pieces: Mapping[int, Sequence[Cell]], engine: str, workers: int) -> Iterator:
        """Yield (number of a piece, the tables of its cells) as they get done."""
        if engine == "local":
            worker = Worker(lambda gpu: model, self, False)
            yield from (worker.process(*piece) for piece in pieces.items())
        elif pieces:
            from ..activations._job import again  # and with it torch

            for at, frames in _ray.over_actors(Worker, (again(model), self), pieces, workers):
                yield at, list(map(_owned, frames))


class Worker:
    """A sweep, a model of its own and the unsteered clips, for many pieces; see `_ray.over_actors`."""

    def __init__(self, load_model: Callable[[bool], Model], sweep: Sweep, gpu: bool):
        self.load_model, self.sweep, self.gpu = load_model, sweep, gpu

    @functools.cached_property
    def model(self) -> Model:
        return self.load_model(self.gpu)

    @functools.cached_property
    def twins(self) -> Generation:
        return self.sweep.made(self.model, [PLAIN])

    def process(self, at: int, cells: Sequence[Cell]) -> tuple[int, list[pd.DataFrame]]:
        n, twins, measure = self.sweep.n, self.twins, self.sweep.measure
        made = twins if cells[0][2] == PLAIN[2] else self.sweep.made(self.model, cells)
        parts = [made[i * n : (i + 1) * n] for i in range(len(cells))]
        each = zip(cells, parts, strict=True)
        return at, [measure(self.model, part, twins, name=cell[0], strength=cell[1]) for cell, part in each]


def _owned(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose numbers don't lie in Ray's shared memory, which goes when Ray does."""
    own = lambda column: [x.copy() if isinstance(x, np.ndarray) else x for x in column]
    objects = [name for name in frame if pd.api.types.is_object_dtype(frame[name])]
    return frame.copy().assign(**{name: pd.Series(own(frame[name]), frame.index, object) for name in objects})
