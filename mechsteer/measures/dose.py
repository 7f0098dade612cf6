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
from ._sweep import Sweep
from .describe import describe, success
from .distances import kad, texture
from .intervals import mean_interval, share
from .judges.hear import JUDGES, weights_path
from .pitch import chroma_correlation

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.steering import Steering, Steerings

UNSTEERED = "unsteered"
KEPT = ("lead", "style", "drums", "tempo_class", "mode")  # what both judges hear


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
    audio_prompt : codes (clip, codebook, frame), optional; clip i goes on from number i, in turn
    out : folder, optional
        Every finished cell is kept there under a name made from what decides its result, the model's and the
        judges' weights too. The same call finishes what is missing or damaged, and never takes what was made
        otherwise.
        The code isn't part of the name: after mending a measure, empty the folder.
    engine, workers : "local", or "ray": so many actors with a model each, and a GPU each if there are any;
        one that dies is replaced. Each makes the unsteered clips for itself; this process writes `out`. On
        machines of one kind, with as many threads, the numbers are those of one process, bit for bit.
    options : for `Model.generate`: guidance, temperature, top_k

    Returns
    -------
    pd.DataFrame, one row per clip: `name`, `strength`, `clip` (0 to n - 1), the columns of `describe` with
    `twin_...` seen from the unsteered twin, `other_chroma` (chroma correlation with the unsteered clip of the
    next seed: what two clips share anyway), `nll_unprompted` (nats per token, without any prompt) and
    `texture` (`distances.texture`). The unsteered clips come first, as name "unsteered" at strength 0.

    Raises ValueError for a name "unsteered", no strengths, another engine, a worker that finds other weights,
    or what `Model.generate` and `describe` refuse; with "ray" ImportError without it, and what `load` raises
    where a worker can't load the model.
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"engine={engine!r}: choose 'local', or 'ray' for workers with a model each")
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
    unsteered = (UNSTEERED, 0.0, (None,))
    files = {}
    if out is not None:
        files = _files(Path(out), model, {**rows, **settings, "start": start}, [unsteered, *cells])
    kept = {cell: paths.read_table(file, file.stem) for cell, file in files.items()}
    done = {cell: frame for cell, frame in kept.items() if frame is not None}
    todo = [cell for cell in cells if cell not in done]

    measure = functools.partial(_measured, n=n, start=start)
    sweep = Sweep(rows, settings | {"batch_size": batch_size}, n, measure)
    together = max(1, batch_size // n)
    pieces = [] if unsteered in done else [[unsteered]]
    pieces += [todo[at : at + together] for at in range(0, len(todo), together)]
    with progress_bar(total=(len(cells) + 1) * n, unit="clip", show=progress) as bar:
        bar.update(len(done) * n)
        for at, frames in sweep.run(model, dict(enumerate(pieces)), engine, workers):
            for cell, frame in zip(pieces[at], frames, strict=True):
                done[cell] = frame
                if cell in files:
                    paths.write_table(frame, files[cell], files[cell].stem)
            bar.update(len(frames) * n)
    return pd.concat([done[cell] for cell in [unsteered, *cells]], ignore_index=True)


def _measured(model, generation, twins, n, start, name, strength) -> pd.DataFrame:
    frame = describe(generation, twins, model, start=start)
    first = round(start * generation.sample_rate)
    heard, others = generation.audio[..., first:], np.roll(twins.audio[..., first:], -1, axis=0)
    frame["other_chroma"] = chroma_correlation(others, heard, generation.sample_rate) if n > 1 else np.nan
    frame["nll_unprompted"] = model.nll(generation.codes)
    frame["texture"] = list(texture(heard, generation.sample_rate))
    frame.insert(0, "strength", strength)
    frame.insert(0, "name", name)
    return frame


def _files(folder: Path, model: Model, settings: dict, cells: Sequence[tuple]) -> dict[tuple, Path]:
    """The file of every cell, named by what decides its result: weights of model and judges, and settings."""
    judges = [hashlib.sha256(weights_path(name).read_bytes()).hexdigest() for name in JUDGES]
    plain = {key: np.asarray(v).tolist() if key == "audio_prompt" else v for key, v in settings.items()}
    common, files = json.dumps([model.hash, judges, plain], sort_keys=True, default=str), {}
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
) -> pd.DataFrame:
    """One row per name and strength: did the concept come, what stayed, and what did it cost?

    Parameters
    ----------
    frame : from one `dose_response`, unsteered clips included
    concept : as in `success`: {"lead": "guitar"}
    kept : of lead, style, drums, tempo_class, mode
        What should stay: the share of clips in which a judge hears the same as in the unsteered twin.
    reference : (clip, dim), optional; `distances.texture` of real clips of the concept

    Returns
    -------
    pd.DataFrame: `name`, `strength`, `n`; for `success` (cnn), `judge2_success` (features), `both_success`
    (both at once) and `kept_<what>` (cnn) the share and its Wilson interval (`..._lo`, `..._hi`); the mean
    and its bootstrap interval over clips of `kept_chroma`, `kept_melody` (agreement with the twin),
    `other_chroma`, `divergence` (s), `nll`, `nll_unprompted` (nats per token), `brightness` (Hz) and
    `loudness` (LUFS); `kad` with its interval if there is a reference.

    Raises ValueError if unsteered clips are missing, if a clip has several twins (the rows of several
    sweeps), or if `concept` or `kept` names what no judge hears.
    """
    if unknown := set(kept) - set(KEPT):
        raise ValueError(f"unknown {sorted(unknown)}; what both judges hear is {', '.join(KEPT)}")
    means = {"kept_chroma": "twin_chroma", "kept_melody": "twin_melody", "divergence": "twin_divergence"}
    means |= {c: c for c in ("other_chroma", "nll", "nll_unprompted", "brightness", "loudness")}
    twins = frame[frame["name"] == UNSTEERED].set_index("clip")
    if not set(frame["clip"]) <= set(twins.index):
        raise ValueError("the frame holds no unsteered clips for some that are steered")
    if twins.index.has_duplicates:
        raise ValueError("clips with several unsteered twins: give the clips of one sweep at a time")
    rows = []
    for (name, strength), cell in frame.groupby(["name", "strength"], sort=False):
        row = {"name": name, "strength": strength, "n": len(cell)}
        judges = {"success": "cnn", "judge2_success": "features", "both_success": "both"}
        shares = {name: success(cell, concept, judge) for name, judge in judges.items()}
        for what in kept:
            theirs = twins.loc[cell["clip"], f"cnn_{what}"].to_numpy()
            shares[f"kept_{what}"] = pd.Series(cell[f"cnn_{what}"].to_numpy() == theirs)
        found = {name: share(hits) for name, hits in shares.items()}
        for name, column in means.items():
            known = cell[column].notna().any()
            found[name] = mean_interval(cell[column]) if known else (np.nan,) * 3
        if reference is not None:
            heard = np.stack(cell["texture"])
            found["kad"] = kad(heard[np.isfinite(heard).all(1)], reference)
        for name, (value, lo, hi) in found.items():
            row |= {name: value, f"{name}_lo": lo, f"{name}_hi": hi}
        rows.append(row)
    return pd.DataFrame(rows)


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
