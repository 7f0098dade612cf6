"""Two judges that say what a clip sounds like: lead instrument, style, drums, tempo, key.

`cnn` is a small network on spectra (`_network`), `features` holds linear models to hand-made statistics
(`_statistics`). They share the spectra and the training clips (original recordings of the labelled
orchestra, never anything generated or decoded) and nothing else: report both, so that what pleases one judge
only is seen. `data/tiny/judge.json` has their accuracy on scores that neither was trained on. Coding adds
noise that both can take for soft drums: read `p_drums` of decoded clips against decoded originals.

Each refuses to name the lead of a clip unlike the music it learnt from (`_known`): it hears "none of these".
It doesn't notice all such music (`data/tiny/strangers.json` has the share refused of each instrument), and a
lead between two that it knows, as steering can make, is refused as well.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from ... import paths
from ..._shared import spelled
from ...errors import AGAIN, reading
from .. import _spectra as spectra
from . import _known
from . import _statistics as statistics

JUDGES = {"cnn": "judge.safetensors", "features": "ears.safetensors"}  # judge -> its weights in data/tiny
KNOWN, NONE = "known.safetensors", "none of these"  # its file in data/tiny; the lead of a refused clip
MODES, TEMPI = ("major", "minor"), ("slow", "medium", "fast")
_BATCH = 128.0  # s of audio in memory at once


@spelled
def hear(
    audio: Any, sample_rate: int, judge: str = "both", weights: str | Path | None = None
) -> pd.DataFrame:
    """What each judge hears in each clip.

    Parameters
    ----------
    audio : array or tensor
        (sample,), (channel, sample) or (clip, channel, sample), as `Generation.audio` is; at least 3 s. Gain,
        sample rate and the number of channels don't matter, clipping does.
    sample_rate : int, Hz
    judge : "cnn", "features" or "both"
    weights : folder with the judges' weights; `data/tiny` if left out.

    Returns
    -------
    pd.DataFrame, one row per (judge, clip): `judge`; `clip`, from 0; `lead`, `style`, `mode`: the likeliest,
    with a probability per class in `p_lead_piano` and so on; `drums` (bool) and `p_drums`; `tonic`, 0 is C;
    `tempo`, bpm; `tempo_class` (`tempo_class`); `novelty`, 0 to 1, and `known` (bool): whether it is at most
    .5, as for 95 % of music of the judges' own kind. Where it isn't, `lead` is "none of these", and
    `p_lead_...` are still those of the six. A silent clip has missing values throughout.

    Raises
    ------
    ValueError  for clips under 3 s, an unknown judge, or audio that `to_clips` refuses.
    FileNotFoundError  if the weights aren't there.
    """
    if judge not in (*JUDGES, "both"):
        raise ValueError(f"unknown judge {judge!r}; choose {', '.join(map(repr, JUDGES))} or 'both'")
    tables = []
    for name in JUDGES if judge == "both" else (judge,):
        path = weights_path(name, weights)
        out, silent = _listen(audio, sample_rate, name, path)
        tables.append(_table(out, _weights(path)[1], silent).assign(judge=name))
    table = pd.concat(tables, ignore_index=True)
    return table[["judge", *(column for column in table if column != "judge")]]


def embedding(audio: Any, sample_rate: int, judge: str = "cnn") -> np.ndarray:
    """What one judge listens to before it decides: float32 (clip, dim), for distances between sets of clips.

    `cnn`: the 96 units before the last layer. `features`: its standardised statistics. A silent clip is NaN.
    Parameters and errors as in `hear`; `judge` is one of the two.
    """
    if judge not in JUDGES:
        raise ValueError(f"an embedding is of one judge, {' or '.join(map(repr, JUDGES))}, not {judge!r}")
    out, silent = _listen(audio, sample_rate, judge, weights_path(judge), known=False)
    return np.where(silent[:, None], np.nan, out["embedding"]).astype(np.float32)


def tempo_class(bpm: float | np.ndarray) -> np.ndarray:
    """slow below 100 bpm, medium below 140, fast from there."""
    return np.array(TEMPI, dtype=object)[np.digitize(bpm, [100.0, 140.0])]


def weights_path(name: str, folder: str | Path | None = None) -> Path:
    """The file of a judge's weights; FileNotFoundError says how to make it."""
    path = Path(folder or paths.data() / "tiny") / JUDGES[name]
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; `python -m workshop.tiny.judge` trains both judges")
    return path


@cache
def _known_music(path, name):
    """What `_known.scores` needs for one judge, from the file beside its weights."""
    from safetensors.numpy import load_file

    if not (path := path.parent / KNOWN).is_file():
        raise FileNotFoundError(f"no {path}; `python -m workshop.tiny.strangers` makes it")
    with reading(path, AGAIN):
        found = {k: v.astype(np.float32) for k, v in load_file(path).items()}
        return {part: found[f"{name}.{part}"] for part in _known.PARTS}


@cache
def _weights(path):
    """The arrays of one judge as float32, and what it tells apart: {"lead": [...], "style": [...]}."""
    from safetensors import safe_open

    with reading(path, AGAIN), safe_open(path, framework="np") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        classes = json.loads(file.metadata()["classes"])
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}, classes


@cache
def heard_values() -> dict[str, list]:
    """What the judges tell apart, by column: {"lead": ["piano", ...], ...}; nothing without their weights."""
    try:
        classes = _weights(weights_path("cnn"))[1]
    except FileNotFoundError:
        return {}
    others = {"mode": [*MODES], "tempo_class": [*TEMPI], "drums": [False, True]}
    return {**classes, "lead": [*classes["lead"], NONE], **others}


@cache
def _network(path):
    import torch

    from ._network import Network

    arrays, classes = _weights(path)
    network = Network(len(classes["lead"]), len(classes["style"]))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return network.eval().requires_grad_(False)


def _listen(audio, sample_rate, name, path, known=True):
    """Log-probabilities, embedding, tempo (bpm), novelty by name, (clip, ...); and which clips are silent."""
    _weights(path)  # if it is damaged, that is said first
    known = known and _known_music(path, name)
    clips = spectra.mono(audio, sample_rate, spectra.SHORTEST)
    size, silent = max(1, int(_BATCH * spectra.RATE / clips.shape[-1])), spectra.rms(clips) <= spectra.SILENCE
    parts = [_judge(name, path, clips[i : i + size]) for i in range(0, len(clips), size)]
    out = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    if known:
        out["novelty"] = _known.novelty(out["embedding"], clips.shape[-1] / spectra.RATE, known)
    return out, silent


def _judge(name, path, clips):
    mel, notes = spectra.log_mel(clips), spectra.note_spectrum(clips)
    if name == "features":
        out = statistics.judge(mel, notes, _weights(path)[0])
        return out | {"tempo": tempo_of(out["beat"], statistics.BPM)}
    import torch

    from ._network import beat_bpm

    with torch.inference_mode():
        found = _network(path)(torch.from_numpy(mel), torch.from_numpy(notes))
    out = {head: x.numpy() for head, x in found.items()}
    for head in ("lead", "style", "drums", "beat"):
        out[head] = log_softmax(out[head], axis=1)
    out["key"] = log_softmax(out["key"].reshape(len(mel), -1), axis=1).reshape(out["key"].shape)
    return out | {"tempo": tempo_of(out["beat"], beat_bpm().numpy())}


def tempo_of(log_probability: np.ndarray, bpm: np.ndarray) -> np.ndarray:
    """Tempo of (clip, tempo) log-probabilities: geometric mean of the likeliest and three on each side."""
    best = log_probability.argmax(1)
    near = np.abs(np.arange(len(bpm)) - best[:, None]) <= 3
    weight = np.exp(log_probability - log_probability.max(1, keepdims=True)) * near
    return np.exp((weight * np.log(bpm)).sum(1) / weight.sum(1))


def _table(out, classes, silent):
    columns = {"clip": np.arange(len(silent))}
    found = {"lead": np.exp(out["lead"]), "style": np.exp(out["style"]), "mode": np.exp(out["key"]).sum(2)}
    for attribute, p in found.items():
        names = MODES if attribute == "mode" else classes[attribute]
        columns[attribute] = np.array(names, dtype=object)[p.argmax(1)]
        columns |= {f"p_{attribute}_{name}": p[:, i] for i, name in enumerate(names)}
    drums = np.exp(out["drums"][:, 1])
    tonic = (np.exp(out["key"]).sum(1).argmax(1) + 9) % 12  # the judges count from A
    columns |= {"drums": drums > 0.5, "p_drums": drums, "tonic": tonic}
    columns |= {"tempo": out["tempo"], "tempo_class": tempo_class(out["tempo"])}
    columns |= {"known": out["novelty"] <= 0.5, "novelty": out["novelty"]}
    columns["lead"] = np.where(columns["known"], columns["lead"], NONE)
    table = pd.DataFrame(columns)
    if silent.any():
        table = table.astype({"drums": "boolean", "tonic": "Int64", "known": "boolean"})
        table.loc[silent, [column for column in table if column != "clip"]] = pd.NA
    return table
