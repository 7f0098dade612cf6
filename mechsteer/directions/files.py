"""Directions in activation space: their geometry, and files to share them in.

A direction is an array whose last dimension is the features (d_model, or d_head for one head); DataArrays in
give DataArrays out. What chance looks like: two random directions in d dimensions have a cosine of about +-2
/ sqrt(d) (95 %). Taught in 03_compare_directions.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

FORMAT = "mechsteer.direction/1"


def unit(direction):
    """Scale to length 1 over the last dimension. Raises ValueError for a zero or non-finite vector."""
    values = np.asarray(direction)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise ValueError("a direction is zero or not finite, so it has no unit vector")
    return direction.copy(data=values / length) if isinstance(direction, xr.DataArray) else values / length


def cosine(a, b, metric: np.ndarray | None = None):
    """Cosine of a and b over the last dimension; other dimensions broadcast (by name for DataArrays).

    Parameters
    ----------
    metric : float [d, d], optional
        Inner product a.M.b in place of a.b. With the covariance of the activations it is the correlation of
        what a and b *read* from the data. With its inverse it is the cosine after whitening, of a and b as
        things to *write* (steps in activation space, measured in standard deviations). See `covariance`.
    """
    if isinstance(a, xr.DataArray):
        dims = [[a.dims[-1]], [b.dims[-1]]]
        return xr.apply_ufunc(cosine, a, b, input_core_dims=dims, kwargs={"metric": metric})
    a, b = np.asarray(a, float), np.asarray(b, float)
    mapped = (lambda v: v) if metric is None else (lambda v: v @ metric)
    inner = lambda u, v: (mapped(u) * v).sum(-1)
    return inner(a, b) / np.sqrt(inner(a, a) * inner(b, b))


def covariance(x) -> np.ndarray:
    """Covariance [d, d] of activations x [row, d], shrunk so that it can be inverted (Ledoit & Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf

    return ledoit_wolf(np.asarray(x, float))[0]


def null_cosine(d: int, level: float = 0.95) -> tuple[float, float]:
    """Interval that holds `level` of the cosines of two random directions in d dimensions, exactly.

    (cosine + 1) / 2 is Beta((d - 1)/2, (d - 1)/2).
    """
    from scipy.stats import beta

    if d < 2:
        raise ValueError(f"directions in {d} dimension are all the same or opposite: there is no null band")
    high = float(2 * beta.ppf((1 + level) / 2, (d - 1) / 2, (d - 1) / 2) - 1)
    return -high, high


def null_cosine_drawn(
    d: int, level: float = 0.95, metric: np.ndarray | None = None, draws: int = 2000, seed: int = 0
):
    """The same interval from random directions; needed with a `metric`, whose few large axes widen the band."""
    a, b = np.random.default_rng(seed).standard_normal((2, draws, d))
    return tuple(float(q) for q in np.quantile(cosine(a, b, metric), [(1 - level) / 2, (1 + level) / 2]))


def principal_angles(a, b, rank: int | None = None) -> np.ndarray:
    """Principal angles in degrees, smallest first, between the spans of a [k, d] and b [m, d].

    `rank` keeps that many main axes of each span. The k one-vs-rest directions of k classes span k - 1
    dimensions (or nearly; the class scores of `mse` add to a constant), so pass rank=k - 1 there. Source:
    Bjoerck & Golub 1973.
    """
    from scipy.linalg import subspace_angles

    spans = []
    for name, span in (("a", a), ("b", b)):
        u, s, _ = np.linalg.svd(np.asarray(unit(span), float).T, full_matrices=False)
        found = int((s > 1e-6 * s[0]).sum())
        if rank is not None and rank > found:
            raise ValueError(f"{name} spans {found} dimensions, fewer than rank={rank}")
        spans.append(u[:, : rank or found])
    return np.degrees(subspace_angles(*spans))[::-1]


def gram_schmidt(directions):
    """Make directions [..., k, d] orthonormal in order: the first stays, each next one loses what those
    before it hold.

    Every result keeps a positive cosine with what it came from. Raises ValueError if one lies in the span of
    those before.
    """
    if isinstance(directions, xr.DataArray):
        return directions.copy(data=gram_schmidt(directions.values).astype(directions.dtype))
    q, r = np.linalg.qr(np.swapaxes(np.asarray(unit(directions), float), -1, -2))
    left = np.diagonal(r, axis1=-2, axis2=-1)
    if q.shape[-1] < np.shape(directions)[-2] or (np.abs(left) < 1e-6).any():
        raise ValueError("a direction lies in the span of those before it, so nothing of it is left")
    return np.swapaxes(q * np.sign(left)[..., None, :], -1, -2)


def share_in_top(directions, x, k: Sequence[int] = (1, 10, 50)) -> np.ndarray:
    """Share (0 to 1) of each direction's squared length in the top k principal components of activations x
    [row, d].

    Returns [..., len(k)]; a random direction has k / d.
    """
    _, axes = np.linalg.eigh(covariance(x))
    inside = np.cumsum(np.square(np.asarray(unit(directions), float) @ axes[:, ::-1]), axis=-1)
    if max(k) > inside.shape[-1] or min(k) < 1:
        raise ValueError(f"k={list(k)} must lie in 1..{inside.shape[-1]}")
    return inside[..., np.asarray(k) - 1]


def save_direction(path: str | Path, direction: xr.DataArray) -> Path:
    """Write a direction with its card to a safetensors file.

    Parameters
    ----------
    path : ends in .safetensors
    direction : xr.DataArray
        Dims (layer, d_model) or (layer, head, d_head), or one of its layers: one concept and one method.
        Coords and attrs go along (norm, slope, bias, score, concept, method; site, model, model_hash, label,
        data).

    Raises
    ------
    ValueError  if the path ends otherwise, the direction still has several concepts or methods, isn't finite, or
    lacks what a user of the file must know: coord `norm` and `layer`, attrs site, model and model_hash.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} must end in .safetensors")
    extra = [dim for dim in direction.dims[:-1] if dim not in ("layer", "head")]
    if extra:
        raise ValueError(
            f"one direction per file: choose one {' and one '.join(extra)} first, with .sel(...)"
        )
    lacking = [n for n in ("norm", "layer") if n not in direction.coords]
    lacking += [n for n in ("site", "model", "model_hash") if n not in direction.attrs]
    if lacking:
        raise ValueError(
            f"the direction lacks {', '.join(lacking)}: without them nobody can tell where it belongs"
        )
    if not np.isfinite(direction.values).all():
        raise ValueError("the direction holds NaN or infinite numbers")
    card = direction.to_dict(data="list")
    del card["data"]
    known = {**direction.attrs, **{n: c.item() for n, c in direction.coords.items() if c.ndim == 0}}
    shown = {str(k): str(v) for k, v in known.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"direction": np.ascontiguousarray(direction.values, np.float32)}
    save_file(tensors, path, metadata={**shown, "card": json.dumps(card), "format": FORMAT})
    return path


def load_direction(path: str | Path, model=None) -> xr.DataArray:
    """Read a direction written by `save_direction`; with `model`, check that it belongs there.

    Returns
    -------
    xr.DataArray with the dims, coords (slope, bias, norm, score, ...) and attrs that it was saved with.

    Raises
    ------
    FileNotFoundError  if it isn't there.
    ValueError  if the file isn't a direction, or the model has another width, or lacks a layer or head; both are named.

    Warns
    -----
    UserWarning  if the model has the width but other weights than those that the direction was found on.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no direction at {path}; ms.save_direction writes one")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} isn't a direction saved by this package (no {FORMAT} card)")
            values = file.get_tensor("direction")
    except SafetensorError as error:
        raise ValueError(f"{path} isn't a safetensors file, or is cut short: {error}") from error
    direction = xr.DataArray.from_dict({**json.loads(metadata["card"]), "data": values})
    if model is not None:
        check_model(direction, model)
    return direction


def check_model(direction: xr.DataArray, model) -> None:
    """Check that a direction fits `model` (its d_model, n_heads, n_layers and hash); see `load_direction`."""
    site, found_on = direction.attrs["site"], f"{direction.attrs['model']} ({direction.attrs['model_hash']})"
    here = f"{model.name} ({model.hash})"
    width = model.d_model // model.n_heads if site == "heads" else model.d_model
    last = int(np.max(direction["layer"].values))
    if direction.shape[-1] != width:
        raise ValueError(
            f"a direction of width {direction.shape[-1]}, found on {found_on}, can't go on {here}: width {width}"
        )
    if last >= model.n_layers:
        raise ValueError(
            f"a direction at layer {last}, found on {found_on}, can't go on {here}: {model.n_layers} layers"
        )
    if direction.sizes.get("head", model.n_heads) != model.n_heads:
        raise ValueError(
            f"a direction for {direction.sizes['head']} heads, found on {found_on}, can't go on {here}: {model.n_heads}"
        )
    if str(direction.attrs["model_hash"]) != str(model.hash):
        warnings.warn(
            f"this direction was found on {found_on}; {here} has other weights, so it may mean nothing there",
            stacklevel=3,
        )
