"""Named steerings for one question: every method's direction, its controls, and every way to add it.

`Finder` reads the activations of training scores once; each of its methods gives a dict {name: (method,
steering)}, as `run.Experiment` takes them. Controls are many steerings, one for each clip in turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from mechsteer import paths
from mechsteer.activations.clips import clips
from mechsteer.activations.collect import codes, collect
from mechsteer.directions._labels import read_groups, read_target, shuffled
from mechsteer.directions.find import find_directions
from mechsteer.directions.geometry import unit
from mechsteer.directions.scores import PROBES, accuracy_by_layer
from mechsteer.directions.written import caption_contrast, optimised_vector
from mechsteer.model.steering import Steering, top

if TYPE_CHECKING:
    from mechsteer.model.model import Model

DRAWS = 100  # random directions, and permutations of the labels: a control is not one draw
READ = ("resid", "attn", "heads")  # sites


def words(labels: Mapping[str, str]) -> str:
    """ "jazz piano" for {"lead": "piano", "style": "jazz"}."""
    return " ".join(labels[label] for label in ("style", "lead") if label in labels)


class Finder:
    """Directions from training scores that exist with every lead (each in one style), as named steerings.

    Parameters
    ----------
    model : Model
    scores : training scores to read; each is one clip per lead.

    Attributes
    ----------
    layer : the middle one, 0-based; where directions are read and added if nothing else is said
    every : all layers
    clips : the training clips
    acts : their mean activations at `READ`, all layers
    """

    def __init__(self, model: Model, scores: int = 160):
        self.model, self.every = model, list(range(model.n_layers))
        self.layer = model.n_layers // 2
        table = clips("orchestra")
        table = table[(table["split"] == "train") & table["paired"]]
        first = sorted(table["score"].unique())[:scores]
        self.clips = table[table["score"].isin(first)].reset_index(drop=True)
        store = paths.runs() / f"study_{model.name}_{model.hash}_{len(self.clips)}_{len(READ)}.zarr"
        self.acts = collect(model, self.clips, sites=READ, out=store).load()

    def _among(self, label: str, among: Sequence[str]):
        if not among:
            return self.acts
        return self.acts.isel(clip=np.flatnonzero(np.isin(self.acts[label].values, list(among))))

    def probes(
        self, label: str, concept: str, among: Sequence[str] = (), site: str = "resid", layers=None, **options
    ):
        """Every method's direction, and shuffled labels' differences of means; `among` says which classes."""
        acts, layers = self._among(label, among), [self.layer] if layers is None else layers
        kind = "value" if acts[label].dtype.kind == "f" else "auto"
        methods = [m for m in PROBES if m != "logistic" or kind != "value"]
        made = find_directions(acts, label, methods, site, layers, kind=kind)
        found = {m: (m, Steering(made.sel(concept=concept, finder=m), **options)) for m in methods}
        return found | self._shuffled(acts, label, concept, kind, site, layers, options)

    def _shuffled(self, acts, label, concept, kind, site, layers, options):
        """Differences of means of `DRAWS` permutations, each at the level at which the label varies."""
        target, groups = read_target(acts, label, kind), read_groups(acts)
        y = [shuffled(target, groups, i).y[:, target.concepts.index(concept)] for i in range(DRAWS)]
        share = lambda mask: mask / mask.sum()
        gap = (lambda y: y - y.mean()) if target.kind == "value" else (lambda y: share(y > 0) - share(y < 0))
        weights = xr.DataArray(np.stack([gap(of) for of in y]), dims=("draw", "clip"))
        made = xr.dot(weights, acts[site].sel(layer=layers), dim="clip").values
        return {"shuffled labels": ("shuffled labels", self._plain(made, site, layers, **options))}

    def randoms(self, site: str = "resid", layers=None, **options):
        """`DRAWS` random directions, one vector per layer (for heads: per head)."""
        layers = [self.layer] if layers is None else layers
        shape = self.acts[site].sel(layer=layers).shape[1:]
        made = np.random.default_rng(0).normal(size=(DRAWS, *shape))
        return {"random": ("random", self._plain(made, site, layers, **options))}

    def _plain(self, vectors: np.ndarray, site: str, layers: Sequence[int], **options) -> list[Steering]:
        norm = self.acts[f"{site}_norm"].sel(layer=layers).values
        return [Steering(v, site=site, layers=layers, norm=norm, **options) for v in vectors]

    def penalised(self, label: str, concept: str, alphas: Sequence[float], **options):
        """Logistic and MSE probes of the middle layer, at every penalty instead of the one that reads best.

        Activations are scaled by one number here, so that with more and more penalty both turn into the
        difference of
        means: their weights follow the gradient at 0, which (the bias being free) is along it for either
        loss.
        """
        found, both = {}, ("logistic", "mse")
        for alpha in alphas:
            made = find_directions(
                self.acts, label, both, "resid", [self.layer], alphas=(alpha,), standardize="layer"
            )
            steer = lambda name, made=made: Steering(made.sel(concept=concept, finder=name), **options)
            found |= {f"{name}, penalty {alpha:g}": (name, steer(name)) for name in both}
        return found

    def best_heads(self, label: str, among: Sequence[str] = (), k: int = 8):
        """Weights (layer, head): 1 for the `k` heads whose mean outputs tell classes apart best, else 0."""
        acts = self._among(label, among)
        options = dict(site="heads", shuffles=0, progress=False)
        table = accuracy_by_layer(acts, label, ("diff_of_means",), **options)
        table = table[table["metric"] == "auc"].groupby(["layer", "head"])["score"].mean()
        return top(table.to_xarray(), k)

    def writers(
        self, label: str, source: str, target: str, common: Mapping[str, str], steps: int = 100, **options
    ):
        """Caption contrast, optimised vector, and the latter's control: optimised to the source itself.

        `common` is what the music keeps, {"style": "jazz"}: the captions name it too, in the order "jazz
        piano".
        """
        prompt, asked = (words({**common, label: value}) for value in (source, target))
        table = self.clips[(self.clips[list(common)] == pd.Series(common)).all(axis=1)]
        some = codes(self.model, table.sample(min(48, len(table)), random_state=0))
        contrast = caption_contrast(self.model, some, asked, prompt, layers=[self.layer])
        found = {"caption contrast": ("caption contrast", Steering(contrast, **options))}
        for name, value in (("optimised vector", target), ("optimised to the source", source)):
            rows = table[table[label] == value]
            some = codes(self.model, rows)[..., : self.model.seconds_to_frames(4.0)]
            how = dict(layers=[self.layer], steps=steps, batch_size=min(16, len(some)))
            vector = optimised_vector(self.model, some, prompt, **how)
            found[name] = (name, Steering(vector, **options))
        return found

    def ways(self, source: str, target: str, method: str = "diff_of_means", k: int = 8):
        """One method, all else varied: half of guidance, layer, site, heads, mode, schedule, projection.

        "all layers" shares the push out evenly, so that its sum is the one of a single layer; attention
        outputs and heads get all of it at every layer. The study's controls are those of the conditional half
        at the middle layer.
        """
        every, pair = self.every, (source, target)
        acts = self._among("lead", pair)
        found = [find_directions(acts, "lead", (method,), site, every) for site in READ]
        resid, attn, heads = (made.sel(concept=target, finder=method) for made in found)
        here = Steering(resid, layers=[self.layer], branch="cond")
        spread = dict.fromkeys(every, 1 / len(every))
        styles = find_directions(self.acts, "style", ("logistic",), "resid", [self.layer])
        read = styles.sel(finder="logistic", layer=self.layer).values  # (style, d_model)
        basis = np.linalg.qr(read.T)[0]
        middle = resid.sel(layer=[self.layer])
        clean = middle.copy(data=unit(middle.values - middle.values @ basis @ basis.T))
        away = find_directions(self.acts, "lead", (method,), "resid", [self.layer])
        away = away.sel(concept=source, finder=method)
        found = {
            "conditional half": here,
            "unconditional half": dataclasses.replace(here, branch="uncond"),
            "both halves": dataclasses.replace(here, branch="both"),
            **{f"layer {i}": Steering(resid, layers=[i], branch="cond") for i in every if i != self.layer},
            "all layers": Steering(resid, weights=spread, branch="cond"),
            "attention outputs, all layers": Steering(attn, branch="cond"),
            f"best {k} heads": Steering(heads, weights=self.best_heads("lead", pair, k), branch="cond"),
            "replace": dataclasses.replace(here, mode="replace"),
            "add, and remove the source": here | Steering(away, mode="remove", branch="cond"),
            "without what a style probe reads": Steering(clean, branch="cond"),
            "first second only": dataclasses.replace(here, stop=1.0),
            "every second frame": dataclasses.replace(here, every=2),
            "rising over two seconds": dataclasses.replace(here, ramp=2.0),
        }
        return {name: (method, steering) for name, steering in found.items()}
