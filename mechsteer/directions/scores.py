"""Cross-validated probe scores with their controls, as one tidy table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from . import _solvers as solvers
from ._labels import Batch, Target, batches, fold_of, frames_of, read_groups, read_target, shuffled, states
from ._solvers import ALPHAS

METHODS = ("logistic", "mse", "diff_of_means")
COLUMNS = [
    "model",
    "label",
    "concept",
    "site",
    "layer",
    "method",
    "metric",
    "fold",
    "score",
    "chance",
    "shuffled",
]


def accuracy_by_layer(
    acts: xr.Dataset,
    labels: str | Sequence[str],
    methods: Sequence[str] = METHODS,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    group: str | None = "group",
    folds: int = 5,
    inner_folds: int = 3,
    shuffles: int = 1,
    kinds: dict[str, str] | None = None,
    stratify: str | None = None,
    alphas: Sequence[float] = ALPHAS,
    standardize: str = "feature",
    max_rows: int = 20_000,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Cross-validated scores of every method, label, concept, layer (and head), with their controls.

    Folds keep groups together and depend on the groups and `seed` only, so all labels, layers and methods are
    scored on the same splits; `stratify` names a label to balance over folds instead. Standardisation,
    penalty and threshold are learnt inside the training part, on inner folds that keep groups together too.

    Parameters
    ----------
    acts, site, layers, group, alphas, standardize, max_rows, seed
        See `find_directions`. If `acts` has a variable `input` (clip, [frame,] feature), such as codec
        features, it is scored like a layer, as site "input", layer -1: is the concept in the model, or
        already in its input?
    labels : str or list of str
        Discrete labels give one row set per class against the rest and one with concept "all" (the
        best-scoring class).
    shuffles : int
        Shuffled copies of each label, permuted at the level at which it varies (`targets.shuffled`).
    kinds : dict
        Label -> "class", "flag" or "value", where the automatic choice (`targets.encode`) is wrong.

    Returns
    -------
    pd.DataFrame with columns model, label, concept, site, layer, [head,] method, metric, fold, score, chance, shuffled.
    metric: accuracy, balanced_accuracy, auc; r2 for values. `chance`: the score of a constant guess learnt on the
    training part (majority class, mean). `shuffled`: the score with shuffled labels, mean over `shuffles`. A score is
    NaN where a fold lacks the classes to define it.

    Raises
    ------
    ValueError  as `find_directions`, and if a class is absent from a training part.

    Source: Alain & Bengio 2017, sec. 3; control labels after Hewitt & Liang 2019. Taught in
    02_probe_every_layer.
    """
    from tqdm.auto import tqdm

    labels = [labels] if isinstance(labels, str) else list(labels)
    groups = read_groups(acts, group)
    targets = [read_target(acts, label, (kinds or {}).get(label, "auto")) for label in labels]
    methods = check_methods(methods, targets)
    fold = fold_of(groups, folds, seed, read_target(acts, stratify) if stratify else None)
    copies = [t if r == 0 else shuffled(t, groups, seed + r) for t in targets for r in range(shuffles + 1)]
    sites = {site: layers} | ({"input": None} if "input" in acts.data_vars else {})
    records = []
    for here, chosen in sites.items():
        parts = None
        for where, x in tqdm(
            states(acts, here, chosen), desc=f"probes, {here}", unit="layer", delay=2, disable=not progress
        ):
            parts = parts or batches(copies, groups, fold, frames_of(acts, here), x, max_rows, seed)
            for f, batch in itertools.product(range(folds), parts):
                train = batch.fold != f
                batch.check(train, f)
                fits = batch.fit(x, train, methods, inner_folds, alphas, standardize, seed + f)
                tests = x[batch.rows[~train]]
                for method, fit in fits.items():
                    scores = tests @ fit.w.astype(np.float32) + fit.b
                    for record in _score_batch(batch, scores, train):
                        records.append(
                            {"site": here, "layer": -1, **where, "method": method, "fold": f, **record}
                        )
    head = ["head"] if "head" in acts[site].dims else []
    table = pd.DataFrame(records).assign(model=str(acts.attrs.get("model", "")))
    return table[[*COLUMNS[:5], *head, *COLUMNS[5:]]]


def check_methods(methods: Sequence[str], targets: Sequence[Target]) -> list[str]:
    """The methods that apply to some of the targets; ValueError for an unknown name, or if none is left."""
    unknown = set(methods) - set(solvers.METHODS)
    if unknown or not methods:
        raise ValueError(f"unknown method {sorted(unknown)}; choose from {', '.join(solvers.METHODS)}")
    left = [m for m in methods if m != "logistic" or any(t.kind != "value" for t in targets)]
    if not left:
        raise ValueError(
            f"logistic needs classes, and {targets[0].label!r} is a number: use 'mse' or 'diff_of_means', or bin it"
        )
    return left


def _score_batch(batch: Batch, scores: np.ndarray, train: np.ndarray) -> Iterator[dict]:
    """Rows of the table for one batch on its test rows: label, concept, metric, score, chance, shuffled."""
    tables: dict[tuple, dict] = {}
    for target, columns in zip(batch.targets, batch.columns, strict=True):
        if np.isnan(scores[:, columns]).any():  # logistic on a value
            continue
        for concept, metric, score, chance in measure(
            target, scores[:, columns], batch.y[~train, columns], batch.y[train, columns]
        ):
            row = tables.setdefault((target.label, concept, metric), {"shuffled": []})
            if target.is_shuffled:
                row["shuffled"].append(score)
            else:
                row |= {"score": score, "chance": chance}
    for (label, concept, metric), row in tables.items():
        row["shuffled"] = float(np.mean(row["shuffled"])) if row["shuffled"] else np.nan
        yield {"label": label, "concept": concept, "metric": metric, **row}


def measure(target: Target, scores, y, y_train) -> Iterator[tuple[str, str, float, float]]:
    """Yield (concept, metric, score, chance) of scores [N, K] for a target's test rows y [N, K] and training rows."""
    if target.kind == "value":
        guess = np.broadcast_to(y_train.mean(0), y.shape)
        yield from zip(target.concepts, itertools.repeat("r2"), r2(scores, y), r2(guess, y), strict=False)
        return
    right, truth = (scores > 0) == (y > 0), y > 0
    majority = np.where(y_train.mean(0) > 0, 1, -1)
    per_concept = {
        "accuracy": (right.mean(0), (truth == (majority > 0)).mean(0)),
        "balanced_accuracy": (_recall(right, truth), np.full(len(majority), 0.5)),
        "auc": (auc(scores, y), np.full(len(majority), 0.5)),
    }
    for metric, (values, chance) in per_concept.items():
        yield from zip(
            target.concepts, itertools.repeat(metric), values.tolist(), chance.tolist(), strict=False
        )
    if target.kind == "class":
        hit = scores.argmax(1) == y.argmax(1)
        k, most = y.shape[1], y_train.mean(0).argmax()
        recalls = [hit[truth[:, i]].mean() for i in range(k) if truth[:, i].any()]
        yield "all", "accuracy", float(hit.mean()), float((y.argmax(1) == most).mean())
        yield "all", "balanced_accuracy", float(np.mean(recalls)), 1 / k
        yield "all", "auc", float(np.mean(per_concept["auc"][0])), 0.5


def _recall(right, truth) -> np.ndarray:
    """Mean of the hit rates on both sides [K]; NaN where the test rows have one side only."""
    with np.errstate(invalid="ignore"):
        return ((right & truth).sum(0) / truth.sum(0) + (right & ~truth).sum(0) / (~truth).sum(0)) / 2


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
