"""Cross-validated probe scores with their controls, as one tidy table: where is a concept readable?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from .. import _shared
from . import _labels
from ._labels import Batch, Target
from ._solvers import Fitting, takes_fitting

PROBES = ("logistic", "mse", "diff_of_means")  # the methods that are compared unless others are asked for


@takes_fitting
def accuracy_by_layer(
    acts: xr.Dataset,
    labels: str | Sequence[str],
    methods: Sequence[str] = PROBES,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    group: str | None = "group",
    folds: int = 5,
    inner_folds: int = 3,
    shuffles: int = 1,
    kinds: dict[str, str] | None = None,
    stratify: str | None = None,
    progress: bool = True,
    **fitting,
) -> pd.DataFrame:
    """Cross-validated scores of every method, label, concept, layer (and head), with their controls.

    Folds keep groups together and depend on the groups and `seed` only, so all labels, layers and methods are
    scored on the same splits; `stratify` names a label to balance over folds instead. Standardisation,
    penalty and threshold are learnt inside the training part, on inner folds that keep groups together too.

    Parameters
    ----------
    acts, site, layers, group : see `find_directions`. If `acts` has `input` (clip, [frame,] feature), as from
        `collect`, it is scored beside the layers: is the concept in the model, or already in its input?
    labels : one or more; classes give rows for each against the rest, and for "all" (the best-scoring class)
    shuffles : copies of each label, permuted at the level at which it varies (group, clip, course in time)
    kinds : dict, label -> "class", "flag" or "value", where the automatic choice (`fit_direction`) is wrong
    fitting : alphas, standardize, max_rows, seed, see `find_directions`

    Returns
    -------
    pd.DataFrame with columns model, label, concept, site, layer, [head,] method, metric, fold, rows (of its
    test part), score, chance, shuffled. The input is a site of its own, "input", and has no layer (pd.NA).
    metric: accuracy, balanced_accuracy, auc; r2 for values. `chance`: the score of a constant guess learnt on
    the training part (majority class, mean). `shuffled`: the score with shuffled labels, mean over
    `shuffles`. A score is NaN where a fold lacks the classes to define it. Raises ValueError and TypeError as
    `find_directions`, and ValueError if a class is absent from a training part.

    Source: Alain & Bengio 2017, sec. 3; control labels, Hewitt & Liang 2019. Taught in 03_probe_every_layer.
    """
    fitting = Fitting(folds=inner_folds, **fitting)
    labels = [labels] if isinstance(labels, str) else list(labels)
    groups, seed = _labels.read_groups(acts, group), fitting.seed
    folds, shuffles = (_shared.number("folds and shuffles", n, 0, whole=True) for n in (folds, shuffles))
    targets = [_labels.read_target(acts, label, (kinds or {}).get(label, "auto")) for label in labels]
    _labels.check_methods(methods, targets)
    fold = _labels.fold_of(groups, folds, seed, _labels.read_target(acts, stratify) if stratify else None)
    shuffled = lambda target: [_labels.shuffled(target, groups, seed + r + 1) for r in range(shuffles)]
    copies = [one for target in targets for one in (target, *shuffled(target))]
    places = {site: layers} | ({"input": None} if "input" in acts.data_vars else {})
    records = []
    for here, chosen in places.items():
        parts, frames = None, acts[here].sizes.get("frame") if here in acts else None
        layers = _labels.states(acts, here, chosen)
        for where, x in _shared.progress(layers, progress, desc=f"probes, {here}"):
            parts = parts or _labels.batches(copies, groups, x, frames, fitting, fold)
            for f, batch in itertools.product(range(folds), parts):
                train = batch.fold != f
                batch.check(train, f)
                fits = batch.fit(x, train, methods, replace(fitting, seed=seed + f))
                for method, fit in fits.items():
                    scores = x[batch.rows[~train]] @ fit.w.astype(np.float32) + fit.b
                    place = {"site": here, "layer": pd.NA, **where, "method": method}
                    for label, concept, metric, numbers in _score_batch(batch, scores, train):
                        what = {"label": label, "concept": concept, **place, "metric": metric}
                        records.append(what | {"fold": f, "rows": len(scores)} | numbers)
    table = pd.DataFrame(records)
    table.insert(0, "model", str(acts.attrs.get("model", "")))
    return table.astype({place: "Int64" for place in ("layer", "head") if place in table})


def _score_batch(batch: Batch, scores: np.ndarray, train: np.ndarray) -> Iterator[tuple]:
    """Yield (label, concept, metric, numbers) of a batch's test rows: score, chance and shuffled."""
    real, copies = {}, {}
    for target, columns in zip(batch.targets, batch.columns, strict=True):
        y = batch.y[:, columns]
        for concept, metric, score, chance in measure(target, scores[:, columns], y[~train], y[train]):
            what = target.label, concept, metric
            if target.is_shuffled:
                copies.setdefault(what, []).append(score)
            else:
                real[what] = {"score": score, "chance": chance}
    for what, numbers in real.items():
        yield *what, numbers | {"shuffled": float(np.mean(copies.get(what, np.nan)))}


def measure(target: Target, scores, y, y_train) -> Iterator[tuple[str, str, float, float]]:
    """Yield (concept, metric, score, chance) of scores [N, K] for test rows y [N, K] and training rows."""
    if target.kind == "value":
        guess = np.broadcast_to(y_train.mean(0), y.shape)
        per_concept = {"r2": (r2(scores, y), r2(guess, y))}
    else:
        right, truth, often = (scores > 0) == (y > 0), y > 0, y_train.mean(0) > 0
        half = np.full(len(often), 0.5)
        with np.errstate(invalid="ignore"):  # mean hit rate of both sides; NaN if the test rows have only one
            hits = ((right & truth).sum(0) / truth.sum(0) + (right & ~truth).sum(0) / (~truth).sum(0)) / 2
        per_concept = {"accuracy": (right.mean(0), (truth == often).mean(0))}
        per_concept |= {"balanced_accuracy": (hits, half), "auc": (auc(scores, y), half)}
    for metric, (values, chance) in per_concept.items():
        yield from zip(target.concepts, [metric] * len(values), values.tolist(), chance.tolist(), strict=True)
    if target.kind == "class":
        hit, k = scores.argmax(1) == y.argmax(1), y.shape[1]
        recalls = [hit[truth[:, i]].mean() for i in range(k) if truth[:, i].any()]
        majority = y.argmax(1) == y_train.mean(0).argmax()
        yield "all", "accuracy", float(hit.mean()), float(majority.mean())
        yield "all", "balanced_accuracy", float(np.mean(recalls)), 1 / k
        yield "all", "auc", float(np.mean(per_concept["auc"][0])), 0.5


def auc(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area under the ROC curve per column (Mann-Whitney, ties count half); NaN where y has one side only."""
    from scipy.stats import rankdata

    ranks, truth = rankdata(scores, axis=0), y > 0
    n = truth.sum(0)
    with np.errstate(invalid="ignore"):
        return (np.where(truth, ranks, 0).sum(0) - n * (n + 1) / 2) / (n * (len(y) - n))


def r2(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the variance of y explained, per column; 0 for its mean, negative for worse."""
    return 1 - np.square(y - scores).sum(0) / np.square(y - y.mean(0)).sum(0)
