"""What changed in steered clips: one row of measures per clip. Whole sets of clips are for `distances`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._shared import did_you_mean, number, spelled
from ..model.generation import Generation
from ..sound import to_clips
from . import _spectra as spectra
from .ears.asking import Ears, ask, heard_by, named
from .judges.hear import JUDGES, heard_values
from .kept import shared
from .loudness import loudness


@spelled
def describe(
    generation: Generation,
    twin: Generation | Sequence[int] | None = None,
    model: Any = None,
    ears: Ears | None = None,
    start: float = 0.0,
) -> pd.DataFrame:
    """Measure every clip of a generation.

    Parameters
    ----------
    generation : Generation
    twin : Generation or row numbers, optional
        What each clip is compared with, as a rule the same prompt and seed unsteered: one clip for each or
        one for all, of the same length; or for each clip of a sweep the row of `generation` that is its twin.
    model : Model, for `nll`; as a rule the one that generated the clips.
    ears : names, functions (audio, sample_rate) -> pd.DataFrame, or several (`ears.asking.named`); [] for no
        ear. Default: the model's own two judges if it brings any, else CLAP and musicnn, or which is here.
    start : float, s
        Judge, compare and measure only the audio from here on, such as what comes after an audio prompt.
        Divergence and `nll`, which are about codes, always cover the whole clip.

    Returns
    -------
    pd.DataFrame, one row per clip in the order of `generation`:

    - `clip` (row number), `prompt`, `seed`;
    - `cnn_lead`, `cnn_p_lead_guitar`, `musicnn_tag_techno`, ...: all that each ear hears, its name in front;
    - `brightness` (Hz) and `loudness` (LUFS): see the functions of these names. Brightness reaches to half
      the sample rate: compare within a model, or resample;
    - with `twin`: `twin_harmony`, `twin_rhythm`, `twin_melody`, `twin_structure`: how much of the twin's the
      clip shares, 1 for all (`kept.shared`; what two unrelated clips share isn't 0: see `dose_table`); and
      `twin_divergence` (s): from the audio prompt's end to the first frame in which any codebook differs; for
      a clip that never differs its whole length after the prompt. Codebook k of a frame is drawn k steps
      after codebook 0 (delay pattern), so a steering that starts at frame t can first show at frame t - k;
    - with `model`: `nll` (nats per token): negative log-likelihood of the clip's codes under its own prompt,
      unsteered, without guidance (`Model.nll`), the audio prompt's codes included.

    Warns, in a sentence, if one of our judges refuses more than half of the clips that aren't steered. Raises
    ValueError if less than 3 s follow `start`, or `twin` doesn't fit. Taught in 05_steer_and_listen.
    """
    rate, n = generation.sample_rate, len(generation)
    start = number("start (s)", start, 0)
    audio = generation.audio[..., round(start * rate) :]
    if audio.shape[-1] < spectra.SHORTEST * rate:
        where = f"start={start:g} s in clips of {generation.audio.shape[-1] / rate:g} s"
        raise ValueError(f"{where}; {spectra.SHORTEST:g} s or more must be left")
    tables = [pd.DataFrame({"clip": np.arange(n), "prompt": generation.prompts, "seed": generation.seeds})]
    tables.append(ask(named(ears, generation.ears), audio, rate))
    _refused(tables[-1], generation)
    columns = {"brightness": brightness(audio, rate), "loudness": loudness(audio, rate)}
    if twin is not None:
        theirs, codes = _twins(generation, twin)
        theirs = theirs[..., round(start * rate) :]
        tables.append(shared(theirs, audio, rate).add_prefix("twin_"))
        columns["twin_divergence"] = _divergence(generation, codes)
    if model is not None:
        columns["nll"] = model.nll(generation.codes, prompts=generation.prompts)
    return pd.concat([*tables, pd.DataFrame(columns)], axis=1)


def _refused(heard, generation):
    """Warn where a judge doesn't know the music as it is, before anything is steered."""
    plain = heard[[steering is None for steering in generation.steering]]
    for name in (name for name in JUDGES if f"{name}_known" in plain):
        known = plain[f"{name}_known"].dropna().astype(bool)
        if len(known) and known.mean() < 0.5:
            told = f"{name} knows music like {known.sum()} of the {len(known)} unsteered clips only"
            warnings.warn(f"{told}; ask another ear: describe(music, ears=['clap', 'musicnn'])", stacklevel=4)


def _twins(generation, twin):
    """Audio and codes of the twins, one row per clip."""
    n, codes = len(generation), np.asarray(generation.codes)
    if not isinstance(twin, Generation):
        rows = [int(row) for row in twin]
        if len(rows) != n or not set(rows) <= set(range(n)):
            raise ValueError(f"twin={rows}: give a row from 0 to {n - 1} for each clip")
        return generation.audio[rows], codes[rows]
    if len(twin) not in (1, n):
        raise ValueError(f"{len(twin)} twins for {n} clips; give one each, or one for all")
    ours, theirs = ((g.audio.shape[1:], tuple(g.codes.shape[1:]), g.sample_rate) for g in (generation, twin))
    if ours != theirs:
        shapes = f"twins of (audio, codes, Hz) {theirs} for clips of {ours}"
        raise ValueError(f"{shapes}; generate both with one model and one duration")
    return np.broadcast_to(twin.audio, generation.audio.shape), np.broadcast_to(twin.codes, codes.shape)


def _divergence(generation, codes):
    """Seconds from the audio prompt's end to the first frame that differs from `codes`, (clip,)."""
    given = generation.settings.get("prompt_frames", 0)
    differs = (np.asarray(generation.codes) != codes).any(1)[:, given:]  # clip, frame
    frames = np.where(differs.any(1), differs.argmax(1), differs.shape[1])
    return frames * (generation.audio.shape[-1] / generation.sample_rate / codes.shape[-1])


def brightness(audio: Any, sample_rate: int) -> np.ndarray:
    """Spectral centroid in Hz, the median over frames within 60 dB of the loudest: (clip,).

    Frames of 2048 samples every 512, bins weighted by magnitude; NaN for silence. `audio` as in `hear`.
    """
    clips, hertz = to_clips(audio, sample_rate, sample_rate, 1)[:, 0], np.fft.rfftfreq(2048, 1 / sample_rate)
    found = []
    for clip in spectra.level(clips):
        magnitude = np.sqrt(spectra.power_spectrum(clip[None], 2048, 512)[0])  # frame, bin
        level = np.square(magnitude).sum(1)
        heard = magnitude[level > 1e-6 * level.max()]
        found.append(np.median(heard @ hertz / heard.sum(1)) if len(heard) else np.nan)
    return np.array(found)


@spelled
def success(
    frame: pd.DataFrame, concept: Mapping[str, Any], ear: str | Sequence[str] | None = None
) -> pd.Series | pd.DataFrame:
    """Whether each clip is what a concept asks for.

    Parameters
    ----------
    frame : what `describe` gives.
    concept : dict
        Column, without the ear's name -> a value (`{"lead": "guitar"}`, `{"drums": True}`), a set or list
        of values (`{"style": {"jazz", "rock"}}`), or a range from `lo` up to but without `hi` (`{"tempo":
        (140, 181)}`, `{"tag_techno": (0.3, 1)}`). All must hold. A column that no ear fills, such as
        `brightness`, is named as it is.
    ear : one ear's name; "both" for what our two judges agree on; a list of names to see which ears agree
        Default: the first that the frame has.

    Returns a pd.Series of bool, indexed as `frame`, or for a list a pd.DataFrame of them, a column an ear. A
    missing value (a silent clip) is no success. Raises ValueError for an empty concept, a column that isn't
    there, or a value that the ear doesn't know.
    """
    if not concept:
        raise ValueError("an empty concept; give for instance {'lead': 'guitar'}")
    if isinstance(ear, list | tuple):
        return pd.DataFrame({name: success(frame, concept, name) for name in ear}, index=frame.index)
    hit = pd.Series(True, index=frame.index)
    for name in JUDGES if ear == "both" else (ear or next(iter(heard_by(frame)), "cnn"),):
        for column, wanted in concept.items():
            found = next((c for c in (f"{name}_{column}", column) if c in frame), None)
            if found is None:
                raise ValueError(f"no column {name}_{column} or {column}, only {', '.join(map(str, frame))}")
            asked = wanted if isinstance(wanted, set | list | tuple) else [wanted]
            known = _known(frame, name, column) if found != column and not isinstance(wanted, tuple) else ()
            if odd := [value for value in asked if known and value not in known]:
                hint = did_you_mean(odd[0], known, f"It hears {known}")
                raise ValueError(f"{name} doesn't hear {column} {odd[0]!r}. {hint}")
            hit &= _fits(frame[found], wanted).fillna(False).astype(bool)
    return hit


def _known(frame, name, column):
    """The values that an ear tells apart in a column; nothing where any may stand there."""
    if name in JUDGES:
        return heard_values().get(column, [])
    start = f"{name}_p_{column}_"
    return [c.removeprefix(start) for c in map(str, frame) if c.startswith(start)]


def _fits(values, wanted):
    if isinstance(wanted, tuple):
        if len(wanted) != 2:
            raise ValueError(f"the range {wanted} isn't (lo, hi); name several values as a set or list")
        return values.ge(wanted[0]) & values.lt(wanted[1])
    return values.isin(wanted) if isinstance(wanted, set | list) else values.eq(wanted)
