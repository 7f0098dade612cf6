"""Collect a model's activations over labelled clips, pooled while collecting, into a store that survives any kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from ..model._checkpoints import codec_fingerprint
from ..model.model import Model, load
from . import _job as jobs
from . import clips as datasets
from ._store import Store, open_activations

__all__ = ["collect", "open_activations"]


def collect(
    model: Model | str | Path,
    clips: pd.DataFrame | list[str | None],
    sites=("resid",),
    layers=None,
    pool: str = "mean",
    prompt=None,
    generate: dict | None = None,
    out: str | Path | None = None,
    batch_size: int | str = "auto",
    dtype: str = "float32",
    strict: bool = False,
    engine: str = "local",
    workers: int = 2,
    progress: bool = True,
) -> xr.Dataset:
    """Read activations of every clip, teacher-forced, or of prompts while they are being generated.

    Killed at any moment, the same call finishes the rest. What can't be read is skipped and listed in one
    table at the end. Memory grows neither with the number of clips nor, unless frames are kept, with their
    length.

    Parameters
    ----------
    model : Model, or what `load` takes
    clips : pd.DataFrame
        From `ms.clips`: `clip` with `path`, `start`, `duration`, or `codes`; `group`; all other columns are
        labels. With `generate`: a list of prompts, or a DataFrame with column `prompt` and any labels.
    sites : of "resid", "attn", "heads", "cross", "mlp"
    layers : int or list of int, 0-based; default all
    pool : str
        "mean" over the clip's valid steps (`Model.valid_steps`: padding and the special token are left out),
        "last" of them, or "frames": all, frame t being step t + 1, which has just seen codebook 0 of frame t.
    prompt : None, str or one per clip
        What the model is told. None, the default, is unconditional: a text could leak the label.
    generate : dict, optional
        Options of `Model.generate`: duration (s), seed, guidance, temperature, top_k, steering. Prompt i has
        seed `seed` + i, or the column `seed`. Read are the rows of the conditional half, after steering;
        codes are kept.
    out : path, optional
        A folder (zarr). None: in memory, for small collections.
    batch_size : int or "auto"
        Clips per forward pass, which changes the numbers by rounding only.
    dtype : "float32" or "float16", of what is stored
    strict : bool
        Read all clips first and raise if any can't be used, before any work.
    engine, workers
        "ray" spreads blocks of clips over this many actors with a model each (one GPU each where there are
        any); a worker that dies is replaced. Needs `out`, on a disk that all workers share.

    Returns
    -------
    xr.Dataset, as `open_activations` describes.

    Raises
    ------
    ValueError
        For unknown options; clips without names, twice the same, or (strict) unusable; `out` holding
        activations of another model, other clips or options (names both); codes of a codec that isn't here;
        frames that exceed the free disk.

    Taught in 01_collect_activations.
    """
    if engine not in ("local", "ray") or (engine == "ray" and out is None):
        raise ValueError(
            f"engine={engine!r}, out={out!r}; choose 'local', or 'ray' with a folder that workers share"
        )
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={dtype!r}; choose float32 or float16")
    source = model if isinstance(model, str | Path) else model.musicgen.name
    model = load(model) if isinstance(model, str | Path) else model
    sites, layers = jobs.check_options(model, sites, layers, pool, generate)
    table = _prompts(clips, generate) if generate is not None else _clips(clips, model, prompt)
    if strict and len(bad := datasets.check(table)):
        raise ValueError(
            f"{len(bad)} of {len(table)} clips can't be used (strict=True):\n{bad.to_string(index=False)}"
        )
    shared = prompt if prompt is None or isinstance(prompt, str) else None
    options = None if generate is None else {"duration": 8.0, "seed": 0} | generate
    n_frames = _longest(table, model, options)
    job = jobs.Job(sites, layers, pool, n_frames, shared, options, dtype, batch_size).fitted(model)
    layout = job.layout(model, len(table))
    _room(layout.bytes(), out, pool)
    began_here = out is not None and not Path(out).exists()
    store = Store.begin(out, layout, _labels(table, layout), _attrs(job, model, table))
    try:
        if engine == "ray":
            from ._ray import run

            run(source, model, job, table, store, workers, progress)
        else:
            _run(model, job, table, store, progress)
    except Exception:
        if began_here:  # so that the corrected call doesn't meet the options of this one
            store.discard_empty()
        raise
    acts = open_activations(store.where)
    _report(acts, table)
    return acts


def codes(model: Model, clips: pd.DataFrame):
    """The codes of clips of one length, as `model.trace`, `model.nll` or an audio prompt take them.

    Parameters
    ----------
    clips : pd.DataFrame
        From `ms.clips`. Codes that the model's own codec made are taken as they are; all else is read and
        encoded.

    Returns
    -------
    torch.Tensor, int64 (clip, codebook, frame)

    Raises
    ------
    ValueError  when a clip can't be used, or the clips differ in length (cut them with `ms.clips(..., segment=...)`).
    """
    import torch

    rows = [
        torch.as_tensor(np.asarray(row, "int64")) for row in jobs.encode(model, _clips(clips, model, None))
    ]
    lengths = sorted({row.shape[-1] for row in rows})
    if len(lengths) > 1:
        raise ValueError(
            f"clips of {lengths[0]} to {lengths[-1]} frames don't fit one array: cut them to one length"
        )
    return torch.stack(rows)


def _run(model: Model, job: jobs.Job, table: pd.DataFrame, store: Store, progress: bool) -> None:
    from tqdm.auto import tqdm

    todo = store.todo()
    left = sum(len(range(*store.rows(i).indices(len(table)))) for i in todo)
    with tqdm(
        total=len(table), initial=len(table) - left, unit="clip", delay=2, disable=not progress, leave=False
    ) as bar:
        for block in todo:
            rows = table.iloc[store.rows(block)]
            store.write(block, *job.run(model, rows))
            bar.update(len(rows))


def _clips(clips: pd.DataFrame, model: Model, prompt) -> pd.DataFrame:
    """The table with a prompt per clip if given, and a problem where a clip is too short or too long for the model."""
    known = isinstance(clips, pd.DataFrame) and len(clips) and "clip" in clips
    if not known or not ("codes" in clips or {"path", "start", "duration"} <= set(clips)):
        raise ValueError(
            "clips must be a DataFrame with rows and columns `clip`, and `codes` or `path`, `start` and `duration`: "
            "ms.clips makes one of a folder, a manifest or a DataFrame"
        )
    table = clips.reset_index(drop=True).drop(columns="prompt", errors="ignore")
    _unique(table)
    if prompt is not None and not isinstance(prompt, str):
        if len(prompt) != len(table):
            raise ValueError(f"{len(prompt)} prompts for {len(table)} clips; give one for all, or one each")
        table["prompt"] = list(prompt)
    problem = table["problem"].fillna("") if "problem" in table else pd.Series("", index=table.index)
    if "duration" in table:
        too_long = (problem == "") & (table["duration"] > model.max_duration + datasets.SHORT)
        problem[too_long] = [
            f"lasts {s:.1f} s, longer than the {model.max_duration:g} s this model was made for: ms.clips(..., segment="
            f"{model.max_duration:g}) cuts it"
            for s in table["duration"][too_long]
        ]
    return table.assign(problem=problem)


def _prompts(prompts, generate: dict) -> pd.DataFrame:
    """Prompts as a table: clip, prompt, seed, group and labels."""
    table = (
        prompts.reset_index(drop=True)
        if isinstance(prompts, pd.DataFrame)
        else pd.DataFrame({"prompt": prompts})
    )
    if "prompt" not in table or table.empty:
        raise ValueError(
            "to collect while generating, give a list of prompts or a DataFrame with a column `prompt`"
        )
    table = table.drop(columns=["codes", "path", "codec"], errors="ignore")
    seed = int(generate.get("seed", 0))
    own = {"clip": [f"{i:05d}" for i in range(len(table))], "seed": seed + np.arange(len(table))}
    table = table.assign(**{k: v for k, v in own.items() if k not in table})
    _unique(table)
    return table if "group" in table else table.assign(group=table["clip"])


def _unique(table: pd.DataFrame) -> None:
    twice = table["clip"][table["clip"].duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{len(twice)} clip names stand for several rows ({', '.join(map(str, twice[:3]))}, ...)"
        )


def _longest(table: pd.DataFrame, model: Model, generate: dict | None) -> int:
    """Frames of the longest usable clip."""
    if generate is not None:
        return model.seconds_to_frames(generate["duration"])
    longest, codec = 1, codec_fingerprint(model.codec.state_dict())
    for made_by in set(table["codec"].dropna()) - {codec} if "codec" in table else ():
        datasets.codec_of(made_by)  # an error now rather than one per clip
    for row in table.to_dict("records"):
        codes = datasets.codes_of(row, codec)
        if not row["problem"]:
            frames = np.ceil(row["duration"] * model.frame_rate - 1e-6) if codes is None else codes.shape[-1]
            longest = max(longest, int(frames))
    return longest


def _room(needed: int, out, pool: str) -> None:
    """Say how much disk the frames take; ValueError if that is more than there is."""
    if out is None or Path(out).exists():
        return
    folder = next(p for p in Path(out).absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if pool == "frames":
        print(f"every frame: {needed / 1e9:.2f} GB in {out} ({free / 1e9:.0f} GB free)")
    if needed > 0.95 * free:
        raise ValueError(
            f"{needed / 1e9:.1f} GB of activations don't fit into the {free / 1e9:.1f} GB that are free: choose fewer "
            "layers, sites or clips, dtype='float16', or pool='mean'"
        )


def _labels(table: pd.DataFrame, layout) -> pd.DataFrame:
    taken = (set(table) - set(datasets.OWN)) & (jobs.RESERVED | set(layout.arrays))
    if taken:
        raise ValueError(
            f"label {', '.join(sorted(taken))}: that name is taken in the Dataset; rename the column"
        )
    labels = table.drop(columns=[c for c in datasets.OWN if c in table and c != "clip"])
    return labels.assign(clip=labels["clip"].astype(str))


def _attrs(job: jobs.Job, model: Model, table: pd.DataFrame) -> dict:
    options = job.options(model, table)
    return {
        "model": model.name,
        "model_hash": model.hash,
        "site": ", ".join(job.sites),
        "pool": job.pool,
        "prompt": options["prompt"] or "unconditional",
        "data": options["clips"],
        "seed": job.generate["seed"] if job.generate else "not used: nothing here is random",
        "frame_rate": model.frame_rate,
        "versions": jobs.versions(),
        "options": json.dumps(options, ensure_ascii=False),
    }


def _report(acts: xr.Dataset, table: pd.DataFrame) -> None:
    """One table of what was skipped and of labels with gaps."""
    rows = [row | {"what became of it": "skipped"} for row in json.loads(acts.attrs["skipped"])]
    for name in (name for name in table if name not in datasets.OWN):
        if gaps := int(table[name].isna().sum()):
            kept = f"{gaps} of {len(table)} clips have no value"
            rows.append(
                {"clip": f"label {name!r}", "problem": kept, "what became of it": "kept, without the label"}
            )
    if rows:
        print(pd.DataFrame(rows).to_string(index=False, max_colwidth=100))
