"""The full steering study: `python -m mechsteer.study` (`make study`), every claim at n = 100 with its controls.

Each experiment asks for one concept with several steerings, the same clips for each, and the unsteered twins beside
them. Cells (one steering at one strength) are kept under data/runs/study as they finish, so that a stopped run goes on
where it was, and what is already there for these weights is never made again. Results go to data/study with the model's
hash, the seed, the command and the date: doses.parquet (cells), clips.parquet (what each judge heard in each clip) and
the directions themselves. 04_steer_and_listen draws from them and re-runs a slice.

Strengths are multiples of the mean activation norm of the site and layer, and all directions are unit: methods are
compared at matched norm.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import distances, paths
from .activations import codes as codes_of
from .activations import collect
from .contrasts import caption_contrast, optimised_vector
from .datasets import clips, read_clip
from .directions import save_direction
from .dose import UNSTEERED, dose_response, dose_table
from .model import load
from .probes import METHODS, find_directions
from .steering import Steering

if TYPE_CHECKING:
    from .model import Model

COMMAND = "python -m mechsteer.study"
FACTS = {  # method -> what it was learnt from, and whether it was chosen for what it reads or for what it writes
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
PAIRS = (("jazz", "piano", "guitar"), ("rock", "flute", "organ"), ("classical", "guitar", "violin"))
CLIPS = (
    ["name", "strength", "clip", "seed", "prompt"]
    + [f"{judge}_{what}" for judge in ("cnn", "features") for what in ("lead", "style", "drums", "tempo", "mode")]
    + ["twin_chroma", "twin_melody", "twin_divergence", "nll", "nll_unprompted", "brightness", "loudness"]
)
RANDOM = 5  # random directions; together they make one cell


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One question: the concept that counts as success, who is asked, and the steerings to try.

    `steerings`: name -> (method, Steering); `prompts`: in turn over the clips; `reference`: rows of the orchestra that
    are real music of the concept; `asked`: a prompt that asks for the concept outright, to see how far words get.
    """

    name: str
    concept: Mapping[str, Any]
    source: str
    prompts: str | None | Sequence[str | None]
    steerings: Mapping[str, tuple[str, Steering]]
    strengths: Sequence[float]
    reference: Callable[[pd.DataFrame], pd.Series]
    asked: str | None = None
    audio_prompt: Any = None
    duration: float = 5.0
    start: float = 0.0


def run(
    experiment: Experiment, model: Model, n: int, seed: int, folder: Path | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All cells of an experiment: the columns of `dose.dose_table` and what each cell was; and the clips (`CLIPS`)."""
    common = dict(
        duration=experiment.duration, start=experiment.start, audio_prompt=experiment.audio_prompt, out=folder
    )
    ask = lambda steerings, size, first, prompts=experiment.prompts: dose_response(
        model, steerings, prompts, experiment.strengths, size, seed + first, **common
    )
    randoms = {name: s for name, (method, s) in experiment.steerings.items() if method == "random"}
    frames = [ask({name: s for name, (_, s) in experiment.steerings.items() if name not in randoms}, n, 0)]
    for i, (name, steering) in enumerate(randoms.items()):  # together they cover the seeds of one cell
        first = i * (n // len(randoms))
        frame = ask({name: steering}, n // len(randoms), first)
        frames.append(frame[frame["name"] != UNSTEERED].assign(clip=lambda t, first=first: t["clip"] + first))
    if experiment.asked:
        frame = ask({}, n, 0, experiment.asked).assign(name="prompt alone")  # its twins have another prompt
        frames.append(frame.assign(**dict.fromkeys(("twin_chroma", "twin_melody", "twin_divergence"), np.nan)))
    frame = pd.concat(frames, ignore_index=True)
    method = {name: method for name, (method, _) in experiment.steerings.items()}
    method |= {UNSTEERED: UNSTEERED, "prompt alone": "prompt alone"}
    frame["name"] = frame["name"].where(~frame["name"].isin(randoms), "random")
    table = dose_table(frame, experiment.concept, reference=real_texture(experiment.reference))
    steered = {name: steering for name, (_, steering) in experiment.steerings.items()}
    if randoms:
        method["random"], steered["random"] = "random", next(iter(randoms.values()))
    facts = [
        {"experiment": experiment.name, "concept": "+".join(map(str, experiment.concept.values()))}
        | {"source": experiment.source, "method": method[name]}
        | dict(zip(("learnt_from", "kind"), FACTS[method[name]], strict=True))
        | {"site": getattr(steered.get(name), "site", ""), "branch": getattr(steered.get(name), "branch", "")}
        | {"layers": " ".join(map(str, getattr(steered.get(name), "layers", ())))}
        for name in table["name"]
    ]
    kept = [column for column in CLIPS if column in frame]
    return pd.concat([pd.DataFrame(facts), table], axis=1), frame[kept].assign(experiment=experiment.name)


def real_texture(chosen: Callable[[pd.DataFrame], pd.Series], most: int = 200, seconds: float = 5.0) -> np.ndarray:
    """`distances.texture` of real clips (as the codec renders them) of scores that no direction was learnt from."""
    table = clips("orchestra")
    table = table[(table["split"] == "test") & chosen(table)]
    table = table.sample(min(most, len(table)), random_state=0)
    found = []
    for row in table.to_dict("records"):
        audio, rate = read_clip(row)
        found.append(distances.texture(audio[:, : round(seconds * rate)], rate)[0])
    return np.stack(found)


class Finder:
    """Directions from training scores that exist with every lead (each in one style), as named steerings."""

    def __init__(self, model: Model, scores: int = 160):
        self.model, self.layer = model, model.n_layers // 2
        table = clips("orchestra")
        table = table[(table["split"] == "train") & table["paired"]]
        self.clips = table[table["score"].isin(sorted(table["score"].unique())[:scores])].reset_index(drop=True)
        store = paths.runs() / f"study_{model.name}_{model.hash}_{len(self.clips)}.zarr"
        self.acts = collect(model, self.clips, sites=("resid", "attn"), out=store).load()

    def probes(self, label: str, concept: str, among: Sequence[str] = (), site: str = "resid", layers=None, **options):
        """Every method's direction, and the first method's on shuffled labels; `among` leaves other classes out."""
        acts, layers = self.acts, [self.layer] if layers is None else layers
        if among:
            acts = acts.isel(clip=np.flatnonzero(np.isin(acts[label].values, list(among))))
        kind = "value" if acts[label].dtype.kind == "f" else "auto"
        methods = [m for m in METHODS if m != "logistic" or kind != "value"]
        made = find_directions(acts, label, methods, site, layers, kind=kind)
        values = np.random.default_rng(0).permutation(acts[label].values)
        wrong = acts.assign_coords({label: ("clip", values)})
        wrong = find_directions(wrong, label, methods[:1], site, layers, kind=kind)
        found = {m: (m, Steering(made.sel(concept=concept, finder=m), **options)) for m in methods}
        return found | {
            "shuffled labels": ("shuffled labels", Steering(wrong.sel(concept=concept, finder=methods[0]), **options))
        }

    def randoms(self, site: str = "resid", layers=None, **options):
        """Random directions, one per layer."""
        layers = [self.layer] if layers is None else layers
        norm, rng = self.acts[f"{site}_norm"].sel(layer=layers).values, np.random.default_rng(0)
        draws = [rng.normal(size=(len(layers), self.model.d_model)) for _ in range(RANDOM)]
        made = [Steering(draw, site=site, layers=layers, norm=norm, **options) for draw in draws]
        return {f"random {i}": ("random", steering) for i, steering in enumerate(made)}

    def writers(self, style: str, source: str, target: str, steps: int = 100, **options):
        """The caption contrast, the optimised vector, and the control of the latter: optimised to the source itself."""
        prompt, table = f"{style} {source}", self.clips[self.clips["style"] == style]
        codes = codes_of(self.model, table.sample(min(48, len(table)), random_state=0))
        contrast = caption_contrast(self.model, codes, f"{style} {target}", prompt, layers=[self.layer])
        found = {"caption contrast": ("caption contrast", Steering(contrast, **options))}
        for name, lead in (("optimised vector", target), ("optimised to the source", source)):
            codes = codes_of(self.model, table[table["lead"] == lead])[..., : self.model.seconds_to_frames(4.0)]
            vector = optimised_vector(
                self.model, codes, prompt, layers=[self.layer], steps=steps, batch_size=min(16, len(codes))
            )
            found[name] = (name, Steering(vector, **options))
        return found


def questions(model: Model, only: Sequence[str] = ()) -> Iterator[Experiment]:
    """The study's experiments, their directions found on the way; `only` names some of them."""
    finder = Finder(model)
    wanted = lambda name: not only or name in only
    for concept, label, value in (("guitar", "lead", "guitar"), ("rock", "style", "rock"), ("drums", "drums", True)):
        if wanted(concept):
            real = lambda t, label=label, value=value: t[label] == value
            steerings = finder.probes(label, concept) | finder.randoms()
            yield Experiment(concept, {label: value}, "unprompted", None, steerings, (0.05, 0.1, 0.2, 0.4), real)
    for style, source, target in PAIRS:
        if wanted(name := f"{source} to {target}"):
            prompt, duel = f"{style} {source}", (source, target)
            steerings = finder.probes("lead", target, duel, branch="cond")
            both = finder.probes("lead", target, duel)["diff_of_means"]
            steerings |= {"diff_of_means, both halves": both} | finder.writers(style, source, target, branch="cond")
            steerings |= finder.randoms(branch="cond")
            real = lambda t, style=style, target=target: (t["style"] == style) & (t["lead"] == target)
            asked = f"{style} {target}"
            yield Experiment(name, {"lead": target}, prompt, prompt, steerings, (0.2, 0.4), real, asked)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--n", type=int, default=100, help="clips per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of experiments")
    parser.add_argument("--out", type=Path, default=paths.data() / "study")
    args = parser.parse_args()
    model, folder = load(args.model), args.out
    tables, heard = [], []
    for experiment in questions(model, args.only):
        for name, (_, steering) in experiment.steerings.items():
            if steering.direction.attrs.get("model_hash"):
                save_direction(direction_file(experiment.name, name, folder), steering.direction.drop_vars("weight"))
        table, frame = run(experiment, model, args.n, args.seed, paths.runs() / "study")
        tables.append(table)
        heard.append(frame)
        print(table[["experiment", "name", "strength", "n", "success", "judge2_success", "kept_style"]].to_string())
    facts = {"model": model.name, "model_hash": model.hash, "date": datetime.date.today().isoformat()}
    facts["command"] = shlex.join([*COMMAND.split(), *sys.argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(tables, ignore_index=True).assign(seed=args.seed, **facts).to_parquet(folder / "doses.parquet")
    clips_heard = pd.concat(heard, ignore_index=True).assign(model_hash=model.hash)
    small = {
        column: "float32" for column, dtype in clips_heard.dtypes.items() if dtype == "float64" and column != "strength"
    }
    clips_heard.astype(small).to_parquet(folder / "clips.parquet", compression="zstd")


def direction_file(experiment: str, name: str, folder: Path | None = None) -> Path:
    """Where the study keeps a direction: one safetensors file per experiment and name."""
    stem = f"{experiment} by {name}".replace(",", "").replace(" ", "_")
    return (folder or paths.data() / "study") / "directions" / f"{stem}.safetensors"


if __name__ == "__main__":
    main()
