"""What the study decides: `python -m workshop.study.verdicts` writes data/study/verdicts.parquet.

Rules, stated before any result was seen: a difference in shares of clips matters from `MARGIN` on, in the
price from `NATS`, in tempo from `BPM`. A claim ("mse steers better than logistic") is decided by the 95 %
interval of its estimate for other refits and other clips (`cells.two_level`): "yes" if all of it lies above
the margin, "no" if all of it lies below, else "open". `reads` says what else the interval tells: "more" or
"less" if it leaves out 0, "alike" if it lies within the margin on either side, else "".
Pools are means over settings of the same refits and the same seeds, so their interval allows for what these
share; each setting counts once. musicnn is asked in unprompted music only: it takes half of the decoded
pianos for guitars (data/tiny/hearing.json), and against "jazz piano" it heard a guitar whatever was done.
README and notebooks quote from here, and a test compares.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mechsteer import paths
from mechsteer.measures.describe import success
from mechsteer.measures.intervals import Interval
from mechsteer.measures.tradeoff import tradeoff

from .cells import apart, concept_of, grid, lost, share_of, two_level
from .settings import SETTINGS, Setting

MARGIN, NATS, BPM = 0.05, 0.5, 10.0
PAIRS = (("mse", "logistic"), ("diff_of_means", "mse"), ("diff_of_means", "logistic"))
METHODS = ("logistic", "mse", "diff_of_means", "caption contrast", "optimised vector")
MEASURED = (  # what, as a claim says it, the margin, the unit
    ("both", "turns more clips", MARGIN, "share of clips"),
    ("musicnn", "turns more clips, by musicnn,", MARGIN, "share of clips"),
    ("lost", "costs more", NATS, "nats"),
)
COMMAND = "python -m workshop.study.verdicts"


def decide(clips: pd.DataFrame) -> pd.DataFrame:
    """The table, from data/study/clips.parquet: columns claim, about, a, b, estimate, lo, hi, margin, unit,
    verdict, reads, n_refits, n_clips.
    """
    clips = clips.astype({"setting": "category", "part": "category"})  # quick to compare
    there = [s for s in SETTINGS if s.name in set(clips["setting"])]
    mains = [s for s in there if s.question == "main"]
    found = [*_methods(clips, mains), *_words(clips, mains), *_tempo(clips, there), *_gains(clips, mains)]
    return pd.DataFrame(found)


def pools(mains: list[Setting]) -> dict[str, list[Setting]]:
    """Groups of settings that are judged together."""
    return {
        "all settings": mains,
        "unprompted, residual stream": [s for s in mains if s.source is None and s.site == "resid"],
        "against a prompt, residual stream": [s for s in mains if s.source and s.site == "resid"],
        "attention outputs": [s for s in mains if s.site == "attn"],
    }


def values(clips: pd.DataFrame, setting: Setting, name: str, what: str, part: str = "refits") -> np.ndarray:
    """[refit, clip]: success of "both" judges or of "musicnn", or the price "lost"; at `part`'s strength."""
    rows = clips[(clips["setting"] == setting.name) & (clips["part"] == part)]
    cell = rows[rows["name"] == name]
    if what == "lost":
        return grid(cell.assign(lost=lost(rows)), "lost")
    if not len(cell) or (what == "musicnn" and (setting.source or not _hears(cell))):
        return np.empty((0, 0))
    return grid(cell.assign(hit=success(cell, concept_of(setting), what).astype(float)), "hit")


def _hears(cell):
    return "musicnn_lead" in cell and cell["musicnn_lead"].notna().any()


def _methods(clips, mains) -> Iterator[dict]:
    at = {"refits": "", "equal": ", at one class gap"}
    once = functools.cache(functools.partial(values, clips))  # pools share their settings
    for part, (what, says, margin, unit) in itertools.product(at, MEASURED):
        heard = [s for s in mains if once(s, "mse", what, part).size]
        grouped = {s.name: [s] for s in heard} | {
            k: some for k, some in pools(heard).items() if len(some) > 1
        }
        for about, some in grouped.items():
            got = {
                name: np.mean([once(s, name, what, part) for s in some], axis=0)
                for name in (*METHODS[:3], "random")
            }
            own = {name: _own(mine, unit, len(some)) for name, mine in got.items()}
            ends = (about, margin, unit, at[part])
            for a, b in PAIRS:
                yield _claim(f"{a} {says} than {b}", a, b, two_level(got[a] - got[b]), got[a], *ends)
            for a in METHODS[:3]:
                yield _claim(
                    f"{a} {says} than random", a, "random", apart(own[a], own["random"]), got[a], *ends
                )
            for a, mine in got.items():
                yield _told(f"{a}: {what}{at[part]}", a, own[a], mine, about, unit)


def _own(values, unit, settings=1) -> Interval:
    """One method's own number, of whatever unit."""
    return share_of(values, settings) if unit == "share of clips" else two_level(values)


def _words(clips, mains) -> Iterator[dict]:
    """What words do against a prompt, and the two finders that write."""
    against = [s for s in mains if s.source and s.site == "resid"]
    pooled = {"against a prompt, residual stream": against} if len(against) > 1 else {}
    rows, unit = clips[clips["part"] == "words"], MEASURED[0][3]
    for about, some in ({s.name: [s] for s in against} | pooled).items():
        for name in ("unsteered", "text 0.25", "text 0.5", "text 0.75", "prompt alone"):
            each = [(s, rows[(rows["setting"] == s.name) & (rows["name"] == name)]) for s in some]
            hits = np.mean([success(r, concept_of(s), "both").astype(float) for s, r in each], axis=0)[None]
            asked = share_of(hits, len(some))
            yield _told(f"{name}: both", name, asked, hits, about, unit)
        for a in METHODS:
            mine, price = (np.mean([values(clips, s, a, w) for s in some], axis=0) for w in ("both", "lost"))
            claim = f"the prompt alone turns more clips than {a}"
            own = share_of(mine, len(some))
            yield _claim(claim, "prompt alone", a, apart(asked, own), mine, about, MARGIN, unit)
            if a not in METHODS[:3]:
                yield _told(f"{a}: both", a, own, mine, about, unit)
                yield _told(f"{a}: lost", a, two_level(price), price, about, "nats")


def _tempo(clips, there) -> Iterator[dict]:
    """Faster minus slower, two class gaps either way, clip by clip, by each listener; beside random."""
    rows = clips[clips["setting"] == "tempo"]
    for ear in ("cnn", "features", "librosa") if len(rows) else ():
        wide = rows.pivot_table(index=["name", "clip"], columns="strength", values=f"{ear}_tempo")
        moved = wide[wide.columns.max()] - wide[wide.columns.min()]
        random = moved["random"].dropna().to_numpy()[None]
        for a in ("mse", "diff_of_means"):
            mine = moved[a].dropna().to_numpy()[None]
            yield _told(f"{a}: tempo up minus down, by {ear}", a, two_level(mine), mine, "tempo", "bpm")
            claim = f"{a} moves the tempo more than random, by {ear}"
            yield _claim(
                claim, a, "random", apart(two_level(mine), two_level(random)), mine, "tempo", BPM, "bpm"
            )


def _gains(clips, mains) -> Iterator[dict]:
    """One number a method: success gained, averaged over prices up to the largest that all methods reach."""
    for setting in mains:
        swept = clips[(clips["setting"] == setting.name) & (clips["part"] == "sweep")]
        weighed = tradeoff(swept, concept_of(setting), "both", lost="far")
        told = f"gain over prices to {weighed.upto:.2g} nats"
        for row in weighed.table.itertuples():
            interval = Interval(row.gain, row.lo, row.hi)
            yield _told(
                f"{row.name}: {told}", row.name, interval, np.empty((1, row.n)), setting.name, MEASURED[0][3]
            )


def _claim(claim, a, b, interval, values, about, margin, unit, where="") -> dict:
    _, lo, hi = interval
    verdict = "yes" if lo > margin else "no" if hi < margin else "open"
    reads = "alike" if -margin < lo and hi < margin else "more" if lo > 0 else "less" if hi < 0 else ""
    row = _told(f"{claim}{where}", a, interval, values, about, unit)
    return row | {"b": b, "margin": margin, "verdict": verdict, "reads": reads}


def _told(claim, a, interval, values, about, unit) -> dict:
    """A number, which claims nothing by itself."""
    ends = dict(zip(("estimate", "lo", "hi"), map(float, interval), strict=True))
    refits, clips = values.shape
    row = {"claim": claim, "about": about, "a": a, "b": "", **ends, "margin": np.nan, "unit": unit}
    return row | {"verdict": "", "reads": "", "n_refits": refits, "n_clips": clips}


def write(folder: Path) -> pd.DataFrame:
    """Decide from a folder's clips.parquet and write its verdicts.parquet."""
    clips = pd.read_parquet(folder / "clips.parquet")
    table = decide(clips).assign(model_hash=clips["model_hash"].iloc[0], command=COMMAND)
    with paths.replacing(folder / "verdicts.parquet") as scratch:
        table.to_parquet(scratch, compression="zstd", index=False)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=paths.data() / "study")
    table = write(parser.parse_args().out)
    print(
        table[["claim", "about", "estimate", "lo", "hi", "margin", "verdict", "reads"]].round(2).to_string()
    )


if __name__ == "__main__":
    main()
