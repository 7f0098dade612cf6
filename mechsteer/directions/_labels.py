"""What a probe is asked to read: labels, groups and folds of a Dataset of activations.

Rows are clips, or clip x frame where the site was kept per frame. Every concept becomes one column: -1 / +1
for classes and flags, the number itself for values, NaN where the label is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from . import _solvers as solvers

MAX_INTEGER_CLASSES = 24
"""An integer label with at most this many distinct values counts as classes (12 tonics), with more as a value (bpm)."""


@dataclass(frozen=True)
class Target:
    """One label as columns.

    Attributes
    ----------
    label : str
    concepts : tuple of str, length K
        The classes; the label's own name for a flag or a value; the names along its own dimension for several
        flags per row (pitch classes).
    y : float32 [clip, K] or [clip, frame, K]
    kind : "class" (one of K), "flag" (each true or false) or "value"
    """

    label: str
    concepts: tuple[str, ...]
    y: np.ndarray
    kind: str
    is_shuffled: bool = False

    def rows(self, frames: int | None) -> np.ndarray:
        """y as [row, K], one row per clip, or per clip and frame if the activations have `frames`."""
        y = self.y
        if y.ndim == 3 and frames is None:
            raise ValueError(
                f"{self.label!r} has a value per frame but the activations are pooled: collect pool='frames'"
            )
        if y.ndim == 2 and frames is not None:
            y = np.repeat(y[:, None], frames, axis=1)
        return y.reshape(-1, y.shape[-1])


def encode(values, label: str, kind: str = "auto", names: tuple[str, ...] | None = None) -> Target:
    """Turn a label's values, [clip], [clip, frame] or [clip, frame, name], into a `Target`.

    None, NaN and "" are missing. `kind="auto"`: strings are classes, booleans and 0/1 are flags, floats are
    values, and integers are classes up to 24 distinct ones; "class" or "value" decides otherwise.

    Raises
    ------
    ValueError  for an unknown kind, one class only, a value that never changes, or nothing but gaps.
    """
    values = np.asarray(values)
    flat = pd.Series(values.ravel())
    if flat.dtype == object or flat.dtype.kind == "U" or isinstance(flat.dtype, pd.StringDtype):
        flat = flat.astype(object).where(lambda s: s != "", None)
    flat = flat.convert_dtypes()
    distinct = flat.dropna().unique()
    if len(distinct) < 2:
        found = f"one value only ({distinct[0]!r})" if len(distinct) else "no value at all"
        raise ValueError(f"label {label!r} has {found} over {len(flat)} rows: a probe needs two or more")
    if kind == "auto":
        numeric = pd.api.types.is_numeric_dtype(flat.dtype) and not pd.api.types.is_bool_dtype(flat.dtype)
        if pd.api.types.is_bool_dtype(flat.dtype) or (numeric and set(distinct) <= {0, 1}):
            kind = "flag"
        else:
            kind = (
                "value"
                if numeric and (flat.dtype.kind == "f" or len(distinct) > MAX_INTEGER_CLASSES)
                else "class"
            )
    missing = flat.isna().to_numpy()[:, None]
    if kind == "class":
        classes = np.sort(distinct.astype(str) if not pd.api.types.is_numeric_dtype(flat.dtype) else distinct)
        codes = pd.Categorical(flat.astype(str), categories=[str(c) for c in classes]).codes
        y, concepts = (
            np.where(codes[:, None] == np.arange(len(classes)), 1.0, -1.0),
            tuple(str(c) for c in classes),
        )
    elif kind in ("flag", "value"):
        y, concepts = flat.to_numpy(float, na_value=np.nan)[:, None], (label,)
        y = y if kind == "value" else 2 * y - 1
    else:
        raise ValueError(
            f"kind={kind!r} of label {label!r} is not known; use 'auto', 'class', 'flag' or 'value'"
        )
    y = np.where(missing, np.nan, y).astype(np.float32)
    if names is None:
        return Target(label, concepts, y.reshape(*values.shape, -1), kind)
    if kind == "class":
        raise ValueError(f"label {label!r} has a dimension of its own, so it must hold true/false or numbers")
    return Target(label, names, y.reshape(values.shape), kind)


def read_target(acts: xr.Dataset, label: str, kind: str = "auto") -> Target:
    """Read a label of `acts`: a coord or variable on clip, (clip, frame) or (clip, frame, name)."""
    sites = {dim for name in acts.data_vars if "layer" in acts[name].dims for dim in acts[name].dims} - {
        "clip",
        "frame",
    }
    on_clip = [
        str(n)
        for n, a in acts.variables.items()
        if "clip" in a.dims and n != "clip" and not sites & {*a.dims}
    ]
    if label not in on_clip:
        raise ValueError(
            f"no label {label!r} on clip; the Dataset has {', '.join(sorted(on_clip)) or 'none'}"
        )
    array = acts[label]
    own = [dim for dim in array.dims if dim not in ("clip", "frame")]
    if len(own) > 1:
        raise ValueError(f"label {label!r} has dims {array.dims}; expected clip, frame and at most one more")
    array = array.transpose("clip", *[dim for dim in ("frame",) if dim in array.dims], *own)
    names = tuple(str(name) for name in array[own[0]].values) if own else None
    return encode(array.values, label, kind, names)


def read_groups(acts: xr.Dataset, group: str | None = "group") -> np.ndarray:
    """Group number of every clip. `group=None` makes each clip its own group."""
    if group is None:
        return np.arange(acts.sizes["clip"])
    if group not in acts.variables or acts[group].dims != ("clip",):
        raise ValueError(
            f"no coordinate {group!r} on clip, so clips of one piece could land on both sides of a split; "
            "name another with group=..., or pass group=None if every clip is a piece of its own"
        )
    return pd.factorize(acts[group].values)[0]


def shuffled(target: Target, groups: np.ndarray, seed: int) -> Target:
    """The same label permuted at the level at which it varies, so that only its link to the activations is
    cut.

    A label that is constant in every group is permuted across groups. One that varies within groups is
    permuted across clips. One that varies over frames keeps its course in time and moves to another clip as a
    whole, so the control still knows what the frame number alone tells. Gaps of clip labels stay where they
    are.
    """
    rng, y = np.random.default_rng(seed), target.y.copy()
    known = np.flatnonzero(~np.isnan(y.reshape(len(y), -1)).all(1))
    if y.ndim == 2:
        order, first = np.unique(groups[known], return_index=True)
        of_clip = y[known[first]][np.searchsorted(order, groups[known])]
        if len(order) < len(known) and np.array_equal(of_clip, y[known]):
            moved = y[known[first]][rng.permutation(len(order))]
            y[known] = moved[np.searchsorted(order, groups[known])]
            return replace(target, y=y, is_shuffled=True)
    y[known] = y[rng.permutation(known)]
    return replace(target, y=y, is_shuffled=True)


def fold_of(groups: np.ndarray, folds: int, seed: int, target: Target | None = None) -> np.ndarray:
    """Fold number of every clip; clips of one group share one. Depends on the labels only if `target`
    stratifies.

    Raises
    ------
    ValueError  for fewer groups than folds, or a `target` that isn't classes or one flag per clip.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    n = len(np.unique(groups))
    if folds < 2 or n < folds:
        raise ValueError(f"{folds} folds need at least 2 folds and as many groups, but there are {n} groups")
    y = np.zeros(len(groups))
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    if target is not None:
        if (
            target.kind == "value"
            or target.y.ndim != 2
            or (target.kind == "flag" and len(target.concepts) > 1)
        ):
            raise ValueError(f"cannot stratify by {target.label!r}: only by classes or one flag per clip")
        y = np.where(
            np.isnan(target.y[:, 0]), -1, target.y.argmax(1) if target.kind == "class" else target.y[:, 0] > 0
        )
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(groups), int)
    for i, (_, test) in enumerate(splitter.split(groups, y, groups)):
        fold[test] = i
    return fold


def site_array(acts: xr.Dataset, site: str) -> xr.DataArray:
    """The activations of a site; ValueError naming those present if there is no such site."""
    if site not in acts.data_vars or "clip" not in acts[site].dims:
        raise ValueError(f"no site {site!r}; the Dataset has {', '.join(map(str, acts.data_vars)) or 'none'}")
    return acts[site]


def states(acts: xr.Dataset, site: str, layers=None) -> Iterator[tuple[dict[str, int], np.ndarray]]:
    """Yield ({"layer": i}, or with "head", and float32 [row, feature]) for a site, one layer in memory at a time."""
    array = site_array(acts, site)
    if layers is not None:
        absent = sorted(set(np.atleast_1d(layers).tolist()) - set(array["layer"].values.tolist()))
        if absent:
            raise ValueError(
                f"no layer {absent}; the Dataset has layers {array['layer'].values.tolist()} (0-based)"
            )
        array = array.sel(layer=np.atleast_1d(layers))
    feature = array.dims[-1]
    for layer in array["layer"].values if "layer" in array.dims else [None]:
        block = (array if layer is None else array.sel(layer=layer)).load()
        for head in block["head"].values if "head" in block.dims else [None]:
            part = block if head is None else block.sel(head=head)
            part = part.transpose("clip", *[dim for dim in ("frame",) if dim in part.dims], feature)
            where = {k: int(v) for k, v in (("layer", layer), ("head", head)) if v is not None}
            yield where, np.asarray(part.values, np.float32).reshape(-1, part.sizes[feature])


def frames_of(acts: xr.Dataset, site: str) -> int | None:
    """Frames per clip of a site, None if it is pooled."""
    return acts[site].sizes.get("frame")


@dataclass(frozen=True)
class Batch:
    """Targets known on the same N rows, as K columns to be fitted together.

    Attributes
    ----------
    rows : int [N]
        Index into the activations' rows.
    groups, fold : int [N]
    y : float32 [N, K]
    targets : list of Target; columns : list of slice
        Which columns of y belong to which target.
    """

    rows: np.ndarray
    groups: np.ndarray
    fold: np.ndarray
    y: np.ndarray
    targets: list[Target]
    columns: list[slice]

    def fit(self, x, train, methods, inner_folds, alphas, standardize, seed) -> dict[str, solvers.Fit]:
        """Fit every method to the rows `train` (a mask or slice of the batch) of activations x [row, feature]."""
        x, y, groups = x[self.rows[train]], self.y[train], self.groups[train]
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x)).any(1).sum())
            raise ValueError(
                f"{bad} of {len(x)} rows of activations hold NaN or infinite numbers; collect them again or drop them"
            )
        values = np.concatenate([np.repeat(t.kind == "value", len(t.concepts)) for t in self.targets])
        blocks = np.concatenate([np.repeat(i, len(t.concepts)) for i, t in enumerate(self.targets)])
        inner = fold_of(groups, inner_folds, seed)
        return solvers.fit(x, y, inner, methods, values, blocks, alphas, standardize, seed)

    def check(self, train: np.ndarray, fold: int) -> None:
        """Raise ValueError if a class of a real (not shuffled) label is absent from the training rows."""
        for target, columns in zip(self.targets, self.columns, strict=True):
            y = self.y[train, columns]
            one_sided = (y > 0).all(0) | (y < 0).all(0)
            if target.kind != "value" and not target.is_shuffled and one_sided.any():
                raise ValueError(
                    f"{target.label!r} = {target.concepts[one_sided.argmax()]!r} doesn't vary in the training part of "
                    f"fold {fold}: too few groups have it. Use fewer folds, "
                    f"stratify={target.label!r}, or leave that class out"
                )


def batches(targets, groups, fold=None, frames=None, x=None, max_rows=20_000, seed=0) -> list[Batch]:
    """Put targets with the same gaps into one `Batch`; a label and its shuffled copies always share one.

    groups, fold : int [clip]. With `frames` per clip, rows of x that hold NaN (padding) are dropped, and the
    rest is thinned to `max_rows`.
    """
    usable = np.isfinite(x).all(1) if frames and x is not None else np.ones(len(groups) * (frames or 1), bool)
    known: dict[str, np.ndarray] = {}
    for target in targets:
        known[target.label] = known.get(target.label, usable) & ~np.isnan(target.rows(frames)).any(1)
    members: dict[bytes, list[Target]] = {}
    for target in targets:
        members.setdefault(known[target.label].tobytes(), []).append(target)
    of_row = lambda a: np.repeat(np.zeros_like(groups) if a is None else a, frames or 1)
    out = []
    for group in members.values():
        rows = np.flatnonzero(known[group[0].label])
        if not len(rows):
            raise ValueError(f"no row has both activations and a value of {group[0].label!r}")
        if frames and len(rows) > max_rows:
            rows = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
        parts = [target.rows(frames)[rows] for target in group]
        ends = np.cumsum([part.shape[1] for part in parts])
        columns = [slice(end - part.shape[1], end) for end, part in zip(ends, parts, strict=True)]
        out.append(
            Batch(rows, of_row(groups)[rows], of_row(fold)[rows], np.concatenate(parts, 1), group, columns)
        )
    return out
