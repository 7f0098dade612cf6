"""Activation patching: what a model computes for one version of the music, put into its run on another.

Where a concept can be read says nothing about where the model uses it; this does. Sources: Meng et al. 2022
(causal tracing), Nanda 2023 (attribution patching), Heimersheim and Nanda 2024 (how to read both).
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import xarray as xr

from .._shared import number, spelled
from .._shared import progress as progress_bar
from ._calls import each
from .effects import Plan
from .sites import check_site, hook


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
    batch_size : rows at a time; results don't depend on it but for rounding

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
    size = number("batch_size", batch_size, 1, whole=True)
    size = max(1, size // len(job.places)) if by == "swap" else size
    batches, run = range(0, len(job.gap), size), {"swap": _swap, "gradient": _gradient}[by]
    for at in progress_bar(batches, unit="batch", show=progress):
        with model.alone("patch"):
            run(job, slice(at, at + size))
    dims = ("pair", "layer", "window", *["read"] * (by == "swap"))
    found = {site: (dims, job.found[site]) for site in job.sites}
    if "heads" in found:
        found["heads"] = ("pair", "layer", "head", *dims[2:]), found["heads"][1]
    if by == "gradient":
        found = {site: (names, values[..., 0]) for site, (names, values) in found.items()}
    starts = [span.start / model.frame_rate for span in job.spans]
    numbered = {"layer": job.layers, "window": range(len(starts)), "read": range(len(starts))}
    return xr.Dataset(found | {"gap": (("pair", "read"), job.gap)}, numbered | {"start": ("window", starts)})


class _Pairs:
    """The pairs of a call, checked; `found` and `gap` fill with its results."""

    def __init__(self, model, clean, changed, sites, layers, windows, prompts, worth):
        self.model, self.sites = model, [sites] if isinstance(sites, str) else list(sites)
        layers = range(model.n_layers) if layers is None else layers
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        for site in map(check_site, self.sites):
            [model.module_of(site, layer) for layer in self.layers]
        if not (self.sites and self.layers):
            raise ValueError("give at least one site and one layer")
        clean, changed = (model.sequence(codes) for codes in (clean, changed))
        if clean.shape != changed.shape:
            told = (f"{len(t)} clips of {t.shape[-1] - 1} frames" for t in (clean, changed))
            raise ValueError(
                f"pairs are two versions of one length, not {' and '.join(told)}: cut both alike"
            )
        n, n_codebooks, n_steps = clean.shape
        prompts = prompts if prompts[1] is not None else prompts[:1] * 2
        self.prompts = [each(told, n, "prompts") for told in prompts]
        same = (clean == changed).all((1, 2)).tolist()
        if twins := [k for k in range(n) if same[k] and self.prompts[0][k] == self.prompts[1][k]]:
            raise ValueError(
                f"pair {twins[0]} is the same clip twice: nothing varies, so nothing can come back"
            )
        parts = number("windows", windows, 1, n_steps - 1, whole=True)
        self.spans = [slice(w[0], w[-1] + 1) for w in np.array_split(np.arange(n_steps - 1), parts)]
        self.clean, self.changed, self.target = clean[..., :-1], changed[..., :-1], clean[..., 1:]
        self.worth = None if worth is None else torch.as_tensor(worth, dtype=torch.float32)
        if worth is not None and self.worth.shape != (n_codebooks, model.lm.card):
            shape = n_codebooks, model.lm.card
            raise ValueError(f"worth is {shape} (codebook, card), not {tuple(self.worth.shape)}")
        heads = {site: range(model.n_heads) if site == "heads" else [None] for site in self.sites}
        self.places = [(site, head) for site in self.sites for head in heads[site]]
        shape = lambda site: (n, len(self.layers), *[model.n_heads] * (site == "heads"), parts, parts)
        self.found, self.gap = {site: np.zeros(shape(site)) for site in self.sites}, np.zeros((n, parts))

    def score(self, logits, some, start=0):
        """(row, step) of logits (row, step, codebook, card); rows are the pairs `some`, again and again."""
        target = self.target[some, :, start:].mT  # (pair, step, codebook)
        real = target < self.model.lm.card  # else the special token of the delay pattern
        again = lambda t: t.repeat(len(logits) // len(t), 1, 1)
        if self.worth is None:
            chosen = logits.gather(-1, again(target * real)[..., None])[..., 0] - logits.logsumexp(-1)
        else:
            chosen = (logits.softmax(-1) * self.worth.to(logits.device)).sum(-1)
        return (chosen * again(real)).sum(-1)

    def by_window(self, steps, start=0):
        """(row, step), of which the first is step `start`, summed to (row, window)."""
        return np.stack(
            [steps[:, max(0, s.start - start) : max(0, s.stop - start)].sum(1).cpu() for s in self.spans], 1
        )


@torch.no_grad()
def _swap(job: _Pairs, some: slice) -> None:
    engine, model, places = job.model.engine, job.model, job.places
    steps, n = slice(0, job.clean.shape[-1]), len(job.clean[some])
    engine.positions(steps.stop)

    def run(tokens, prompts):
        """Logits, the values at every place and every layer's input, and all keys and values."""
        text = engine.text(model.conditions(prompts, n))
        keys, values = text[0][:2]
        caches = keys.new_zeros(model.n_layers, 2, n, model.n_heads, steps.stop, model.d_head)
        seen = dict.fromkeys(
            (site, layer) for site in {"resid", *job.sites} for layer in range(model.n_layers)
        )
        x = engine.embed(tokens, steps)
        last = engine.through(x, text, Plan(), steps, steps, caches, seen=seen)
        entering = [x, *(seen["resid", layer] for layer in range(model.n_layers - 1))]
        return engine.read(last), seen, entering, caches

    told = [prompts[some] for prompts in job.prompts]
    goal, clean, *_ = run(job.clean[some], told[0])
    logits, values, entering, caches = run(job.changed[some], told[1])
    base = job.score(logits, some)
    job.gap[some] = job.by_window(job.score(goal, some) - base)
    text = engine.text(model.conditions(told[1] * len(places), n * len(places)))
    for i, layer in enumerate(job.layers):
        wide = dict(enumerate(caches[layer:].repeat(1, 1, len(places), 1, 1, 1), layer))
        for w, span in reversed(list(enumerate(job.spans))):  # `wide` is written from `span` on
            new = {site: clean[site, layer][:, span] for site in job.sites}
            if all(torch.equal(new[site], values[site, layer][:, span]) for site in job.sites):
                continue
            at = slice(span.start, steps.stop)
            mask = torch.ones(at.stop - at.start, at.stop, dtype=torch.bool, device=model.device).tril(
                at.start
            )
            x = entering[layer][:, at].repeat(len(places), 1, 1)
            x = engine.through(
                x,
                text,
                _Swaps(job.places, layer, new),
                at,
                at,
                wide,
                at.stop,
                mask,
                layers=slice(layer, None),
            )
            gain = job.score(engine.read(x), some, at.start) - base[:, at].repeat(len(places), 1)
            for (site, head), gains in zip(
                places, np.split(job.by_window(gain, at.start), len(places)), strict=True
            ):
                job.found[site][(some, i, *[head] * (head is not None), w)] = gains


class _Swaps:
    """Stands where a `Plan` would: block k of the rows gets the values `new` at the k-th of the `places`."""

    def __init__(self, places, layer: int, new: dict):
        self.places, self.layer, self.new = places, layer, new

    def __contains__(self, place) -> bool:
        return place[1] == self.layer and place[0] in self.new

    def at(self, h, site, layer, when):
        """`h` (row, step, ...) whose first steps are replaced, at `heads` of one head."""
        blocks, length = h.clone().chunk(len(self.places)), self.new[site].shape[1]
        for block, (where, head) in zip(blocks, self.places, strict=True):
            if where == site:
                part = slice(None) if head is None else head
                block[:, :length, part] = self.new[site][:, :, part]
        return torch.cat(blocks)


def _gradient(job: _Pairs, some: slice) -> None:
    model, places = job.model, [(site, layer) for site in job.sites for layer in job.layers]

    def run(tokens, prompts, take):
        values = {}

        def act(h, place):
            values[place] = h if h.requires_grad or not take else h.requires_grad_()
            return values[place]

        with contextlib.ExitStack() as hooks:
            for place in places:
                hooks.callback(hook(model.lm, *place, lambda h, place=place: act(h, place)).remove)
            logits = model.lm(tokens, [], model.conditions(prompts, len(tokens)))
        return job.score(logits.transpose(1, 2).float(), some), values

    with torch.no_grad():
        goal, clean = run(job.clean[some], job.prompts[0][some], take=False)
    base, changed = run(job.changed[some], job.prompts[1][some], take=True)
    job.gap[some] = job.by_window(goal - base.detach())
    slopes = torch.autograd.grad(base.sum(), list(changed.values()))
    for (site, layer), slope in zip(changed, slopes, strict=True):
        moved = (clean[site, layer] - changed[site, layer].detach()).float()
        gain = (moved * slope.float()).sum(-1)  # (row, step, [head])
        for head in range(model.n_heads) if site == "heads" else [None]:
            where = some, job.layers.index(layer), *[head] * (head is not None)
            job.found[site][(*where, ..., 0)] = job.by_window(gain if head is None else gain[..., head])
