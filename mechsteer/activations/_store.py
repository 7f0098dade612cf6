"""Activations on disk: a folder, filled block by block, that survives a kill at any moment.

In it are `arrays`, a zarr group chunked per block of clips and layer, and `labels.parquet`, one row per clip.
A block's data are written first, then its entry in `done`, the checksum of all that, each file in one atomic
step; a block that isn't done, or isn't what its checksum says, is written again by the next call. Model and
options are the group's attributes (JSON, in `zarr.json`), sealed by a checksum of their own; so are labels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from ..paths import read_table, write_table

ARRAYS, LABELS = "arrays", "labels.parquet"
FREE = ("block", "versions")  # attributes in which a store may differ from the call that goes on with it
Arrays = dict[str, tuple[dict[str, int], str, float]]
"""What is held of each clip: name -> ({dim: size}, dtype, value where nothing is written)."""


class Store:
    """Arrays that are filled block by block, and a table of labels; `begin` makes or goes on with one.

    `where` is its folder (None in memory), `block` is in clips. `labels` are None where they are damaged;
    ValueError if more than labels and blocks are.
    """

    def __init__(self, where: Path | None, arrays, labels: pd.DataFrame | None = None):
        import zarr

        self.where, self.arrays = where, arrays
        try:
            self.group = zarr.open_group(arrays, mode="r+", zarr_format=3)  # which knows no pickled objects
            self.attrs = dict(self.group.attrs)
            if self.attrs.pop("seal", None) != _seal(self.attrs):
                raise ValueError("its options are not those written")
            self.names, self.block = self.attrs.pop("arrays"), self.attrs["block"]
            self.n, *_ = (self.group[name].shape[0] for name in ("source", "problem", "done", *self.names))
        except (ValueError, LookupError, TypeError, OSError) as error:
            told = f"{where} is damaged, or of another version ({error})"
            raise ValueError(f"{told}: delete the folder and collect again") from error
        labels = read_table(where / LABELS) if labels is None else labels
        self.labels = labels if labels is not None and len(labels) == self.n else None

    @classmethod
    def at(cls, path: str | Path) -> Store:
        """The store at a path; ValueError if there is none."""
        path = Path(path)
        if not ((path / LABELS).is_file() and (path / ARRAYS / "zarr.json").is_file()):
            raise ValueError(f"{path} is not a store of activations; ms.collect(..., out=...) makes one")
        return cls(path, path / ARRAYS)

    @classmethod
    def begin(cls, path, arrays: Arrays, labels: pd.DataFrame, attrs: dict, keys: list[str]) -> Store:
        """Make a store (in memory if `path` is None), or go on with the one that is there, with these labels.

        `keys` say what each clip is made from. What is damaged is marked as not done, and a warning names it.
        ValueError if something else is there, or activations of another model, clips or options.
        """
        import zarr

        labels = _typed(labels)
        if path is None:
            memory = zarr.storage.MemoryStore()
            _create(memory, arrays, keys, attrs)
            return cls(None, memory, labels)
        path = Path(path)
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            try:
                _create(partial / ARRAYS, arrays, keys, attrs)
                write_table(labels, partial / LABELS)
                os.rename(partial, path)
            except OSError:
                if not path.exists():  # else another process was quicker, and its store is looked at below
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        store = cls.at(path)
        if differ := [k for k in attrs if k not in FREE and attrs[k] != store.attrs.get(k)]:
            both = "; ".join(f"{k}: {store.attrs.get(k)!r} there, {attrs[k]!r} here" for k in differ)
            if "data" in differ and store.n == len(keys):
                was = store.group["source"][:]
                others = [str(clip) for clip, a, b in zip(labels["clip"], was, keys, strict=True) if a != b]
                both += f"; {len(others)} clips are made from other sound or text: {', '.join(others[:3])}"
            mend = "choose another out=, call with the same model, clips and options, or delete that folder"
            raise ValueError(f"{path} was collected otherwise ({both}). Nothing was changed: {mend}")
        if store.labels is None or not store.labels.equals(labels):
            write_table(labels, path / LABELS)
            store.labels = labels
        for block in store.damaged():
            store.group["source"][store.rows(block)] = np.array(keys[store.rows(block)], dtype=object)
            store.group["done"][block] = 0
        return store

    def damaged(self) -> list[int]:
        """Numbers of the blocks that are done and aren't what was written; a warning names their clips.

        Reads the whole store, block by block: 1 to 2 s per GB.
        """
        found = []
        for block, told in enumerate(self._sums().tolist()):
            with contextlib.suppress(Exception):  # cut short or garbled: zarr has many ways to complain
                if not told or told == self._checksum(block):
                    continue
            found.append(block)
        labels = () if self.labels is None else self.labels["clip"]  # which is an error of its own
        if clips := [str(clip) for block in found for clip in labels[self.rows(block)]]:
            some = ", ".join(clips[:3]) + ", ..." * (len(clips) > 3)
            told = f"{self.where} is damaged at {len(clips)} of {self.n} clips ({some})"
            warnings.warn(f"{told}; ms.collect, called as before, makes them again", stacklevel=4)
        return found

    def _sums(self) -> np.ndarray:
        """What `done` says of every block; 0 where that can't be read."""
        found = np.zeros(self.group["done"].shape, "uint64")
        for block in range(len(found)):
            with contextlib.suppress(Exception):  # zarr has many ways to complain
                found[block] = self.group["done"][block]
        return found

    def _checksum(self, block: int) -> int:
        """Of all that is stored of a block; never 0."""
        rows, made = self.rows(block), 0
        for name in self.names:
            made = zlib.crc32(np.ascontiguousarray(self.group[name][rows]), made)
        text = [self.group[name][rows].tolist() for name in ("problem", "source")]
        return zlib.crc32(json.dumps(text).encode(), made) + 1

    def done(self) -> np.ndarray:
        """Whether the block of a clip is written: bool (clip,)."""
        return np.repeat(self._sums() > 0, self.block)[: self.n]

    def todo(self) -> list[int]:
        """Numbers of the blocks that aren't done."""
        return np.flatnonzero(self._sums() == 0).tolist()

    def rows(self, block: int) -> slice:
        return slice(block * self.block, min((block + 1) * self.block, self.n))

    def write(self, block: int, arrays: dict[str, np.ndarray], problems: list[str]) -> int:
        """Write a block, then mark it as done, by the checksum of all of it; its number of clips."""
        rows = self.rows(block)
        for name, values in arrays.items():
            self.group[name][rows] = values
        self.group["problem"][rows] = np.array(problems, dtype=object)
        self.group["done"][block] = self._checksum(block)
        return len(problems)

    def dataset(self, damaged: list[int] = ()) -> xr.Dataset:
        """See `open_activations`; without the damaged blocks, of which a warning has told."""
        if self.labels is None:
            mend = "ms.collect, called as before, mends them"
            raise ValueError(f"the labels of {self.where} are damaged: {mend}")
        done = self.done()
        if not done.all():
            so_far = f"{self.where} holds {int(done.sum())} of {self.n} clips so far"
            warnings.warn(f"{so_far}; the same ms.collect call finishes it", stacklevel=3)
        for block in damaged:
            done[self.rows(block)] = False
        problem = np.full(self.n, "", dtype=object)
        problem[done] = self.group["problem"].oindex[np.flatnonzero(done)]
        options = {"consolidated": False, "chunks": None, "zarr_format": 3}
        acts = xr.open_zarr(self.arrays, drop_variables=["done", "problem", "source"], **options)
        plain = lambda c: c.to_numpy() if pd.api.types.is_numeric_dtype(c) else c.to_numpy(str)
        acts = acts.assign_coords({name: ("clip", plain(column)) for name, column in self.labels.items()})
        told = zip(acts["clip"].values[done], problem[done], strict=True)
        skipped = [{"clip": str(clip), "problem": why} for clip, why in told if why]
        acts.attrs = {**self.attrs, "skipped": json.dumps(skipped, ensure_ascii=False)}
        acts, good = acts.set_coords("n_frames"), done & (problem == "")
        acts = acts if good.all() else acts.isel(clip=np.flatnonzero(good))
        weight, sites = acts["n_frames"] / max(int(acts["n_frames"].sum()), 1), self.attrs["site"].split(", ")
        for norm in (norms := [f"{site}_norm" for site in sites]):
            acts[norm] = (acts[norm].astype(float) * weight).sum("clip").astype("float32")
        acts = acts[[*sites, *norms, "input", *(["codes"] if "codes" in acts else [])]]
        return acts.assign_coords(layer=self.attrs["layers"])


def open_activations(path: str | Path) -> xr.Dataset:
    """Open a store that `collect` wrote: the clips that could be read, lazily (nothing is kept but labels).

    All of it is read once (1 to 2 s per GB), and what isn't what was written is left out.

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
    ValueError  if there is no store, or it is damaged beyond its blocks.
    UserWarning  for a store that isn't finished, or whose blocks are damaged: names the clips left out.
    """
    store = Store.at(path)
    return store.dataset(store.damaged())


def _seal(attrs: dict) -> int:
    return zlib.crc32(json.dumps(attrs, sort_keys=True).encode())


def _typed(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels as a file keeps them: text (gaps are ""), numbers, and flags (with gaps: numbers and NaN)."""

    def typed(column: pd.Series) -> np.ndarray:
        number = pd.api.types.is_numeric_dtype(column.dtype)
        if number and column.notna().all():
            return column.to_numpy()
        if number or pd.api.types.infer_dtype(column, skipna=True) == "boolean":
            return column.to_numpy(float, na_value=np.nan)
        return column.map(lambda value: "" if pd.isna(value) else str(value)).to_numpy(object)

    return pd.DataFrame({str(name): typed(column) for name, column in labels.items()})


def _create(where, arrays: Arrays, keys: list[str], attrs: dict) -> None:
    """An empty group for clips, made by zarr, as xarray writes the whole of any array that it makes."""
    import zarr

    n, sealed = len(keys), attrs | {"arrays": list(arrays)}
    sealed["seal"] = _seal(json.loads(json.dumps(sealed)))
    group, block = zarr.create_group(where, attributes=sealed, overwrite=True), min(attrs["block"], n)
    for name, (dims, dtype, blank) in arrays.items():
        chunks = (block, *(1 if dim == "layer" else size for dim, size in dims.items()))
        options = dict(dtype=dtype, fill_value=blank, compressors=None)  # activations hardly shrink
        options |= dict(dimension_names=["clip", *dims], chunks=chunks)
        group.create_array(name, shape=(n, *dims.values()), **options)
    for name in ("problem", "source"):
        group.create_array(name, shape=(n,), chunks=(block,), dtype=str, dimension_names=["clip"])
    group["source"][:] = np.array(keys, dtype=object)
    blocks = (-(-n // attrs["block"]),)
    group.create_array("done", shape=blocks, chunks=(1,), dtype="uint64", dimension_names=["block"])
