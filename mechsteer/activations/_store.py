"""Activations on disk: one zarr group, written block by block, that survives a kill at any moment.

Sites are arrays chunked per block of clips and layer. A block's data are written first, then its entry in
`done` is set, each file in one atomic step; what isn't done is written again by the next call. Labels are
coords on `clip`; model and options stand in the group's attributes (JSON, in `zarr.json`).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

__all__ = ["Layout", "Store", "open_activations"]

LENGTH = 200  # characters kept of what is said of a skipped clip


@dataclass(frozen=True)
class Layout:
    """What a store holds: {name: (dims, sizes, dtype)} of every array, all with `clip` first; clips per block."""

    arrays: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]]
    block: int

    def bytes(self) -> int:
        """Size on disk; arrays are not compressed, as activations hardly shrink."""
        return sum(
            int(np.prod(sizes, dtype=float)) * np.dtype(dtype).itemsize
            for _, sizes, dtype in self.arrays.values()
        )


class Store:
    """A zarr group that is filled block by block; `begin` makes or continues one, `Store(where)` writes into it."""

    def __init__(self, where):
        import zarr

        self.where, self.group = where, zarr.open_group(where, mode="r+")
        self.block = json.loads(self.group.attrs["options"])["block"]
        self.n = self.group["problem"].shape[0]

    @classmethod
    def begin(cls, path, layout: Layout, labels: pd.DataFrame, attrs: dict) -> Store:
        """Make a store, or go on with the one that is there.

        Parameters
        ----------
        path : where, or None for one in memory
        labels : one row per clip; become coords, and replace those of a store that is there
        attrs : facts about model and options; `options` (JSON) must be those of a store that is there

        Raises
        ------
        ValueError  if something else is there, or activations of another model, clips or options (names both).
        """
        import zarr

        if path is None:
            memory = zarr.storage.MemoryStore()
            _create(memory, layout, labels, attrs)
            return cls(memory)
        path = Path(path)
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _create(partial, layout, labels, attrs)
                os.rename(partial, path)
            except OSError:
                if not path.exists():  # else another process was quicker, and its store is looked at below
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        _agree(path, attrs)
        store = cls(path)
        store._relabel(labels, {*layout.arrays, "problem", "done"})
        return store

    def _relabel(self, labels: pd.DataFrame, others: set[str]) -> None:
        """Give the store the labels of this call, where they differ; activations stay."""
        names = set(self.group.array_keys()) - others
        there = xr.open_zarr(self.where, consolidated=False, chunks=None)[sorted(names)].load()
        wanted = xr.Dataset(coords=_coords(labels), attrs=there.attrs)
        if _plain(there).reset_coords().equals(_plain(wanted).reset_coords()):
            return
        for name in names:
            del self.group[name]
        self.group.attrs.pop("coordinates", None)  # xarray's list of the old ones
        wanted.to_zarr(self.where, mode="a", consolidated=False)

    def discard_empty(self) -> None:
        """Remove a store on disk of which no block is done."""
        if not self.group["done"][:].any():
            shutil.rmtree(self.where, ignore_errors=True)

    def todo(self) -> list[int]:
        """Numbers of the blocks that aren't done."""
        return np.flatnonzero(self.group["done"][:] == 0).tolist()

    def rows(self, block: int) -> slice:
        return slice(block * self.block, min((block + 1) * self.block, self.n))

    def write(self, block: int, arrays: dict[str, np.ndarray], problems: list[str]) -> None:
        """Write a block, all its arrays over its rows, then mark it as done."""
        rows = self.rows(block)
        for name, values in arrays.items():
            self.group[name][rows] = values
        self.group["problem"][rows] = np.array([p[:LENGTH] for p in problems], dtype=object)
        self.group["done"][block] = 1


def open_activations(path) -> xr.Dataset:
    """Open a store that `collect` wrote: the clips that could be read, lazily (nothing is loaded but labels).

    Returns
    -------
    xr.Dataset
        Sites (clip, layer, [frame,] [head,] d_model or d_head); `<site>_norm` (layer[, head]): mean L2 norm
        over all clips' valid steps, the unit of steering strength; `input` (clip, [frame,] d_model): summed
        embeddings of the codes, before layer 0. Coords on clip: labels, `group`, `n_frames`. Attrs: model,
        model_hash, site, pool, prompt, data, seed, frame_rate, versions; `skipped`: JSON list of {clip,
        problem}.

    Raises
    ------
    ValueError  if there is no store. A store that isn't finished is opened with a warning.
    """
    import zarr

    if not isinstance(path, zarr.storage.MemoryStore) and not (Path(path) / "zarr.json").is_file():
        raise ValueError(f"no store of activations at {path}; ms.collect(..., out=...) writes one")
    raw = _plain(xr.open_zarr(path, consolidated=False, chunks=None))
    if "options" not in raw.attrs or "done" not in raw:
        raise ValueError(f"{path} is a zarr store, but not one that ms.collect wrote")
    options = json.loads(raw.attrs["options"])
    n, block = raw.sizes["clip"], options["block"]
    done = np.repeat(raw["done"].values > 0, block)[:n]
    if not done.all():
        warnings.warn(
            f"{path} holds {int(done.sum())} of {n} clips so far; the same ms.collect call finishes it",
            stacklevel=2,
        )
    problem = raw["problem"].values.astype(object).astype(str)
    skipped = [
        {"clip": str(c), "problem": p}
        for c, p in zip(raw["clip"].values[done], problem[done], strict=True)
        if p
    ]
    acts, good = raw.drop_vars(["done", "problem"]), done & (problem == "")
    acts = acts if good.all() else acts.isel(clip=np.flatnonzero(good))
    acts = acts.set_coords([name for name in acts.data_vars if name == "n_frames"])
    weight = acts["n_frames"] / max(int(acts["n_frames"].sum()), 1)
    for name in [name for name in acts.data_vars if str(name).endswith("_norm")]:
        acts[name] = (acts[name].astype(float) * weight).sum("clip").astype("float32")
    order = [*options["sites"], *(f"{site}_norm" for site in options["sites"]), "input"]
    acts = acts[[*order, *(name for name in acts.data_vars if name not in order)]]
    acts = acts.assign_coords(layer=options["layers"])
    acts.attrs["skipped"] = json.dumps(skipped, ensure_ascii=False)
    return acts


def _coords(labels: pd.DataFrame) -> dict:
    """Label columns as coordinates that zarr can hold: text (gaps are ""), numbers and flags (with gaps: NaN)."""
    found = {}
    for name, column in labels.items():
        if pd.api.types.is_bool_dtype(column.dtype) and not column.isna().any():
            values = column.to_numpy(bool)
        elif pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
            values = column.to_numpy(float, na_value=np.nan) if column.isna().any() else column.to_numpy()
        elif column.dropna().map(lambda v: isinstance(v, bool | np.bool_)).all() and column.notna().any():
            values = column.map(lambda v: np.nan if pd.isna(v) else float(v)).to_numpy(float)
        else:
            values = column.map(lambda v: "" if pd.isna(v) else str(v)).to_numpy(object)
        found[str(name)] = ("clip", values)
    return found


def _create(where, layout: Layout, labels: pd.DataFrame, attrs: dict) -> None:
    """An empty store: labels, attributes, and arrays of NaN."""
    import zarr

    xr.Dataset(coords=_coords(labels), attrs=attrs).to_zarr(where, mode="w", consolidated=False)
    group, block = zarr.open_group(where, mode="r+"), min(layout.block, len(labels))
    for name, (dims, sizes, dtype) in layout.arrays.items():
        chunks = (
            block,
            *(1 if dim == "layer" else size for dim, size in zip(dims[1:], sizes[1:], strict=True)),
        )
        fill = np.nan if np.dtype(dtype).kind == "f" else 0
        options = dict(dtype=dtype, fill_value=fill, dimension_names=dims, compressors=None)
        group.create_array(name, shape=sizes, chunks=chunks, **options)
    n_blocks = -(-len(labels) // layout.block)
    group.create_array("problem", shape=(len(labels),), chunks=(block,), dtype=str, dimension_names=["clip"])
    group.create_array("done", shape=(n_blocks,), chunks=(1,), dtype="uint8", dimension_names=["block"])


def _agree(path: Path, attrs: dict) -> None:
    """ValueError unless the store at `path` has the options of `attrs`."""
    import zarr

    try:
        there = json.loads(zarr.open_group(path, mode="r").attrs["options"])
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} is there and is not a store of activations; choose another out=") from error
    now = json.loads(attrs["options"])
    keys = [
        k for k in now | there if there.get(k) != now.get(k) and k != "block"
    ]  # its blocks are kept as they are
    wrong = [f"{k}: {there.get(k)!r} there, {now.get(k)!r} here" for k in keys]
    if wrong:
        raise ValueError(
            f"{path} was collected otherwise ({'; '.join(wrong)}). Nothing was changed: choose another out=, call with "
            "the same model, clips and options, or delete that folder"
        )


def _plain(ds: xr.Dataset) -> xr.Dataset:
    """Text as numpy's fixed-width strings, whatever it was stored as."""
    text = [name for name, a in ds.variables.items() if a.dtype.kind in "TO" and name != "problem"]
    return ds.assign_coords(
        {name: (ds[name].dims, ds[name].values.astype(object).astype(str)) for name in text}
    )
