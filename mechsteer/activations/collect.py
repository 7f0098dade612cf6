"""Collect a model's activations over labelled clips, pooled on the way, into a store that survives kills."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from .. import _ray
from .._shared import number, spelled
from .._shared import progress as progress_bar
from ..model.model import Model, load
from ._job import Job, Worker, again, alike, check_options, clip_keys, codes_for
from ._rows import own_codes, problem_of, unusable
from ._store import Store
from .clips import OWN, check

RESERVED = {"resid_norm", "layer", "head", "frame", "codebook", "d_model", "d_head"}


@spelled
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

    Killed at any moment, the same call finishes the rest. What can't be read is skipped, and listed at last.
    Memory doesn't grow with the number of clips.

    Parameters
    ----------
    model : Model, or what `load` takes
    clips : from `ms.clips`; columns that it doesn't know are labels. With `generate` a list of prompts, or a
        DataFrame with column `prompt` and any labels.
    sites : one or several of `sites.SITES`
    layers : int or list of int, 0-based; default all
    pool : str
        "mean" over the clip's valid steps (`Model.valid_steps`: padding and the special token are left out),
        or "frames": all, frame t being step t + 1, which has just seen codebook 0 of frame t.
    prompt : None, str or one per clip
        What the model is told; None is unconditional, as a text could leak the label. One per clip become the
        label `prompt`; a column `prompt` of the clips is a label like others and told to nobody.
    generate : dict, optional
        Options of `Model.generate`: duration (s), seed, guidance, temperature, top_k, steering. Prompt i has
        seed `seed` + i, or the column `seed`. The conditional half is read, after steering; codes are kept.
    out : path, optional
        A folder: arrays in zarr, labels in parquet. None: in memory. Sounds are known by a hash (1 to 2 s per
        GB of files at every call), what is stored by checksums: another sound under the same name is refused,
        what is damaged is made again.
    batch_size : int or "auto", clips per forward pass, which changes the numbers by rounding only
    dtype : "float32" or "float16", of what is stored
    strict : bool, read all clips first and raise if any can't be used, before any work
    engine, workers : "local", or "ray": so many actors with a model each, and a GPU each if there are any;
        one that dies is replaced. Needs `out`, on a disk that all workers share.

    Returns
    -------
    xr.Dataset, as `open_activations` describes.

    Raises
    ------
    ValueError  for unknown options; clips without names, twice the same, or (strict) unusable; an `out` of
        another model, other clips or options (names both); codes of a codec that isn't here; a label with
        lists in its cells; more than the free disk takes.
    UserWarning  if the first and last clips hardly differ, as for a model that isn't trained.

    Taught in 01_collect_activations.
    """
    if engine not in ("local", "ray") or (engine == "ray" and out is None):
        told = "choose 'local', or 'ray' with a folder that workers share (out=)"
        raise ValueError(f"engine={engine!r}: {told}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={dtype!r}; choose float32 or float16")
    if batch_size != "auto":
        batch_size = number("batch_size", batch_size, 1, whole=True)
    if generate is not None and prompt is not None:
        raise ValueError("with generate= the prompts come as clips; leave prompt= out")
    workers = number("workers", workers, 1, whole=True)
    model = load(model) if isinstance(model, str | Path) else model
    sites, layers = check_options(model, sites, layers, pool, generate)
    if generate is not None:
        generate = {"duration": 8.0, "seed": 0} | generate
        table, n_frames = _prompts(clips, generate), model.frames_of(generate["duration"])
    else:
        table = _clips(clips, model, prompt)
        n_frames = _longest(table, model)
    if strict and len(bad := check(table)):
        told = f"{len(bad)} of {len(table)} clips can't be used (strict=True)"
        raise ValueError(f"{told}:\n{bad.to_string(index=False)}")
    one_each = generate is not None or not (prompt is None or isinstance(prompt, str))
    prompt = None if one_each else prompt
    job = Job(sites, layers, pool, n_frames, prompt, one_each, generate, dtype, batch_size).fitted(model)
    labels = _labels(table, job.arrays)
    new = out is not None and not Path(out).exists()
    if new:
        _room(job.clip_bytes * len(table), out, pool)
    keys = clip_keys(table, one_each, seeds=generate is not None)
    store = Store.begin(out, job.arrays, labels, job.attrs(model, keys), keys)
    blocks = {block: table.iloc[store.rows(block)] for block in store.todo()}
    if engine == "ray":
        where = store.where.resolve()  # as a worker may start in another folder
        work = _ray.over_actors(Worker, (again(model), where, job), blocks, workers)
    else:
        work = (store.write(block, *job.run(model, rows)) for block, rows in blocks.items())
    try:
        done = int(store.done().sum())
        with progress_bar(total=store.n, initial=done, unit="clip", show=progress) as bar:
            for n_clips in work:
                bar.update(n_clips)
    except Exception:
        if new and not store.done().any():  # the corrected call shouldn't meet the options of this one
            shutil.rmtree(out)
        raise
    acts = store.dataset()
    _report(acts, labels)
    if told := alike(acts, model, table):
        warnings.warn(told, stacklevel=3)
    return acts


def codes(model: Model, clips: pd.DataFrame) -> torch.Tensor:
    """The codes of clips of one length, as `model.trace`, `model.nll` or an audio prompt take them.

    int64 (clip, codebook, frame). Of `clips`, from `ms.clips`, codes of the model's own codec are taken as
    they are, all else is encoded. ValueError when a clip can't be used, or clips differ in length.
    """
    table = _clips(clips, model, None)
    rows, problems = codes_for(model, table)
    for clip, problem in zip(table["clip"], problems, strict=True):
        if problem:
            raise ValueError(f"{clip}: {problem}")
    first, *others = sorted({row.shape[-1] for row in rows})
    if others:
        raise ValueError(f"clips of {first} to {others[-1]} frames don't fit one array: cut them alike")
    return torch.stack([torch.as_tensor(np.asarray(row, "int64")) for row in rows])


def _clips(clips: pd.DataFrame, model: Model, prompt) -> pd.DataFrame:
    """The table with a prompt per clip if given, and a problem where a clip is too long for the model."""
    columns = set(clips) if isinstance(clips, pd.DataFrame) and len(clips) else set()
    if not ({"clip", "codes"} <= columns or {"clip", "path", "start", "duration"} <= columns):
        wanted = "rows and columns `clip`, and `codes` or `path`, `start` and `duration`"
        raise ValueError(f"clips must be a DataFrame with {wanted}: ms.clips makes one")
    table = clips.reset_index(drop=True)
    if prompt is not None and not isinstance(prompt, str):
        if len(prompt) != len(table):
            raise ValueError(f"{len(prompt)} prompts for {len(table)} clips; give one for all, or one each")
        if "prompt" in table:
            taken = "the clips have a column 'prompt', which prompt= fills"
            raise ValueError(f"{taken}: rename or drop the column")
        table["prompt"] = list(prompt)
    return table.assign(problem=[problem_of(row) or unusable(row, model) for row in table.to_dict("records")])


def _prompts(prompts, generate: dict) -> pd.DataFrame:
    """Prompts as a table: clip, prompt, seed, group and labels."""
    table = prompts if isinstance(prompts, pd.DataFrame) else pd.DataFrame({"prompt": prompts})
    if "prompt" not in table or table.empty:
        raise ValueError("with generate= give a list of prompts, or a DataFrame with a column `prompt`")
    table = table.reset_index(drop=True).drop(columns=["codes", "path", "codec"], errors="ignore")
    if any(map(problem_of, table.to_dict("records"))):
        raise ValueError("the prompts have a column 'problem', which is taken: rename or drop it")
    seeds = number("seed", generate["seed"], 0, 2**62, whole=True) + np.arange(len(table))
    own = {"clip": [f"{i:05d}" for i in range(len(table))], "seed": seeds}
    own["group"] = table.get("clip", own["clip"])
    return table.assign(**{name: values for name, values in own.items() if name not in table})


def _longest(table: pd.DataFrame, model: Model) -> int:
    """Frames of the longest usable clip."""
    longest = 1
    for row in table[table["problem"] == ""].to_dict("records"):
        own = own_codes(row, model.codec_hash)  # codes of an unknown codec: an error now, not one per clip
        frames = np.ceil(row["duration"] * model.frame_rate - 1e-6) if own is None else own.shape[-1]
        longest = max(longest, int(frames))
    return longest


def _room(needed: int, out, pool: str) -> None:
    """Say how much disk the frames take; ValueError if that is more than there is."""
    folder = next(p for p in Path(out).absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if pool == "frames":
        print(f"every frame: {needed / 1e9:.2f} GB in {out} ({free / 1e9:.0f} GB free)")
    if needed > 0.95 * free:
        needs = f"{needed / 1e9:.1f} GB of activations don't fit into the {free / 1e9:.1f} GB that are free"
        raise ValueError(f"{needs}: choose fewer layers, sites or clips, dtype='float16', or pool='mean'")


def _labels(table: pd.DataFrame, arrays) -> pd.DataFrame:
    """The columns that become coords on clip; ValueError for a name that something else has."""
    if len(twice := table["clip"][table["clip"].duplicated()].unique()):
        some = ", ".join(map(str, twice[:3]))
        raise ValueError(f"{len(twice)} clip names stand for several rows ({some}, ...)")
    labels = table.drop(columns=[name for name in OWN if name != "clip"], errors="ignore")
    if taken := sorted(set(labels) & (RESERVED | set(arrays))):
        raise ValueError(f"label {', '.join(taken)}: that name is taken in the Dataset; rename the column")
    for name, column in labels.select_dtypes(object).items():
        if lists := [i for i, value in enumerate(column) if pd.api.types.is_list_like(value)]:
            raise ValueError(f"label {name!r} has a list in row {lists[0]}: give one value per cell")
    return labels.assign(clip=labels["clip"].astype(str))


def _report(acts: xr.Dataset, labels: pd.DataFrame) -> None:
    """One table of what was skipped and of labels with gaps."""
    rows = [row | {"what became of it": "skipped"} for row in json.loads(acts.attrs["skipped"])]
    for name, gaps in labels.isna().sum().items():
        if gaps:
            told = {"clip": f"label {name!r}", "problem": f"{gaps} of {len(labels)} clips have no value"}
            rows.append(told | {"what became of it": "kept, without the label"})
    if rows:
        print(pd.DataFrame(rows).to_string(index=False, max_colwidth=100))
