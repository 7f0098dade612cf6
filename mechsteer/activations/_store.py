"""Activations on disk: a folder, filled block by block, that survives a kill at any moment.

In it are `arrays`, a zarr group chunked per block of clips and layer, and `labels.parquet`, one row per clip.
A block's data are written first, then its entry in `done` is set, each file in one atomic step; what isn't
done is written again by the next call. Model and options are the group's attributes (JSON, in `zarr.json`).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from .._shared import progress
from ..paths import replacing

ARRAYS, LABELS = "arrays", "labels.parquet"
FREE = ("block", "versions")  # attributes in which a store may differ from the call that goes on with it
Arrays = dict[str, tuple[dict[str, int], str, float]]
"""What is held of each clip: name -> ({dim: size}, dtype, value where nothing is written)."""


class Store:
    """Arrays that are filled block by block, and a table of labels; `begin` makes or goes on with one.

    `where` is its folder (None in memory), `attrs` are facts about model and options, `block` is in clips.
    """

    def __init__(self, where: Path | None, arrays, labels: pd.DataFrame):
        import zarr

        self.where, self.arrays, self.labels = where, arrays, labels
        self.group = zarr.open_group(arrays, mode="r+", zarr_format=3)  # which knows no pickled objects
        self.attrs = dict(self.group.attrs)
        self.n, self.block = len(labels), self.attrs["block"]

    @classmethod
    def at(cls, path: str | Path) -> Store:
        """The store at a path; ValueError if there is none, or one of an older kind."""
        path = Path(path)
        if (path / LABELS).is_file() and (path / ARRAYS / "zarr.json").is_file():
            return cls(path, path / ARRAYS, pd.read_parquet(path / LABELS))
        if (path / "zarr.json").is_file():
            older = "is zarr, but not as this mechsteer keeps it (older ones kept the labels inside)"
            raise ValueError(f"{path} {older}: collect again, into another folder")
        raise ValueError(f"{path} is not a store of activations; ms.collect(..., out=...) makes one")

    @classmethod
    def begin(cls, path, arrays: Arrays, labels: pd.DataFrame, attrs: dict) -> Store:
        """Make a store (in memory if `path` is None), or go on with the one that is there, with these labels.

        Raises ValueError if something else is there, or activations of another model, clips or options (names
        both).
        """
        import zarr

        labels = _typed(labels)
        if path is None:
            memory = zarr.storage.MemoryStore()
            _create(memory, arrays, len(labels), attrs)
            return cls(None, memory, labels)
        path = Path(path)
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            try:
                _create(partial / ARRAYS, arrays, len(labels), attrs)
                labels.to_parquet(partial / LABELS)
                os.rename(partial, path)
            except OSError:
                if not path.exists():  # else another process was quicker, and its store is looked at below
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        store = cls.at(path)
        if differ := [k for k in attrs if k not in FREE and attrs[k] != store.attrs.get(k)]:
            both = "; ".join(f"{k}: {store.attrs.get(k)!r} there, {attrs[k]!r} here" for k in differ)
            mend = "choose another out=, call with the same model, clips and options, or delete that folder"
            raise ValueError(f"{path} was collected otherwise ({both}). Nothing was changed: {mend}")
        if not store.labels.equals(labels):
            with replacing(path / LABELS) as scratch:
                labels.to_parquet(scratch)
            store.labels = labels
        return store

    def done(self) -> np.ndarray:
        """Whether the block of a clip is written: bool (clip,)."""
        return np.repeat(self.group["done"][:] > 0, self.block)[: self.n]

    def todo(self) -> list[int]:
        """Numbers of the blocks that aren't done."""
        return np.flatnonzero(self.group["done"][:] == 0).tolist()

    def rows(self, block: int) -> slice:
        return slice(block * self.block, min((block + 1) * self.block, self.n))

    def bar(self, show: bool):
        """A progress bar that counts clips, begun at those that are done."""
        return progress(total=self.n, initial=int(self.done().sum()), unit="clip", show=show)

    def write(self, block: int, arrays: dict[str, np.ndarray], problems: list[str]) -> None:
        """Write a block, all its arrays over its rows, then mark it as done."""
        rows = self.rows(block)
        for name, values in arrays.items():
            self.group[name][rows] = values
        self.group["problem"][rows] = np.array(problems, dtype=object)
        self.group["done"][block] = 1

    def dataset(self) -> xr.Dataset:
        """See `open_activations`."""
        done, problem = self.done(), self.group["problem"][:].astype(object).astype(str)
        if not done.all():
            so_far = f"{self.where} holds {int(done.sum())} of {self.n} clips so far"
            warnings.warn(f"{so_far}; the same ms.collect call finishes it", stacklevel=3)
        options = {"consolidated": False, "chunks": None, "zarr_format": 3}
        acts = xr.open_zarr(self.arrays, drop_variables=["done", "problem"], **options)
        plain = lambda c: c.to_numpy() if pd.api.types.is_numeric_dtype(c) else c.to_numpy(str)
        acts = acts.assign_coords({name: ("clip", plain(column)) for name, column in self.labels.items()})
        told = zip(acts["clip"].values[done], problem[done], strict=True)
        skipped = [{"clip": str(clip), "problem": why} for clip, why in told if why]
        acts.attrs["skipped"] = json.dumps(skipped, ensure_ascii=False)
        acts, good = acts.set_coords("n_frames"), done & (problem == "")
        acts = acts if good.all() else acts.isel(clip=np.flatnonzero(good))
        weight, sites = acts["n_frames"] / max(int(acts["n_frames"].sum()), 1), self.attrs["site"].split(", ")
        for norm in (norms := [f"{site}_norm" for site in sites]):
            acts[norm] = (acts[norm].astype(float) * weight).sum("clip").astype("float32")
        acts = acts[[*sites, *norms, "input", *(["codes"] if "codes" in acts else [])]]
        return acts.assign_coords(layer=self.attrs["layers"])


def open_activations(path: str | Path) -> xr.Dataset:
    """Open a store that `collect` wrote: the clips that could be read, lazily (nothing is loaded but labels).

    Returns
    -------
    xr.Dataset
        Sites (clip, layer, [frame,] [head,] d_model or d_head); `<site>_norm` (layer[, head]): mean L2 norm
        over all clips' valid steps, the unit of steering strength; `input` (clip, [frame,] d_model): summed
        embeddings of the codes, before layer 0. Coords on clip: labels, `group`, `n_frames`. Attrs: model,
        model_hash, site, pool, prompt, data, seed, frame_rate, versions and all other options; `skipped`:
        JSON list of {clip, problem}.

    Raises
    ------
    ValueError  if there is no store. A store that isn't finished is opened with a warning.
    """
    return Store.at(path).dataset()


def _typed(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels as a file keeps them: text (gaps are ""), numbers, and flags (with gaps: numbers and NaN)."""
    found = {}
    for name, column in labels.items():
        given, number = column.dropna(), pd.api.types.is_numeric_dtype(column.dtype)
        flags = len(given) > 0 and given.map(lambda value: isinstance(value, bool | np.bool_)).all()
        if number and len(given) == len(column):
            found[str(name)] = column.to_numpy()
        elif number or flags:
            found[str(name)] = column.to_numpy(float, na_value=np.nan)
        else:
            found[str(name)] = column.map(lambda value: "" if pd.isna(value) else str(value)).to_numpy(object)
    return pd.DataFrame(found)


def _create(where, arrays: Arrays, n: int, attrs: dict) -> None:
    """An empty group for n clips, made by zarr, as xarray writes the whole of any array that it makes."""
    import zarr

    group, block = zarr.create_group(where, attributes=attrs, overwrite=True), min(attrs["block"], n)
    for name, (dims, dtype, blank) in arrays.items():
        chunks = (block, *(1 if dim == "layer" else size for dim, size in dims.items()))
        options = dict(dtype=dtype, fill_value=blank, compressors=None)  # activations hardly shrink
        options |= dict(dimension_names=["clip", *dims], chunks=chunks)
        group.create_array(name, shape=(n, *dims.values()), **options)
    group.create_array("problem", shape=(n,), chunks=(block,), dtype=str, dimension_names=["clip"])
    blocks = (-(-n // attrs["block"]),)
    group.create_array("done", shape=blocks, chunks=(1,), dtype="uint8", dimension_names=["block"])
