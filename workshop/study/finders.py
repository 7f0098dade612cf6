"""Directions by every method, each as often as one likes: from bootstrap samples of the training scores.

Refit k of every method learns from the same sample, and readers and writers from the same clips. Every
direction is unit, and its strength is in class gaps: 1 is a push as long as the distance between the class
means at that layer, whatever the method, so that methods are compared at one length and concepts at one
distance.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr

from mechsteer import paths
from mechsteer.activations.clips import clips
from mechsteer.activations.collect import codes, collect
from mechsteer.activations.read import read
from mechsteer.directions._labels import read_groups, read_target, shuffled
from mechsteer.directions.find import find_directions
from mechsteer.directions.geometry import unit
from mechsteer.directions.scores import PROBES, accuracy_by_layer
from mechsteer.directions.written import optimised_vector
from mechsteer.model.model import Model
from mechsteer.model.steering import Steering, top

from .settings import Setting

READ = ("resid", "attn", "heads")  # sites
STEPS, SOME, SECONDS = 60, 8, 3.0  # of the optimised vector: steps, clips in each, s of them
FAST = 30.0  # bpm: the tempo's "class gap" is the way of the mean activation over so many bpm


class Finder:
    """Directions from training scores that exist with every lead (each in one style).

    Parameters
    ----------
    model : Model
    scores : training scores to read; each is one clip per lead.

    Attributes
    ----------
    layer : the middle one, 0-based; where the residual stream is read and steered
    clips : the training clips
    acts : their mean activations at `READ`, all layers
    """

    def __init__(self, model: Model, scores: int = 160):
        self.model, self.layer = model, model.n_layers // 2
        table = clips("orchestra")
        table = table[(table["split"] == "train") & table["paired"]]
        first = sorted(table["score"].unique())[:scores]
        self.clips = table[table["score"].isin(first)].reset_index(drop=True)
        store = paths.runs() / f"study_{model.name}_{model.hash}_{len(self.clips)}_{len(READ)}.zarr"
        self.acts = collect(model, self.clips, sites=READ, out=store).load()
        self._gaps, self._changes = {}, {}

    def layers(self, setting: Setting) -> list[int]:
        return [self.layer] if setting.site == "resid" else list(range(self.model.n_layers))

    def rows(self, setting: Setting, k: int | None = None) -> np.ndarray:
        """The clips of refit k: those of a bootstrap sample of the scores; of all scores if None."""
        score = self.clips["score"].to_numpy()
        names = np.unique(score)
        if k is not None:
            names = np.random.default_rng([7, k]).choice(names, len(names))
        fits = (
            self.clips[setting.label].isin(setting.among).to_numpy()
            if setting.among
            else np.ones(len(score), bool)
        )
        return np.concatenate([np.flatnonzero((score == name) & fits) for name in names])

    def gaps(self, setting: Setting, site: str) -> xr.DataArray:
        """Distance between the class means at every layer (and head), in mean activation norms."""
        if (key := (setting.name, site)) not in self._gaps:
            acts = self.acts.isel(clip=self.rows(setting))
            x, target = acts[site].values, read_target(acts, setting.label, kind_of(setting))
            if target.kind == "value":
                y = target.y[:, 0] - target.y[:, 0].mean()
                way = FAST * np.einsum("c,c...->...", y, x) / np.square(y).sum()
            else:
                of = target.y[:, target.concepts.index(setting.concept)] > 0
                way = x[of].mean(0) - x[~of].mean(0)
            self._gaps[key] = np.linalg.norm(way, axis=-1) / self.acts[f"{site}_norm"]
        return self._gaps[key]

    def steering(self, setting: Setting, direction, site=None, layers=None, share=1.0, **options) -> Steering:
        """A direction as a steering whose strength is in class gaps, times `share`."""
        site, layers = site or setting.site, self.layers(setting) if layers is None else layers
        gaps, norm = (a.sel(layer=layers) for a in (self.gaps(setting, site), self.acts[f"{site}_norm"]))
        where = dict(site=site, layers=layers, norm=norm.values, weights=gaps * share, branch=setting.branch)
        return Steering(direction, **{**where, **options})

    def probes(self, setting: Setting, k: int | None, **fitting) -> dict[str, xr.DataArray]:
        """Logistic, MSE (of numbers the latter only) and difference of means."""
        acts, kind = self.acts.isel(clip=self.rows(setting, k)), kind_of(setting)
        methods = [m for m in PROBES if m != "logistic" or kind != "value"]
        where = (setting.site, self.layers(setting))
        made = find_directions(acts, setting.label, methods, *where, kind=kind, **fitting)
        return {m: made.sel(concept=setting.concept, finder=m) for m in methods}

    def controls(self, setting: Setting, k: int) -> dict[str, np.ndarray]:
        """A random direction, and the difference of means of shuffled labels; another of each for every k."""
        acts = self.acts.isel(clip=self.rows(setting))
        x = acts[setting.site].sel(layer=self.layers(setting)).values
        target = read_target(acts, setting.label, kind_of(setting))
        column = target.concepts.index(setting.concept)
        y = shuffled(target, read_groups(acts), k).y[:, column]
        weight = (
            y - y.mean() if target.kind == "value" else np.where(y > 0, 1 / (y > 0).sum(), -1 / (y < 0).sum())
        )
        random = np.random.default_rng([8, k]).standard_normal(x.shape[1:])
        return {"random": random, "shuffled labels": np.einsum("c,cld->ld", weight, x)}

    def contrast(self, setting: Setting, k: int | None) -> np.ndarray:
        """What the other caption changes, (d_model,): `ms.caption_contrast`, over the clips of refit k."""
        rows = self.rows(setting)
        if setting.name not in self._changes:
            self._changes[setting.name] = np.concatenate(
                [self._changed(setting, rows[at : at + 16]) for at in range(0, len(rows), 16)]
            )
        at = {row: i for i, row in enumerate(rows)}
        return self._changes[setting.name][[at[row] for row in self.rows(setting, k)]].mean(0)

    def _changed(self, setting, rows):
        """(clip, d_model): the same codes under two captions, the difference of the mean activations."""
        table = self.clips.iloc[rows]
        some, captions = codes(self.model, table), [setting.captions(row) for row in table.to_dict("records")]
        to, away = (
            read(self.model, some, ("resid",), [self.layer], prompts=list(told))["resid"][:, 0]
            for told in zip(*captions, strict=True)
        )
        return to - away

    def optimised(self, setting: Setting, k: int | None) -> xr.DataArray:
        """The vector that makes refit k's clips of the concept likely under the captions without it."""
        table = self.clips.iloc[self.rows(setting, k)]
        table = table[table[setting.label] == setting.value]
        some = codes(self.model, table)[..., : self.model.seconds_to_frames(SECONDS)]
        prompts = [setting.captions(row)[1] for row in table.to_dict("records")]
        how = dict(layers=[self.layer], steps=STEPS, batch_size=SOME, seed=k or 0, progress=False)
        return optimised_vector(self.model, some, prompts, **how)

    def ways(self, setting: Setting, k: int) -> dict[str, Steering]:
        """The difference of means, all else varied: half of guidance, layer, site, heads, mode, schedule.

        Everywhere 1 is one class gap of the place where it is added: "all layers" shares it out evenly, while
        attention outputs and heads get a gap at every layer.
        """
        acts, every = self.acts.isel(clip=self.rows(setting, k)), list(range(self.model.n_layers))
        means = lambda label, site: find_directions(acts, label, ("diff_of_means",), site, every).isel(
            finder=0
        )
        made = {site: means(setting.label, site).sel(concept=setting.value) for site in READ}
        at = lambda layers, **options: self.steering(
            setting, made["resid"].sel(layer=layers), layers=layers, **options
        )
        everywhere = lambda site, **options: self.steering(setting, made[site], site, every, **options)
        here, middle = at([self.layer]), made["resid"].sel(layer=[self.layer])
        styles = find_directions(self.acts, "style", ("logistic",), "resid", [self.layer])
        basis = np.linalg.qr(styles.sel(finder="logistic", layer=self.layer).values.T)[0]
        clean = middle.copy(data=unit(middle.values - middle.values @ basis @ basis.T))
        away = means(setting.label, "resid").sel(concept=setting.among[0], layer=[self.layer])
        return {
            "conditional half": here,
            "unconditional half": dataclasses.replace(here, branch="uncond"),
            "both halves": dataclasses.replace(here, branch="both"),
            **{f"layer {i}": at([i]) for i in every if i != self.layer},
            "all layers": everywhere("resid", share=1 / len(every)),
            "attention outputs, all layers": everywhere("attn"),
            "best 8 heads": everywhere("heads", share=self._best_heads(acts, setting.label)),
            "replace": dataclasses.replace(here, mode="replace"),
            "add, and remove the source": here | Steering(away, mode="remove", branch="cond"),
            "without what a style probe reads": self.steering(setting, clean),
            "first second only": dataclasses.replace(here, stop=1.0),
            "every second frame": dataclasses.replace(here, every=2),
            "rising over two seconds": dataclasses.replace(here, ramp=2.0),
        }

    def _best_heads(self, acts, label, n=8):
        """Weights (layer, head): 1 for the heads whose mean outputs tell the classes apart best, else 0."""
        table = accuracy_by_layer(acts, label, ("diff_of_means",), site="heads", shuffles=0, progress=False)
        scores = table[table["metric"] == "auc"].groupby(["layer", "head"])["score"].mean()
        return top(scores.to_xarray(), n)


def kind_of(setting: Setting) -> str:
    """How a probe takes the label: a tempo is a number."""
    return "value" if setting.question == "tempo" else "auto"
