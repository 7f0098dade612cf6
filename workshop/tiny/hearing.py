"""What each ear tells apart of the orchestra's music: `python -m workshop.tiny.hearing`.

Test scores, which nothing here was trained on, are played by every lead, the styles taking turns, and heard
twice: as rendered, and as the codec leaves them, like all that the embedded model plays. Writes
`data/tiny/hearing.json`: how well an ear tells each class from the others, which classes that leaves, and how
often it names those right. Needs FluidSynth and the soundfont, as `make orchestra`.

An ear is a function (audio, sample rate) that gives a table, a row a clip. What it hears of a class is its
column `p_lead_guitar`, `p_style_jazz`, `p_tempo_class_slow` or `p_drums`; a class without one isn't heard. To
measure another, add it to `EARS`.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mechsteer import paths
from mechsteer.measures.ears.musicnn import tags
from mechsteer.measures.intervals import TAIL, Interval, mean_interval
from mechsteer.measures.judges.hear import hear, tempo_class
from mechsteer.tiny import orchestra
from mechsteer.tiny.loading import folder
from mechsteer.tiny.vocabulary import LEADS, STYLES

from .compose import Score, compose
from .render import RATE, Renderer

COMMAND = "python -m workshop.tiny.hearing"
SECONDS = 5.0  # of each clip, from its beginning
TEMPI = ("slow", "medium", "fast")
CLASSES = {"lead": list(LEADS), "style": list(STYLES), "drums": [True], "tempo_class": list(TEMPI)}
KINDS = ("original", "decoded")
LEAST = 0.6  # AUC that counts as telling apart; its interval must lie above .5
TAGS = {  # the tag that names a class, chosen by its name before anything was measured
    "MTT": {f"p_lead_{lead}": lead for lead in ("piano", "guitar", "violin", "flute")}
    | {f"p_style_{style}": style for style in ("classical", "rock", "electronic")}
    | {"p_drums": "drums", "p_tempo_class_slow": "slow", "p_tempo_class_fast": "fast"},
    "MSD": {"p_lead_guitar": "guitar"}
    | {f"p_style_{style}": style for style in ("jazz", "rock", "electronic")},
}


def judge(name: str, audio: Any, sample_rate: int) -> pd.DataFrame:
    """One of our two judges; of its tempo only the class counts."""
    table = hear(audio, sample_rate, name)
    return table.assign(**{f"p_tempo_class_{c}": table["tempo_class"] == c for c in TEMPI})


def tagger(model: str, audio: Any, sample_rate: int) -> pd.DataFrame:
    """One of musicnn's two models, its tags under the names of the classes."""
    found = tags(audio, sample_rate, model)
    return pd.DataFrame({column: found[tag] for column, tag in TAGS[model].items()})


EARS: dict[str, Callable[[Any, int], pd.DataFrame]] = {
    "cnn": partial(judge, "cnn"),
    "features": partial(judge, "features"),
    "musicnn MTT": partial(tagger, "MTT"),
    "musicnn MSD": partial(tagger, "MSD"),
}


def play(scores: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The first test scores, each by every lead: labels, and audio (clip, sample) at `RATE` of each kind."""
    table, render, rows = orchestra.table(), Renderer(), []
    test = table[table["split"] == "test"].set_index(["score", "lead", "style"]).sort_index()
    sound = {kind: [] for kind in KINDS}
    for number, score in enumerate(test.index.unique("score")[:scores]):
        drawn = Score.draw(0, 1, number)
        for turn, lead in enumerate(LEADS):
            style = STYLES[(number + turn) % len(STYLES)]
            shipped = test.loc[(score, lead, style)]
            if shipped["tempo"] != drawn.tempo or shipped["drums"] != drawn.drums:
                raise SystemExit(f"score {score} of data/orchestra.parquet isn't what compose.py draws now")
            rows.append({"score": score, "lead": lead, "style": style, "drums": bool(drawn.drums)})
            rows[-1]["tempo_class"] = str(tempo_class(drawn.tempo))
            audio, rate = orchestra.decode(shipped["codes"], shipped["codec"])
            assert rate == RATE
            for kind, clip in zip(
                KINDS, (render(compose(drawn, lead, style), SECONDS), audio[0]), strict=True
            ):
                sound[kind].append(clip[: round(SECONDS * RATE)])
    return pd.DataFrame(rows), {kind: np.stack(clips) for kind, clips in sound.items()}


def column_of(attribute: str, value: Any) -> str:
    """Where an ear's table says what it hears of a class."""
    return "p_drums" if attribute == "drums" else f"p_{attribute}_{value}"


def auc(heard: np.ndarray, of_class: np.ndarray, groups: np.ndarray, seed: int = 0) -> Interval:
    """The chance that a clip of the class has a higher number than another, ties halved, with its interval.

    The interval is a percentile bootstrap over groups, of 2,000 draws; those without both kinds are left out.
    """
    inside = np.eye(len(set(groups)))[np.unique(groups, return_inverse=True)[1]]  # clip, group
    yes, no = heard[of_class][:, None], heard[~of_class]
    won = inside[of_class].T @ ((yes > no) + (yes == no) / 2) @ inside[~of_class]  # group, group
    pairs = np.outer(inside[of_class].sum(0), inside[~of_class].sum(0))
    n = len(won)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 2000)
    total = lambda table: ((drawn @ table) * drawn).sum(1)
    kept = total(pairs) > 0
    lo, hi = np.quantile(total(won)[kept] / total(pairs)[kept], [1 - TAIL, TAIL])
    return Interval(won.sum() / pairs.sum(), float(lo), float(hi))


def separation(table: pd.DataFrame, labels: pd.DataFrame, **what: str) -> list[dict]:
    """A row a class: its AUC against the others, or that the ear has no word for it."""
    rows = []
    for attribute, values in CLASSES.items():
        for value in values:
            name, of_class = column_of(attribute, value), (labels[attribute] == value).to_numpy()
            row = what | {"attribute": attribute, "class": value, "heard": name in table}
            if name in table:
                found = auc(table[name].to_numpy(float), of_class, labels["score"].to_numpy())
                row |= {"auc": found.value, "lo": found.lo, "hi": found.hi, "n": int(of_class.sum())}
            rows.append(row)
    return rows


def told_apart(rows: list[dict]) -> dict[str, list]:
    """The classes of each attribute that one ear tells from the others in both kinds of sound."""
    clear = lambda row: row["heard"] and row["auc"] >= LEAST and row["lo"] > 0.5
    found = {}
    for attribute, values in CLASSES.items():
        mine = [row for row in rows if row["attribute"] == attribute]
        found[attribute] = [v for v in values if all(clear(row) for row in mine if row["class"] == v)]
    return found


def naming(table: pd.DataFrame, labels: pd.DataFrame, kept: dict[str, list], **what: str) -> list[dict]:
    """How often the class with the highest number, of those told apart, is right, and what it is taken for.

    The accuracy is of clips whose class is among those; the counts are of all clips.
    """
    rows = []
    for attribute in ("lead", "style"):
        if len(values := kept[attribute]) < 2:
            continue
        best = table[[column_of(attribute, v) for v in values]].to_numpy(float).argmax(1)
        heard, truth = np.array(values)[best], labels[attribute]
        known = truth.isin(values).to_numpy()
        found = mean_interval((heard == truth)[known], labels["score"][known])
        counts = {
            c: {v: int(((truth == c) & (heard == v)).sum()) for v in values} for c in CLASSES[attribute]
        }
        row = what | {"attribute": attribute, "accuracy": found.value, "lo": found.lo, "hi": found.hi}
        rows.append(row | {"n": int(known.sum()), "taken_for": counts})
    return rows


def measure(ears: dict[str, Callable], labels: pd.DataFrame, sound: dict[str, np.ndarray]) -> dict:
    """What hearing.json holds of each ear."""
    held = {"auc": [], "told_apart": {}, "named": []}
    for name, ear in ears.items():
        tables = {kind: ear(audio[:, None], RATE) for kind, audio in sound.items()}
        rows = [row for kind, t in tables.items() for row in separation(t, labels, ear=name, sound=kind)]
        held["told_apart"][name] = kept = told_apart(rows)
        held["auc"] += rows
        held["named"] += [
            row for k, t in tables.items() for row in naming(t, labels, kept, ear=name, sound=k)
        ]
        print(name, kept, flush=True)
    return held


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Measure what each ear tells apart.")
    parser.add_argument("--scores", type=int, default=40, help="test scores, of 60 (default: %(default)s)")
    scores = parser.parse_args().scores
    labels, sound = play(scores)
    held = {"command": f"{COMMAND} --scores {scores}", "scores": scores, "clips": len(labels)}
    held |= {"seconds": SECONDS, "interval": "95 %, bootstrap over scores"}
    found = json.loads(json.dumps(measure(EARS, labels, sound)), parse_float=lambda x: round(float(x), 4))
    paths.replace(folder() / "hearing.json", json.dumps(held | found, indent=1) + "\n")
    for key in ("auc", "named"):
        print(pd.DataFrame(found[key]).to_string(index=False))


if __name__ == "__main__":
    main()
