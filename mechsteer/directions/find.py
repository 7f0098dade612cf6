"""Linear probes: along which direction is a concept readable?

`find_directions` fits every layer (and head) of a Dataset of activations; `fit_direction`, `logistic` and
`mse` fit plain arrays. A direction is unit, points to the concept and lives in activation space. Taught in
04_compare_directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..model._vectors import as_direction
from ._labels import fits_by_layer
from ._solvers import Fitting, takes_fitting
from .scores import PROBES, auc, r2


@takes_fitting
def fit_direction(x, y, method: str = "logistic", groups=None, kind: str = "auto", **fitting) -> xr.DataArray:
    """Find one direction per concept of y in x.

    Parameters
    ----------
    x : float [n, d_model], activations, one row per clip or frame
    y : [n], classes (one direction each, against the rest), true/false or numbers; None, NaN drop their rows
    method : "logistic" (one-vs-rest, L2 penalty), "mse" (ridge regression on -1/+1, or on the value itself),
        "diff_of_means" (of the concept minus the rest; for numbers the covariance with y), or "random" (a
        control: random, then turned and thresholded to fit y)
    groups : [n], rows of one group stay together while the penalty is chosen; default: each its own group
    kind : "auto", "class", "flag" or "value"
        Strings are classes, booleans and 0/1 flags, floats values, integers classes if at most 24 differ.
    fitting : alphas, folds, standardize, seed, see `find_directions`

    Returns
    -------
    xr.DataArray, dims (concept, d_model), of which `find_directions` has one per method and layer. Raises
    ValueError and TypeError as that does, and ValueError for rows that don't match.
    """
    x, groups = np.asarray(x), np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 2 or not len(x) == len(y) == len(groups):
        given = f"{x.shape}, {len(y)}, {len(groups)}"
        raise ValueError(f"x must be [row, feature] with as many labels and groups: {given}")
    coords = {"layer": [0], "y": ("clip", np.asarray(y)), "group": ("clip", groups)}
    acts = xr.Dataset({"resid": (("clip", "layer", "d_model"), x[:, None])}, coords)
    found = find_directions(acts, "y", [method], kind=kind, **fitting)
    return found.isel(finder=0, layer=0).drop_vars("layer").drop_attrs()


def logistic(x, y, groups=None, **options) -> xr.DataArray:
    """One-vs-rest logistic regression with an L2 penalty; see `fit_direction`."""
    return fit_direction(x, y, "logistic", groups, **options)


def mse(x, y, groups=None, **options) -> xr.DataArray:
    """Ridge regression on -1/+1 (on the value itself for numbers); see `fit_direction`."""
    return fit_direction(x, y, "mse", groups, **options)


@takes_fitting
def find_directions(
    acts: xr.Dataset,
    label: str,
    methods: Sequence[str] = PROBES,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    group: str | None = "group",
    kind: str = "auto",
    **fitting,
) -> xr.DataArray:
    """Find the directions of a label's concepts at every layer, by every method, from all clips.

    Parameters
    ----------
    acts : xr.Dataset, at `site` (clip, layer, [frame,] d_model) or (clip, layer, [frame,] head, d_head)
    label : str, on clip, (clip, frame) or (clip, frame, name); rows without it are dropped
    methods : of "logistic" (left out for numbers), "mse", "diff_of_means", "random"
    group : coordinate whose clips stay together while the penalty is chosen; None: each clip its own group
    kind : see `fit_direction`
    fitting : alphas, penalties to choose from, in units of the mean loss per row on unit-variance features
        (10 to 0.0001); folds, inner folds that choose (3); standardize, "feature" for unit variance of each,
        or "layer" for one scale, so that rotating activations rotates directions; max_rows, to which frames
        are thinned (20,000); seed, of folds, thinning and random directions (0)

    Returns
    -------
    xr.DataArray, dims (concept, finder, layer, d_model) or (concept, finder, layer, head, d_head), unit,
    pointing towards the concept (or larger values). Steering takes one of each: `.sel(concept="guitar",
    finder="mse")` (finder, because xarray keeps `.sel(method=...)` to itself). Coords: `slope` and `bias`
    (score = slope * x . direction + bias: log odds for logistic, -1 to +1 for mse and diff_of_means, the
    label's unit for values; undecided where x . direction = -bias / slope), `alpha`, `score` (the held-out
    AUC, or R2 for values, over the inner folds), and `norm` on layer (and head): the mean L2 norm of the
    activations (`<site>_norm` of `acts`, if there), the unit of steering strengths. Attrs: site, model,
    model_hash, label, kind, data, pool, prompt, seed.

    Raises
    ------
    ValueError  for an absent site, layer or label, naming those present; for non-finite or constant
    activations, one class only, fewer groups than folds. TypeError  for an unknown keyword.
    """
    fitting, found, norms = Fitting(**fitting), [], []
    for where, x, batch, fits in fits_by_layer(acts, label, kind, group, methods, site, layers, fitting):
        w, b, alpha = (np.stack([getattr(f, a).T for f in fits.values()], 1) for a in ("w", "b", "alpha"))
        slope, score = np.linalg.norm(w, axis=-1), r2 if batch.values else auc
        held_out = np.stack([score(fit.held_out, batch.y) for fit in fits.values()], axis=1)
        found.append((w / slope[..., None], slope, b, alpha, held_out))
        own = acts.get(f"{site}_norm")  # from before pooling
        norms.append(float(np.nanmean(np.linalg.norm(x, axis=1)) if own is None else own.sel(where)))
    here = acts[site] if layers is None else acts[site].sel(layer=np.atleast_1d(layers))
    places = {dim: here[dim].values.tolist() for dim in ("layer", "head") if dim in here.dims}
    shape, dims = [len(at) for at in places.values()], ("concept", "finder", *places)
    arrays = [np.stack(part, axis=2) for part in zip(*found, strict=True)]  # concept, finder, place, ...
    arrays = [a.reshape(*a.shape[:2], *shape, *a.shape[3:]) for a in arrays]
    per_probe = zip(("slope", "bias", "alpha", "score"), arrays[1:], strict=True)
    target = batch.targets[0]
    known = int((~np.isnan(target.y.reshape(len(target.y), -1)).all(1)).sum())
    data = acts.attrs.get("data", f"{known} clips")
    facts = {k: acts.attrs[k] for k in ("model", "model_hash", "pool", "prompt") if k in acts.attrs}
    facts["data"] = data if data.startswith(f"{known} clips") else f"{known} of {data}"
    facts |= {"label": label, "kind": target.kind, "seed": fitting.seed}
    leading = {"concept": list(target.concepts), "finder": list(fits)}
    coords = places | {name: (dims, values) for name, values in per_probe}
    vectors, norm = arrays[0].astype(np.float32), np.reshape(norms, shape)
    return as_direction(vectors, site, places["layer"], norm, leading, coords, **facts)
