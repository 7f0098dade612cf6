"""What a probe is asked to read: labels, groups and folds of a Dataset of activations.

Rows are clips, or clip x frame where the site was kept per frame. Every concept becomes one column: -1 / +1
for classes and flags, the number itself for values, NaN where the label is missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from .._shared import did_you_mean
from ..model._vectors import listed_layers
from . import _solvers
from ._solvers import METHODS, Fit, Fitting

MAX_INTEGER_CLASSES = 24  # integers with so many values at most are classes (12 tonics), else a value (bpm)


@dataclass(frozen=True)
class Target:
    """One label as columns."""

    label: str
    concepts: tuple[str, ...]  # K: the classes; else the label's name, or the names along its own dimension
    y: np.ndarray  # float32 [clip, K] or [clip, frame, K]
    kind: str  # "class" (one of K), "flag" (each true or false) or "value"
    is_shuffled: bool = False

    def rows(self, frames: int | None) -> np.ndarray:
        """y as [row, K], one row per clip, or per clip and frame if the activations have `frames`."""
        y = self.y
        if y.ndim == 3 and frames is None:
            raise ValueError(f"{self.label!r} has a value per frame but the activations are pooled")
        if y.ndim == 2 and frames is not None:
            y = np.repeat(y[:, None], frames, axis=1)
        return y.reshape(-1, y.shape[-1])


def as_target(values, label: str, kind: str = "auto", names: tuple[str, ...] | None = None) -> Target:
    """A label's values, [clip], [clip, frame] or [clip, frame, name], as a `Target`.

    None, NaN and "" are missing. `kind="auto"`: strings are classes, booleans and 0/1 are flags, floats are
    values, and integers are classes up to 24 distinct ones; "class", "flag" or "value" decides otherwise.
    ValueError for an unknown kind, one class only, a value that never changes, or nothing but gaps.
    """
    values = np.asarray(values)
    flat = pd.Series(values.ravel()).replace("", None).convert_dtypes()
    distinct = flat.dropna().unique()
    if len(distinct) < 2:
        found = f"one value only ({distinct[0]!r})" if len(distinct) else "no value at all"
        raise ValueError(f"label {label!r} has {found} over {len(flat)} rows: a probe needs two or more")
    boolean = pd.api.types.is_bool_dtype(flat.dtype)
    numeric = pd.api.types.is_numeric_dtype(flat.dtype) and not boolean
    if kind == "auto":
        many = numeric and (flat.dtype.kind == "f" or len(distinct) > MAX_INTEGER_CLASSES)
        kind = "flag" if boolean or (numeric and set(distinct) <= {0, 1}) else "value" if many else "class"
    if kind == "class" and names is not None:
        raise ValueError(f"label {label!r} has a dimension of its own, so it must hold true/false or numbers")
    if kind == "class":
        concepts = tuple(str(c) for c in np.sort(distinct if numeric else distinct.astype(str)))
        codes = pd.Categorical(flat.astype(str), categories=concepts).codes
        y = np.where(codes[:, None] == np.arange(len(concepts)), 1.0, -1.0)
    elif kind in ("flag", "value"):
        y, concepts = flat.to_numpy(float, na_value=np.nan)[:, None], (label,)
        y = y if kind == "value" else 2 * y - 1
    else:
        raise ValueError(f"kind={kind!r} of label {label!r} isn't one of auto, class, flag, value")
    y = np.where(flat.isna().to_numpy()[:, None], np.nan, y).astype(np.float32)
    shape = (*values.shape, -1) if names is None else values.shape
    return Target(label, names or concepts, y.reshape(shape), kind)


def read_target(acts: xr.Dataset, label: str, kind: str = "auto") -> Target:
    """Read a label of `acts`: a coord or variable on clip, (clip, frame) or (clip, frame, name)."""
    sites = {d for a in acts.data_vars.values() if "layer" in a.dims for d in a.dims} - {"clip", "frame"}
    on_clip = {str(n) for n, a in acts.variables.items() if "clip" in a.dims and not sites & {*a.dims}}
    on_clip -= {"clip"}
    if label not in on_clip:
        there = f"There are {', '.join(sorted(on_clip)) or 'none'}"
        raise ValueError(f"no label {label!r} on clip. {did_you_mean(label, on_clip, there)}")
    array = acts[label].transpose("clip", "frame", ..., missing_dims="ignore")
    own = [dim for dim in array.dims if dim not in ("clip", "frame")]
    if len(own) > 1:
        raise ValueError(f"label {label!r} has dims {array.dims}; expected clip, frame and at most one more")
    names = tuple(str(name) for name in array[own[0]].values) if own else None
    return as_target(array.values, label, kind, names)


def read_groups(acts: xr.Dataset, group: str | None = "group") -> np.ndarray:
    """Group number of every clip. `group=None` makes each clip its own group."""
    if group is None:
        return np.arange(acts.sizes["clip"])
    if group not in acts.variables or acts[group].dims != ("clip",):
        raise ValueError(f"no coordinate {group!r} on clip; group=None if every clip is a piece of its own")
    return pd.factorize(acts[group].values)[0]


def shuffled(target: Target, groups: np.ndarray, seed: int) -> Target:
    """The same label permuted at the level at which it varies, so that only its link to activations is cut.

    That is across groups if it is constant in each, else across clips. A label of frames moves to another
    clip as a whole, so that the control still knows what the frame number alone tells. Gaps stay.
    """
    rng, y = np.random.default_rng(seed), target.y.copy()
    known = np.flatnonzero(~np.isnan(y.reshape(len(y), -1)).all(1))
    order, first, of_clip = np.unique(groups[known], return_index=True, return_inverse=True)
    per_group = y[known[first]]
    if y.ndim == 2 and len(order) < len(known) and np.array_equal(per_group[of_clip], y[known]):
        y[known] = per_group[rng.permutation(len(order))][of_clip]
    else:
        y[known] = y[rng.permutation(known)]
    return replace(target, y=y, is_shuffled=True)


def fold_of(groups: np.ndarray, folds: int, seed: int, target: Target | None = None) -> np.ndarray:
    """Fold number of every clip; clips of one group share one. A `target` is balanced over folds.

    ValueError for fewer groups than folds, or a `target` that isn't classes or one flag per clip.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    n = len(np.unique(groups))
    if folds < 2 or n < folds:
        raise ValueError(f"{folds} folds need at least 2 folds and as many groups, but there are {n} groups")
    splitter, y = GroupKFold(folds, shuffle=True, random_state=seed), np.zeros(len(groups))
    if target is not None:
        splitter, y = StratifiedGroupKFold(folds, shuffle=True, random_state=seed), target.y
        if target.kind == "value" or y.ndim != 2 or (target.kind == "flag" and y.shape[1] > 1):
            raise ValueError(f"cannot stratify by {target.label!r}: only by classes or one flag per clip")
        y = np.where(np.isnan(y[:, 0]), -1, y.argmax(1) if target.kind == "class" else y[:, 0] > 0)
    fold = np.empty(len(groups), int)
    for i, (_, test) in enumerate(splitter.split(groups, y, groups)):
        fold[test] = i
    return fold


def states(acts: xr.Dataset, site: str, layers=None) -> Iterator[tuple[dict[str, int], np.ndarray]]:
    """Yield (where, float32 [row, feature]) of a site, one layer in memory at a time.

    `where` is {"layer": i}, with "head" at `heads`, and empty for the input. ValueError for what is absent.
    """
    if site not in acts.data_vars or "clip" not in acts[site].dims:
        raise ValueError(f"no site {site!r}; the Dataset has {', '.join(map(str, acts.data_vars)) or 'none'}")
    array = acts[site]
    if layers is not None:
        have, layers = array["layer"].values.tolist(), listed_layers(layers)
        if absent := sorted(set(layers) - set(have)):
            raise ValueError(f"no layer {absent}; the Dataset has layers {have} (0-based)")
        array = array.sel(layer=layers)
    for layer in array["layer"].values if "layer" in array.dims else [None]:
        block = (array if layer is None else array.sel(layer=layer)).load()
        block = block.transpose("clip", "head", "frame", ..., missing_dims="ignore")
        for head in block["head"].values if "head" in block.dims else [None]:
            part = block if head is None else block.sel(head=head)
            where = {k: int(v) for k, v in (("layer", layer), ("head", head)) if v is not None}
            yield where, np.asarray(part.values, np.float32).reshape(-1, part.shape[-1])


@dataclass(frozen=True)
class Batch:
    """Targets known on the same N rows, all values or none, as K columns to be fitted together."""

    rows: np.ndarray  # int [N], which rows of the activations
    groups: np.ndarray  # int [N]
    fold: np.ndarray  # int [N]
    y: np.ndarray  # float32 [N, K]
    targets: list[Target]
    columns: list[slice]  # which columns of y belong to which target
    values: bool  # whether the targets are numbers

    def fit(self, x, train, methods, fitting: Fitting) -> dict[str, Fit]:
        """Fit rows `train` (mask or slice) of x [row, feature], by all methods that can read the targets."""
        x, y, groups = x[self.rows[train]], self.y[train], self.groups[train]
        if bad := int((~np.isfinite(x)).any(1).sum()):
            raise ValueError(f"{bad} of {len(x)} rows of activations hold NaN or infinite numbers: drop them")
        blocks = np.repeat(np.arange(len(self.targets)), [len(t.concepts) for t in self.targets])
        methods = [name for name in methods if not (self.values and METHODS[name].classes_only)]
        inner = fold_of(groups, fitting.folds, fitting.seed)
        return _solvers.fit(x, y, inner, methods, self.values, blocks, fitting)

    def check(self, train: np.ndarray, fold: int) -> None:
        """Raise ValueError if a class of a real (not shuffled) label is absent from the training rows."""
        for target, columns in zip(self.targets, self.columns, strict=True):
            y = self.y[train, columns]
            one_sided = (y > 0).all(0) | (y < 0).all(0)
            if not self.values and not target.is_shuffled and one_sided.any():
                rare = f"{target.label!r} = {target.concepts[one_sided.argmax()]!r}"
                told = f"{rare} doesn't vary in the training part of fold {fold}"
                raise ValueError(f"{told}: use fewer folds, or stratify={target.label!r}")


def batches(targets, groups, x, frames: int | None, fitting: Fitting, fold=None) -> list[Batch]:
    """Put targets with the same gaps, values apart, into one `Batch`; a label's shuffled copies are with it.

    groups, fold : int [clip]. With `frames` per clip, rows of x that hold NaN (padding) are dropped, and the
    rest is thinned to `max_rows`.
    """
    usable = np.isfinite(x).all(1) if frames else np.ones(len(groups), bool)
    known: dict[str, np.ndarray] = {}
    for target in targets:
        known[target.label] = known.get(target.label, usable) & ~np.isnan(target.rows(frames)).any(1)
    members: dict[tuple, list[Target]] = {}
    for target in targets:
        key = known[target.label].tobytes(), target.kind == "value"
        members.setdefault(key, []).append(target)
    of_row = lambda a: np.repeat(np.zeros_like(groups) if a is None else a, frames or 1)
    found = []
    for (_, values), group in members.items():
        rows = np.flatnonzero(known[group[0].label])
        if not len(rows):
            raise ValueError(f"no row has both activations and a value of {group[0].label!r}")
        if frames and len(rows) > fitting.max_rows:
            rng = np.random.default_rng(fitting.seed)
            rows = np.sort(rng.choice(rows, fitting.max_rows, replace=False))
        parts = [target.rows(frames)[rows] for target in group]
        ends = np.cumsum([part.shape[1] for part in parts])
        columns = [slice(end - part.shape[1], end) for end, part in zip(ends, parts, strict=True)]
        y = np.concatenate(parts, axis=1)
        found.append(Batch(rows, of_row(groups)[rows], of_row(fold)[rows], y, group, columns, values))
    return found


def check_methods(methods: Sequence[str], targets: Sequence[Target]) -> None:
    """ValueError for an unknown method, or if none can read any of the targets."""
    unknown = set(methods) - set(METHODS)
    if unknown or not methods:
        hint = did_you_mean(min(unknown, default=""), METHODS, f"Choose from {', '.join(METHODS)}")
        raise ValueError(f"unknown method {sorted(unknown)}. {hint}")
    numbers = all(target.kind == "value" for target in targets)
    if numbers and all(METHODS[name].classes_only for name in methods):
        raise ValueError(f"{methods[0]} needs classes, and {targets[0].label!r} is a number: use 'mse'")


def fits_by_layer(acts, label, kind, group, methods, site, layers, fitting: Fitting):
    """Yield (where, x, batch, fits) for every layer (and head) of a site: a label fitted on all its rows."""
    target, groups, batch = read_target(acts, label, kind), read_groups(acts, group), None
    check_methods(methods, [target])
    for where, x in states(acts, site, layers):
        if batch is None:
            (batch,) = batches([target], groups, x, acts[site].sizes.get("frame"), fitting)
        yield where, x, batch, batch.fit(x, slice(None), methods, fitting)
