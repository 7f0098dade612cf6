"""Directions found by what they *write*: what a caption changes, and a vector that makes given music likely.

Both finders ask the model itself, in the conditional half of guidance, and work best when added there:
`Steering(direction, branch="cond")`. They give what probes give: dims (layer, d_model), or (layer, head,
d_head) for the site heads; unit vectors (zero where captions can't reach, as in the heads of layer 0), with
coords `norm`, the mean activation norm, and `found_strength`, how long the vector was when found, in
multiples of that norm: for one layer `Steering(d, strength=float(d.found_strength))` adds what was found.
Taught in 07_against_the_prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from .._shared import number, spelled
from .._shared import progress as progress_bar
from ..activations.read import mean_norms, read
from ..model._vectors import as_direction, listed_layers
from ..model.model import Model
from ..model.sites import feature_dims, module_of


@spelled
def caption_contrast(
    model: Model,
    codes,
    target: str | Sequence[str],
    source: str | Sequence[str],
    site: str = "resid",
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
) -> xr.DataArray:
    """What a caption adds to the activations: the same codes under two captions, the mean difference.

    Parameters
    ----------
    codes : (clip, codebook, frame), any music; a few dozen clips of what the captions have in common will do
    target, source : str, or one per clip, to move to and away from, such as "jazz guitar" and "jazz piano"
    site : "resid", "attn", "heads", "cross" or "mlp"
    layers : 0-based; default all.

    Returns
    -------
    xr.DataArray, dims (layer, d_model) or (layer, head, d_head), see the module's docstring. The mean is over
    clips and valid steps (`Model.valid_steps`), teacher-forced; `norm` is that under `source`.

    Raises
    ------
    ValueError  if both captions say the same to the model, or their number doesn't match the clips'.
    IndexError  for a layer that the model doesn't have, and for negative ones.

    Source: contrastive activation addition (Rimsky et al. 2023, arXiv 2312.06681), with the music held fixed.
    """
    layers, n = _layers(model, site, layers), len(codes)
    batch_size = number("batch_size", batch_size, 1, whole=True)
    target, source = ([told] * n if isinstance(told, str) else list(told) for told in (target, source))
    if not len(target) == len(source) == n:
        raise ValueError(f"{len(target)} and {len(source)} captions for {n} clips: one for all, or one each")
    difference, norm = 0.0, 0.0
    for at in range(0, n, batch_size):
        some = slice(at, at + batch_size)
        to, away = (read(model, codes[some], (site,), layers, prompts=p[some]) for p in (target, source))
        difference = difference + (to[site] - away[site]).sum(0) / n
        norm = norm + away[f"{site}_norm"].sum(0) / n
    if not np.abs(difference).max() > 1e-7 * norm.max():
        raise ValueError(f"the captions {target[0]!r} and {source[0]!r} mean the same to {model.name}")
    facts = dict(finder="caption contrast", learnt_from="captions", target=target[0], source=source[0])
    return _found(model, difference, norm, site, layers, n, facts)


@spelled
def optimised_vector(
    model: Model,
    codes,
    prompts: str | Sequence[str],
    site: str = "resid",
    layers: Sequence[int] | None = None,
    steps: int = 150,
    batch_size: int = 16,
    rate: float = 0.02,
    seed: int = 0,
    progress: bool = True,
) -> xr.DataArray:
    """A vector that makes given music likely under other captions, by descent through the frozen model.

    Parameters
    ----------
    codes : (clip, codebook, frame), the music that is wanted: clips of the concept
    prompts : str, or one per clip, the captions to be steered, without the concept ("jazz piano" for guitar
        clips). Controls: clips that *are* what the captions say, or clips and captions shuffled.
    site, layers : where vectors are added, at every step; one vector per layer, default the middle layer
    steps, batch_size : of Adam, and clips in each
    rate : how far a step of Adam goes at most, about, in multiples of the mean activation norm
    seed : of the batches

    Returns
    -------
    xr.DataArray, see the module's docstring. Attr `nll`: loss (nats per token), first and last tenth of steps

    Raises
    ------
    ValueError  if prompts don't match clips, or these don't fill a batch. IndexError as `caption_contrast`.

    Source: Subramani et al. 2022, arXiv 2205.05124 (by gradient descent), for one vector that serves all.
    """
    layers = _layers(model, site, [model.n_layers // 2] if layers is None else layers)
    rate, steps = number("rate", rate, 0), number("steps", steps, 1, whole=True)
    batch_size = number("batch_size", batch_size, 1, whole=True)
    prompts = [prompts] * len(codes) if isinstance(prompts, str) else list(prompts)
    if len(prompts) != len(codes) or len(codes) < batch_size:
        raise ValueError(f"{len(codes)} clips, {len(prompts)} prompts: as many, and {batch_size} or more")
    rng = np.random.default_rng(seed)
    norm = mean_norms(model, codes[:batch_size], site, prompts[:batch_size])[layers]
    scale = torch.as_tensor(norm, dtype=torch.float32, device=model.device)[..., None]
    width = (model.n_heads, model.d_head) if site == "heads" else (model.d_model,)
    vector = torch.zeros(len(layers), *width, device=model.device, requires_grad=True)  # in units of `scale`
    optimiser = torch.optim.Adam([vector], lr=rate / np.sqrt(width[-1]))
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / steps)))
    losses = []
    for _ in progress_bar(range(steps), progress, desc="optimising", unit="step"):
        rows = rng.choice(len(codes), batch_size, replace=False)
        loss = _nll(model, codes[rows], [prompts[i] for i in rows], site, layers, vector * scale)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
    tenth = max(1, steps // 10)
    facts = {"finder": "optimised vector", "learnt_from": "audio", "source": prompts[0], "seed": seed}
    facts |= {"steps": steps, "nll": [float(np.mean(part)) for part in (losses[:tenth], losses[-tenth:])]}
    return _found(model, (vector.detach() * scale).cpu().numpy(), norm, site, layers, len(codes), facts)


def _nll(model, codes, prompts, site, layers, vectors):
    """Teacher-forced loss, nats per token, with a vector added at every step of each layer."""
    with model.trace(codes, prompts):
        for i, layer in enumerate(layers):
            getattr(model, site)[layer] = getattr(model, site)[layer] + vectors[i].to(model.dtype)
        logits = model.nn.output.save()
    truth = model.sequence(codes)[..., 1:]
    logits = logits[:, :, :-1].float().permute(0, 3, 1, 2)
    return torch.nn.functional.cross_entropy(logits, truth, ignore_index=model.lm.special_token_id)


def _layers(model, site, layers) -> list[int]:
    """The layers, all if None; ValueError for an unknown site, IndexError for a layer that isn't there."""
    layers = listed_layers(range(model.n_layers) if layers is None else layers)
    for layer in layers:
        module_of(model.lm.transformer.layers, site, layer)
    return layers


def _found(model, vectors, norm, site, layers, n_clips, facts) -> xr.DataArray:
    """Vectors (layer, ..., feature) as unit directions with their card."""
    length = np.linalg.norm(vectors, axis=-1)
    units = (vectors / np.where(length > 0, length, 1.0)[..., None]).astype(np.float32)
    coords = {"found_strength": (("layer", *feature_dims(site)[:-1]), length / norm)}
    facts = {"model": model.name, "model_hash": model.hash, "data": f"{n_clips} clips", **facts}
    return as_direction(units, site, layers, norm, coords=coords, **facts)
