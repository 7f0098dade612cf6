"""The full steering study: `python -m workshop.study.run`, every claim at n = 100 with its controls.

Each experiment asks for one concept with several steerings, the same clips for each, and the unsteered twins
beside them. Cells (one steering at one strength) are kept under data/runs/study as they finish, so that a
stopped run goes on where it was, and what is already there for these weights is never made again. Results go
to data/study with the model's hash, the seed, the command and the date: doses.parquet (cells), clips.parquet
(what each judge heard in each clip) and the directions of `KEPT`. 05_steer_and_listen draws from them and
re-runs a slice.

Strengths are multiples of the mean activation norm of the site and layer, and all directions are unit:
methods are compared at matched norm.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from filelock import FileLock

from mechsteer import paths
from mechsteer._shared import did_you_mean
from mechsteer.activations.clips import clips, read_clip
from mechsteer.activations.collect import codes
from mechsteer.directions.files import save_direction
from mechsteer.measures.distances import texture
from mechsteer.measures.dose import UNSTEERED, dose_response, dose_table
from mechsteer.measures.judges.hear import tempo_class
from mechsteer.measures.kept import AXES
from mechsteer.model.model import load
from mechsteer.model.steering import Steering

from . import COMMAND
from .finders import Finder, words

if TYPE_CHECKING:
    from mechsteer.model.model import Model

FACTS = {  # method -> what it was learnt from, and whether it was chosen for what it reads or writes
    "logistic": ("audio", "read"),
    "mse": ("audio", "read"),
    "diff_of_means": ("audio", "read"),
    "caption contrast": ("caption", "write"),
    "optimised vector": ("audio", "write"),
    "optimised to the source": ("audio", "control"),
    "shuffled labels": ("audio", "control"),
    "random": ("nothing", "control"),
    "prompt alone": ("caption", "control"),
    UNSTEERED: ("nothing", "control"),
}
TRANSFERS = (  # what changes, from what, to what, and what is to stay
    ("lead", "piano", "guitar", {"style": "jazz"}),
    ("lead", "flute", "organ", {"style": "rock"}),
    ("lead", "guitar", "violin", {"style": "classical"}),
    ("style", "jazz", "rock", {"lead": "piano"}),
    ("style", "classical", "electronic", {"lead": "flute"}),
)
STAYS = ("lead", "style", "drums", "tempo_class")
PENALTIES = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0)
SIGNED = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
HEARD = ("lead", "style", "drums", "tempo", "tempo_class", "mode")
TWINS = (*(f"twin_{axis}" for axis in AXES), "twin_divergence")
CLIPS = (
    *("name", "strength", "clip", "seed", "prompt"),
    *(f"{judge}_{what}" for judge in ("cnn", "features") for what in HEARD),
    *(*TWINS, "nll", "nll_unprompted", "brightness", "loudness"),
)
DIGITS = {  # of what is kept clip by clip; the table of cells is made before rounding
    **dict.fromkeys(("cnn_tempo", "features_tempo", "loudness"), 1),
    **dict.fromkeys((*TWINS, "nll", "nll_unprompted"), 2),
    "brightness": 0,
}
KEPT = ("guitar", "rock", "drums", "piano to guitar")  # experiments whose directions ship
BEGINNING = 3.0  # s of a real clip before steering sets in, where music goes on from audio


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One question: what counts as success, who is asked, and the steerings to try.

    Attributes
    ----------
    name : unique
    question : "dose" (in the residual stream), "site" (elsewhere), "ways" (to add one direction), "penalty"
        (of the probe) or "audio" (real music goes on): by it the figures choose their rows.
    label, value : what a judge must hear: `value` in its column `label`, such as "lead" and "guitar".
    target : what that is called: "guitar", "drums"
    source : "unprompted", or the prompt that doesn't ask for the target
    prompts : in turn over the clips
    steerings : name -> (method, Steering), or (method, several) for the clips in turn
    strengths : multiples of the mean activation norm
    reference : rows of the orchestra -> which are real music of the target
    asked : a prompt that asks for the target outright, to see how far words get
    audio_prompt, duration, start : as in `dose_response`
    """

    name: str
    question: str
    label: str
    value: Any
    target: str
    source: str
    prompts: str | None | Sequence[str | None]
    steerings: Mapping[str, tuple[str, Steering | Sequence[Steering]]]
    strengths: Sequence[float]
    reference: Callable[[pd.DataFrame], pd.Series]
    asked: str | None = None
    audio_prompt: Any = None
    duration: float = 5.0
    start: float = 0.0


def run_experiment(
    experiment: Experiment, model: Model, n: int, seed: int, folder: Path | None, **spread
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All cells of an experiment: `dose.dose_table` and what each cell was; and its clips (`CLIPS`).

    `spread` are `dose_response`'s engine and workers.
    """
    fields = ("duration", "start", "audio_prompt")
    how = {name: getattr(experiment, name) for name in fields} | {"out": folder} | spread
    ask = lambda given, prompts: dose_response(model, given, prompts, experiment.strengths, n, seed, **how)
    frames = [ask({name: given for name, (_, given) in experiment.steerings.items()}, experiment.prompts)]
    if experiment.asked:
        frame = ask({}, experiment.asked).assign(name="prompt alone")
        frames.append(frame.assign(**dict.fromkeys(TWINS, np.nan)))  # they have another prompt
    frame = pd.concat(frames, ignore_index=True)
    method = {name: method for name, (method, _) in experiment.steerings.items()}
    method |= {UNSTEERED: UNSTEERED, "prompt alone": "prompt alone"}
    concept, real = {experiment.label: experiment.value}, real_texture(experiment.reference)
    table = dose_table(frame, concept, STAYS, reference=real)
    common = {name: getattr(experiment, name) for name in ("question", "label", "value", "target", "source")}
    common = {"experiment": experiment.name} | common | {"value": str(experiment.value)}
    steered = {name: first_part(given) for name, (_, given) in experiment.steerings.items()}
    facts = [
        {**common, "method": method[name]}
        | dict(zip(("learnt_from", "kind"), FACTS[method[name]], strict=True))
        | {"site": getattr(steered.get(name), "site", ""), "branch": getattr(steered.get(name), "branch", "")}
        | {"layers": " ".join(map(str, getattr(steered.get(name), "layers", ())))}
        | reading(steered.get(name), steered.get("diff_of_means"))
        for name in table["name"]
    ]
    kept = [column for column in CLIPS if column in frame]
    return pd.concat([pd.DataFrame(facts), table], axis=1), frame[kept].assign(experiment=experiment.name)


def first_part(given: Steering | Sequence[Steering]) -> Steering:
    """Where and when all of them act: several differ in their direction only."""
    return (given if hasattr(given, "parts") else given[0]).parts[0]


def reading(part: Steering | None, means: Steering | None) -> dict[str, float]:
    """Of a one-layer probe: `penalty`, `held_out` AUC (R2 for numbers), `cosine` with difference of means."""
    if part is None or means is None or part.layers != means.layers:
        return {}
    made, plain = part.direction.squeeze(), means.direction.squeeze()
    if made.shape != plain.shape or made.ndim != 1 or "alpha" not in made.coords:
        return {}
    told = {"penalty": made["alpha"], "held_out": made["score"], "cosine": made.values @ plain.values}
    return {name: float(value) for name, value in told.items()}


def real_texture(chosen: Callable[[pd.DataFrame], Any], most: int = 200, seconds: float = 5.0) -> np.ndarray:
    """`distances.texture` of real clips, as the codec renders them; no direction learnt from their scores."""
    table = clips("orchestra")
    table = table[(table["split"] == "test") & chosen(table)]
    table = table.sample(min(most, len(table)), random_state=0)
    found = []
    for row in table.to_dict("records"):
        audio, rate = read_clip(row)
        found.append(texture(audio[:, : round(seconds * rate)], rate)[0])
    return np.stack(found)


def questions(model: Model, only: Sequence[str] = ()) -> Iterator[Experiment]:
    """The study's experiments, their directions found on the way; `only` names some of them.

    Raises
    ------
    ValueError  for a name that none has; lists the names.
    """
    wanted = known(only)
    yield from experiments(Finder(model), lambda name: name in wanted)


def known(only: Sequence[str] = ()) -> list[str]:
    """The names of the experiments in `only`, or all there are; raises as `questions` does."""
    every: list[str] = []
    list(experiments(None, every.append))  # which wants none of them, so nothing is computed
    for name in only:
        if name not in every:
            told = [f"No experiment is called {name!r}.", did_you_mean(name, every)]
            told.append(f"There are {', '.join(map(repr, every))}")
            raise ValueError(" ".join(filter(None, told)))
    return list(only) or every


def experiments(finder: Finder | None, wanted: Callable[[str], bool]) -> Iterator[Experiment]:
    """Every experiment that is `wanted`, which is asked before anything is computed."""
    yield from unprompted(finder, wanted)
    for transfer in TRANSFERS:
        yield from transferred(finder, wanted, *transfer)


def unprompted(finder: Finder, wanted: Callable[[str], bool]) -> Iterator[Experiment]:
    """A concept brought into, or taken out of, music that no prompt asks for, at each site."""
    few, head = (0.05, 0.1, 0.2, 0.4), (0.1, 0.2, 0.4, 0.8)
    for name, label, value, strengths in (
        ("guitar", "lead", "guitar", few),
        ("rock", "style", "rock", few),
        ("drums", "drums", True, SIGNED),
        ("fast", "tempo_class", "fast", SIGNED),
    ):
        read, concept = ("tempo", "tempo") if name == "fast" else (label, name)  # probes read the bpm
        real = lambda t, label=label, value=value: real_label(t, label) == value
        common = (label, value, name, "unprompted", None)
        if wanted(name):
            made = finder.probes(read, concept) | finder.randoms()
            yield Experiment(name, "dose", *common, made, strengths, real)
        if name in ("guitar", "rock") and wanted(here := f"{name}, by penalty"):
            made = finder.probes(read, concept) | finder.penalised(read, concept, PENALTIES)
            yield Experiment(here, "penalty", *common, made | finder.randoms(), (0.2, 0.4), real)
        if name in ("guitar", "rock") and wanted(here := f"{name} at attention outputs"):
            where = dict(site="attn", layers=finder.every)
            made = finder.probes(read, concept, **where) | finder.randoms(**where)
            yield Experiment(here, "site", *common, made, few, real)
        if name == "guitar" and wanted(here := "guitar at the best heads"):
            where = dict(site="heads", layers=finder.every, weights=finder.best_heads(read))
            made = finder.probes(read, concept, **where) | finder.randoms(**where)
            yield Experiment(here, "site", *common, made, head, real)


def real_label(table: pd.DataFrame, label: str) -> Any:
    """A label of real clips, named as judges name what they hear."""
    return tempo_class(table["tempo"].to_numpy()) if label == "tempo_class" else table[label]


def transferred(
    finder: Finder, wanted: Callable[[str], bool], label: str, source: str, target: str, stays: dict
) -> Iterator[Experiment]:
    """From a prompt to what it doesn't ask for; for the first pair every way to add, too, and from audio."""
    prompt, asked = words({**stays, label: source}), words({**stays, label: target})
    ((kept, same),), name = stays.items(), f"{source} to {target}"
    real = lambda t: (t[kept] == same) & (t[label] == target)
    common, doses = (label, target, target, prompt, prompt), (0.2, 0.4)

    def candidates(**when):
        when = {"branch": "cond", **when}
        found = finder.probes(label, target, (source, target), **when)
        return found | finder.writers(label, source, target, stays, **when) | finder.randoms(**when)

    if wanted(name):
        yield Experiment(name, "dose", *common, candidates(), doses, real, asked)
    if (label, source, target, stays) != TRANSFERS[0]:
        return
    if wanted(here := f"{name}, ways to add"):
        read = finder.probes(label, target, (source, target), branch="cond")
        controls = {"shuffled labels": read["shuffled labels"]} | finder.randoms(branch="cond")
        yield Experiment(here, "ways", *common, finder.ways(source, target) | controls, doses, real)
    if wanted(here := f"{name}, from audio"):
        table = clips("orchestra")
        table = table[(table["split"] == "test") & (table[kept] == same) & (table[label] == source)]
        beginning = codes(finder.model, table)[..., : finder.model.seconds_to_frames(BEGINNING)]
        late = {"audio_prompt": beginning, "duration": BEGINNING + 4.0, "start": BEGINNING}
        made = candidates(start=BEGINNING)
        yield Experiment(here, "audio", *common, made, doses, real, asked, **late)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--n", type=int, default=100, help="clips per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of experiments")
    parser.add_argument("--out", type=Path, default=paths.data() / "study")
    parser.add_argument("--engine", default="local", choices=("local", "ray"), help="see dose_response")
    parser.add_argument("--workers", type=int, default=2, help="of ray, a model each; default 2")
    args = parser.parse_args()
    if args.workers < 1:
        raise SystemExit("--workers: give one or more")
    if args.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise SystemExit("--engine ray needs Ray: `uv sync --extra ray`, or pip install ray")
    if args.n < 2:
        raise SystemExit("--n: an interval needs two clips a cell or more")
    try:
        known(args.only)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for path in (args.out / "doses.parquet", args.out / "clips.parquet"):
        earlier(path)  # said now, not when the first experiment is through
    model, folder = load(args.model), args.out
    facts = {"seed": args.seed, "model": model.name, "model_hash": model.hash}
    facts["command"] = shlex.join([*COMMAND.split(), *sys.argv[1:]])
    for experiment in questions(model, args.only):
        for name, (_, steering) in experiment.steerings.items():
            direction = first_part(steering).direction
            if experiment.name in KEPT and direction.attrs.get("model_hash"):
                save_direction(direction_file(experiment.name, name, folder), direction.drop_vars("weight"))
        cells, spread = paths.runs() / "study", {"engine": args.engine, "workers": args.workers}
        table, frame = run_experiment(experiment, model, args.n, args.seed, cells, **spread)
        add(table.assign(**facts, date=datetime.date.today().isoformat()), folder / "doses.parquet")
        heard = frame.assign(model_hash=model.hash).round(DIGITS).astype(dict.fromkeys(DIGITS, "float32"))
        add(heard, folder / "clips.parquet")
        told = ["experiment", "name", "strength", "n", "success", "judge2_success", "kept_style"]
        print(table[told].to_string())


def add(table: pd.DataFrame, path: Path):
    """Put an experiment into a file of them, in place of an older run and of all that other weights gave.

    Two runs with other `--only` may go on side by side: one waits for the other here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (old := earlier(path)) is not None:
            same = old["model_hash"] == table["model_hash"].iloc[0]
            others = same & ~old["experiment"].isin(table["experiment"])
            table = pd.concat([old[others], table], ignore_index=True)
        with paths.replacing(path) as scratch:
            table.to_parquet(scratch, compression="zstd", compression_level=19, index=False)


def earlier(path: Path) -> pd.DataFrame | None:
    """What earlier runs left in a file; None without one. SystemExit if it is damaged: says what to do."""
    try:
        return pd.read_parquet(path) if path.exists() else None
    except Exception as error:  # pyarrow's are of every kind
        told = "is damaged: delete it, and `make study` makes it anew from the cells kept in data/runs/study"
        raise SystemExit(f"{path} {told}") from error


def direction_file(experiment: str, name: str, folder: Path | None = None) -> Path:
    """Where the study keeps a direction: one safetensors file per experiment and name."""
    stem = f"{experiment} by {name}".replace(",", "").replace(" ", "_")
    return (folder or paths.data() / "study") / "directions" / f"{stem}.safetensors"


if __name__ == "__main__":
    main()
