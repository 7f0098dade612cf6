"""What to add to a model, where, how strongly and when: a value that you can scale, fuse and combine.

Nothing here touches a model: `effects.plan` turns steerings into tensors, and `effects.apply` is all they do.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from .._shared import number, spelled
from ._vectors import length, per_layer, selected
from .sites import check_site

MODES = ("add", "blend", "replace", "remove")  # also the order in which they act at one site and layer
NORMED = ("add", "replace")  # their strength is in multiples of the mean activation norm
BRANCHES = ("both", "cond", "uncond")
LONGEST = 1e6  # s, and frames


def to_frames(seconds: float, frame_rate: float) -> int:
    """Seconds to whole frames, rounded to the nearest; the one place where the package does it."""
    return int(np.floor(seconds * frame_rate + 0.5))


class _Combined:
    """What one steering and several have in common."""

    def __or__(self, other: Steering | Steerings) -> Steerings:
        return Steerings((*self.parts, *other.parts))

    def __rmul__(self, factor: float):
        return self * factor

    def __neg__(self):
        return self * -1.0


@spelled
@dataclasses.dataclass(frozen=True, eq=False)
class Steering(_Combined):
    """A direction and how to apply it while the model generates.

    Parameters
    ----------
    direction : xr.DataArray, or array
        (layer, d_model), or (layer, head, d_head) for `site="heads"`; a single vector without a layer axis is
        used at every layer in `layers`. Scaled to unit length here; it points *to* the concept. Directions of
        this package carry `norm` and `site`; for a plain array give `layers` and `norm`.
    site : `resid` (block output), `attn`, `heads`, `cross`, `mlp`; default: the direction's own, else `resid`
    layers : int or sequence of int, 0-based; default: every layer that the direction has
    strength : float, in multiples of the mean activation norm at that site and layer; 0 is off, in every mode
    mode : str
        `add`: h + s·norm·d. `blend`: (h + |h| s d) / (1 + |s|). `replace`: sets the projection on d to
        s·norm. `remove`: takes the share s of the projection away (1 is all of it).
    start, stop : float
        Seconds; `stop=None` is the end. A sequence step at time t predicts codebook 0 of the frame at t, and
        the finer codebooks of the frames just before, which so may change early, by up to the largest delay
        in frames (as a rule one less than there are codebooks).
    every : int, act on every n-th frame, counted from `start`
    ramp : float, s over which the effect rises after `start`, and falls before `stop`
    branch : `both`, `cond` or `uncond`, the halves of classifier-free guidance to act on
    weights : mapping or xr.DataArray, optional
        A factor per layer, {layer: weight} or (layer,), or per head, (layer, head). `top` makes some.
    norm : float or array, optional
        Mean L2 norm of the activations: one for all, (layer,) or (layer, head), for the steered layers or for
        all the model's (`activations.read.mean_norms`). Default: the direction's `norm` coordinate.

    Raises
    ------
    ValueError  when the direction has no such layer, lacks a norm that the mode needs, was read at another
        site, is zero, any number isn't finite, or an option isn't one of those above.
    UserWarning  when all weights of the steered layers are 0, so that nothing happens.

    Notes
    -----
    `2 * s`, `-s` scale. `0.6 * jazz + 0.4 * rock` is one steering along the weighted sum (fusion; `add` and
    `blend`). `a | b` applies both where each is: at one site and layer additions are summed, then blends,
    replacements and removals act in turn, each in the order written; removals after the first take away only
    what is left.

    Sources: `blend` is the rule of the authors' code of arXiv 2506.10225; `remove` is directional ablation.
    """

    direction: Any
    site: str | None = None
    layers: int | Sequence[int] | None = None
    strength: float = 1.0
    mode: str = "add"
    start: float = 0.0
    stop: float | None = None
    every: int = 1
    ramp: float = 0.0
    branch: str = "both"
    weights: Mapping | xr.DataArray | None = None
    norm: float | Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (("mode", self.mode, MODES), ("branch", self.branch, BRANCHES)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} isn't one of {', '.join(allowed)}")
        keep = lambda name, value: object.__setattr__(self, name, value)
        keep("strength", number("strength", self.strength))
        keep("start", number("start (s)", self.start, 0, LONGEST))
        keep("ramp", number("ramp (s)", self.ramp, 0, LONGEST))
        keep("every", number("every (frames)", self.every, 1, LONGEST, whole=True))
        if self.stop is not None:
            keep("stop", number("stop (s, start <= stop)", self.stop, self.start, LONGEST))
        own = getattr(self.direction, "attrs", {}).get("site")
        site = check_site(self.site or own or "resid")
        if own and own != site:
            raise ValueError(f"this direction was read at site {own!r}; it can't be added at {site!r}")
        array = selected(self.direction, site, self.layers)
        long = length(array.variable)  # without coordinates, which each operation would align
        if not np.isfinite(array.values).all() or not 0 < float(long.max()) < np.inf:
            raise ValueError("a direction that is zero, NaN or infinite can't be scaled to unit length")
        norm = self.norm if self.norm is not None else array.coords.get("norm", np.nan)
        norm = per_layer(norm, array, "norm", missing=np.nan)
        if self.mode in NORMED and np.isnan(norm.values).any():
            raise ValueError(
                f"mode {self.mode!r} is in multiples of the activation norm, and this direction has none at "
                "some layer: give norm=, for instance ms.activations.read.mean_norms(model, codes, site)"
            )
        weights = self.weights if self.weights is not None else array.coords.get("weight", 1.0)
        weights = per_layer(weights, array, "weights", missing=0.0) * (long > 0)
        if self.weights is not None and self.strength and not weights.values.any():
            idle = f"all weights are 0 at layers {array.layer.values.tolist()}: this steering does nothing"
            warnings.warn(idle, stacklevel=4)
        as_is = (long == 0) | (abs(long - 1) < 1e-12)  # what is unit already stays bit for bit
        direction = (array / long.where(~as_is, 1.0)).drop_vars(["norm", "weight"], errors="ignore")
        direction = direction.assign_coords(norm=norm, weight=weights)
        direction = direction.assign_attrs({**array.attrs, "site": site})
        if "concept" in array.coords and array.coords["concept"].ndim == 0:
            direction.attrs.setdefault("concept", str(array.coords["concept"].item()))
        made = dict(direction=direction, site=site, layers=tuple(direction.layer.values.tolist()))
        for name, value in (made | dict(weights=None, norm=None)).items():  # those two are coordinates now
            keep(name, value)

    @property
    def parts(self) -> tuple[Steering, ...]:
        return (self,)

    def schedule(self, n_steps: int, frame_rate: float) -> np.ndarray:
        """The gain in [0, 1] at each of `n_steps` sequence steps; step s predicts codebook 0 of frame s."""
        step = np.arange(n_steps)
        first = to_frames(self.start, frame_rate)
        last = n_steps if self.stop is None else to_frames(self.stop, frame_rate)
        gain = ((step >= first) & (step < last) & ((step - first) % self.every == 0)).astype("float32")
        if self.ramp > 0:
            rise = max(1, to_frames(self.ramp, frame_rate))
            fall = (last - step) / rise if self.stop is not None else np.inf
            gain *= np.clip(np.minimum((step - first + 1) / rise, fall), 0, 1).astype("float32")
        return gain

    def amounts(self) -> np.ndarray:
        """strength x weight, in `add` and `replace` x norm: (layer,) or (layer, head)."""
        weight, norm = self.direction.weight.variable, self.direction.norm.variable
        return self.strength * (weight * norm if self.mode in NORMED else weight).values

    def vectors(self) -> xr.DataArray:
        """What `add` puts on the activations at full gain: strength x weight x norm x unit direction."""
        return self.strength * self.direction.weight * self.direction.norm * self.direction

    def __mul__(self, factor: float) -> Steering:
        return dataclasses.replace(self, strength=self.strength * factor)

    def __add__(self, other: Steering) -> Steering:
        if not isinstance(other, Steering):
            return NotImplemented
        differ = [f for f in _SAME_IN_A_SUM if getattr(self, f) != getattr(other, f)]
        if differ or self.mode not in ("add", "blend"):
            what = f"they differ in {', '.join(differ)}" if differ else f"mode {self.mode!r} has no sum"
            raise ValueError(f"`+` makes one steering of two, but {what}; use `|` to apply both")
        bare = lambda s: s.strength * s.direction.weight * s.direction
        a, b = (s.vectors() if self.mode == "add" else bare(s) for s in (self, other))
        total = (a + b).where(length(a + b) > 1e-9 * (length(a) + length(b)), 0.0)
        norm = self.direction.norm
        weight = length(total) / norm if self.mode == "add" else length(total)
        total = total.drop_vars("weight", errors="ignore").assign_attrs(self.direction.attrs)
        for fact in ("concept", "model", "model_hash"):  # of both, once where they agree
            said = [str(s.direction.attrs[fact]) for s in (self, other) if fact in s.direction.attrs]
            if said:
                total.attrs[fact] = " + ".join(said if fact == "concept" else dict.fromkeys(said))
            if fact == "model_hash" and len(set(said)) > 1:
                warnings.warn(f"fuses directions of different models: {' and '.join(said)}", stacklevel=2)
        return dataclasses.replace(self, direction=total, strength=1.0, norm=norm, weights=weight)

    def __repr__(self) -> str:
        concept = self.direction.attrs.get("concept", "direction")
        end = "end" if self.stop is None else f"{self.stop:g}"
        where = f"{self.site}[{','.join(map(str, self.layers))}]"
        said = f"{self.mode} {self.strength:+.3g} x {concept} at {where}"
        said += "" if (self.start, self.stop) == (0.0, None) else f", {self.start:g}-{end} s"
        said += "" if self.every == 1 else f", every {self.every} frames"
        said += "" if not self.ramp else f", ramp {self.ramp:g} s"
        return f"<Steering {said}{'' if self.branch == 'both' else f', {self.branch}'}>"


_SAME_IN_A_SUM = ("site", "layers", "mode", "start", "stop", "every", "ramp", "branch")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Steerings(_Combined):
    """Several steerings applied together, each where and when it says. Made by `a | b`."""

    parts: tuple[Steering, ...]

    def __repr__(self) -> str:
        more = f" | ... ({len(self.parts)} in all)" if len(self.parts) > 3 else ""
        return " | ".join(map(repr, self.parts[:3])) + more

    def __mul__(self, factor: float) -> Steerings:
        return Steerings(tuple(part * factor for part in self.parts))


def top(scores: xr.DataArray, k: int) -> xr.DataArray:
    """Weights that keep the `k` best-scored layers, or (layer, head) pairs, and leave the others out."""
    flat = scores.values.ravel()
    keep = np.zeros(flat.size)
    keep[np.argsort(-flat, kind="stable")[:k]] = 1
    return scores.copy(data=keep.reshape(scores.shape))
