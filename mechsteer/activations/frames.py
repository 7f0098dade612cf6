"""What sounds in each frame: notes, chords and beats in seconds, turned into labels of frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from .._shared import spelled

NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


@spelled
def frame_labels(
    acts: xr.Dataset, notes: pd.DataFrame | None = None, chords: pd.DataFrame | None = None
) -> xr.Dataset:
    """Labels for every frame of `acts`, ready to join: `acts = acts.merge(ms.frame_labels(acts))`.

    Frame t is the time from t / rate to (t + 1) / rate. `collect(pool="frames")` puts at frame t the
    activation of sequence step t + 1, which has just read codebook 0 of frame t (codebook k up to frame t -
    k): so these labels say what the model has *just heard*, `labels.shift(frame=-1)` what it is about to
    play.

    Parameters
    ----------
    acts : xr.Dataset
        With dims clip and frame, attr `frame_rate` (Hz); for beats, coords `tempo` (bpm), `first_beat` (s).
    notes, chords : pd.DataFrame, optional
        Columns clip, onset, offset (s) and pitch (MIDI), optionally part ("drums" have no pitch and don't
        count); or root (pitch class). Default: those of `tiny.orchestra`.

    Returns
    -------
    xr.Dataset with
    `sounding` (clip, frame, pitch_class): bool, a note of this class sounds in the middle of the frame;
    `chord_root` (clip, frame): the name of the root of the chord there, "" where there is none;
    `beat` (clip, frame): bool, a beat falls within the frame.

    Raises
    ------
    ValueError  if `acts` has no frames, or the tables know none of its clips.
    """
    if "frame" not in acts.dims or "frame_rate" not in acts.attrs:
        raise ValueError("these activations have no frames: collect them with pool='frames'")
    from ..tiny import orchestra

    notes = orchestra.notes() if notes is None else notes
    chords = orchestra.chords() if chords is None else chords
    if "part" in notes:
        notes = notes[notes["part"] != "drums"]
    names, n, rate = acts["clip"].values, acts.sizes["frame"], float(acts.attrs["frame_rate"])
    sounding = spread(notes, notes["pitch"] % 12, names, n, rate)
    root = spread(chords, chords["root"], names, n, rate)
    root = np.where(root.any(-1), np.array(NAMES, dtype=object)[root.argmax(-1)], "").astype(str)
    found = {"sounding": (("clip", "frame", "pitch_class"), sounding)}
    found["chord_root"] = ("clip", "frame"), root
    if {"tempo", "first_beat"} <= set(acts.coords):
        found["beat"] = ("clip", "frame"), beats(acts["tempo"].values, acts["first_beat"].values, n, rate)
    return xr.Dataset(found, coords={"clip": names, "frame": acts["frame"], "pitch_class": list(NAMES)})


def spread(events: pd.DataFrame, classes: pd.Series, names: np.ndarray, n: int, rate: float) -> np.ndarray:
    """bool [clip, frame, 12]: whether an event of a class (0-11) lasts over the middle of the frame."""
    events = events.assign(row=pd.Index(names).get_indexer(events["clip"]), kind=classes.astype(int))
    events = events[events["row"] >= 0]
    if events.empty:
        raise ValueError("no note or chord belongs to any of these clips; pass the tables of your own clips")
    first, after = (np.clip(np.ceil(events[at] * rate - 0.5), 0, n).astype(int) for at in ("onset", "offset"))
    found = np.zeros((len(names), n, 12), bool)
    for row, kind, a, b in zip(events["row"], events["kind"], first, after, strict=True):
        found[row, a:b, kind] = True
    return found


def beats(tempo: np.ndarray, first: np.ndarray, n: int, rate: float) -> np.ndarray:
    """bool [clip, frame]: whether a beat, at first + k * 60 / tempo s with k >= 0, falls within the frame."""
    edges = np.arange(n + 1) / rate
    passed = np.ceil((edges[None] - first[:, None]) * tempo[:, None] / 60 - 1e-9)  # beats before each edge
    return np.diff(passed.clip(0), axis=1) > 0
