"""Directions in files to share: safetensors, with a card that says where each belongs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

FORMAT = "mechsteer.direction/1"


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
