"""What a method brings against what it costs: success over what was lost, as a curve and as one number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._shared import number, spelled
from .describe import success
from .dose import UNSTEERED, kept_axes
from .intervals import TAIL


@dataclasses.dataclass(frozen=True, eq=False)
class Tradeoff:
    """What `tradeoff` found; Jupyter shows the table.

    Attributes
    ----------
    table : one row per name: `gain` (success beyond the unsteered clips', as a share of clips, averaged over
        losses from 0 to `upto`), its 95 % interval `lo`, `hi`, and the number of clips `n`
    curve : one row per name and strength, in sweep order from the unsteered clips on: `lost`, `success`
    upto : the loss to which gains are averaged, the largest that all names reach
    """

    table: pd.DataFrame
    curve: pd.DataFrame
    upto: float

    def _repr_html_(self) -> str:
        return self.table.round(2).to_html(index=False)

    def figure(self, title: str = "", controls: Sequence[str] = ("random", "shuffled labels")) -> Any:
        """Success over loss, a line a name, as a Plotly figure; names in `controls` are grey."""
        from ..show.plots import tradeoff_curves  # an arrow that runs forward: a result shows itself

        return tradeoff_curves(self.curve, self.upto, controls, title)


@spelled
def tradeoff(
    frame: pd.DataFrame,
    concept: Mapping[str, Any],
    ear: str | None = None,
    lost: str = "kept",
    upto: float | None = None,
    n: int = 1000,
    seed: int = 0,
) -> Tradeoff:
    """Integrate success over what was lost, for every name of a sweep.

    Parameters
    ----------
    frame : from one `dose_response`, the unsteered clips included
    concept, ear : as in `success`
    lost : what counts as lost: "kept", 1 - the mean of the four axes of `dose.kept_axes`; one of them, such
        as "kept_harmony"; or another column (or a column of your own), whose rise over its unsteered mean is
        the loss ("nll_unprompted").
    upto : the loss up to which to integrate; default the largest that every name reaches
    n, seed : bootstrap resamples of clips, drawn once for all names, since they share seeds

    Returns a `Tradeoff`. A curve begins at the unsteered clips (loss 0) and goes through the strengths in
    order of size; its last segment is cut where it first reaches `upto`, and a resample that doesn't reach
    it stays at its last success. A step back to a smaller loss counts negative, as an integral does. The area
    is divided by `upto`: 1 means that all clips turned before anything was lost, 0 that no more are what was
    asked for than unsteered. Raises ValueError for a frame without unsteered clips, strengths of both signs
    under one name, or a column that isn't there.

    Source: TADA, arXiv 2602.11910, its trade-off of alignment and preservation; the axes are its, too.
    """
    n = number("n", n, 1, whole=True)
    if not len(plain := frame[frame["name"] == UNSTEERED]):
        raise ValueError("the frame holds no unsteered clips: give what `dose_response` returns")
    loss = _lost(frame, plain, lost)
    values = pd.DataFrame({"hit": success(frame, concept, ear).astype(float), "lost": loss})
    values = values.join(frame[["name", "strength", "clip"]])
    clips = np.sort(plain["clip"].unique())
    weights = np.random.default_rng(seed).multinomial(len(clips), np.full(len(clips), 1 / len(clips)), n)
    weights = np.vstack([np.ones(len(clips)), weights])  # the first row is the sample itself
    start, curves = _cell(values[values["name"] == UNSTEERED], clips, weights), {}
    start = start * [[1], [0]]  # the loss of the unsteered clips is 0 by definition
    for name, rows in values[values["name"] != UNSTEERED].groupby("name", sort=False):
        strengths = sorted(rows["strength"].unique(), key=abs)
        if min(strengths) < 0 < max(strengths):
            raise ValueError(f"{name!r} has strengths of both signs: give one direction at a time")
        cells = [_cell(rows[rows["strength"] == s], clips, weights) for s in strengths]
        curves[name] = ([0.0, *strengths], np.stack([start, *cells]))  # strength, (hit, lost), draw
    if not curves:
        raise ValueError("the frame holds unsteered clips only")
    reached = min(found[:, 1, 0].max() for _, found in curves.values())
    upto = reached if upto is None else number("upto", upto)
    if not 0 < upto <= reached + 1e-9:
        raise ValueError(f"upto={upto:g}: all names reach a loss of {reached:g}, so give up to that")
    table, points = [], []
    for name, (strengths, found) in curves.items():
        areas = np.array([_area(*found[..., draw].T, upto) for draw in range(n + 1)])
        lo, hi = np.nanquantile(areas[1:], [1 - TAIL, TAIL])
        table.append({"name": name, "gain": areas[0], "lo": lo, "hi": hi, "n": len(clips)})
        ends = np.nanquantile(found[..., 1:], [1 - TAIL, TAIL], axis=-1)  # end, strength, (hit, lost)
        curve = {"name": name, "strength": strengths}
        for k, what in enumerate(("success", "lost")):
            curve |= {what: found[:, k, 0], f"{what}_lo": ends[0, :, k], f"{what}_hi": ends[1, :, k]}
        points.append(pd.DataFrame(curve))
    return Tradeoff(pd.DataFrame(table), pd.concat(points, ignore_index=True), float(upto))


def _lost(frame, plain, lost):
    """What each clip lost, missing where an axis can't be told."""
    axes = kept_axes(frame) if lost == "kept" or lost.startswith("kept_") else {}
    if lost == "kept":
        return 1 - axes.mean(axis=1)
    if lost in axes:
        return 1 - axes[lost]
    if lost not in frame:
        raise ValueError(f"no column {lost!r}; lost is 'kept', an axis such as 'kept_harmony', or a column")
    return frame[lost] - plain[lost].mean()


def _cell(rows, clips, weights):
    """Means of hit and loss of one cell in every draw, (2, draw); missing values are left out."""
    x = rows.set_index("clip").reindex(clips)[["hit", "lost"]].to_numpy(float)
    there = np.isfinite(x)
    total = weights @ there
    return np.where(total > 0, weights @ np.where(there, x, 0) / np.maximum(total, 1), np.nan).T


def _area(hit, lost, upto):
    """The integral of gained success over loss, along a curve to where it first reaches `upto`, by `upto`."""
    hit = hit - hit[0]
    beyond = np.flatnonzero(lost >= upto)
    last = beyond[0] if len(beyond) else len(lost) - 1
    hit, lost = hit[: last + 1], lost[: last + 1].copy()
    if len(beyond) and lost[-1] > lost[-2]:
        share = (upto - lost[-2]) / (lost[-1] - lost[-2])
        hit[-1], lost[-1] = hit[-2] + share * (hit[-1] - hit[-2]), upto
    else:
        hit, lost = np.append(hit, hit[-1]), np.append(lost, upto)
    return float(np.trapezoid(hit, lost) / upto)
