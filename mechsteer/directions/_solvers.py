"""Four ways to turn activations and labels into a linear read-out, many columns at a time.

All solvers take one `Design` (the training activations, standardised and rotated once) and the targets of any
number of concepts as columns, and share the work: one eigendecomposition serves every concept, every penalty
and the logistic preconditioner. Shapes: N rows (clips or frames), D features, R <= D principal axes, K
concepts, A penalties.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ALPHAS = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)
"""Penalties tried, strongest first, in units of the mean loss per row on unit-variance features."""


@dataclass(frozen=True)
class Design:
    """Training activations: centred, scaled to unit variance, rotated to their principal axes.

    Attributes
    ----------
    z : float32 [N, R]
        `(x - mean) / scale @ basis`; weighted mean 0.
    weights : float32 [N]
        Sum 1. Uniform, or bootstrap counts.
    mean, scale : float64 [D]
        Of the training rows only. A constant feature has scale 1 and is 0 in every row, so no probe uses it.
    basis : float32 [D, R]; spectrum : float32 [R]
        Eigenvectors and eigenvalues (variances) of the standardised training rows, largest first.
    """

    z: np.ndarray
    weights: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    spectrum: np.ndarray

    def to_raw(self, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map weights [A, R, K] and biases [A, K] on `z` to [A, D, K] and [A, K] on the activations themselves."""
        raw = (self.basis @ w) / self.scale[:, None]
        return raw, b - self.mean @ raw


def prepare(x: np.ndarray, weights: np.ndarray | None = None, standardize: str = "feature") -> Design:
    """Standardise and rotate training activations x [N, D].

    `standardize="feature"` gives every feature unit variance (the usual probe); `"layer"` divides by one
    number, the root mean variance, so that rotating the activations rotates the directions. Axes that carry
    less than 1e-6 of the largest variance are left out: in float32 they are noise, and the penalty would
    silence them.
    """
    if standardize not in ("feature", "layer"):
        raise ValueError(f"standardize={standardize!r} is not known; use 'feature' or 'layer'")
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    weights = weights / weights.sum()
    x = np.asarray(x, np.float32)
    mean = weights @ x
    centred = x - mean.astype(np.float32)
    variance = weights @ np.square(centred)
    scale = np.sqrt(variance if standardize == "feature" else np.full_like(variance, variance.mean()))
    constant = scale <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 1.0, scale)
    standard = centred * np.where(constant, 0, 1 / scale).astype(np.float32)
    root = standard * np.sqrt(weights).astype(np.float32)[:, None]
    spectrum, basis = np.linalg.eigh((root.T @ root).astype(float))
    keep = np.flatnonzero(spectrum > 1e-6 * max(spectrum[-1], 1e-30))[::-1]
    if not len(keep):
        raise ValueError("the activations do not vary over the training rows, so no direction can be found")
    basis = basis[:, keep].astype(np.float32)
    return Design(
        standard @ basis, weights.astype(np.float32), mean, scale, basis, spectrum[keep].astype(np.float32)
    )


def mse(design: Design, y: np.ndarray, alphas=ALPHAS, values: bool = False, seed: int = 0):
    """Ridge regression of y [N, K] (+-1 for classes, the value itself if `values`), in closed form for all
    penalties.

    Minimises mean (y - x.w - b)^2 + alpha |w|^2; each of `alphas` is a number, or one number per column.
    Returns raw weights [A, D, K] and biases [A, K].
    """
    b = design.weights @ y
    moments = design.z.T @ (design.weights[:, None] * (y - b))
    w = np.stack([moments / (design.spectrum[:, None] + alpha) for alpha in alphas])
    return design.to_raw(w, np.broadcast_to(b, (len(w), y.shape[1])))


def logistic(
    design: Design, y: np.ndarray, alphas=ALPHAS, values: bool = False, seed: int = 0, tol: float = 1e-5
):
    """One-vs-rest logistic regression of y [N, K] in {-1, +1}, all columns at once.

    Minimises mean log(1 + exp(-y (x.w + b))) + alpha/2 |w|^2 for each of `alphas` (a number, or one per
    column), each started at the last solution. Nonlinear conjugate gradients (Polak-Ribiere, a Newton then a
    secant step along each line) in rounds. Each round is preconditioned by the present curvature on the
    principal axes, spectrum times mean p (1 - p), plus alpha: with classes that a plane separates it falls
    far below its bound of spectrum / 4, and who steps or stops by the bound ends far from the optimum, along
    another direction. A column is done when a Newton step with that curvature promises less than `tol` of the
    objective; RuntimeWarning for what never gets there. Returns raw weights [A, D, K] and biases [A, K].
    """
    if values:
        raise ValueError(
            "logistic needs classes; for a continuous label use 'mse' or 'diff_of_means', or bin the label"
        )
    n, k = y.shape
    x = np.concatenate([design.z, np.ones((n, 1), np.float32)], axis=1)
    truth = (y > 0).astype(np.float32)
    share = np.clip(design.weights @ truth, 1e-3, 1 - 1e-3)
    w = np.zeros((x.shape[1], k), np.float32)
    w[-1] = np.log(share / (1 - share))
    path = []
    for alpha in alphas:
        penalty = np.full(w.shape, alpha, np.float32)
        penalty[-1] = 0
        w = _minimise(x, truth, design.weights[:, None], w, penalty, design.spectrum, tol)
        path.append(w)
    path = np.stack(path)
    return design.to_raw(path[:, :-1], path[:, -1])


def _minimise(x, truth, weights, w, penalty, spectrum, tol, rounds=100, steps=15):
    """Rounds of conjugate gradients on the columns of w [R + 1, K] that have not converged yet (see `logistic`)."""
    done, live = w.copy(), np.arange(w.shape[1])
    scale = np.append(spectrum, np.float32(1))[:, None]
    for _ in range(rounds):
        logits = x @ w
        p = _sigmoid(logits)
        curvature = scale * (weights * p * (1 - p)).sum(0) + penalty + 1e-12
        gradient = x.T @ (weights * (p - truth)) + penalty * w
        value = (weights * (np.logaddexp(0, logits) - truth * logits)).sum(0) + (penalty * np.square(w)).sum(
            0
        ) / 2
        rest = (np.square(gradient) / curvature).sum(
            0
        ) > 2 * tol * value + 1e-10  # a column of one class has no optimum
        done[:, live] = w
        if not rest.any():
            return done
        live, columns = live[rest], (w, logits, p, gradient, truth, penalty, curvature)
        w, logits, p, gradient, truth, penalty, curvature = (a[:, rest] for a in columns)
        step = -gradient / curvature
        for _ in range(steps):
            along = x @ step
            slope = (gradient * step).sum(0)
            damping = (penalty * np.square(step)).sum(0)
            t = -slope / ((weights * p * (1 - p) * np.square(along)).sum(0) + damping + 1e-30)
            moved = (weights * (_sigmoid(logits + t * along) - truth) * along).sum(0)
            moved += (penalty * w * step).sum(
                0
            ) + t * damping  # slope at the Newton step; a secant step follows
            t *= np.clip(slope / np.minimum(slope - moved, -1e-30), 0.1, 3)
            w, logits = w + t * step, logits + t * along
            p = _sigmoid(logits)
            last, gradient = gradient, x.T @ (weights * (p - truth)) + penalty * w
            turn = (gradient * (gradient - last) / curvature).sum(0)
            turn /= (np.square(last) / curvature).sum(0) + 1e-30
            step = np.maximum(turn, 0) * step - gradient / curvature
            step = np.where((gradient * step).sum(0) < 0, step, -gradient / curvature)
    done[:, live] = w
    warnings.warn(
        f"{len(live)} logistic probes have not converged: their directions may be off", RuntimeWarning, 4
    )
    return done


def _sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def diff_of_means(design: Design, y: np.ndarray, alphas=ALPHAS, values: bool = False, seed: int = 0):
    """Mean of the concept's rows minus mean of the others, in activation space; no penalty, so A = 1.

    For values it is the covariance with y (the same direction when y has two values). Score: +1 at the
    concept's mean and -1 at the others', or for values the regression of y on the projection. Returns raw
    weights [1, D, K], biases [1, K].
    """
    weights = design.weights[:, None]
    if values:
        gap = design.z.T @ (weights * (y - design.weights @ y))
    else:
        gap = design.z.T @ (_share(weights, y > 0) - _share(weights, y < 0))
    return _calibrate(design, (design.basis @ gap) * design.scale[:, None], y, values)


def random_direction(design: Design, y: np.ndarray, alphas=ALPHAS, values: bool = False, seed: int = 0):
    """A control: random directions, each turned and thresholded to fit y like `diff_of_means`; A = 1."""
    directions = np.random.default_rng(seed).standard_normal((len(design.mean), y.shape[1]))
    return _calibrate(design, directions, y, values)


def _share(weights, mask):
    """Weights restricted to a boolean mask [N, K], summing to 1 in each column."""
    inside = weights * mask
    return inside / np.maximum(inside.sum(0), 1e-30)


def _calibrate(design, directions, y, values):
    """Turn directions [D, K] towards y, with slope and bias: midpoint rule for classes, regression for values."""
    projection = design.z @ (design.basis.T @ (directions * design.scale[:, None]))  # around the mean
    weights = design.weights[:, None]
    if values:
        bias = design.weights @ y
        slope = (weights * projection * (y - bias)).sum(0) / (
            (weights * np.square(projection)).sum(0) + 1e-30
        )
    else:
        high, low = ((_share(weights, mask) * projection).sum(0) for mask in (y > 0, y < 0))
        gap = np.where(np.abs(high - low) > 1e-30, high - low, 1e-30)
        slope, bias = 2 / gap, -(high + low) / gap
    raw = directions * slope
    return raw[None], (bias - design.mean @ raw)[None]


METHODS: dict[str, Callable] = {
    "logistic": logistic,
    "mse": mse,
    "diff_of_means": diff_of_means,
    "random": random_direction,
}
PENALISED = ("logistic", "mse")


def loss(method: str, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean loss per concept of scores [..., N, K] against y [N, K]: log loss for logistic, squared error otherwise."""
    with np.errstate(invalid="ignore"):  # NaN where the method has no answer
        errors = np.logaddexp(0, -y * scores) if method == "logistic" else np.square(y - scores)
    return errors.mean(axis=-2)


@dataclass(frozen=True)
class Fit:
    """One method's read-outs of K concepts: score = x @ w + b.

    Attributes
    ----------
    w : float64 [D, K]; b : float64 [K]
        In activation space. NaN where the method has no answer (logistic on a value).
    alpha : float64 [K]
        The penalty chosen; NaN for methods without one.
    held_out : float32 [N, K]
        Scores of the training rows from the inner folds that did not contain them, at the chosen penalty.
    """

    w: np.ndarray
    b: np.ndarray
    alpha: np.ndarray
    held_out: np.ndarray


def fit(x, y, inner, methods, values, blocks, alphas=ALPHAS, standardize="feature", seed=0) -> dict[str, Fit]:
    """Choose the penalty on inner folds, then fit on all rows; for every method and concept at once.

    Parameters
    ----------
    x : float [N, D]; y : float32 [N, K]
        Targets are -1 or +1, or values where `values` [K] is true.
    inner : int [N]
        Inner fold of every row; rows of one group share one.
    blocks : int [K]
        Columns with the same number (the classes of one label) share one penalty, so that their scores
        compare.
    alphas : sequence of float
        Penalties to choose from; the least held-out loss wins, the stronger one on a tie.
    """
    alphas = sorted(map(float, alphas), reverse=True)
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"alphas={alphas} must hold one or more penalties above 0")
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    held_out = {method: [] for method in methods}
    order = np.argsort(inner, kind="stable")
    for fold in np.unique(inner):
        train = inner != fold
        design = prepare(x[train], standardize=standardize)
        for method in methods:
            w, b = solve(method, design, y[train], values, alphas, seed)
            held_out[method].append((x[~train] @ w.astype(np.float32) + b[:, None]).astype(np.float32))
    design, back, fits = prepare(x, standardize=standardize), np.argsort(order, kind="stable"), {}
    for method in methods:
        scores = np.concatenate(held_out[method], axis=1)[:, back]
        losses = loss(method, scores, y)
        losses = np.stack([losses[:, blocks == block].mean(1) for block in blocks], axis=1)
        best = np.where(np.isnan(losses), np.inf, losses).argmin(0)
        alpha = np.array(alphas)[best] if method in PENALISED else np.full(len(best), np.nan)
        w, b = solve(method, design, y, values, [alpha], seed)
        fits[method] = Fit(w[0], b[0], alpha, scores[best, :, np.arange(len(best))].T)
    return fits


def solve(method, design, y, values, alphas, seed=0):
    """One method on columns of both kinds; raw weights [A, D, K] and biases [A, K], NaN where it has no answer."""
    parts = {}
    for kind in (False, True):
        columns = np.flatnonzero(values == kind)
        if len(columns) and not (kind and method == "logistic"):
            chosen = [np.broadcast_to(alpha, len(values))[columns] for alpha in alphas]
            parts[kind] = columns, METHODS[method](design, y[:, columns], chosen, kind, seed)
    a = max((len(b) for _, (_, b) in parts.values()), default=1)
    w, b = np.full((a, len(design.mean), len(values)), np.nan), np.full((a, len(values)), np.nan)
    for columns, (part_w, part_b) in parts.values():
        w[..., columns], b[..., columns] = part_w, part_b
    return w, b
