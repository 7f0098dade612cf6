"""Activation patching: what a model computes for one version of the music, put into its run on another.

Where a concept can be read says nothing about where the model uses it; this does. Sources: Meng et al. 2022
(causal tracing), Nanda 2023 (attribution patching), Heimersheim and Nanda 2024 (how to read both).
"""

from __future__ import annotations

import contextlib
import functools
import itertools

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from .._shared import number, spelled
from .._shared import progress as progress_bar
from ..errors import memory_told
from ._calls import each
from .effects import Plan
from .sites import hook


@spelled
def patch(
    model,
    clean,
    changed,
    sites=("resid", "attn", "cross", "mlp"),
    layers=None,
    windows: int = 8,
    prompts=None,
    changed_prompts=None,
    worth=None,
    by: str = "swap",
    batch_size: int = 32,
    progress: bool = True,
) -> xr.Dataset:
    """How much of the clean run comes back when one place of the changed run is replaced by it.

    Parameters
    ----------
    clean, changed : codes (pair, codebook, frame): row by row two versions of one music, of one length
    sites : of `sites.SITES`; at `heads` one head at a time is replaced
    layers : int or list of int, 0-based; default all
    windows : int, equal parts of the sequence, which are replaced one by one; 1 replaces all steps at once
    prompts, changed_prompts : None, str or one per pair
        What the model is told in the clean and in the changed run; the latter is `prompts` if left out. The
        same codes under two prompts show where the text is used.
    worth : (codebook, card), optional
        What a next token counts: the score of a step is its mean under the model's probabilities, summed over
        codebooks. Default: the log-likelihood of the clean clip's next tokens, in nats.
    by : str
        "swap" replaces, one place after the other. "gradient" estimates all places at once (attribution
        patching): the score's gradient in the changed run, times what would be replaced.
    batch_size : rows at a time, one for each pair and place; it changes results by rounding only

    Returns
    -------
    xr.Dataset with a variable per site (pair, layer, [head,] window, read): what replacing `window` adds to
    the score of the steps of window `read`, 0 before it; by gradient the sum over `read`. And `gap` (pair,
    read): what the whole clean run adds. So the first, summed over `read`, over the sum of `gap` is the share
    recovered: 1 is all of it. At the last layer `resid` recovers its own window by construction. Coord
    `start` (window) is in seconds.

    Raises
    ------
    ValueError  for pairs of different number or length, a pair that doesn't differ, more windows than frames,
        unknown sites; by swap for a model that has no `engine` (patch it in `Model.trace`).
    IndexError  for unknown layers.

    Taught in 02_reach_inside (by hand) and 08_where_is_it_used.
    """
    if by not in ("swap", "gradient"):
        raise ValueError(f"by={by!r}; choose 'swap' or 'gradient'")
    if by == "swap" and model.engine is None:
        odd = f"{model.name} has parts that the engine doesn't know, or PyTorch hooks"
        raise ValueError(f"{odd}: take the hooks off, patch by hand in model.trace, or give by='gradient'")
    job = _Pairs(model, clean, changed, sites, layers, windows, (prompts, changed_prompts), worth)
    size = max(1, number("batch_size", batch_size, 1, whole=True) // len(job.places))
    run = {"swap": _swap, "gradient": _gradient}[by]
    for at in progress_bar(range(0, len(job.gap), size), unit="batch", show=progress):
        with memory_told("give a smaller batch_size or shorter clips"), model.alone("patch"):
            run(job, slice(at, at + size))
    return job.dataset(by)


class _Pairs:
    """The pairs of a call, checked; `found` (pair, layer, window, read) and `gap` fill with its results."""

    def __init__(self, model, clean, changed, sites, layers, windows, prompts, worth):
        self.model, self.sites = model, [sites] if isinstance(sites, str) else list(sites)
        layers = range(model.n_layers) if layers is None else layers
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        if not (self.sites and self.layers):
            raise ValueError("give at least one site and one layer")
        for site, layer in itertools.product(self.sites, self.layers):
            model.module_of(site, layer)  # or say what is absent
        clean, changed = (model.sequence(codes) for codes in (clean, changed))
        if clean.shape != changed.shape:
            told = " and ".join(f"{len(t)} clips of {t.shape[-1] - 1} frames" for t in (clean, changed))
            raise ValueError(f"pairs are two versions of one length, not {told}: cut both alike")
        n, n_codebooks, n_steps = clean.shape
        told = prompts if prompts[1] is not None else prompts[:1] * 2
        self.prompts = [each(texts, n, "prompts") for texts in told]
        differ = (clean != changed).any(2).any(1).tolist()
        if twins := [k for k in range(n) if not differ[k] and self.prompts[0][k] == self.prompts[1][k]]:
            raise ValueError(f"pair {twins[0]} is the same clip twice: nothing varies, nothing can come back")
        parts = number("windows", windows, 1, n_steps - 1, whole=True)
        self.spans = [slice(w[0], w[-1] + 1) for w in np.array_split(np.arange(n_steps - 1), parts)]
        self.clean, self.changed, self.target = clean[..., :-1], changed[..., :-1], clean[..., 1:]
        self.worth = None if worth is None else torch.as_tensor(worth, dtype=torch.float32)
        if worth is not None and self.worth.shape != (n_codebooks, model.lm.card):
            wanted = f"{(n_codebooks, model.lm.card)} (codebook, card)"
            raise ValueError(f"worth is {wanted}, not {tuple(self.worth.shape)}")
        parts_of = {site: range(model.n_heads) if site == "heads" else [...] for site in self.sites}
        self.places = [(site, part) for site in self.sites for part in parts_of[site]]  # ... is all of it
        self.found = {place: np.zeros((n, len(self.layers), parts, parts)) for place in self.places}
        self.gap = np.zeros((n, parts))

    def score(self, logits, some, at=slice(None)):
        """(row, step) of logits (row, step, codebook, card); rows are the pairs `some`, again and again."""
        target = self.target[some, :, at].mT  # (pair, step, codebook)
        real = target < self.model.lm.card  # else the special token of the delay pattern
        again = lambda t: t.repeat(len(logits) // len(t), 1, 1)
        if self.worth is None:
            goal = again(target * real)
            chosen = -F.cross_entropy(logits.flatten(0, 2), goal.flatten(), reduction="none").view_as(goal)
        else:
            chosen = (logits.softmax(-1) * self.worth.to(logits.device)).sum(-1)
        return (chosen * again(real)).sum(-1)

    def by_window(self, steps, start=0):
        """(row, step), of which the first is step `start`, summed to (row, window)."""
        ends = [(max(0, span.start - start), max(0, span.stop - start)) for span in self.spans]
        return torch.stack([steps[:, a:b].sum(1) for a, b in ends], 1).cpu().numpy()

    def dataset(self, by: str) -> xr.Dataset:
        every, found = ("pair", "layer", "window", "read"), {"gap": (("pair", "read"), self.gap)}
        for site in self.sites:
            parts = [values for (of, _), values in self.found.items() if of == site]
            found[site] = (every, parts[0]) if site != "heads" else (("head", *every), np.stack(parts))
        numbers = range(len(self.spans))
        starts = [span.start / self.model.frame_rate for span in self.spans]
        coords = {"layer": self.layers, "window": numbers, "read": numbers, "start": ("window", starts)}
        made = xr.Dataset(found, coords).transpose("pair", "layer", "head", ..., missing_dims="ignore")
        return made if by == "swap" else made[self.sites].sum("read").assign(gap=made["gap"])


@torch.no_grad()
def _swap(job: _Pairs, some: slice) -> None:
    """Run the pairs `some` with every place replaced: only the layers and steps that this can change."""
    engine, model, k = job.model.engine, job.model, len(job.places)
    steps, n = slice(0, job.clean.shape[-1]), len(job.clean[some])
    engine.positions(steps.stop)

    def run(tokens, prompts):
        """Logits, the values at every place and those entering every layer, all keys and values."""
        text = engine.text(model.conditions(prompts, n))
        caches = text[0][0].new_zeros(model.n_layers, 2, n, model.n_heads, steps.stop, model.d_head)
        seen = dict.fromkeys((s, layer) for s in {"resid", *job.sites} for layer in range(model.n_layers))
        x = engine.embed(tokens, steps)
        last = engine.through(x, text, Plan(), steps, steps, caches, seen=seen)
        return engine.read(last), seen, [x, *(seen["resid", i] for i in range(model.n_layers - 1))], caches

    told = [prompts[some] for prompts in job.prompts]
    goal, clean, _, _ = run(job.clean[some], told[0])
    base, old, entering, caches = run(job.changed[some], told[1])
    base = job.score(base, some)
    job.gap[some] = job.by_window(job.score(goal, some) - base)
    text = engine.text(model.conditions(told[1] * k, n * k))
    causal = torch.ones(steps.stop, steps.stop, dtype=torch.bool, device=model.device).tril()
    past = lambda at: causal[at, : at.stop] if at.start else None  # None: steps see each other only
    for i, layer in enumerate(job.layers):
        wide = dict(enumerate(caches[layer:].repeat(1, 1, k, 1, 1, 1), layer))
        here, above = slice(layer, layer + 1), slice(layer + 1, None)
        for w, span in reversed(list(enumerate(job.spans))):  # `wide` is written from `span` on
            new = {site: clean[site, layer][:, span] for site in job.sites}
            if all(torch.equal(new[site], old[site, layer][:, span]) for site in job.sites):
                continue
            swaps, at = _Swaps(job.places, layer, new), span
            x = entering[layer][:, at].repeat(k, 1, 1)
            x = engine.through(x, text, swaps, at, at, wide, at.stop, past(at), layers=here)
            if layer + 1 < model.n_layers:  # only now do later steps change
                at = slice(span.start, steps.stop)
                x = torch.cat([x, old["resid", layer][:, span.stop :].repeat(k, 1, 1)], 1)
                x = engine.through(x, text, Plan(), at, at, wide, at.stop, past(at), layers=above)
            gain = job.by_window(job.score(engine.read(x), some, at) - base[:, at].repeat(k, 1), at.start)
            for place, gains in zip(job.places, np.split(gain, k), strict=True):
                job.found[place][some, i, w] = gains


class _Swaps:
    """Stands where a `Plan` would: block k of the rows gets the values `new` at the k-th of the `places`."""

    def __init__(self, places, layer: int, new: dict):
        self.places, self.layer, self.new = places, layer, new

    def __contains__(self, place) -> bool:
        return place[1] == self.layer and place[0] in self.new

    def at(self, h, site, layer, when):
        """`h` (row, step, ...), its first steps replaced; at `heads` those of one head."""
        blocks, length = h.clone().chunk(len(self.places)), self.new[site].shape[1]
        for block, (where, part) in zip(blocks, self.places, strict=True):
            if where == site:
                block[:, :length, part] = self.new[site][:, :, part]
        return torch.cat(blocks)


@torch.enable_grad()
def _gradient(job: _Pairs, some: slice) -> None:
    """The slope of the pairs' score at every place at once, times what a swap would change there."""
    model = job.model

    def run(tokens, prompts, leaves):
        values = {}

        def note(h, place):
            values[place] = h if h.requires_grad or not leaves else h.requires_grad_()
            return values[place]

        with contextlib.ExitStack() as hooks:
            for place in [(site, layer) for site in job.sites for layer in job.layers]:
                hooks.callback(hook(model.lm, *place, functools.partial(note, place=place)).remove)
            logits = model.lm(tokens, [], model.conditions(prompts, len(tokens)))
        return job.score(logits.transpose(1, 2).float(), some), values

    goal, clean = run(job.clean[some], job.prompts[0][some], leaves=False)
    base, changed = run(job.changed[some], job.prompts[1][some], leaves=True)
    job.gap[some] = job.by_window((goal - base).detach())
    slopes = torch.autograd.grad(base.sum(), list(changed.values()))
    slopes = dict(zip(changed, slopes, strict=True))
    for (site, part), found in job.found.items():
        for i, layer in enumerate(job.layers):
            moved = clean[site, layer] - changed[site, layer].detach()
            gain = (moved.float() * slopes[site, layer].float())[:, :, part].flatten(2).sum(-1)
            found[some, i, :, 0] = job.by_window(gain)
