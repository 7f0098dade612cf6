"""Steerings as tensors: what each row gets at each step, site and layer, and the arithmetic that applies it.

`apply` is the whole effect of steering on activations. The decoding step calls it, and `nll` from PyTorch
hooks; it can as well be called inside an nnsight trace.
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
    """Activations after one effect of a `mode`, as `Steering` says what they do; a pure function.

    Parameters
    ----------
    h : (row, step, d_model), or (row, step, head, d_head)
    gain : (row, step), in [0, 1]; a row at 0 comes back bit for bit
    amount : (row, 1), or (row, 1, head): strength x weight, for `replace` x norm; `add` doesn't use it
    vector : (row, 1, d_model), or (row, 1, head, d_head): for `add` what is added, else of unit length
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
    segment: np.ndarray  # (step,): counts up where the gains change
    kept: dict = dataclasses.field(default_factory=dict)

    def delta(self, step: int, dtype: torch.dtype) -> torch.Tensor:
        """What `add` adds at one step, (row, 1, ...); computed once for all steps of a segment."""
        if (key := (self.segment[step], dtype)) not in self.kept:
            gain = self.gain[:, step].reshape(-1, *[1] * (self.vector.ndim - 1))
            self.kept.clear()
            self.kept[key] = (gain * self.vector).to(dtype)
        return self.kept[key]


class Plan(dict):
    """{(site, layer): [Effect, ...]} in the order in which they act; made by `plan`."""

    def at(self, h: torch.Tensor, site: str, layer: int, steps: slice | torch.Tensor) -> torch.Tensor:
        """`h` (row, step, ...) at the sequence steps `steps` after all effects of a place."""
        for effect in self.get((site, layer), ()):
            if not isinstance(steps, slice) or effect.active[steps].any():
                if effect.mode == "add" and h.shape[1] == 1 and isinstance(steps, slice):
                    h = h + effect.delta(steps.start, h.dtype)
                else:
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
            change = lambda h, site=site, layer=layer: plan.at(h, site, layer, slice(now, nxt))
            hooks.callback(hook(lm, site, layer, change).remove)
        yield


def check(rows: Sequence, n_frames: int, model, halves: tuple[str, ...]) -> Sequence:
    """The steerings of a call, one per row, if they fit its model; once per call, before any work.

    ValueError for what isn't a Steering, or has another width, heads or layers than the model. UserWarning
    for directions of other weights, and for steerings that do nothing: their schedule holds none of the
    `n_frames`, their branch isn't one of `halves`, or they vanish in float32.
    """
    for row in rows:
        if row is not None and not hasattr(row, "parts"):
            raise ValueError(f"a {type(row).__name__} isn't a steering; ms.Steering(direction) makes one")
    parts = {id(part): part for row in rows if row is not None for part in row.parts}.values()
    foreign = {str(part.direction.attrs.get("model_hash") or model.hash) for part in parts} - {model.hash}
    said = [f"a direction found in {', '.join(sorted(foreign))} steers model {model.hash}"] if foreign else []
    for part in parts:
        heads = model.n_heads, model.d_model // model.n_heads
        shape, wanted = part.direction.shape[1:], heads if part.site == "heads" else (model.d_model,)
        if shape != wanted:
            wide = " x ".join(map(str, shape))
            raise ValueError(f"the direction is {wide} wide; this model's {part.site} is {wanted}")
        if not all(0 <= layer < model.n_layers for layer in part.layers):
            there = f"this model has layers 0 to {model.n_layers - 1}"
            raise ValueError(f"the steering acts at layers {part.layers}; {there}")
        most = float(np.abs(part.amounts()).max())
        if most > torch.finfo(model.dtype).max:
            raise ValueError(f"{part!r} is too strong for {model.dtype}: its vectors are {most:.3g} long")
        if part.strength != 0 and part.direction.weight.values.any():  # else so meant, or told before
            here, seconds = part.schedule(n_frames, model.frame_rate).any(), n_frames / model.frame_rate
            idle = {
                f"its schedule holds no frame of these {seconds:g} s": not here,
                f"no {part.branch!r} half without guidance": part.branch not in ("both", *halves),
                "its strength or norm vanishes": most < np.finfo("float32").tiny,
            }
            said += [f"{part!r} does nothing: {why}" for why, so in idle.items() if so][:1]
    for text in dict.fromkeys(said):
        warnings.warn(text, stacklevel=4)
    return rows


def plan(rows: Sequence[Steering | Steerings | None], n_steps: int, model, halves=("cond", "uncond")) -> Plan:
    """Turn one steering per row, which `check` has seen, into tensors over the batch that the model runs.

    Parameters
    ----------
    rows : one Steering, Steerings or None per clip
    n_steps : int, sequence steps in all; step s predicts codebook 0 of frame s
    model : Model, whose frame_rate and device are asked for
    halves : the blocks of rows in the batch, in order; under guidance audiocraft runs ("cond", "uncond")
    """
    gains: dict[tuple, np.ndarray] = {}
    found = defaultdict(lambda: defaultdict(list))  # (site, layer) -> (mode, batch row) -> terms
    for index, steering in enumerate(rows):
        for part in steering.parts if steering is not None else ():
            when = (part.start, part.stop, part.every, part.ramp)
            if when not in gains:
                gains[when] = part.schedule(n_steps, model.frame_rate)
            if part.strength == 0 or not gains[when].any():
                continue
            at = [k * len(rows) + index for k, half in enumerate(halves) if part.branch in ("both", half)]
            for layer, amount, vector in zip(part.layers, part.amounts(), part.direction.values, strict=True):
                for row in at if amount.any() else ():
                    found[part.site, layer][part.mode, row].append((when, amount, vector))
    made, batch = Plan(), len(rows) * len(halves)
    joined = {"add": _summed, "remove": _left_by_each_other}
    for place, by_row in found.items():
        made[place] = []
        for mode in MODES:
            terms = {row: joined.get(mode, list)(some) for (m, row), some in by_row.items() if m == mode}
            for turn in range(max(map(len, terms.values()), default=0)):
                now = {row: some[turn] for row, some in terms.items() if turn < len(some)}
                made[place].append(_stack(mode, now, gains, batch, model.device))
    return made


def _summed(terms: list[tuple]) -> list[tuple]:
    """Additions of one row, one for each schedule."""
    sums = {}
    for when, amount, vector in terms:
        sums[when] = sums.get(when, 0.0) + amount[..., None] * vector
    return [(when, 1.0, vector) for when, vector in sums.items()]


def _left_by_each_other(terms: list[tuple]) -> list[tuple]:
    """Removals of one row, on each schedule along unit vectors at right angles to the earlier ones."""
    left, taken = [], {}  # when -> (vector, [head,] width)
    for when, amount, vector in terms:
        earlier = taken.get(when, vector[None][:0])
        if len(earlier):
            along = np.einsum("k...d,...d->k...", earlier, vector)
            rest = vector - np.einsum("k...,k...d->...d", along, earlier)
            length = np.linalg.norm(rest, axis=-1, keepdims=True)
            vector = np.where(length > 1e-6, rest / np.maximum(length, 1e-6), 0.0)
        if vector.any():
            taken[when] = np.concatenate([earlier, vector[None]])
            left.append((when, amount, vector))
    return left


def _stack(mode: str, terms: dict, gains: dict, batch: int, device: torch.device | str) -> Effect:
    """One Effect over the whole batch from {row: (when, amount, vector)}; other rows have gain 0."""
    when, _, some = next(iter(terms.values()))
    gain = np.zeros((batch, gains[when].size), dtype="float32")
    amount = np.zeros((batch, 1, *some.shape[:-1]), dtype="float32")  # (row, 1[, head])
    vector = np.zeros((batch, 1, *some.shape), dtype="float32")
    for row, (when, much, along) in terms.items():
        gain[row], amount[row, 0], vector[row, 0] = gains[when], much, along
    to = lambda a: torch.from_numpy(a).to(device)
    segment = np.append(0, (gain[:, 1:] != gain[:, :-1]).any(axis=0).cumsum())
    return Effect(mode, to(gain), to(amount), to(vector), gain.any(axis=0), segment)
