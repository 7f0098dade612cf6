"""How much of what does it take? Sweeps over steering strengths, one table of them, and where to stop.

`dose_response` generates and measures, one row per clip; `dose_table` sums up every name and strength with
intervals; `knee` picks the strength to use. All three are about names: what is behind one (method, site,
layers, branch, a random control) is the caller's business. Taught in 04_steer_and_listen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import describe as measures
from . import distances, pitch
from .intervals import mean_interval, share
from .judges import hear as hearing

if TYPE_CHECKING:
    from ..model.generation import Generation
    from ..model.model import Model
    from ..model.steering import Steering, Steerings

__all__ = ["UNSTEERED", "dose_response", "dose_table", "knee"]

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
    duration : s, 3 or more after `start`
    audio_prompt : codes (clip, codebook, frame), optional
        Clip i goes on from number i, in turn.
    start : float, s
        Listen from here on (`measures.describe`).
    out : folder, optional
        Every finished cell is kept there under a name made from what decides its result, the model's and the
        judges' weights too. The same call finishes what is missing, and never takes what was made otherwise.
        The code isn't part of the name: after mending a measure, empty the folder.
    options : for `Model.generate`: guidance, temperature, top_k

    Returns
    -------
    pd.DataFrame, one row per clip: `name`, `strength`, `clip` (0 to n - 1), the columns of `measures.describe` with
    `twin_...` seen from the unsteered twin, `other_chroma` (chroma correlation with the unsteered clip of the next
    seed: what two clips share anyway), `nll_unprompted` (nats per token, without any prompt) and `texture`
    (`distances.texture`). The unsteered clips come first, as name "unsteered" at strength 0.

    Raises
    ------
    ValueError  for a name "unsteered", no strengths, or what `Model.generate` and `measures.describe` refuse.
    """
    from tqdm.auto import tqdm

    if UNSTEERED in steering_by_name or not len(strengths) or n < 1:
        raise ValueError(f"give at least one strength and clip, and no steering the name {UNSTEERED!r}")
    texts = [prompts] if prompts is None or isinstance(prompts, str) else list(prompts)
    rows = {"prompts": [texts[i % len(texts)] for i in range(n)], "seed": [seed + i for i in range(n)]}
    if audio_prompt is not None:
        rows["audio_prompt"] = np.asarray(audio_prompt)[[i % len(audio_prompt) for i in range(n)]]
    settings = {"duration": duration, **options}
    cells = [
        (name, float(x), _scaled(given, x)) for name, given in steering_by_name.items() for x in strengths
    ]
    shelf = _Shelf(out, model, {**rows, **settings, "start": start})

    def made(steerings) -> Generation:
        every = {key: [x for _ in steerings for x in values] for key, values in rows.items()}
        if audio_prompt is not None:
            every["audio_prompt"] = np.concatenate([rows["audio_prompt"]] * len(steerings))
        each = [
            given[i % len(given)] if isinstance(given, tuple) else given
            for given in steerings
            for i in range(n)
        ]
        return model.generate(steering=each, batch_size=batch_size, progress=False, **every, **settings)

    kept = {cell: shelf.get(cell[0], cell[1], cell[2]) for cell in [(UNSTEERED, 0.0, None), *cells]}
    todo = [cell for cell in cells if kept[cell] is None]
    with tqdm(total=(len(cells) + 1) * n, unit="clip", delay=2, disable=not progress, leave=False) as bar:
        bar.update(sum(frame is not None for frame in kept.values()) * n)
        base = (UNSTEERED, 0.0, None)
        twins = made([None]) if todo or kept[base] is None else None
        if kept[base] is None:
            kept[base] = shelf.put(*base, _measured(model, twins, twins, n, start, *base[:2]))
            bar.update(n)
        together = max(1, batch_size // n)
        for at in range(0, len(todo), together):
            some = todo[at : at + together]
            generation = made([steering for _, _, steering in some])
            for i, cell in enumerate(some):
                part = generation[i * n : (i + 1) * n]
                kept[cell] = shelf.put(*cell, _measured(model, part, twins, n, start, *cell[:2]))
                bar.update(n)
    return pd.concat(kept.values(), ignore_index=True)


def _scaled(given: Steering | Steerings | Sequence[Steering | Steerings], strength: float):
    return strength * given if hasattr(given, "parts") else tuple(strength * steering for steering in given)


def _measured(model, generation, twins, n, start, name, strength) -> pd.DataFrame:
    frame = measures.describe(generation, twins, model, start=start)
    first = round(start * generation.sample_rate)
    heard, others = generation.audio[..., first:], np.roll(twins.audio[..., first:], -1, axis=0)
    frame["other_chroma"] = (
        pitch.chroma_correlation(others, heard, generation.sample_rate) if n > 1 else np.nan
    )
    frame["nll_unprompted"] = model.nll(generation.codes)
    frame["texture"] = list(distances.texture(heard, generation.sample_rate))
    frame.insert(0, "strength", strength)
    frame.insert(0, "name", name)
    return frame


class _Shelf:
    """Finished cells in a folder, each under a digest of what decides its result."""

    def __init__(self, folder, model: Model, common: dict):
        self.folder = None if folder is None else Path(folder)
        judges = [
            hashlib.sha256(hearing.weights_path(name).read_bytes()).hexdigest() for name in hearing.JUDGES
        ]
        plain = {key: np.asarray(v).tolist() if key == "audio_prompt" else v for key, v in common.items()}
        self.common = json.dumps([model.hash, judges, plain], sort_keys=True, default=str)

    def _file(self, name, strength, steering) -> Path:
        digest = hashlib.sha256(f"{self.common} {name} {strength}".encode())
        given = steering if isinstance(steering, tuple) else [steering]
        for part in (part for one in given if one is not None for part in one.parts):
            digest.update(
                repr((part, part.mode, part.start, part.stop, part.every, part.ramp, part.branch)).encode()
            )
            digest.update(np.ascontiguousarray(part.vectors().values).tobytes())
        return self.folder / f"{digest.hexdigest()[:24]}.parquet"

    def get(self, *cell) -> pd.DataFrame | None:
        if self.folder is None or not self._file(*cell).exists():
            return None
        return pd.read_parquet(self._file(*cell))

    def put(self, name, strength, steering, frame: pd.DataFrame) -> pd.DataFrame:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._file(name, strength, steering)
            frame.to_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return frame


def dose_table(
    frame: pd.DataFrame,
    concept: Mapping[str, Any],
    kept: Sequence[str] = ("style", "drums", "tempo_class"),
    reference: np.ndarray | None = None,
    by: Sequence[str] = ("name", "strength"),
) -> pd.DataFrame:
    """One row per name and strength: did the concept come, what stayed, and what did it cost?

    Parameters
    ----------
    frame : from `dose_response`, unsteered clips included
    concept : as in `measures.success`: {"lead": "guitar"}
    kept : of lead, style, drums, tempo_class, mode
        What should stay: the share of clips in which a judge hears the same as in the unsteered twin.
    reference : (clip, dim), optional
        `distances.texture` of real clips of the concept, for KAD and Frechet distance.
    by : columns that make a cell

    Returns
    -------
    pd.DataFrame: `by`, `n`; for `success` (cnn), `judge2_success` (features), `both_success` (both at once) and
    `kept_<what>` (cnn) the share and its Wilson interval (`..._lo`, `..._hi`); the mean and its bootstrap interval over
    clips of `kept_chroma`, `kept_melody` (agreement with the twin), `other_chroma`, `divergence` (s), `nll`,
    `nll_unprompted` (nats per token), `brightness` (Hz) and `loudness` (LUFS); `kad` with its interval and `frechet` if
    there is a reference.

    Raises
    ------
    ValueError  if the unsteered clips are missing, or `concept` or `kept` names what no judge hears.
    """
    unknown = set(kept) - set(KEPT)
    if unknown or not (frame["name"] == UNSTEERED).any():
        raise ValueError(f"unknown {sorted(unknown)}" if unknown else "the frame holds no unsteered clips")
    twins = frame[frame["name"] == UNSTEERED].set_index("clip")
    means = {"kept_chroma": "twin_chroma", "kept_melody": "twin_melody", "divergence": "twin_divergence"}
    means |= {c: c for c in ("other_chroma", "nll", "nll_unprompted", "brightness", "loudness")}
    rows = []
    for key, cell in frame.groupby(list(by), sort=False):
        row = dict(zip(by, key, strict=True)) | {"n": len(cell)}
        shares = {
            "success": measures.success(cell, concept),
            "judge2_success": measures.success(cell, concept, "features"),
            "both_success": measures.success(cell, concept, "both"),
        }
        for what in kept:
            theirs = twins.loc[cell["clip"], f"cnn_{what}"].to_numpy()
            shares[f"kept_{what}"] = pd.Series(cell[f"cnn_{what}"].to_numpy() == theirs)
        for name, hits in shares.items():
            row |= dict(zip((name, f"{name}_lo", f"{name}_hi"), share(hits), strict=True))
        for name, column in means.items():
            found = mean_interval(cell[column]) if cell[column].notna().any() else (np.nan,) * 3
            row |= dict(zip((name, f"{name}_lo", f"{name}_hi"), found, strict=True))
        if reference is not None:
            heard = np.stack(cell["texture"])
            heard = heard[np.isfinite(heard).all(1)]
            row |= dict(
                zip(("kad", "kad_lo", "kad_hi"), distances.kad_interval(heard, reference), strict=True)
            )
            row["frechet"] = distances.frechet(heard, reference)
        rows.append(row)
    return pd.DataFrame(rows)


def knee(table: pd.DataFrame, quality: str = "nll_unprompted") -> pd.DataFrame:
    """The strength to use of every name: the most success before quality leaves the unsteered interval.

    Strengths are taken in order of size, above and below zero on their own, and those from the first that is
    too bad on are out, however good a later one looks by accident. Music that repeats itself is *less*
    surprising than unsteered music, so surprise (`nll`, `nll_unprompted`) must stay within the interval on
    both sides; a distance from real music (`kad`) must only not be larger.

    Parameters
    ----------
    table : from `dose_table`
    quality : a column with `<quality>_hi`

    Returns
    -------
    pd.DataFrame, one row of `table` per name; a name without a usable strength gets the unsteered row's values.
    """
    unsteered = table[table["name"] == UNSTEERED].iloc[0]
    chosen = []
    for name, rows in table[table["name"] != UNSTEERED].groupby("name", sort=False):
        rows = rows.reindex(rows["strength"].abs().sort_values(kind="stable").index)
        off = rows[quality] - unsteered[quality]
        fine = (off.abs() if quality.startswith("nll") else off) <= unsteered[f"{quality}_hi"] - unsteered[
            quality
        ]
        usable = rows[fine.groupby(rows["strength"] < 0).cummin()]
        chosen.append(usable.loc[usable["success"].idxmax()] if len(usable) else unsteered.copy())
        chosen[-1] = chosen[-1].copy()
        chosen[-1]["name"] = name
    return pd.DataFrame(chosen).reset_index(drop=True)
