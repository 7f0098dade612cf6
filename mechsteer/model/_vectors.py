"""Directions as arrays with named dims, layers and norms, built in one place; what `Steering` stands on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from .._shared import did_you_mean, number
from .sites import feature_dims


class Direction(xr.DataArray):
    """A DataArray of directions, whose `sel` suggests the likely name for one that isn't there."""

    __slots__ = ()

    def sel(self, indexers=None, *args, **options) -> Direction:
        try:
            return super().sel(indexers, *args, **options)
        except KeyError as error:
            for dim, name in ({**(indexers or {}), **options}).items():
                known = self.coords[dim].values.tolist() if dim in self.coords else []
                if isinstance(name, str | int) and name not in known:
                    hint = did_you_mean(name, known if isinstance(name, str) else (), f"It has {known}")
                    raise KeyError(f"no {dim} {name!r}. {hint}") from error
            raise


def as_direction(
    values: Any,
    site: str = "resid",
    layers: int | Sequence[int] | None = None,
    norm: Any = None,
    leading: Mapping[str, Sequence] | None = None,
    coords: Mapping[str, Any] | None = None,
    **facts: Any,
) -> xr.DataArray:
    """Vectors as a direction: what `Steering` takes, and what every finder of directions gives.

    Parameters
    ----------
    values : array or tensor, (*leading, layer, d_model), or (*leading, layer, head, d_head) for `heads`
        Kept as they are, not scaled to unit length. Without a layer axis they serve every layer in `layers`.
    layers : int or sequence of int, 0-based
    norm : mean L2 norm of the activations, (layer,) or (layer, head), the unit of strengths: becomes a coord
    leading : name -> labels, such as {"concept": ["jazz"], "finder": ["mse"]}
    coords, facts : further coordinates, (dims, values) each; attributes: model, model_hash, data, ...

    ValueError when the shape doesn't fit the layers.
    """
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    leading, feature = dict(leading or {}), feature_dims(site)
    if layers is None:
        raise ValueError(f"a plain array of shape {values.shape} needs layers=")
    layers, at = listed_layers(layers), len(leading)
    if values.ndim == at + len(feature):
        values = np.repeat(np.expand_dims(values, at), len(layers), axis=at)
    dims = (*leading, "layer", *feature)
    if values.ndim != len(dims) or values.shape[at] != len(layers):
        raise ValueError(f"an array of shape {values.shape} for {len(layers)} layers; give it dims {dims}")
    named = {**leading, "layer": layers} | ({"head": np.arange(values.shape[-2])} if site == "heads" else {})
    array = Direction(values, dims=dims, coords=named, attrs={**facts, "site": site})
    if norm is not None:
        array = array.assign_coords(norm=per_layer(norm, array, "norm", missing=np.nan))
    return array.assign_coords(coords or {})


def listed_layers(layers: int | Sequence[int]) -> list[int]:
    """One layer or several as a list; ValueError for none, one named twice, or what isn't a whole number."""
    found = [number("layer", i, whole=True) for i in np.atleast_1d(np.asarray(layers)).tolist()]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"layers={found!s:.80}: name at least one, and each only once")
    return found


def length(vectors: xr.DataArray) -> xr.DataArray:
    """L2 norm over the last dim."""
    return np.sqrt((vectors**2).sum(vectors.dims[-1]))


def selected(direction: Any, site: str, layers: int | Sequence[int] | None) -> xr.DataArray:
    """Any direction as float64 (layer, d_model) or (layer, head, d_head), at `layers` if they are given.

    Raises ValueError for other dims, or a layer that the direction doesn't have.
    """
    dims = ("layer", *feature_dims(site))
    named = isinstance(direction, xr.DataArray)
    if not named or "layer" not in {*direction.dims, *direction.coords}:
        return as_direction(direction.values if named else direction, site, layers).astype("float64")
    if "layer" not in direction.dims:
        direction = direction.expand_dims("layer")
    if "layer" not in direction.coords:
        direction = direction.assign_coords(layer=np.arange(direction.sizes["layer"]))
    if set(direction.dims) != set(dims):
        wrong = f"site {site!r} wants a direction with dims {dims}, not {direction.dims}"
        raise ValueError(f"{wrong}; select one first")
    have = direction.layer.values.tolist()
    wanted = listed_layers(have if layers is None else layers)
    if missing := sorted(set(wanted) - set(have)):
        raise ValueError(f"the direction has layers {have}, not {missing}")
    return direction.transpose(*dims).astype("float64").sel(layer=wanted)


def per_layer(value: Any, direction: xr.DataArray, what: str, missing: float) -> xr.Variable:
    """A number, sequence, {layer: number}, or array (layer,) or (layer, head), for the direction's layers.

    A layer that a mapping or a named array lacks gets `missing`. ValueError, naming `what`, for a wrong
    number of values, and for any that is infinite, or NaN where that isn't what `missing` is.
    """
    layers = direction.layer.values
    if isinstance(value, Mapping):
        value = [value.get(int(i), missing) for i in layers]
    if isinstance(value, xr.DataArray) and "layer" in value.dims:
        if "layer" in value.coords:
            value = value.reset_coords(drop=True).reindex(layer=layers, fill_value=missing)
        value = value.transpose("layer", ...).astype("float64")
    value = np.asarray(value)
    if value.dtype.kind not in "iuf":
        raise ValueError(f"{what}={value!s:.80}: give numbers")
    if value.ndim and len(value) != len(layers):  # one per layer of the model
        if len(value) <= layers.max():
            raise ValueError(f"{len(value)} values of {what} for layers {layers.tolist()}")
        value = value[layers]
    dims = ("layer", "head")[: max(1, value.ndim)]
    found = xr.Variable(dims, np.broadcast_to(value, (len(layers), *value.shape[1:])).astype("float64"))
    wrong = np.isinf(found.values) | (np.isnan(found.values) & ~np.isnan(missing))
    if wrong.any() or (what == "norm" and (found.values < 0).any()):
        raise ValueError(f"{what} {found.values.tolist()!s:.80}: give finite numbers, and no norm below 0")
    return found


def digest(steering: Any) -> str:
    """Twelve hex digits that name what a steering does: every option and number of each of its parts."""
    made = hashlib.sha256()
    for part in steering.parts:
        made.update(repr((part.site, part.layers, part.mode, part.strength, part.start, part.stop)).encode())
        made.update(repr((part.every, part.ramp, part.branch)).encode())
        for values in (part.direction, part.direction.weight, part.direction.norm):
            made.update(np.ascontiguousarray(values.values).tobytes())
    return made.hexdigest()[:12]
