"""Steerings as tensors: what each row gets at each step, site and layer, and the arithmetic that applies it.

`apply` is the whole effect of steering on activations. `Model.generate` calls it from PyTorch hooks; it can
as well be called inside an nnsight trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .sites import hook
from .steering import MODES, Steering, Steerings


def apply(h: torch.Tensor, mode: str, gain, amount, vector) -> torch.Tensor:
    """Activations after one effect; a pure function.

    Parameters
    ----------
    h : (row, step, d_model), or (row, step, head, d_head)
    mode : str
        `add`: h + g v, where `vector` is v and `amount` isn't used. With a unit `vector` d and the `amount`
        a: `blend`: (h + |h| ga d) / (1 + |ga|), `replace`: h + g (a - h·d) d, `remove`: h - ga (h·d) d.
    gain : (row, step), in [0, 1]; a row at 0 comes back bit for bit
    amount : (row, 1), or (row, 1, head): strength x weight, for `replace` x norm
    vector : (row, 1, d_model), or (row, 1, head, d_head)
    """
    gain = gain.reshape(gain.shape + (1,) * (h.ndim - 2))  # (row, step, [1,] 1)
    if mode == "add":
        return h + (gain * vector).to(h.dtype)
    full, amount = h.float(), amount[..., None]
    if mode == "blend":
        share = gain * amount
        length = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
        return ((full + length * share * vector) / (1 + share.abs())).to(h.dtype)
    projection = (full * vector).sum(-1, keepdim=True)
    if mode == "replace":
        return (full + gain * (amount != 0) * (amount - projection) * vector).to(h.dtype)
    return (full - gain * amount * projection * vector).to(h.dtype)  # remove


@dataclasses.dataclass(frozen=True)
class Effect:
    """One mode at one site and layer, for all rows; shapes as in `apply`, `gain` over all steps."""

    mode: str
    gain: torch.Tensor
    amount: torch.Tensor
    vector: torch.Tensor
    active: np.ndarray  # (step,): whether any row has a gain there


class Plan(dict):
    """{(site, layer): [Effect, ...]} in the order in which they act; made by `plan`."""

    def at(self, h: torch.Tensor, site: str, layer: int, step: int) -> torch.Tensor:
        """`h` (row, step, ...), its first step being sequence step `step`, after all effects of a place."""
        steps = slice(step, step + h.shape[1])
        for effect in self.get((site, layer), ()):
            if effect.active[steps].any():
                h = apply(h, effect.mode, effect.gain[:, steps], effect.amount, effect.vector)
        return h


@contextlib.contextmanager
def steered(lm, plan: Plan) -> Iterator[None]:
    """Apply `plan` to every forward pass of `lm` inside the block, counting sequence steps from 0.

    Its hooks come off when the block ends, whatever happens in it.
    """
    now = nxt = 0

    def tick(lm, args):
        nonlocal now, nxt
        now, nxt = nxt, nxt + args[0].shape[-1]

    with contextlib.ExitStack() as hooks:
        hooks.callback(lm.register_forward_pre_hook(tick).remove)
        for site, layer in plan:
            change = lambda h, site=site, layer=layer: plan.at(h, site, layer, now)
            hooks.callback(hook(lm, site, layer, change).remove)
        yield


def plan(rows: Sequence[Steering | Steerings | None], n_steps: int, model, halves=("cond", "uncond")) -> Plan:
    """Turn one steering per row into tensors over the batch that the model runs.

    Parameters
    ----------
    rows : one Steering, Steerings or None per clip
    n_steps : int, sequence steps in all; step s predicts codebook 0 of frame s
    model : Model, whose n_layers, d_model, n_heads, frame_rate, device and hash are asked for
    halves : the blocks of rows in the batch, in order; under guidance audiocraft runs ("cond", "uncond")

    Raises
    ------
    ValueError  when a direction's width, heads or layers aren't the model's. Other weights only warn.
    """
    parts = [part for row in rows if row is not None for part in row.parts]
    foreign = {str(part.direction.attrs.get("model_hash") or model.hash) for part in parts} - {model.hash}
    if foreign:
        warnings.warn(f"a direction found in {', '.join(foreign)} steers model {model.hash}", stacklevel=4)
    schedules: dict[tuple, np.ndarray] = {}
    found: dict = defaultdict(lambda: defaultdict(dict))  # (site, layer) -> (mode, slot) -> batch row -> term
    for index, steering in enumerate(rows):
        for part in steering.parts if steering is not None else ():
            _check(part, model)
            when = (part.start, part.stop, part.every, part.ramp)
            if when not in schedules:
                schedules[when] = part.schedule(n_steps, model.frame_rate)
            for half, name in enumerate(halves):
                if part.branch in ("both", name) and part.strength != 0 and schedules[when].any():
                    for layer in part.layers:
                        _place(found, part, layer, half * len(rows) + index, when, schedules[when])
    made, batch = Plan(), len(rows) * len(halves)
    for where, slots in found.items():
        in_turn = sorted(slots, key=lambda slot: (MODES.index(slot[0]), slot[1]))
        made[where] = [_stack(mode, slots[mode, slot], batch, model.device) for mode, slot in in_turn]
    return made


def _place(found: dict, part: Steering, layer: int, row: int, when: tuple, gain: np.ndarray) -> None:
    """Put one part's term into the first free slot of its mode and row; additions on one schedule sum up."""
    d = part.direction.sel(layer=layer)
    amount = np.asarray(part.strength * d.weight.values)  # () or (head,)
    if not amount.any():
        return
    vector = d.values
    if part.mode in ("add", "replace"):
        amount = amount * d.norm.values
    if part.mode == "add":
        vector = amount[..., None] * vector
    slots = found[part.site, layer]
    slot = 0
    while row in slots[part.mode, slot]:
        earlier = slots[part.mode, slot][row]
        if earlier["when"] == when and part.mode == "add":
            earlier["vector"] = earlier["vector"] + vector
            return
        if earlier["when"] == when and part.mode == "remove":  # take away only what the earlier ones leave
            rest = vector - (vector * earlier["vector"]).sum(-1, keepdims=True) * earlier["vector"]
            length = np.linalg.norm(rest, axis=-1, keepdims=True)
            vector = np.where(length > 1e-6, rest / np.maximum(length, 1e-6), 0.0)
        slot += 1
    slots[part.mode, slot][row] = {"when": when, "gain": gain, "amount": amount, "vector": vector}


def _stack(mode: str, terms: dict, batch: int, device: torch.device | str) -> Effect:
    """One Effect over the whole batch from {row: term}; rows without a term have gain 0."""
    some = next(iter(terms.values()))
    heads = some["vector"].shape[:-1]  # () or (head,)
    gain = np.zeros((batch, some["gain"].size), dtype="float32")
    amount = np.zeros((batch, 1, *heads), dtype="float32")
    vector = np.zeros((batch, 1, *some["vector"].shape), dtype="float32")
    for row, term in terms.items():
        gain[row], amount[row, 0], vector[row, 0] = term["gain"], term["amount"], term["vector"]
    to = lambda a: torch.from_numpy(a).to(device)
    return Effect(mode, to(gain), to(amount), to(vector), gain.any(axis=0))


def _check(part: Steering, model) -> None:
    shape, heads = part.direction.shape[1:], (model.n_heads, model.d_model // model.n_heads)
    wanted = heads if part.site == "heads" else (model.d_model,)
    if shape != wanted:
        wide = " x ".join(map(str, shape))
        raise ValueError(f"the direction is {wide} wide; this model's {part.site} is {wanted}")
    if not all(0 <= layer < model.n_layers for layer in part.layers):
        there = f"this model has layers 0 to {model.n_layers - 1}"
        raise ValueError(f"the steering acts at layers {part.layers}; {there}")
