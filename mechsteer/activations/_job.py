"""One collection as a value: what to read of which clips, how big it gets, how a block becomes arrays.

The same `Job` runs in this process and in workers on other machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from .. import __version__
from ..model._vectors import digest
from ..model.model import Model, load
from ..model.sites import INPUT, check_site
from ..sound import to_clips
from ._rows import held_codes, own_codes, problem_of
from ._store import Arrays, Store
from .clips import read_clip
from .read import POOLS, Reader, auto_batch, read

BLOCK = 32  # clips; fewer where frames make them heavy
BLOCK_BYTES = 64e6
ENCODED_AT_ONCE = 640_000  # samples; EnCodec needs about 1,200 bytes for each
COMPARED = 4  # clips at either end of a collection
# Of the mean norm: between what `tiny` gives for clips of the orchestra (0.77 and 0.45, or more) and what the
# codec (0.10 at the input) and the language model (0.017 above it) of random weights give.
SAME_CODES, SAME_ACTIVATIONS = 0.3, 0.03
GENERATE = ("duration", "seed", "guidance", "temperature", "top_k", "steering")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a collection reads; see `activations.collect` for the options.

    `told`: the column `prompt` says what the model is told of each clip; else it is `prompt` for all.
    `n_frames` is the longest clip's. `fitted` adds what follows `batch_size`.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    pool: str
    n_frames: int
    prompt: str | None = None
    told: bool = False
    generate: dict | None = None
    dtype: str = "float32"
    batch_size: int | str = "auto"
    arrays: Arrays = dataclasses.field(default_factory=dict)
    clip_bytes: int = 0
    block: int = BLOCK

    def fitted(self, model: Model) -> Job:
        """With the arrays that it fills, and blocks small enough to be held in memory."""
        frames = {"frame": self.n_frames} if self.pool == "frames" else {}
        layers, wide, heads = {"layer": len(self.layers)}, {"d_model": model.d_model}, {"head": model.n_heads}
        arrays: Arrays = {INPUT: (frames | wide, self.dtype, np.nan)}
        for site in self.sites:
            own = heads | {"d_head": model.d_head} if site == "heads" else wide
            arrays[site] = layers | frames | own, self.dtype, np.nan
            arrays[f"{site}_norm"] = layers | (heads if site == "heads" else {}), "float32", np.nan
        arrays["n_frames"] = {}, "int32", 0
        if self.generate is not None:
            arrays["codes"] = {"codebook": model.n_codebooks, "frame": self.n_frames}, "uint16", 0
        each = sum(prod(dims.values()) * np.dtype(dtype).itemsize for dims, dtype, _ in arrays.values())
        block = int(np.clip(BLOCK_BYTES // each, 1, BLOCK))
        return dataclasses.replace(self, arrays=arrays, clip_bytes=each, block=block)

    def attrs(self, model: Model, keys: list[str]) -> dict:
        """What a store says of itself: everything that decides the numbers, as JSON values."""
        generate = dict(self.generate or {})
        if steering := generate.get("steering"):
            generate["steering"] = f"{steering!r} {digest(steering)}"
        versions = {name: version(name) for name in ("torch", "audiocraft", "transformers")}
        return {
            "model": model.name,
            "model_hash": model.hash,
            "precision": str(model.dtype).removeprefix("torch."),
            "site": ", ".join(self.sites),
            "layers": list(self.layers),
            "pool": self.pool,
            "prompt": "one per clip" if self.told else self.prompt or "unconditional",
            "generate": json.dumps(generate, ensure_ascii=False),
            "data": f"{len(keys)} clips {hashlib.sha256(' '.join(keys).encode()).hexdigest()[:12]}",
            "seed": generate.get("seed", "not used: nothing here is random"),
            "dtype": self.dtype,
            "block": self.block,
            "frame_rate": model.frame_rate,
            "versions": json.dumps({"mechsteer": __version__, **versions}),
        }

    def run(self, model: Model, rows: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
        """Arrays of a block of clips, and what is wrong with each clip ("" if nothing); bad rows are NaN."""
        n, problems = len(rows), [""] * len(rows)
        out = {k: np.full((n, *dims.values()), blank, t) for k, (dims, t, blank) in self.arrays.items()}
        each = self._generated(model, rows) if self.generate else self._read(model, rows, problems)
        for places, lengths, found in each:
            out["n_frames"][places] = lengths
            for name, values in found.items():
                with np.errstate(over="ignore"):  # told below; frames beyond a clip's own stay NaN
                    out[name][(places, *map(slice, values.shape[1:]))] = values
        for i, site in product(range(n), self.sites):
            fine = np.isfinite(out[f"{site}_norm"][i]).all() and not np.isinf(out[site][i]).any()
            if not (fine or problems[i]):
                problems[i] = f"its activations at {site} are NaN, or too large for {self.dtype}"
        return out, problems

    def _batch(self, model: Model, n_frames: int) -> int:
        return auto_batch(model, n_frames) if self.batch_size == "auto" else int(self.batch_size)

    def _read(self, model: Model, rows: pd.DataFrame, problems: list[str]) -> Iterator[tuple]:
        """Teacher-forced, batches of similar lengths; fills in what is wrong with clips."""
        codes, problems[:] = codes_for(model, rows)
        good = sorted((i for i, c in enumerate(codes) if c is not None), key=lambda i: codes[i].shape[-1])
        while good:
            size = self._batch(model, codes[good[-1]].shape[-1])
            some, good = good[:size], good[size:]
            prompts = _texts(rows["prompt"].iloc[some]) if self.told else self.prompt
            clipped = [codes[i][:, : self.n_frames] for i in some]
            found = read(model, clipped, self.sites, self.layers, self.pool, prompts)
            yield some, [c.shape[-1] for c in clipped], found

    def _generated(self, model: Model, rows: pd.DataFrame) -> Iterator[tuple]:
        """While generating; row r of the table has its own seed, and the codes are kept."""
        size = self._batch(model, self.n_frames)
        options = self.generate | {"batch_size": size, "progress": False}
        for at in range(0, len(rows), size):
            some = rows.iloc[at : at + size]
            lengths, seeds = [self.n_frames] * len(some), some["seed"].tolist()
            with Reader(model, self.sites, self.layers, lengths, self.pool) as reader:
                made = model.generate(_texts(some["prompt"]), **options | {"seed": seeds})
            yield slice(at, at + size), lengths, reader.result() | {"codes": made.codes.numpy()}


class Worker:
    """A job, its store and a model of its own, for many blocks; see `_ray.over_actors`."""

    def __init__(self, load_model: Callable[[bool], Model], where: Path, job: Job, gpu: bool):
        self.load_model, self.job, self.store, self.gpu = load_model, job, Store.at(where), gpu

    @functools.cached_property
    def model(self) -> Model:
        return self.load_model(self.gpu)

    def process(self, block: int, rows: pd.DataFrame) -> int:
        return self.store.write(block, *self.job.run(self.model, rows))


def again(model: Model) -> Callable[[bool], Model]:
    """What loads a model again in another process, there on a GPU if told that it has one."""
    source, dtype = model.musicgen.name, str(model.dtype).removeprefix("torch.")
    source = str(Path(source).resolve()) if Path(source).is_dir() else source
    return functools.partial(_load, source, model.device.type, dtype, model.hash)


def _load(source: str, device: str, dtype: str, weights: str, gpu: bool) -> Model:
    """`load`, for `again`; ValueError if other weights are found there."""
    model = load(source, None if gpu else device, dtype)
    if model.hash != weights:
        raise ValueError(f"{source} is {model.hash} on this worker and {weights} where the call was made")
    return model


def _texts(column: pd.Series) -> list[str | None]:
    return [None if pd.isna(text) else text for text in column]


def codes_for(model: Model, rows: pd.DataFrame) -> tuple[list, list[str]]:
    """Codes (codebook, frame) of every row of `ms.clips`, None where there are none; and why, else ""."""
    codes, problems = [None] * len(rows), [problem_of(row) for row in rows.to_dict("records")]
    audio: dict[tuple, dict[int, np.ndarray]] = {}  # shape -> row -> sound as the codec takes it
    for i, row in enumerate(rows.to_dict("records")):
        if problems[i]:
            continue
        try:
            codes[i] = own_codes(row, model.codec_hash)
            if codes[i] is None:
                sound = to_clips(*read_clip(row), model.sample_rate, model.codec.channels, cancelling=False)
                audio.setdefault(sound.shape, {})[i] = sound[0]
        except ValueError as error:
            problems[i] = str(error)
    for shape, clips in audio.items():
        at_once = max(1, ENCODED_AT_ONCE // shape[-1])
        try:
            made = model.encode(np.stack(list(clips.values())), model.sample_rate, at_once)
        except ValueError as error:  # what the model refuses of one clip, it refuses of all of that length
            made = [None] * len(clips)
            problems = [str(error) if i in clips else told for i, told in enumerate(problems)]
        for i, found in zip(clips, made, strict=True):
            codes[i] = found
    return codes, problems


def alike(acts: xr.Dataset, model: Model, table: pd.DataFrame) -> str:
    """What to say where the first and last clips hardly differ, in codes or in activations; else "".

    Codes of other than the model's own making are compared only where the activations give cause to.
    """
    n, ask = acts.sizes["clip"], f"is {model.name} trained, and its codec whole?"
    some = acts.isel(clip=sorted({*range(min(n, COMPARED)), *range(max(n - COMPARED, 0), n)}))
    if n < 2:
        return ""
    few = f"{some.sizes['clip']} clips that were compared"
    told_apart = acts.attrs["prompt"] == "one per clip" and "codes" not in some  # perhaps by the prompt alone
    if not told_apart and _spread(some[INPUT]) < SAME_CODES:
        rows = table[table["clip"].astype(str).isin(some["clip"].values)]
        codes = list(some["codes"].values) if "codes" in some else codes_for(model, rows)[0]
        least = min(c.shape[-1] for c in codes)
        codes = np.stack([np.asarray(c)[:, :least] for c in codes])
        same = np.mean([(codes[i] == codes[j]).mean() for i in range(len(codes)) for j in range(i)])
        if same > 0.5:
            return f"the codes of {few} agree at {same:.0%} of all places, so probes can learn little: {ask}"
    for site in acts.attrs["site"].split(", "):
        if (share := _spread(some[site].isel(layer=-1))) < SAME_ACTIVATIONS:
            told = f"the activations at {site} of {few} differ by {share:.1%} of their norm"
            return f"{told}, so what probes find there says little of the model: {ask}"
    return ""


def _spread(found: xr.DataArray) -> float:
    """How far clips lie from their mean, in multiples of their mean norm; means over frames are compared."""
    values = (found.mean("frame") if "frame" in found.dims else found).values.astype(float)
    values = values.reshape(len(values), -1)
    return float(np.sqrt(values.var(0, ddof=1).sum()) / max(np.linalg.norm(values, axis=1).mean(), 1e-30))


def check_options(model: Model, sites, layers, pool, generate) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sites and layers in order; ValueError for anything that isn't there."""
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}; choose from {', '.join(POOLS)}")
    if pool == "frames" and layers is None:
        raise ValueError("pool='frames' keeps every frame of every clip: name the layers, as layers=[3]")
    layers = range(model.n_layers) if layers is None else np.atleast_1d(layers).tolist()
    if not layers or not all(isinstance(i, int) and 0 <= i < model.n_layers for i in layers):
        raise ValueError(f"layers={list(layers)}; this model has layers 0 to {model.n_layers - 1}")
    steering = (generate or {}).get("steering")
    if steering is not None and not hasattr(steering, "parts"):
        raise ValueError("generate takes one steering for all prompts; collect once per steering otherwise")
    if unknown := set(generate or {}) - set(GENERATE):
        raise ValueError(f"generate has no {', '.join(sorted(unknown))}; it takes {', '.join(GENERATE)}")
    return tuple(dict.fromkeys(map(check_site, sites or ("",)))), tuple(sorted(set(layers)))


def clip_keys(table: pd.DataFrame, told: bool, seeds: bool) -> list[str]:
    """Twelve hex digits per clip, of all that decides its activations but for model and options.

    Name, place, length, codes or the whole file's content, prompt if it is told, seed; no labels.
    """

    @functools.cache  # within this call
    def content(path) -> str:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
        return ""

    found = []
    for row in table.to_dict("records"):
        names = ("clip", "start", "duration", *["prompt"] * told, *["seed"] * seeds)
        codes = held_codes(row)
        sound = content(row["path"]) if codes is None and "path" in row else ""
        made = hashlib.sha256(json.dumps([[str(row.get(name, "")) for name in names], sound]).encode())
        made.update(b"" if codes is None else np.asarray(codes).astype(np.int64).tobytes())
        found.append(made.hexdigest()[:12])
    return found
