"""Linear probes: where is a concept readable, and along which direction?

Every method has one signature, `(x, y) -> direction`: `logistic`, `mse`, `diff_of_means`, and
`random_direction` as a control. `find_directions` applies them to every layer (and head) of a Dataset of
activations; `accuracy_by_layer` scores them on folds that never share a group, beside chance, shuffled labels
and a probe on the model's input.

A direction is unit, points towards the concept, and lives in activation space: score = slope * (x .
direction) + bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from ._labels import Target, batches, encode, frames_of, read_groups, read_target, site_array, states
from ._solvers import ALPHAS, Fit
from .scores import METHODS, accuracy_by_layer, auc, check_methods, r2

__all__ = [
    "METHODS",
    "accuracy_by_layer",
    "apply_direction",
    "diff_of_means",
    "find_directions",
    "fit_direction",
    "logistic",
    "mse",
    "random_direction",
]


def fit_direction(
    x,
    y,
    method: str = "logistic",
    groups=None,
    kind: str = "auto",
    alphas: Sequence[float] = ALPHAS,
    folds: int = 3,
    standardize: str = "feature",
    seed: int = 0,
) -> xr.DataArray:
    """Find one direction per concept of y in x.

    Parameters
    ----------
    x : float [n, d_model]
        Activations, one row per clip or frame.
    y : [n]
        Classes (one direction each, against the rest), true/false, or numbers; rows with None or NaN are
        dropped.
    method : "logistic", "mse", "diff_of_means" or "random"
    groups : [n], optional
        Rows of one group stay together while the penalty is chosen; by default every row is its own group.
    kind : "auto", "class", "flag" or "value"
        See `targets.encode`.
    alphas, folds, standardize, seed
        Penalties tried, inner folds to choose one, "feature" or "layer" scaling (`solvers.prepare`), seed of
        the folds.

    Returns
    -------
    xr.DataArray, dims (concept, d_model), unit, pointing towards the concept (or larger values). Coords on concept:
    `slope` and `bias` (score = slope * x . direction + bias: log odds for logistic, -1 to +1 for mse and
    diff_of_means, the label's unit for values), `alpha`, and `score`, the held-out AUC (R2 for values) over the inner
    folds. The probe is undecided where x . direction = -bias / slope.

    Raises
    ------
    ValueError  for rows that don't match, non-finite or constant activations, one class only, fewer groups than folds.
    """
    x, groups = np.asarray(x), np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 2 or len(x) != len(y) or len(groups) != len(x):
        raise ValueError(
            f"x must be [row, feature] with as many labels and groups: {x.shape}, {len(y)}, {len(groups)}"
        )
    target = encode(y, "y", kind)
    check_methods([method], [target])
    (batch,) = batches([target], pd.factorize(groups)[0])
    fits = batch.fit(x, slice(None), [method], folds, alphas, standardize, seed)
    return _assemble(fits, target, batch.y, "d_model").isel(finder=0)


def logistic(x, y, groups=None, **options) -> xr.DataArray:
    """One-vs-rest logistic regression with an L2 penalty; see `fit_direction`."""
    return fit_direction(x, y, "logistic", groups, **options)


def mse(x, y, groups=None, **options) -> xr.DataArray:
    """Ridge regression on -1/+1 (on the value itself for numbers); see `fit_direction`."""
    return fit_direction(x, y, "mse", groups, **options)


def diff_of_means(x, y, groups=None, **options) -> xr.DataArray:
    """Mean of the concept minus mean of the rest (covariance with y for numbers); see `fit_direction`."""
    return fit_direction(x, y, "diff_of_means", groups, **options)


def random_direction(x, y, groups=None, **options) -> xr.DataArray:
    """A control: random, turned to the concept and thresholded like a difference of means; see `fit_direction`."""
    return fit_direction(x, y, "random", groups, **options)


def find_directions(
    acts: xr.Dataset,
    label: str,
    methods: Sequence[str] = METHODS,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    group: str | None = "group",
    kind: str = "auto",
    alphas: Sequence[float] = ALPHAS,
    folds: int = 3,
    standardize: str = "feature",
    max_rows: int = 20_000,
    seed: int = 0,
) -> xr.DataArray:
    """Find the directions of a label's concepts at every layer, by every method, from all clips.

    Parameters
    ----------
    acts : xr.Dataset
        `site` with dims (clip, layer, d_model), or with frame before d_model, or (clip, layer, head, d_head).
    label : str
        A label on clip, (clip, frame) or (clip, frame, name). Rows without it are dropped.
    methods : of "logistic", "mse", "diff_of_means", "random"
        logistic is left out for numbers.
    group : str or None
        Coordinate whose clips stay together while the penalty is chosen; None makes each clip its own group.
    max_rows : int
        Frames are thinned to this many (drawn with `seed`).

    Returns
    -------
    xr.DataArray, dims (concept, finder, layer, d_model) or (concept, finder, layer, head, d_head); coords as in
    `fit_direction`, and `norm` on layer (and head): the mean L2 norm of the activations, the unit of steering
    strengths. Attrs: site, model, model_hash, label, kind, data, pool, prompt, seed. Steering takes one concept and
    one method: `.sel(concept="guitar", finder="mse")`. (The dimension is called finder because xarray keeps
    `.sel(method=...)` to itself.)

    Raises
    ------
    ValueError  as `fit_direction`, and for an absent site, layer or label, naming those present.

    Taught in 03_compare_directions.
    """
    target, groups = read_target(acts, label, kind), read_groups(acts, group)
    methods, feature, batch, found = (
        check_methods(methods, [target]),
        site_array(acts, site).dims[-1],
        None,
        {},
    )
    for where, x in states(acts, site, layers):
        if batch is None:
            (batch,) = batches(
                [target], groups, frames=frames_of(acts, site), x=x, max_rows=max_rows, seed=seed
            )
        fits = batch.fit(x, slice(None), methods, folds, alphas, standardize, seed)
        part = _assemble(fits, target, batch.y, feature)
        found[tuple(where.values())] = part.assign_coords(norm=_norm(acts, site, where, x))
    index = pd.MultiIndex.from_tuples(found, names=list(where))
    out = xr.concat(list(found.values()), dim="where", coords="all", compat="override", join="exact")
    out = out.assign_coords(xr.Coordinates.from_pandas_multiindex(index, "where")).unstack("where")
    out = out.transpose("concept", "finder", *where, feature)
    kept = {k: acts.attrs[k] for k in ("model", "model_hash", "data", "pool", "prompt") if k in acts.attrs}
    known = int((~np.isnan(target.y.reshape(len(target.y), -1)).all(1)).sum())
    said = kept.pop("data", f"{known} clips")
    out.attrs = {
        **kept,
        "data": said if said.startswith(f"{known} clips") else f"{known} of {said}",
        "site": site,
        "label": label,
        "kind": target.kind,
        "seed": seed,
    }
    return out


def apply_direction(direction: xr.DataArray, acts: xr.Dataset) -> xr.DataArray:
    """Score clips (or frames) with directions: slope * (activation . direction) + bias; above 0 is yes.

    Parameters
    ----------
    direction : xr.DataArray
        Dims ([concept, finder, layer, head,] d_model) of what `find_directions` or `load_direction` gives.
    acts : xr.Dataset
        Activations at the same site, dims (clip, [frame,] layer, [head,] d_model); a selection will do.

    Returns
    -------
    xr.DataArray, the dims of both without d_model. Log odds for logistic, -1 to +1 for mse and diff_of_means on
    classes, the label's unit for values.

    Raises
    ------
    ValueError  if the direction has no slope and bias (a sum of directions has none), or `acts` lacks its site.
    """
    site = direction.attrs.get("site")
    if site is None or not {"slope", "bias"} <= set(direction.coords):
        raise ValueError(
            "this direction has no site, slope and bias to read with; find_directions gives one that has"
        )
    if site not in acts:
        raise ValueError(
            f"the direction reads site {site!r}, and these activations hold {', '.join(acts.data_vars)}"
        )
    return direction["slope"] * xr.dot(acts[site], direction, dim=direction.dims[-1]) + direction["bias"]


def _assemble(fits: dict[str, Fit], target: Target, y: np.ndarray, feature: str) -> xr.DataArray:
    """Unit directions (concept, finder, feature) with slope, bias, alpha and held-out score from one layer's fits."""
    w = np.stack([fit.w.T for fit in fits.values()], axis=1)  # concept, finder, feature
    slope = np.linalg.norm(w, axis=-1)
    score = np.stack(
        [(r2 if target.kind == "value" else auc)(fit.held_out, y) for fit in fits.values()], axis=1
    )
    per_probe = {"slope": slope, "score": score}
    per_probe |= {
        name: np.stack([getattr(fit, name) for fit in fits.values()], axis=1) for name in ("b", "alpha")
    }
    per_probe["bias"] = per_probe.pop("b")
    return xr.DataArray(
        (w / slope[..., None]).astype(np.float32),
        dims=("concept", "finder", feature),
        coords={"concept": list(target.concepts), "finder": list(fits)}
        | {name: (("concept", "finder"), values) for name, values in per_probe.items()},
    )


def _norm(acts: xr.Dataset, site: str, where: dict[str, int], x: np.ndarray) -> float:
    """Mean L2 norm of the activations: the Dataset's own `<site>_norm` (over positions, before pooling), else of x."""
    if f"{site}_norm" in acts.variables:
        return float(acts[f"{site}_norm"].sel(where))
    return float(np.nanmean(np.linalg.norm(x, axis=1)))
