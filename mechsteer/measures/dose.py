"""How much of what does it take? Sweeps over steering strengths, one table of them, and where to stop.

`dose_response` generates and measures, one row per clip; `dose_table` sums up every name and strength with
intervals; `knee` picks the strength to use. All three are about names: what is behind one (method, site,
layers, branch, a random control) is the caller's business. Taught in 05_steer_and_listen.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import paths
from .._shared import number, spelled
from .._shared import progress as progress_bar
from ..model._vectors import digest
from ._sweep import PLAIN, Cell, Sweep
from .describe import describe, success
from .distances import kernel_distance, texture
from .ears.asking import Ears, heard_by, named
from .intervals import mean_interval, share
from .judges.hear import JUDGES, KNOWN, weights_path
from .kept import AXES, shared

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.steering import Steering, Steerings

UNSTEERED = PLAIN[0]
KEPT = ("lead", "style", "drums", "tempo_class", "mode")  # what an ear may hear of the rest


def dose_response(
    model: Model,
    steering_by_name: Mapping[str, Steering | Steerings | Sequence[Steering | Steerings]],
    prompts: str | None | Sequence[str | None],
    strengths: Sequence[float],
    n: int = 24,
    seed: int = 0,
    duration: float = 5.0,
    audio_prompt: Any = None,
    start: float = 0.0,
    ears: Ears | None = None,
    batch_size: int = 32,
    out: str | Path | None = None,
    engine: str = "local",
    workers: int = 2,
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """Generate and measure `n` clips for every name and strength, and the same clips unsteered.

    Clip i of every cell has prompt i and seed `seed` + i (prompts in turn), so it has an unsteered twin that
    differs in the steering only. Small cells share batches.

    Parameters
    ----------
    steering_by_name : mapping
        Each is multiplied with every strength. Several under one name go to the clips in turn. Give controls
        here, too: a random direction for every clip, so that the cell speaks of random directions and not of
        one of them.
    prompts : str, None or several
    strengths : multiples of what each steering says, as a rule of the mean activation norm
    n, seed : clips per cell, and the first one's seed
    duration, start : s; listen from `start` on (`describe`), 3 s or more
    ears : as in `describe`
    audio_prompt : codes (clip, codebook, frame), optional; clip i goes on from number i, in turn
    out : folder, optional
        Every finished cell is kept there under a name made from what decides its result, the model's and the
        judges' weights too. The same call finishes what is missing or damaged, and never takes what was made
        otherwise. The code isn't part of the name: after mending a measure, empty the folder.
    engine, workers : "local", or "ray": so many actors with a model each, and a GPU each if there are any;
        one that dies is replaced. Each makes the unsteered clips for itself; this process writes `out`. On
        machines of one kind, with as many threads, the numbers are those of one process, bit for bit.
    options : for `Model.generate`: guidance, temperature, top_k

    Returns
    -------
    pd.DataFrame, one row per clip: `name`, `strength`, `clip` (0 to n - 1), the columns of `describe` with
    `twin_...` seen from the unsteered twin, `nll_unprompted` (nats per token, without any prompt) and
    `texture` (`distances.texture`). The unsteered clips come first, as name "unsteered" at strength 0, and
    have `other_harmony`, ...: what each shares with the one of the next seed (`kept_axes`).

    Raises ValueError for a name "unsteered", no strengths, another engine, a worker that finds other weights,
    or what `Model.generate` and `describe` refuse; with "ray" ImportError without it, and what `load` raises
    where a worker can't load the model.
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"engine={engine!r}: choose 'local', or 'ray' for workers with a model each")
    heard = named(ears, model.ears)
    ears = list(heard) if ears is None else ears
    workers = number("workers", workers, 1, whole=True)
    n, batch_size = number("n", n, 1, whole=True), number("batch_size", batch_size, 1, whole=True)
    strengths, seed = [number("strength", x) for x in strengths], number("seed", seed, 0, 2**62, whole=True)
    if UNSTEERED in steering_by_name or not len(strengths):
        raise ValueError(f"give at least one strength, and no steering the name {UNSTEERED!r}")
    texts = [prompts] if prompts is None or isinstance(prompts, str) else list(prompts)
    rows = {"prompts": [texts[i % len(texts)] for i in range(n)], "seed": [seed + i for i in range(n)]}
    if audio_prompt is not None:
        rows["audio_prompt"] = np.asarray(audio_prompt)[[i % len(audio_prompt) for i in range(n)]]
    settings = {"duration": duration, **options}
    several = {name: [of] if hasattr(of, "parts") else of for name, of in steering_by_name.items()}
    cells = [(name, float(x), tuple(x * s for s in of)) for name, of in several.items() for x in strengths]
    files = {}
    if out is not None:
        files = _files(Path(out), model, {**rows, **settings, "start": start}, heard, [PLAIN, *cells])
    kept = {cell: paths.read_table(file, file.stem) for cell, file in files.items()}
    done = {cell: frame for cell, frame in kept.items() if frame is not None}
    todo = [cell for cell in cells if cell not in done]

    measure = functools.partial(_measured, n=n, start=start, ears=ears)
    sweep = Sweep(rows, settings | {"batch_size": batch_size}, n, measure)
    together = max(1, batch_size // n)
    pieces = [] if PLAIN in done else [[PLAIN]]
    pieces += [todo[at : at + together] for at in range(0, len(todo), together)]
    with progress_bar(total=(len(cells) + 1) * n, unit="clip", show=progress) as bar:
        bar.update(len(done) * n)
        for at, frames in sweep.run(model, dict(enumerate(pieces)), engine, workers):
            for cell, frame in zip(pieces[at], frames, strict=True):
                done[cell] = frame
                if cell in files:
                    paths.write_table(frame, files[cell], files[cell].stem)
            bar.update(len(frames) * n)
    return pd.concat([done[cell] for cell in [PLAIN, *cells]], ignore_index=True)


def _measured(model, generation, twins, n, start, ears, name, strength) -> pd.DataFrame:
    frame = describe(generation, twins, model, ears, start)
    first = round(start * generation.sample_rate)
    heard, others = generation.audio[..., first:], np.roll(twins.audio[..., first:], -1, axis=0)
    alike = shared(others, heard, generation.sample_rate) if name == UNSTEERED and n > 1 else {}
    frame = frame.assign(**{f"other_{axis}": alike.get(axis, np.nan) for axis in AXES})
    unprompted = all(prompt is None for prompt in generation.prompts)
    frame["nll_unprompted"] = frame["nll"] if unprompted else model.nll(generation.codes)
    frame["texture"] = list(texture(heard, generation.sample_rate))
    frame.insert(0, "strength", strength)
    frame.insert(0, "name", name)
    return frame


def _files(folder, model, settings: dict, ears: Mapping, cells: Sequence[Cell]) -> dict[Cell, Path]:
    """The file of every cell, named by what decides its result: weights of model and judges, and settings."""
    made = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    ours = lambda name: (made(weights_path(name)), made(weights_path(name).with_name(KNOWN)))
    theirs = lambda name: (name, str(getattr(ears[name], "keywords", "")))
    judges = [ours(name) if name in JUDGES else theirs(name) for name in ears]
    plain = {key: np.asarray(v).tolist() if key == "audio_prompt" else v for key, v in settings.items()}
    common, files = json.dumps([model.hash, judges, AXES, plain], sort_keys=True, default=str), {}
    for name, strength, steerings in cells:
        steered = [digest(steering) for steering in steerings if steering is not None]
        named = hashlib.sha256(f"{common} {name} {strength} {steered}".encode()).hexdigest()[:24]
        files[name, strength, steerings] = folder / f"{named}.parquet"
    return files


@spelled
def dose_table(
    frame: pd.DataFrame,
    concept: Mapping[str, Any],
    kept: Sequence[str] = ("style", "drums", "tempo_class"),
    reference: np.ndarray | None = None,
    ears: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row per name and strength: did the concept come, what stayed, and what did it cost?

    Parameters
    ----------
    frame : from one `dose_response`, unsteered clips included
    concept : as in `success`: {"lead": "guitar"}
    kept : of lead, style, drums, tempo_class, mode
        What should stay: the share of clips in which the first ear hears the same as in the unsteered twin;
        what it doesn't hear is left out.
    reference : (clip, dim), optional; `distances.texture` of real clips of the concept
    ears : names; default: those that the frame has columns of, for what the concept asks

    Returns
    -------
    pd.DataFrame: `name`, `strength`, `n`; `success` (first ear), `judge2_success` (second) and `both_success`
    (both at once), further ears as `<ear>_success`, and `kept_<what>`: each the share and its Wilson interval
    (`..._lo`, `..._hi`). The mean and its bootstrap interval over clips of `kept_harmony`, `kept_rhythm`,
    `kept_melody`, `kept_structure` (`kept_axes`), `divergence` (s), `nll`, `nll_unprompted` (nats per token),
    `brightness` (Hz) and `loudness` (LUFS); `texture_distance` with its interval if there is a reference.

    Raises ValueError if unsteered clips are missing, if a clip has several twins (the rows of several
    sweeps), or if `concept` or `kept` names what no ear hears.
    """
    if unknown := set(kept) - set(KEPT):
        raise ValueError(f"unknown {sorted(unknown)}; what ears may hear is {', '.join(KEPT)}")
    means = {"divergence": "twin_divergence"}
    means |= {c: c for c in ("nll", "nll_unprompted", "brightness", "loudness")}
    if ears is None:
        ears = heard_by(frame)
        ears = [e for e in ears if all(f"{e}_{c}" in frame or c in frame for c in concept)] or ears[:1]
    if not ears:
        raise ValueError("the frame has no ear's columns: sweep with ears, or say which with ears=")
    axes = kept_axes(frame)
    frame, twins = frame.assign(**axes), _twins(frame)
    rows = []
    for (name, strength), cell in frame.groupby(["name", "strength"], sort=False):
        row = {"name": name, "strength": strength, "n": len(cell)}
        named = dict(zip(ears, ("success", "judge2_success"), strict=False))
        hits = {named.get(ear, f"{ear}_success"): success(cell, concept, ear) for ear in ears}
        if len(ears) > 1:
            hits["both_success"] = hits["success"] & hits["judge2_success"]
        for what in kept:
            if (column := f"{ears[0]}_{what}") in cell:
                theirs = twins.loc[cell["clip"], column].to_numpy()
                hits[f"kept_{what}"] = pd.Series(cell[column].to_numpy() == theirs)
        found = {name: share(hit) for name, hit in hits.items()}
        for name, column in {**{axis: axis for axis in axes}, **means}.items():
            known = cell[column].notna().any()
            found[name] = mean_interval(cell[column]) if known else (np.nan,) * 3
        if reference is not None:
            heard = np.stack(cell["texture"])
            heard = heard[np.isfinite(heard).all(1)]
            found["texture_distance"] = kernel_distance(heard, reference)
        for name, (value, lo, hi) in found.items():
            row |= {name: value, f"{name}_lo": lo, f"{name}_hi": hi}
        rows.append(row)
    return pd.DataFrame(rows)


def kept_axes(frame: pd.DataFrame) -> pd.DataFrame:
    """How much of its unsteered twin each clip keeps: `kept_harmony`, `_rhythm`, `_melody`, `_structure`.

    `frame` is from one `dose_response`. 1 is the same and 0 what two unsteered clips of different seeds share
    (the mean of `kept.shared` over them), so values may lie below 0; (x - unrelated) / (1 - unrelated).
    Missing where these share all, as clips of a model that isn't trained may.
    """
    plain = frame[frame["name"] == UNSTEERED]
    unrelated = {axis: plain[f"other_{axis}"].mean() for axis in AXES}
    room = {axis: 1 - u if u < 1 - 1e-6 else np.nan for axis, u in unrelated.items()}
    return pd.DataFrame({f"kept_{axis}": 1 - (1 - frame[f"twin_{axis}"]) / room[axis] for axis in AXES})


def _twins(frame: pd.DataFrame) -> pd.DataFrame:
    """The unsteered clips by number; ValueError unless every clip has one."""
    twins = frame[frame["name"] == UNSTEERED].set_index("clip")
    if not set(frame["clip"]) <= set(twins.index):
        raise ValueError("the frame holds no unsteered clips for some that are steered")
    if twins.index.has_duplicates:
        raise ValueError("clips with several unsteered twins: give the clips of one sweep at a time")
    return twins


@spelled
def knee(table: pd.DataFrame) -> pd.DataFrame:
    """The strength to use of every name: the most success before the music leaves the unsteered interval.

    Strengths are taken in order of size, above and below zero on their own, and those from the first that is
    too bad on are out, however good a later one looks by accident. Bad is what surprises the model: music
    whose `nll_unprompted` is outside the interval of unsteered music, on either side, since music that
    repeats itself is *less* surprising.

    `table` is from `dose_table`. Returns one row of it per name; a name without a usable strength gets the
    unsteered row's values. Raises ValueError unless there is one unsteered row.
    """
    unsteered = table[table["name"] == UNSTEERED]
    if len(unsteered) != 1:
        raise ValueError(f"{len(unsteered)} unsteered rows: give the table of one sweep")
    unsteered, chosen = unsteered.iloc[0], []
    room = unsteered["nll_unprompted_hi"] - unsteered["nll_unprompted"]
    for name, rows in table[table["name"] != UNSTEERED].groupby("name", sort=False):
        rows = rows.reindex(rows["strength"].abs().sort_values(kind="stable").index)
        fine = (rows["nll_unprompted"] - unsteered["nll_unprompted"]).abs() <= room
        usable = rows[fine.groupby(rows["strength"] < 0).cummin()]
        best = usable.loc[usable["success"].idxmax()] if len(usable) else unsteered
        chosen.append({**best, "name": name})
    return pd.DataFrame(chosen)
