"""Ask any ear, ours or another's, by name or as a function: a row a clip, columns begin with the ear."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..._shared import did_you_mean
from ...sound import SILENCE
from ..judges.hear import JUDGES, hear

OUTSIDE = ("clap", "musicnn", "chords", "aesthetics")  # modules beside this one, each with such a function
Ear = str | Callable[[Any, int], pd.DataFrame]
Ears = Ear | Sequence[Ear] | Mapping[str, Callable]


def named(ears: Ears | None, usual: Sequence[str] = ()) -> dict[str, Callable]:
    """Ears by name, each as a function of (audio, sample_rate).

    Parameters
    ----------
    ears : a name, a function, or several; or what this function returns
        Names are those of `JUDGES` and `OUTSIDE`; "both" is our two judges. A function goes by its own name,
        a `functools.partial` by that of what it calls: partial(clap, words={"lead": ["oboe", "harp"]}).
    usual : what the model's music is heard with if `ears` is None (`Model.ears`): those that are here.

    Raises ValueError for an unknown name, or one given twice. FileNotFoundError if none of `usual` is here.
    """
    if ears is None:
        ears = [name for name in dict.fromkeys(usual) if name in JUDGES or here(name)]
        if usual and not ears:
            raise FileNotFoundError(
                f"no {' or '.join(usual)} here: `uv sync --extra ears` brings musicnn, "
                "`hf download laion/clap-htsat-unfused` clap; or give ears=[] to measure without"
            )
    if isinstance(ears, Mapping):
        return dict(ears)
    found = {}
    for ear in [ears] if isinstance(ears, str) or callable(ears) else ears:
        for one in JUDGES if isinstance(ear, str) and ear == "both" else (ear,):
            name = one if isinstance(one, str) else getattr(one, "func", one).__name__
            if name in found:
                raise ValueError(f"two ears are called {name!r}; give each once")
            found[name] = one if callable(one) else _of(one)
    return found


def ask(ears: dict[str, Callable], audio: Any, sample_rate: int) -> pd.DataFrame:
    """What each of `named` ears hears in each clip, a row a clip: `cnn_lead`, `clap_p_lead_guitar`, ...

    Warns of clipped clips. Raises ValueError if an ear's table hasn't one row a clip, and what the ears
    themselves raise.
    """
    tables, n, level = [], len(audio), np.abs(np.asarray(audio))
    flat = (level >= (1 - 1e-6) * level.max(-1, keepdims=True)).mean(-1).max(-1) > 0.02  # silence is, too
    if ears and (clipped := int((flat & (level.max((-1, -2)) > SILENCE)).sum())):
        told = f"{clipped} of {n} clips are clipped: 2 % of their samples or more lie at the peak"
        warnings.warn(f"{told}, and ears hear the distortion; give them quieter", stacklevel=4)
    for name, ear in ears.items():
        table = ear(audio, sample_rate).reset_index(drop=True)
        if len(table) != n:
            raise ValueError(f"the ear {name!r} gave {len(table)} rows for {n} clips; it must give one each")
        tables.append(table.add_prefix(f"{name}_"))
    return pd.concat([pd.DataFrame(index=range(n)), *tables], axis=1)


def here(name: str) -> bool:
    """Whether what musicnn or CLAP needs is on this machine."""
    if name == "musicnn":
        return importlib.util.find_spec(name) is not None
    return importlib.import_module(f".{name}", __package__).is_here()


def heard_by(frame: pd.DataFrame) -> list[str]:
    """The ears whose columns a table of `ask` has, in the order in which they were asked."""
    first = lambda column: column.partition("_")[0]
    ours = lambda column: first(column) in JUDGES
    found = [first(c) if ours(c) else c.partition("_p_")[0] for c in map(str, frame) if ours(c) or "_p_" in c]
    return list(dict.fromkeys(found))


def concepts(frame: pd.DataFrame, value: str) -> dict[str, dict[str, str]]:
    """What to ask `success` of each ear that knows a value: {"cnn": {"lead": "guitar"}, ...}."""
    found = {}
    for ear in heard_by(frame):
        start, end = f"{ear}_p_", f"_{value}"
        for column in (c for c in map(str, frame) if c.startswith(start) and c.endswith(end)):
            found.setdefault(ear, {column.removeprefix(start).removesuffix(end): value})
    return found


def argmax_table(scores: dict[str, np.ndarray], words: dict[str, Sequence[str]]) -> pd.DataFrame:
    """For each group its likeliest word, and `p_<group>_<word>` for every word; missing where all are NaN."""
    columns = {}
    for group, p in scores.items():
        best = np.array(list(words[group]), dtype=object)[np.nan_to_num(p).argmax(1)]
        columns[group] = np.where(np.isnan(p).all(1), None, best)
        columns |= {f"p_{group}_{word}": p[:, i] for i, word in enumerate(words[group])}
    return pd.DataFrame(columns)


def _of(name: str) -> Callable:
    if name in JUDGES:
        return functools.partial(_judge, name)
    if name in OUTSIDE:
        return getattr(importlib.import_module(f".{name}", __package__), name)
    known = ["both", *JUDGES, *OUTSIDE]
    hint = did_you_mean(name, known, f"There are {known}; or give a function")
    raise ValueError(f"no ear {name!r}. {hint}")


def _judge(name: str, audio: Any, sample_rate: int) -> pd.DataFrame:
    return hear(audio, sample_rate, name).drop(columns=["judge", "clip"])
