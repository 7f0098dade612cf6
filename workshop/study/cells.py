"""Clips to cells: a row for every name and strength, with intervals that know refits from clips."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from mechsteer.measures.describe import success
from mechsteer.measures.dose import UNSTEERED, dose_table
from mechsteer.measures.intervals import TAIL, Interval, wilson
from mechsteer.measures.judges.hear import JUDGES

from .settings import Setting

Z = ndtri(TAIL)
KINDS = {
    **dict.fromkeys(("logistic", "mse", "diff_of_means"), "read"),
    **dict.fromkeys(("caption contrast", "optimised vector"), "write"),
    **dict.fromkeys(("random", "shuffled labels", UNSTEERED), "control"),
}


def two_level(values: np.ndarray) -> Interval:
    """Mean of values [refit, clip] with the interval for other refits *and* other clips.

    Both are random effects, crossed, as every refit is heard on the same seeds: the mean's variance is
    (MS_refit + MS_clip - MS_rest) / (R C), no mean square counted below that of the rest, and Student's t
    has the degrees of freedom of the smaller side, which is cautious. Resampling refits and clips at once
    would count the rest three times (Owen 2007), and it is most of the variance here.

    Source: Brennan 2001, *Generalizability theory*, ch. 3; A. Owen 2007, *The pigeonhole bootstrap*.
    """
    x = np.asarray(values, float)
    R, C = x.shape
    mean, of_refit, of_clip = x.mean(), x.mean(1), x.mean(0)
    rest = np.square(x - of_refit[:, None] - of_clip + mean).sum() / max(1, (R - 1) * (C - 1))
    ms = [
        C * np.square(of_refit - mean).sum() / max(1, R - 1),
        R * np.square(of_clip - mean).sum() / max(1, C - 1),
    ]
    variance = (max(ms[0], rest) + max(ms[1], rest) - rest) / (R * C)
    half = stdtrit(max(1, min(n for n in (R, C) if n > 1) - 1), TAIL) * np.sqrt(variance)
    return Interval(float(mean), float(mean - half), float(mean + half))


def share_of(values: np.ndarray, settings: int = 1) -> Interval:
    """The same of hits, or of means of hits over so many settings, with an interval that stays in [0, 1].

    Wilson's, of as many trials as a share would need to vary like this one, and at most as there were.
    """
    mean, lo, hi = two_level(values)
    reach, n = (hi - lo) / 2, np.asarray(values).size * settings
    trials = min(n, mean * (1 - mean) * (Z / reach) ** 2) if reach > 0 else n
    return Interval(mean, *map(float, wilson(mean * trials, trials)))


def apart(a: Interval, b: Interval) -> Interval:
    """The difference of two independent estimates, from their own intervals.

    Source: Newcombe 1998, *Interval estimation for the difference ...*, Statistics in Medicine 17, method 10.
    """
    d = a.value - b.value
    return Interval(
        d, d - np.hypot(a.value - a.lo, b.hi - b.value), d + np.hypot(a.hi - a.value, b.value - b.lo)
    )


def grid(cell: pd.DataFrame, column: str) -> np.ndarray:
    """A column of one cell as [refit, clip]; clips of different refits in turn are one row."""
    wide = cell.pivot_table(index="refit", columns="clip", values=column, dropna=False)
    return cell[[column]].to_numpy(float).T if wide.isna().any(axis=None) else wide.to_numpy(float)


def lost(frame: pd.DataFrame) -> pd.Series:
    """How much farther from real clips each clip is than its unsteered twin, in nats; of one part."""
    twins = frame[frame["name"] == UNSTEERED].set_index("clip")["far"]
    return frame["far"] - frame["clip"].map(twins)


def concept_of(setting: Setting) -> dict:
    """What `ms.success` is asked for."""
    return {"tempo_class": "fast"} if setting.question == "tempo" else {setting.label: setting.value}


def table_of(setting: Setting, frame: pd.DataFrame, real: np.ndarray | None = None) -> pd.DataFrame:
    """One row per name and strength of one part of a setting; the columns of data/study/doses.parquet."""
    kept = tuple(setting.stays) or ("style" if setting.label == "lead" else "lead",)
    concept = concept_of(setting)
    outside = "musicnn_lead" in frame and frame["musicnn_lead"].notna().any()
    ears = [*JUDGES, *(["musicnn"] if outside else [])]
    table = dose_table(frame, concept, kept, real, ears).rename(columns={"n": "n_clips"})
    table = table.rename(columns={f"kept_{kept[0]}{end}": f"kept{end}" for end in ("", "_lo", "_hi")})
    frame = frame.assign(hit=success(frame, concept, "both").astype(float))
    if outside:
        frame["musicnn"] = success(frame, concept, "musicnn").astype(float)
    frame["lost"], rows = lost(frame), []
    for (name, strength), cell in frame.groupby(["name", "strength"], sort=False):
        row = {"name": name, "strength": strength, "n_refits": cell["refit"].nunique()}
        found = {"both_success": share_of(grid(cell, "hit"))}
        if "musicnn" in cell:
            found["musicnn_success"] = share_of(grid(cell, "musicnn"))
        found["lost"] = two_level(grid(cell, "lost"))
        for column, interval in found.items():
            row |= dict(zip((column, f"{column}_lo", f"{column}_hi"), interval, strict=True))
        rows.append(row | {c: cell[c].iloc[0] for c in ("penalty", "held_out", "cosine") if c in cell})
    ours = pd.DataFrame(rows).set_index(["name", "strength"])
    table = table.set_index(["name", "strength"])
    table[ours.columns] = ours
    table = table.reset_index()
    facts = {"setting": setting.name, "part": frame["part"].iloc[0], "label": setting.label}
    facts |= {"value": str(setting.value), "source": setting.source or "unprompted"}
    facts |= {"site": setting.site, "branch": setting.branch, "question": setting.question}
    kind = table["name"].map(lambda name: KINDS.get(name.split(",")[0], "words" if words(name) else "read"))
    return pd.concat([pd.DataFrame(facts, table.index), table.assign(kind=kind)], axis=1)


def words(name: str) -> bool:
    """Whether a row is of words, and no direction."""
    return name.startswith(("prompt ", "text "))
