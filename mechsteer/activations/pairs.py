"""Pairs of clips that are the same music but for one label, as patching compares them."""

from __future__ import annotations

import pandas as pd

from .._shared import did_you_mean, spelled
from .clips import OWN


@spelled
def pairs(clips: pd.DataFrame, label: str, clean=None, changed=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables, row by row two versions of one music, which differ in one label only.

    Parameters
    ----------
    clips : from `ms.clips`
    label : str, the label that differs; what it entails may differ too: `caption`, `prompt`, `<label>_...`.
        All other labels, the group, start and length are the same in both, so nothing is shifted in time.
    clean, changed : two values of the label, for instance "guitar" and "piano"
        Left out: any two that differ, in the order of the rows.

    Returns
    -------
    (clean, changed) : pd.DataFrame, of one length, as rows of `clips`; a row may be in several pairs

    Raises ValueError for a label or value that isn't there, and where no two clips differ in the label alone.
    """
    labels = [name for name in clips if name not in OWN]
    if label not in labels:
        hint = did_you_mean(label, labels, f"There are {', '.join(map(str, labels))}")
        raise ValueError(f"no label {label!r} to pair clips by. {hint}")
    given = {value for value in (clean, changed) if value is not None}
    if absent := given - set(clips[label]):
        there = ", ".join(map(str, pd.unique(clips[label])[:12]))
        raise ValueError(f"no clip has {label} {', '.join(map(str, absent))}; there are {there}")
    differ = {label, "caption", "prompt", *OWN} - {"start", "duration"}
    same = [name for name in clips if name not in differ and not str(name).startswith(f"{label}_")]
    rows = clips[same].assign(value=clips[label].values, row=range(len(clips))).dropna(subset="value")
    both = rows.merge(rows, on=same, suffixes=("", "_changed"))
    both = both[both["value"] != both["value_changed"]]
    if clean is not None:
        both = both[both["value"] == clean]
    if changed is not None:
        both = both[both["value_changed"] == changed]
    if not given:
        both = both[both["row"] < both["row_changed"]]
    if both.empty:
        what = " and ".join(map(repr, (v for v in (clean, changed) if v is not None))) or "two values"
        raise ValueError(f"no pair varies {label!r}: no two clips have {what} and agree in {', '.join(same)}")
    return tuple(clips.iloc[both[row].to_numpy()].reset_index(drop=True) for row in ("row", "row_changed"))
