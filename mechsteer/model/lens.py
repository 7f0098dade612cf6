"""The codebook lens: what the model would play if it stopped after some layer."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import torch
import xarray as xr

from .._shared import number, spelled
from ._calls import each
from .sites import hook


@spelled
@torch.no_grad()
def lens(model, codes, prompts=None, maps=None, batch_size: int = 8) -> xr.Dataset:
    """Every layer's residual stream, read with the model's own output head (nostalgebraist 2020, logit lens).

    Parameters
    ----------
    codes : (clip, codebook, frame), teacher-forced
    prompts : None, str or one per clip
    maps : one function per layer, optional
        Applied to the residual stream (row, step, d_model) before the head, as those of a tuned lens
        (Belrose et al. 2023): affine maps that were fitted on other clips.
    batch_size : clips at a time

    Returns
    -------
    xr.Dataset (clip, layer, codebook, frame), of the frames whose codebooks are all predicted (all but the
    last `n_codebooks` - 1): `probability` and `rank` (0 is the likeliest) of the true token, `choice`, the
    likeliest one: `model.decode(found["choice"].sel(layer=3).values)` is what it sounds like. The last layer
    is the model itself.

    Raises ValueError for codes that don't fit, clips no longer than the delay, or another number of maps.

    Taught in 08_where_is_it_used.
    """
    sequence, n_layers, lm = model.sequence(codes), model.n_layers, model.lm
    if maps is not None and len(maps) != n_layers:
        raise ValueError(f"{len(maps)} maps for {n_layers} layers; give one each")
    n_steps, size = sequence.shape[-1], number("batch_size", batch_size, 1, whole=True)
    layout = lm.pattern_provider.get_pattern(n_steps - 1).layout
    step = {(one.q, one.t): s for s, ones in enumerate(layout) for one in ones}
    step = np.array([[step[q, t] for t in range(n_steps - 1)] for q in range(model.n_codebooks)])
    step = step[:, (step < n_steps).all(0)]  # of the token of (codebook, frame)
    if not step.size:
        raise ValueError(f"clips of {n_steps - 1} frames are no longer than the delay pattern")
    where = np.arange(model.n_codebooks)[:, None], step
    found = {name: [] for name in ("probability", "rank", "choice")}
    prompts = each(prompts, len(sequence), "prompts")
    for at in range(0, len(sequence), size):
        tokens, told = sequence[at : at + size], prompts[at : at + size]
        with model.alone("lens"), contextlib.ExitStack() as hooks:
            resid = [None] * n_layers
            for layer in range(n_layers):
                hooks.callback(hook(lm, "resid", layer, functools.partial(resid.__setitem__, layer)).remove)
            lm(tokens, [], model.conditions(told, len(tokens)))
        for layer, h in enumerate(resid):
            h = lm.out_norm(h if maps is None else maps[layer](h))
            logits = torch.stack([head(h) for head in lm.linears], 1)[:, where[0], step - 1].float()
            true = tokens[:, where[0], step][..., None]  # logits: (clip, codebook, frame, card)
            own = logits.gather(-1, true)
            found["probability"].append((own - logits.logsumexp(-1, keepdim=True)).exp()[..., 0].cpu())
            found["rank"].append((logits > own).sum(-1).cpu())
            found["choice"].append(logits.argmax(-1).cpu())
    of_layer = lambda parts, layer: torch.cat(parts[layer::n_layers])
    join = lambda parts: torch.stack([of_layer(parts, layer) for layer in range(n_layers)], 1)
    dims = ("clip", "layer", "codebook", "frame")
    return xr.Dataset({name: (dims, join(parts).numpy()) for name, parts in found.items()})
