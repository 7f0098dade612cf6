"""What a probe is asked to read: labels, groups and folds of a Dataset of activations.

Rows are clips, or clip x frame where the site was kept per frame. Every concept becomes one column: -1 / +1 for classes
and flags, the number itself for values, NaN where the label is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

MAX_INTEGER_CLASSES = 24
"""An integer label with at most this many distinct values counts as classes (12 tonics), with more as a value (bpm)."""


@dataclass(frozen=True)
class Target:
    """One label as columns.

    Attributes
    ----------
    label : str
    concepts : tuple of str, length K
        The classes; the label's own name for a flag or a value; the names along its own dimension for several flags
        per row (pitch classes).
    y : float32 [clip, K] or [clip, frame, K]
    kind : "class" (one of K), "flag" (each true or false) or "value"
    """

    label: str
    concepts: tuple[str, ...]
    y: np.ndarray
    kind: str

    def rows(self, frames: int | None) -> np.ndarray:
        """y as [row, K], one row per clip, or per clip and frame if the activations have `frames`."""
        y = self.y
        if y.ndim == 3 and frames is None:
            raise ValueError(f"{self.label!r} has a value per frame but the activations are pooled: collect pool='frames'")
        if y.ndim == 2 and frames is not None:
            y = np.repeat(y[:, None], frames, axis=1)
        return y.reshape(-1, y.shape[-1])


def encode(values, label: str, kind: str = "auto", names: tuple[str, ...] | None = None) -> Target:
    """Turn a label's values, [clip], [clip, frame] or [clip, frame, name], into a `Target`.

    None, NaN and "" are missing. `kind="auto"`: strings are classes, booleans and 0/1 are flags, floats are values, and
    integers are classes up to 24 distinct ones; "class" or "value" decides otherwise.

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
            kind = "value" if numeric and (flat.dtype.kind == "f" or len(distinct) > MAX_INTEGER_CLASSES) else "class"
    missing = flat.isna().to_numpy()[:, None]
    if kind == "class":
        classes = np.sort(distinct.astype(str) if not pd.api.types.is_numeric_dtype(flat.dtype) else distinct)
        codes = pd.Categorical(flat.astype(str), categories=[str(c) for c in classes]).codes
        y, concepts = np.where(codes[:, None] == np.arange(len(classes)), 1.0, -1.0), tuple(str(c) for c in classes)
    elif kind in ("flag", "value"):
        y, concepts = flat.to_numpy(float, na_value=np.nan)[:, None], (label,)
        y = y if kind == "value" else 2 * y - 1
    else:
        raise ValueError(f"kind={kind!r} of label {label!r} is not known; use 'auto', 'class', 'flag' or 'value'")
    y = np.where(missing, np.nan, y).astype(np.float32)
    if names is None:
        return Target(label, concepts, y.reshape(*values.shape, -1), kind)
    if kind == "class":
        raise ValueError(f"label {label!r} has a dimension of its own, so it must hold true/false or numbers")
    return Target(label, names, y.reshape(values.shape), kind)


def read_target(acts: xr.Dataset, label: str, kind: str = "auto") -> Target:
    """Read a label of `acts`: a coord or variable on clip, (clip, frame) or (clip, frame, name)."""
    on_clip = [str(name) for name, a in acts.variables.items() if "clip" in a.dims and a.dtype.kind not in "M"]
    if label not in on_clip:
        raise ValueError(f"no label {label!r} on clip; the Dataset has {', '.join(sorted(on_clip)) or 'none'}")
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
            f"no coordinate {group!r} on clip, so clips of one piece could land on both sides of a split; name another with "
            "group=..., or pass group=None if every clip is a piece of its own"
        )
    return pd.factorize(acts[group].values)[0]


def shuffled(target: Target, groups: np.ndarray, seed: int) -> Target:
    """The same label permuted at the level at which it varies, so that only its link to the activations is cut.

    A label that is constant in every group is permuted across groups. One that varies within groups is permuted across
    clips. One that varies over frames keeps its course in time and moves to another clip as a whole, so the control
    still knows what the frame number alone tells. Gaps of clip labels stay where they are.
    """
    rng, y = np.random.default_rng(seed), target.y.copy()
    known = np.flatnonzero(~np.isnan(y.reshape(len(y), -1)).all(1))
    if y.ndim == 2:
        order, first = np.unique(groups[known], return_index=True)
        of_clip = y[known[first]][np.searchsorted(order, groups[known])]
        if len(order) < len(known) and np.array_equal(of_clip, y[known]):
            moved = y[known[first]][rng.permutation(len(order))]
            y[known] = moved[np.searchsorted(order, groups[known])]
            return replace(target, y=y)
    y[known] = y[rng.permutation(known)]
    return replace(target, y=y)


def fold_of(groups: np.ndarray, folds: int, seed: int, target: Target | None = None) -> np.ndarray:
    """Fold number of every clip; clips of one group share one. Depends on the labels only if `target` stratifies.

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
        if target.kind == "value" or target.y.ndim != 2 or (target.kind == "flag" and len(target.concepts) > 1):
            raise ValueError(f"cannot stratify by {target.label!r}: only by classes or one flag per clip")
        y = np.where(np.isnan(target.y[:, 0]), -1, target.y.argmax(1) if target.kind == "class" else target.y[:, 0] > 0)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(groups), int)
    for i, (_, test) in enumerate(splitter.split(groups, y, groups)):
        fold[test] = i
    return fold


def states(acts: xr.Dataset, site: str, layers=None) -> Iterator[tuple[dict[str, int], np.ndarray]]:
    """Yield ({"layer": ..} or {"layer": .., "head": ..}, float32 [row, feature]) for a site, one layer in memory at a time."""
    if site not in acts:
        raise ValueError(f"no site {site!r}; the Dataset has {', '.join(map(str, acts.data_vars)) or 'none'}")
    array = acts[site]
    if layers is not None:
        absent = sorted(set(np.atleast_1d(layers)) - set(array["layer"].values))
        if absent:
            raise ValueError(f"no layer {absent}; the Dataset has layers {array['layer'].values.tolist()} (0-based)")
        array = array.sel(layer=np.atleast_1d(layers))
    feature = array.dims[-1]
    for layer in array["layer"].values if "layer" in array.dims else [None]:
        block = (array if layer is None else array.sel(layer=layer)).load()
        for head in block["head"].values if "head" in block.dims else [None]:
            part = block if head is None else block.sel(head=head)
            part = part.transpose("clip", *[dim for dim in ("frame",) if dim in part.dims], feature)
            where = {k: int(v) for k, v in (("layer", layer), ("head", head)) if v is not None}
            yield where, np.asarray(part.values, np.float32).reshape(-1, part.sizes[feature])
