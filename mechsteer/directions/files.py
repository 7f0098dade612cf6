"""Directions in files to share: safetensors, with a card that says where each belongs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from .. import paths
from ..model._vectors import Direction

FORMAT = "mechsteer.direction/1"


def save_direction(path: str | Path, direction: xr.DataArray) -> Path:
    """Write a direction with its card, coords (norm, slope, bias, ...) and attrs, to a safetensors file.

    Parameters
    ----------
    path : ends in .safetensors
    direction : (layer, d_model) or (layer, head, d_head), or one of its layers, of one concept and one method

    Raises
    ------
    ValueError  for another ending, several concepts or methods, numbers that aren't finite, or a lack of what
        a user of the file must know: coords norm and layer, attrs site, model and model_hash.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} must end in .safetensors")
    if extra := [dim for dim in direction.dims[:-1] if dim not in ("layer", "head")]:
        raise ValueError(f"one direction per file: .sel(...) one {' and one '.join(map(str, extra))} first")
    _check_card(direction, "norm", "layer")
    if not np.isfinite(direction.values).all():
        raise ValueError("the direction holds NaN or infinite numbers")
    card = direction.to_dict(data="list")
    del card["data"]
    known = {**direction.attrs, **{n: c.item() for n, c in direction.coords.items() if c.ndim == 0}}
    shown = {str(k): str(v) for k, v in known.items()}
    tensors = {"direction": np.ascontiguousarray(direction.values, np.float32)}
    with paths.replacing(path) as scratch:
        save_file(tensors, scratch, metadata={**shown, "card": json.dumps(card), "format": FORMAT})
    return path


def load_direction(path: str | Path, model=None) -> xr.DataArray:
    """Read a direction written by `save_direction`, with the dims, coords and attrs that it had.

    Raises
    ------
    FileNotFoundError  if it isn't there.
    ValueError  if it isn't a direction, or `model`, if given, has another width, or no such layer or head.
    UserWarning  (no error) if the model has the width but other weights than the direction was found on.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no direction at {path}; ms.save_direction writes one")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, values = file.metadata() or {}, file.get_tensor("direction")
        if metadata.get("format") != FORMAT:
            raise ValueError(f"it has no {FORMAT} card")
        direction = Direction.from_dict({**json.loads(metadata["card"]), "data": values})
        _check_card(direction, "norm", "layer")
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        told = f"{path} isn't a direction that ms.save_direction wrote, or is damaged"
        raise ValueError(f"{told}: {error}") from error
    if model is not None:
        check_model(direction, model)
    return direction


def check_model(direction: xr.DataArray, model) -> None:
    """Check that a direction fits `model`: that its card is there, width, layers, heads and weights."""
    _check_card(direction, "layer")
    facts, here = direction.attrs, f"{model.name} ({model.hash})"
    found_on = f"found on {facts['model']} ({facts['model_hash']})"
    width = model.d_model // model.n_heads if facts["site"] == "heads" else model.d_model
    last, heads = int(direction["layer"].max()), direction.sizes.get("head", model.n_heads)
    for what, is_there, limit in (
        (f"of width {direction.shape[-1]}", direction.shape[-1] == width, f"width {width}"),
        (f"at layer {last}", last < model.n_layers, f"{model.n_layers} layers"),
        (f"for {heads} heads", heads == model.n_heads, f"{model.n_heads} heads"),
    ):
        if not is_there:
            raise ValueError(f"a direction {what}, {found_on}, can't go on {here}: {limit}")
    if str(facts["model_hash"]) != str(model.hash):
        told = f"this direction was {found_on}; {here} has other weights, so it may mean nothing there"
        warnings.warn(told, stacklevel=3)


def _check_card(direction: xr.DataArray, *coords: str) -> None:
    """ValueError if a direction lacks coords, or the attrs site, model and model_hash."""
    lacking = [name for name in coords if name not in direction.coords]
    lacking += [name for name in ("site", "model", "model_hash") if name not in direction.attrs]
    if lacking:
        raise ValueError(f"the direction lacks {', '.join(lacking)}: nobody knows where it belongs")
