"""One collection as a value: what to read of which clips, how big it gets, and how a block of clips becomes
arrays.

The same `Job` runs in this process and in Ray workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pandas as pd

from .. import __version__
from ..model._checkpoints import codec_fingerprint
from ..model.generation import to_clips
from ..model.model import Model
from ..model.sampling import SITE_MODULES
from . import clips as datasets
from ._store import Layout
from .read import POOLS, Reader, auto_batch, read

BLOCK = 32  # clips; fewer where frames make them heavy
BLOCK_BYTES = 64e6
ENCODED_AT_ONCE = 640_000  # samples; EnCodec needs about 1,200 bytes for each
GENERATE = ("duration", "seed", "guidance", "temperature", "top_k", "steering")
RESERVED = {
    "resid_norm",
    "input",
    "codes",
    "n_frames",
    "done",
    "problem",
    "layer",
    "head",
    "frame",
    "d_model",
    "d_head",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What a collection reads; see `activations.collect` for the options.

    `prompt` None means unconditional unless the clips have a column `prompt`; `n_frames` is the longest
    clip's.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    pool: str
    n_frames: int
    prompt: str | None = None
    generate: dict | None = None
    dtype: str = "float32"
    batch_size: int | str = "auto"
    block: int = BLOCK

    def layout(self, model: Model, n: int) -> Layout:
        """The arrays of a store for n clips."""
        frames = {"frame": self.n_frames} if self.pool == "frames" else {}
        clip, layers, wide = {"clip": n}, {"layer": len(self.layers)}, {"d_model": model.d_model}
        heads = {"head": model.n_heads}
        sizes: dict[str, tuple[dict, str]] = {"input": (clip | frames | wide, self.dtype)}
        for site in self.sites:
            own = heads | {"d_head": model.d_head} if site == "heads" else wide
            sizes[site] = clip | layers | frames | own, self.dtype
            sizes[f"{site}_norm"] = clip | layers | (heads if site == "heads" else {}), "float32"
        sizes["n_frames"] = clip, "int32"
        if self.generate is not None:
            sizes["codes"] = clip | {"codebook": model.n_codebooks, "frame": self.n_frames}, "uint16"
        return Layout(
            {k: (tuple(s), tuple(s.values()), dtype) for k, (s, dtype) in sizes.items()}, self.block
        )

    def fitted(self, model: Model) -> Job:
        """With blocks small enough to be held in memory."""
        each = dataclasses.replace(self, block=1).layout(model, 1).bytes()
        return dataclasses.replace(self, block=int(np.clip(BLOCK_BYTES // each, 1, BLOCK)))

    def options(self, model: Model, table: pd.DataFrame) -> dict:
        """Everything that decides the numbers, as JSON values."""
        given = {k: v for k, v in (self.generate or {}).items() if k != "steering"}
        steering = (self.generate or {}).get("steering")
        return {
            "model": model.name,
            "model_hash": model.hash,
            "precision": str(model.dtype).removeprefix("torch."),
            "sites": list(self.sites),
            "layers": list(self.layers),
            "pool": self.pool,
            "prompt": "one per clip" if "prompt" in table else self.prompt,
            "generate": None if self.generate is None else given | {"steering": _name_of(steering)},
            "dtype": self.dtype,
            "block": self.block,
            "clips": f"{len(table)} clips {fingerprint(table)}",
        }

    def run(self, model: Model, rows: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
        """Arrays of a block of clips, and what is wrong with each clip ("" if nothing); bad rows are NaN."""
        out = {
            name: np.full(sizes, np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
            for name, (_, sizes, dtype) in self.layout(model, len(rows)).arrays.items()
        }
        problems = [""] * len(rows)
        parts = (
            self._generated(model, rows) if self.generate is not None else self._read(model, rows, problems)
        )
        for places, lengths, found in parts:
            out["n_frames"][places] = lengths
            for name, values in found.items():
                if self.pool == "frames" and not name.endswith("_norm") and name != "codes":
                    at = 1 if name == "input" else 2
                    short = self.n_frames - values.shape[at]
                    values = np.pad(
                        values, [(0, short * (i == at)) for i in range(values.ndim)], constant_values=np.nan
                    )
                out[name][places] = values
        return out, problems

    def _read(self, model, rows, problems) -> Iterator[tuple]:
        """Teacher-forced, batches of similar lengths."""
        codes = encode(model, rows, problems)
        good = sorted((i for i, c in enumerate(codes) if c is not None), key=lambda i: codes[i].shape[-1])
        prompts = _texts(rows["prompt"]) if "prompt" in rows else None
        while good:
            size = (
                auto_batch(model, codes[good[-1]].shape[-1])
                if self.batch_size == "auto"
                else int(self.batch_size)
            )
            some, good = good[:size], good[size:]
            texts = [prompts[i] for i in some] if prompts else self.prompt
            clipped = [codes[i][:, : self.n_frames] for i in some]
            found = read(model, clipped, self.sites, self.layers, self.pool, texts)
            yield some, [c.shape[-1] for c in clipped], found

    def _generated(self, model, rows) -> Iterator[tuple]:
        """While generating; row r of the table has its own seed, and the codes are kept."""
        size = (
            min(auto_batch(model, self.n_frames), BLOCK)
            if self.batch_size == "auto"
            else int(self.batch_size)
        )
        given = {k: v for k, v in self.generate.items() if k != "seed"}
        for at in range(0, len(rows), size):
            some = rows.iloc[at : at + size]
            lengths = [self.n_frames] * len(some)
            with Reader(model, self.sites, self.layers, lengths, self.pool) as reader:
                made = model.generate(
                    _texts(some["prompt"]),
                    seed=some["seed"].tolist(),
                    batch_size=len(some),
                    progress=False,
                    **given,
                )
            yield list(range(at, at + len(some))), lengths, reader.result() | {"codes": made.codes.numpy()}


def _texts(column: pd.Series) -> list[str | None]:
    return [None if pd.isna(text) else text for text in column]


def encode(model: Model, rows: pd.DataFrame, problems: list[str] | None = None) -> list:
    """Codes (codebook, frame) of every row of `ms.clips`; where there are none, None, and why in `problems`.

    Without a list of `problems` to fill, ValueError says what is wrong with the first bad clip.
    """
    strict, problems = problems is None, [""] * len(rows) if problems is None else problems
    codes: list = [None] * len(rows)
    codec = codec_fingerprint(model.codec.state_dict())
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {}  # samples -> rows of that length
    for i, row in enumerate(rows.to_dict("records")):
        try:
            if problem := datasets.problem_of(row):
                raise ValueError(problem)
            codes[i] = datasets.codes_of(row, codec)
            if codes[i] is not None:
                continue
            audio = _sound(model, row)
        except ValueError as error:
            problems[i] = str(error)
            continue
        samples = audio.shape[-1]
        waiting.setdefault(samples, []).append((i, audio))
        if (len(waiting[samples]) + 1) * samples > ENCODED_AT_ONCE:
            _encode_together(model, waiting.pop(samples), codes)
    for clips in waiting.values():
        _encode_together(model, clips, codes)
    for i, one in enumerate(codes):
        if one is None:
            continue
        if (
            one.ndim != 2
            or one.shape[0] != model.n_codebooks
            or not one.shape[1]
            or int(one.max()) >= model.lm.card
        ):
            codes[i], problems[i] = None, f"codes {tuple(one.shape)} are not of this model's codec"
    if strict and any(problems):
        first = next(i for i, problem in enumerate(problems) if problem)
        raise ValueError(f"{rows['clip'].iloc[first]}: {problems[first]}")
    return codes


def _sound(model: Model, row) -> np.ndarray:
    """The audio of a row as the model's codec takes it, (channel, sample)."""
    audio, rate = datasets.read_clip(row)
    audio = to_clips(audio, rate, model.sample_rate, model.codec.channels)[0]
    if audio.shape[-1] * model.frame_rate < model.sample_rate:
        raise ValueError(f"shorter than one frame of the model ({1 / model.frame_rate:g} s)")
    return audio


def _encode_together(model: Model, clips: list[tuple[int, np.ndarray]], codes: list) -> None:
    """Put the codes of (row, audio) of one length into `codes`."""
    made = model.encode(np.stack([audio for _, audio in clips]), model.sample_rate, len(clips))
    for (i, _), one in zip(clips, made, strict=True):
        codes[i] = one


def check_options(model: Model, sites, layers, pool, generate) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sites and layers in order; ValueError for anything that isn't there."""
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites or set(sites) - set(SITE_MODULES):
        raise ValueError(f"sites={sites}; choose from {', '.join(SITE_MODULES)}")
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}; choose from {', '.join(POOLS)}")
    if pool == "frames" and layers is None:
        raise ValueError(
            "pool='frames' keeps every frame of every clip: name the layers, for instance layers=[3]"
        )
    layers = range(model.n_layers) if layers is None else np.atleast_1d(layers).tolist()
    if not layers or not all(isinstance(i, int) and 0 <= i < model.n_layers for i in layers):
        raise ValueError(f"layers={list(layers)}; this model has layers 0 to {model.n_layers - 1}")
    if unknown := set(generate or {}) - set(GENERATE):
        raise ValueError(f"generate has no {', '.join(sorted(unknown))}; it takes {', '.join(GENERATE)}")
    return tuple(dict.fromkeys(sites)), tuple(sorted(set(layers)))


def fingerprint(table: pd.DataFrame) -> str:
    """Twelve hex digits that name these clips: names, places, lengths, codes, prompts and seeds; not their labels."""
    digest = hashlib.sha256()
    for name in ("clip", "start", "duration", "prompt", "seed"):
        if name in table:
            digest.update(json.dumps([name, table[name].astype(str).tolist()]).encode())
    for row in table.to_dict("records") if "codes" in table else ():
        codes = datasets.held_codes(row)
        digest.update(b"" if codes is None else np.asarray(codes, dtype=np.int64).tobytes())
    return digest.hexdigest()[:12]


def _name_of(steering) -> str | None:
    """What tells one steering from another: how it prints, and its directions' numbers."""
    if steering is None:
        return None
    parts = getattr(steering, "parts", None)
    if parts is None:
        raise ValueError("generate takes one steering for all prompts; collect once per steering otherwise")
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            repr(part).encode() + repr((part.every, part.ramp, part.branch, part.strength)).encode()
        )
        for values in (part.direction.values, part.direction.weight.values, part.direction.norm.values):
            digest.update(np.ascontiguousarray(values).tobytes())
    return f"{steering!r} {digest.hexdigest()[:12]}"


def versions() -> str:
    """JSON of the packages that the numbers depend on."""
    from importlib.metadata import version

    others = {name: version(name) for name in ("torch", "audiocraft", "transformers")}
    return json.dumps({"mechsteer": __version__, **others})
