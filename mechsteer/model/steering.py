"""What to add to a model, where, how strongly and when: a value that you can scale, fuse and combine.

Nothing here touches a model: `effects.plan` turns steerings into tensors, and `effects.apply` is all they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ._vectors import length, per_layer, selected
from .sites import check_site

MODES = ("add", "blend", "replace", "remove")  # also the order in which they act at one site and layer
BRANCHES = ("both", "cond", "uncond")


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
        A factor per layer, {layer: weight} or (layer,), or per head, (layer, head). See `top` and `soft`.
    norm : float or array, optional
        Mean L2 norm of the activations: one for all, (layer,) or (layer, head), for the steered layers or for
        all the model's (`activations.read.mean_norms`). Default: the direction's `norm` coordinate.

    Raises
    ------
    ValueError  when the direction has no such layer, lacks a norm that the mode needs, was read at another
        site, is zero or not finite, or an option isn't one of those above.

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
        late = self.stop is not None and self.stop < self.start
        if self.every < 1 or self.ramp < 0 or self.start < 0 or late:
            raise ValueError(
                "a schedule needs 0 <= start <= stop, ramp >= 0 (seconds) and every >= 1 (frames)"
            )
        if not np.isfinite(self.strength):
            raise ValueError(f"strength={self.strength} isn't a finite number")
        own = getattr(self.direction, "attrs", {}).get("site")
        site = check_site(self.site or own or "resid")
        if own and own != site:
            raise ValueError(f"this direction was read at site {own!r}; it can't be added at {site!r}")
        array = selected(self.direction, site, self.layers)
        long = length(array)
        if not np.isfinite(array.values).all() or not float(long.max()) > 0:
            raise ValueError("a direction that is zero, NaN or infinite can't be scaled to unit length")
        norm = self.norm if self.norm is not None else array.coords.get("norm", np.nan)
        norm = per_layer(norm, array)
        if self.mode in ("add", "replace") and not np.isfinite(norm.values).all():
            raise ValueError(
                f"mode {self.mode!r} is in multiples of the activation norm, and this direction has none: "
                "give norm=, for instance ms.activations.read.mean_norms(model, codes, site)"
            )
        weights = self.weights if self.weights is not None else array.coords.get("weight", 1.0)
        weights = per_layer(weights, array) * (long > 0).variable
        as_is = (long == 0) | (abs(long - 1) < 1e-12)  # what is unit already stays bit for bit
        direction = (array / long.where(~as_is, 1.0)).drop_vars(["norm", "weight"], errors="ignore")
        direction = direction.assign_coords(norm=norm, weight=weights).assign_attrs(
            {**array.attrs, "site": site}
        )
        if "concept" in array.coords and array.coords["concept"].ndim == 0:
            direction.attrs.setdefault("concept", str(array.coords["concept"].item()))
        layers = tuple(int(i) for i in direction.layer.values)
        for name, value in (("direction", direction), ("site", site), ("layers", layers)):
            object.__setattr__(self, name, value)
        for name in ("weights", "norm"):  # from here on they are coordinates of the direction
            object.__setattr__(self, name, None)

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
            what = (
                f"both differ in {', '.join(differ)}" if differ else f"mode {self.mode!r} has no weighted sum"
            )
            raise ValueError(f"`+` makes one steering of two, but {what}; use `|` to apply both")
        a, b = (
            s.vectors() if s.mode == "add" else s.strength * s.direction.weight * s.direction
            for s in (self, other)
        )
        total = (a + b).where(length(a + b) > 1e-9 * (length(a) + length(b)), 0.0)
        norm = self.direction.norm
        weight = length(total) / norm if self.mode == "add" else length(total)
        total = total.drop_vars("weight", errors="ignore").assign_attrs(self.direction.attrs)
        for fact in ("concept", "model", "model_hash"):  # of both, once where they agree
            said = [str(s.direction.attrs[fact]) for s in (self, other) if fact in s.direction.attrs]
            if said:
                total.attrs[fact] = " + ".join(said if fact == "concept" else dict.fromkeys(said))
        return dataclasses.replace(self, direction=total, strength=1.0, norm=norm, weights=weight)

    def __repr__(self) -> str:
        concept = self.direction.attrs.get("concept", "direction")
        end = "end" if self.stop is None else f"{self.stop:g}"
        said = (
            f"{self.mode} {self.strength:+.3g} x {concept} at {self.site}[{','.join(map(str, self.layers))}]"
        )
        said += "" if (self.start, self.stop) == (0.0, None) else f", {self.start:g}-{end} s"
        said += "" if self.every == 1 else f", every {self.every} frames"
        said += "" if not self.ramp else f", ramp {self.ramp:g} s"
        return f"<Steering {said}{'' if self.branch == 'both' else f', {self.branch}'}>"


_SAME_IN_A_SUM = ("site", "layers", "mode", "start", "stop", "every", "ramp", "branch")


@dataclasses.dataclass(frozen=True, eq=False)
class Steerings(_Combined):
    """Several steerings applied together, each where and when it says. Made by `a | b`."""

    parts: tuple[Steering, ...]

    def __mul__(self, factor: float) -> Steerings:
        return Steerings(tuple(part * factor for part in self.parts))


def top(scores: xr.DataArray, k: int) -> xr.DataArray:
    """Weights that keep the `k` best-scored layers, or (layer, head) pairs, and leave the others out."""
    flat = scores.values.ravel()
    keep = np.zeros(flat.size)
    keep[np.argsort(-flat, kind="stable")[:k]] = 1
    return scores.copy(data=keep.reshape(scores.shape))


def soft(scores: xr.DataArray, chance: float = 0.0) -> xr.DataArray:
    """Weights in proportion to how far a score lies above `chance`; the best one weighs 1.

    Source: the soft head weights of SMITIN (arXiv 2404.02252, sec. 3).
    """
    above = (scores - chance).clip(min=0)
    if float(above.max()) <= 0:
        raise ValueError(f"no score is above chance ({chance:g}), so there is nothing to weigh by")
    return above / above.max()
