"""The steering study, made anew: `python -m workshop.study.run`, hours on a CPU.

Rules, stated before any result was seen
---------------------------------------
- Every method's direction is found `REFITS` times, each time from another bootstrap sample of the training
  scores (readers and writers from the same clips), and the optimised vector, which is dear, `FEW` times.
- Strengths are in class gaps: one length for all methods. Each method's strength in a setting is the one that
  `ms.knee` picks on validation seeds, most success of both judges before the music's surprise leaves the
  unsteered interval; where none is usable, the smallest. Results are those of other seeds. Beside it every
  probe is heard at `EQUAL`, one class gap for all. (This part was added after the first setting, guitar, had
  shown that one knee a method is a noisy choice, which no number of refits averages out.)
- Success is where both judges hear the concept ("none of these" is none); where musicnn can hear it, its
  verdict stands beside. The price is `lost`: how much farther, in nats, a clip's texture lies from its five
  nearest real clips than unsteered clips lie from theirs, beside the texture distance to real clips of the
  concept, and what was kept of the unsteered twin.
- Controls are random directions and shuffled labels, many draws, at the length of the difference of means.
- What follows is decided by `verdicts.py`, with the margin given there.

Cells (one steering at one strength) are kept under data/runs/study as they finish: a stopped run goes on, and
two runs with other `--only` may go on side by side. Results go to data/study: clips.parquet (a row a clip),
doses.parquet (a row a cell), verdicts.parquet, and the directions of `SHIPPED`, from all training scores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib.util
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from mechsteer import paths
from mechsteer.directions.files import save_direction
from mechsteer.measures.dose import dose_response, knee
from mechsteer.measures.ears.musicnn import LEADS
from mechsteer.measures.judges.hear import JUDGES
from mechsteer.model.model import load

from . import COMMAND, verdicts
from .baselines import between
from .cells import table_of
from .files import add, direction_file, earlier, kept_columns
from .finders import SECONDS, SOME, STEPS, Finder
from .listeners import is_real, librosa, real_texture
from .settings import SIGNED, STRENGTHS, Setting, chosen

if TYPE_CHECKING:
    from mechsteer.model.model import Model
    from mechsteer.model.steering import Steering

REFITS, FEW, CLIPS, EQUAL = 12, 4, 24, 1.0
VALIDATION, OTHERS = 50_000, 60_000  # first seeds
PENALTIES = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0)
BEGINNING = 3.0  # s
NEAREST = 5  # real clips, for `lost`
SHIPPED = ("guitar", "rock", "drums", "piano to guitar")
READERS = ("logistic", "mse", "diff_of_means")
CONTROLS = ("random", "shuffled labels")
HERE = {"out": None, "engine": "local"}  # for a model that is changed in this process only


class Study:
    """One model's study: what all settings share; a method for every `Setting.question`.

    `spread` goes to `dose_response`: out, engine, workers.
    """

    def __init__(self, model: Model, refits: int = REFITS, n: int = CLIPS, scores: int = 160, **spread):
        self.model, self.refits, self.n, self.finder = model, refits, n, Finder(model, scores)
        self.made = f"{scores} scores of {model.hash}"
        self.sweep = functools.partial(dose_response, model, batch_size=72, progress=False, **spread)

    @functools.cached_property
    def any_real(self) -> np.ndarray:
        return real_texture(lambda t: t["lead"].notna(), 300)

    def directions(self, setting: Setting, k: int | None) -> dict[str, Any]:
        """Every method's direction of refit k (None: from all scores)."""
        found = dict(self.finder.probes(setting, k))
        if setting.source is not None and setting.site == "resid":
            found["caption contrast"] = self.finder.contrast(setting, k)
            if k is None or k < FEW:
                found["optimised vector"] = self._optimised(setting, k)
        return found

    def _optimised(self, setting, k):
        """Dear, and so kept: under a name that says what it was made from."""
        name = f"{setting.name}, refit {k} by {STEPS} x {SOME} clips of {SECONDS:g} s, {self.made}.npy"
        if not (file := paths.runs() / "study" / name.replace(" ", "_")).exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, self.finder.optimised(setting, k).values)
        return np.load(file)

    def steerings(self, setting: Setting) -> dict[str, list[Steering]]:
        """Name -> a steering a refit, of every method and control; strengths are in class gaps."""
        found: dict[str, list] = {}
        for k in range(self.refits):
            made = self.directions(setting, k) | self.finder.controls(setting, k)
            for name, direction in made.items():
                found.setdefault(name, []).append(self.finder.steering(setting, direction))
        return found

    def main(self, setting: Setting) -> pd.DataFrame:
        """Sweep on validation seeds, knee, refits on other seeds; and words, against a prompt."""
        steered = self.steerings(setting)
        swept = self.sweep_of(setting, steered)
        best = self.best(setting, swept)
        again, equal, ears = {}, {}, [*JUDGES, *(["musicnn"] if setting.value in LEADS else [])]
        for name, several in steered.items():
            again |= self.each(name, several, best[name])
        for name in (*READERS, "random"):
            equal |= self.each(name, steered[name], EQUAL)
        refits, equal = (self.refitted(setting, *of, ears) for of in (("refits", again), ("equal", equal)))
        return pd.concat([swept, refits, equal, self.words(setting, ears)], ignore_index=True)

    def each(self, name: str, several: list, strength: float) -> dict[tuple, list]:
        """(name, refit, strength) -> steerings for the clips in turn; of controls, two sets of all draws."""
        if name in CONTROLS:
            return {(name, k, strength): several[k:] + several[:k] for k in (0, len(several) // 2)}
        return {(name, k, strength): [s] for k, s in enumerate(several)}

    def sweep_of(self, setting: Setting, steered) -> pd.DataFrame:
        """Every strength on validation seeds; of the controls random directions only."""
        tried = {name: several for name, several in steered.items() if name != "shuffled labels"}
        return self.heard(setting, "sweep", tried, STRENGTHS, VALIDATION)

    def refitted(self, setting, part: str, again: Mapping[tuple, list], ears) -> pd.DataFrame:
        """All refits on the same seeds; of controls `refit` is the number of the draw."""
        named = {f"{name} {k}": [x * s for s in several] for (name, k, x), several in again.items()}
        told = {f"{name} {k}": (name, k, strength) for name, k, strength in again}
        frame = self.sweep(named, setting.source, [1.0], self.n, OTHERS, ears=ears)
        each = [told.get(name, (name, 0, 0.0)) for name in frame["name"]]
        frame[["name", "refit", "strength"]] = pd.DataFrame(each, index=frame.index)
        draw = (frame["refit"] + frame["clip"]) % self.refits
        frame["refit"] = frame["refit"].where(~frame["name"].isin(CONTROLS), draw)
        return self.noted(setting, part, frame)

    def heard(self, setting, part, steered, strengths, seed, n=None, ears=JUDGES, **late) -> pd.DataFrame:
        """A sweep in which clip i has refit i, in turn."""
        n = n or self.n
        frame = self.sweep(steered, setting.source, strengths, n, seed, ears=list(ears), **late)
        turns = frame["name"].map({name: len(several) for name, several in steered.items()}).fillna(1)
        return self.noted(setting, part, frame.assign(refit=frame["clip"] % turns))

    def noted(self, setting, part, frame) -> pd.DataFrame:
        """Which setting and part the rows are of, and how far each clip is from real ones."""
        near = np.sort(cdist(np.stack(frame["texture"]), self.any_real), axis=1)[:, :NEAREST].mean(1)
        return frame.assign(setting=setting.name, part=part, far=near)

    def best(self, setting, swept) -> dict[str, float]:
        """Each method's strength by the knee; of controls that of the difference of means."""
        table = table_of(setting, swept)
        found = knee(table.assign(success=table["both_success"])).set_index("name")["strength"]
        found = found.where(found != 0, STRENGTHS[0]).to_dict()
        return found | dict.fromkeys(CONTROLS, found["diff_of_means"])

    def words(self, setting: Setting, ears) -> pd.DataFrame:
        """The prompt that asks for it, and text embeddings on the way there."""
        if setting.source is None or setting.site != "resid":
            return pd.DataFrame()
        plain = self.sweep({}, setting.source, [1.0], 2 * self.n, OTHERS, ears=ears)
        frames = [self.asked(setting, setting.asked, "prompt alone", ears)]
        for share in (0.25, 0.5, 0.75):
            frames.append(self.asked(setting, share, f"text {share}", ears))
        return self.noted(setting, "words", pd.concat([plain, *frames]).assign(refit=0))

    def asked(self, setting: Setting, text: str | float, name: str, ears, **late) -> pd.DataFrame:
        """Clips of another prompt, or of a text embedding so far on the way there; they have no twins."""
        ask = functools.partial(self.sweep, {}, strengths=[1.0], n=2 * self.n, seed=OTHERS, ears=ears, **late)
        if isinstance(text, str):
            made = ask(prompts=text)
        else:
            with between(self.model, setting.source, setting.asked, text):
                made = ask(prompts=setting.source, **HERE)
        twins = [column for column in made if column.startswith("twin_")]
        return made.assign(name=name, **dict.fromkeys(twins, np.nan))

    def penalty(self, setting: Setting) -> pd.DataFrame:
        """Logistic and MSE probes at every penalty, activations scaled by one number, so that an endless
        penalty makes both the difference of means; at one class gap.
        """
        steered: dict[str, list] = {}
        facts: dict[str, list] = {}
        for k in range(self.refits):
            plain = self.finder.probes(setting, k)["diff_of_means"]
            steered.setdefault("diff_of_means", []).append(self.finder.steering(setting, plain))
            for alpha in PENALTIES:
                made = self.finder.probes(setting, k, alphas=(alpha,), standardize="layer")
                for method in ("logistic", "mse"):
                    name, direction = f"{method}, penalty {alpha:g}", made[method]
                    steered.setdefault(name, []).append(self.finder.steering(setting, direction))
                    cosine = float((direction.squeeze() * plain.squeeze()).sum())
                    facts.setdefault(name, []).append((alpha, float(direction["score"].squeeze()), cosine))
        steered["random"] = [
            self.finder.steering(setting, self.finder.controls(setting, k)["random"])
            for k in range(self.refits)
        ]
        frame = self.heard(setting, "sweep", steered, (1.0,), OTHERS, 2 * self.n)
        known = {name: np.mean(of, axis=0) for name, of in facts.items()}
        for i, column in enumerate(("penalty", "held_out", "cosine")):
            frame[column] = [known[name][i] if name in known else np.nan for name in frame["name"]]
        return frame

    def ways(self, setting: Setting) -> pd.DataFrame:
        """One direction, the difference of means, added in every way; beside its controls."""
        steered: dict[str, list] = {}
        for k in range(max(1, self.refits // 2)):
            made = self.finder.ways(setting, k)
            made |= {n: self.finder.steering(setting, v) for n, v in self.finder.controls(setting, k).items()}
            for name, steering in made.items():
                steered.setdefault(name, []).append(steering)
        return self.heard(setting, "sweep", steered, (1.0, 2.0), OTHERS)

    def late(self, setting: Setting) -> pd.DataFrame:
        """The model's own music, steered from the third second on, or given the other prompt there."""
        against = next(s for s in chosen() if s.question == "main" and setting.name.startswith(s.name + ","))
        found, steered = self.steerings(against), {}
        best = self.best(against, self.sweep_of(against, found))
        for name, several in found.items():
            steered[name] = [best[name] * dataclasses.replace(s, start=BEGINNING) for s in several]
        n, ears = 2 * self.n, [*JUDGES, "musicnn"]
        first = self.model.generate(setting.source, BEGINNING, [OTHERS + i for i in range(n)], progress=False)
        late = {"audio_prompt": first.codes, "duration": BEGINNING + 4.0, "start": BEGINNING}
        frame = self.heard(setting, "refits", steered, (1.0,), OTHERS, n, ears, **late)
        frame["strength"] = frame["name"].map(best).fillna(0.0)
        words = [self.asked(setting, setting.asked, "prompt switched", ears, **late)]
        words.append(self.asked(setting, 0.5, "text 0.5", ears, **late))
        words = self.noted(setting, "refits", pd.concat(words).assign(refit=0))
        return pd.concat([frame, words], ignore_index=True)

    def tempo(self, setting: Setting) -> pd.DataFrame:
        """Up and down in tempo, heard by both judges and by a beat tracker that nobody here trained."""
        steered: dict[str, list] = {}
        for k in range(self.refits):
            made = self.finder.probes(setting, k) | self.finder.controls(setting, k)
            for name, direction in made.items():
                steered.setdefault(name, []).append(self.finder.steering(setting, direction))
        ears = [*JUDGES, librosa]
        return self.heard(setting, "sweep", steered, SIGNED, OTHERS, 2 * self.n, ears)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", nargs="*", default=[], help="names of settings")
    parser.add_argument("--out", type=Path, default=paths.data() / "study")
    parser.add_argument("--engine", default="local", choices=("local", "ray"), help="see dose_response")
    parser.add_argument("--workers", type=int, default=2, help="of ray, a model each; default 2")
    args = parser.parse_args()
    if args.workers < 1:
        raise SystemExit("--workers: give one or more")
    if args.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise SystemExit("--engine ray needs Ray: `uv sync --extra ray`, or pip install ray")
    try:
        settings = chosen(args.only)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for name in ("doses", "clips"):
        earlier(args.out / f"{name}.parquet")  # said now, not when the first setting is through
    model = load(args.model)
    spread = {"out": paths.runs() / "study", "engine": args.engine, "workers": args.workers}
    study, command = Study(model, **spread), shlex.join([*COMMAND.split(), *sys.argv[1:]])
    facts = {"model": model.name, "model_hash": model.hash, "command": command}
    for setting in settings:
        if setting.name in SHIPPED:
            ship(study, setting, args.out)
        frame = getattr(study, setting.question)(setting)
        date = datetime.date.today().isoformat()
        real = real_texture(functools.partial(is_real, setting))
        table = pd.concat([table_of(setting, part, real) for _, part in frame.groupby("part", sort=False)])
        gaps = study.finder.gaps(setting, setting.site).sel(layer=study.finder.layers(setting))
        table = table.assign(push=table["strength"] * float(gaps.mean()), chosen=is_chosen(table))
        add(table.assign(**facts, date=date), args.out / "doses.parquet")
        add(kept_columns(frame).assign(model_hash=model.hash), args.out / "clips.parquet")
        told = ["setting", "part", "name", "strength", "n_clips", "both_success", "lost"]
        print(table[told].round(2).to_string(), flush=True)
    verdicts.write(args.out)


def is_chosen(table: pd.DataFrame) -> pd.Series:
    """Which rows of the sweep have the strength that the refits have, and so the knee chose."""
    cells = pd.MultiIndex.from_frame(table[["name", "strength"]])
    return table["part"].eq("sweep") & cells.isin(cells[table["part"] == "refits"])


def ship(study: Study, setting: Setting, folder: Path) -> None:
    """Write the directions from all training scores, for readers who want to steer at once."""
    for name, direction in study.directions(setting, None).items():
        facts = {"model": study.model.name, "model_hash": study.model.hash, "finder": name}
        made = study.finder.steering(setting, direction).direction.drop_vars("weight").assign_attrs(facts)
        save_direction(direction_file(setting.name, name, folder), made)


if __name__ == "__main__":
    main()
