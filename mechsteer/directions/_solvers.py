"""Four ways to turn activations and labels into a linear read-out, many concepts at a time.

All share one `DesignMatrix`, the training activations, standardised and rotated once: one eigendecomposition
serves every concept, every penalty and the logistic preconditioner. Shapes: N rows (clips or frames), D
features, R <= D principal axes, K concepts, A penalties.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from .._shared import number, spelled

ALPHAS = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)  # strongest first; 1 is the mean loss per row at unit variance


@dataclass(frozen=True)
class Fitting:
    """How probes are fitted: the `**fitting` of every function that fits."""

    alphas: Sequence[float] = ALPHAS  # the least held-out loss wins, and the stronger penalty on a tie
    folds: int = 3  # inner folds that choose among them
    standardize: str = "feature"  # or "layer", see `prepare`
    max_rows: int = 20_000  # frames are thinned to this many
    seed: int = 0  # of folds, thinning and random directions

    def __post_init__(self):
        for name, least in (("folds", 0), ("max_rows", 1), ("seed", 0)):
            number(name, getattr(self, name), least, whole=True)


takes_fitting = partial(spelled, also=[field.name for field in fields(Fitting)])  # decorates such functions


@dataclass(frozen=True)
class DesignMatrix:
    """Training activations: centred, scaled to unit variance, rotated to their principal axes."""

    z: np.ndarray  # float32 [N, R], (x - mean) / scale @ basis; weighted mean 0
    weights: np.ndarray  # float32 [N], sum 1: uniform, or bootstrap counts
    mean: np.ndarray  # float64 [D], of the training rows only
    scale: np.ndarray  # float64 [D]; a constant feature has 1 and is 0 in every row, so no probe uses it
    basis: np.ndarray  # float32 [D, R], principal axes of the standardised training rows, largest first
    spectrum: np.ndarray  # float32 [R], the variances along them

    def to_raw(self, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map weights [A, R, K] and biases [A, K] on `z` to [A, D, K] and [A, K] on the activations."""
        raw = (self.basis @ w) / self.scale[:, None]
        return raw, b - self.mean @ raw


def prepare(x: np.ndarray, weights: np.ndarray | None = None, standardize: str = "feature") -> DesignMatrix:
    """Standardise and rotate training activations x [N, D].

    `standardize="feature"` gives every feature unit variance; `"layer"` divides by the root mean variance, so
    that rotating activations rotates directions. Axes of less than 1e-6 of the largest variance are left out:
    noise in float32, which the penalty would silence.
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
    weights, spectrum = weights.astype(np.float32), spectrum[keep].astype(np.float32)
    return DesignMatrix(standard @ basis, weights, mean, scale, basis, spectrum)


def solve_mse(design: DesignMatrix, y, alphas=ALPHAS, values: bool = False, seed: int = 0):
    """Ridge regression of y [N, K] (+-1 for classes, or the value itself), in closed form.

    Minimises mean (y - x.w - b)^2 + alpha |w|^2 for each of `alphas`, a number or one number per column. Like
    all methods it returns raw weights [A, D, K] and biases [A, K].
    """
    b = design.weights @ y
    moments = design.z.T @ (design.weights[:, None] * (y - b))
    w = np.stack([moments / (design.spectrum[:, None] + alpha) for alpha in alphas])
    return design.to_raw(w, np.broadcast_to(b, (len(w), y.shape[1])))


def solve_logistic(design: DesignMatrix, y, alphas=ALPHAS, values: bool = False, seed: int = 0, tol=1e-5):
    """One-vs-rest logistic regression of y [N, K] in {-1, +1}, all columns at once.

    Minimises mean log(1 + exp(-y (x.w + b))) + alpha/2 |w|^2 for each of `alphas` (a number, or one per
    column), each started at the last solution; `_minimise` says how. What doesn't converge is warned of.
    """
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
    """Logistic regression on the columns of w [R + 1, K] at once (scikit-learn takes one at a time).

    Nonlinear conjugate gradients (Polak-Ribiere, a Newton then a secant step along each line) in rounds, each
    preconditioned by the present curvature on the principal axes: spectrum times mean p (1 - p), plus alpha.
    With classes that a plane separates that falls far below its bound, spectrum / 4; who steps or stops by
    the bound reads as well and points elsewhere. So never loosen the test of convergence: a column is done
    when a Newton step promises less than `tol` of the objective.
    """
    done, live = w.copy(), np.arange(w.shape[1])
    scale = np.append(spectrum, np.float32(1))[:, None]
    for _ in range(rounds):
        logits = x @ w
        p = _sigmoid(logits)
        curvature = scale * (weights * p * (1 - p)).sum(0) + penalty + 1e-12
        gradient = x.T @ (weights * (p - truth)) + penalty * w
        value = (weights * (np.logaddexp(0, logits) - truth * logits)).sum(0)
        value += (penalty * np.square(w)).sum(0) / 2
        gain = (np.square(gradient) / curvature).sum(0)
        rest = gain > 2 * tol * value + 1e-10  # a column of one class has no optimum
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
            moved += (penalty * w * step).sum(0) + t * damping  # slope at the Newton step; a secant follows
            t *= np.clip(slope / np.minimum(slope - moved, -1e-30), 0.1, 3)
            w, logits = w + t * step, logits + t * along
            p = _sigmoid(logits)
            last, gradient = gradient, x.T @ (weights * (p - truth)) + penalty * w
            turn = (gradient * (gradient - last) / curvature).sum(0)
            turn /= (np.square(last) / curvature).sum(0) + 1e-30
            step = np.maximum(turn, 0) * step - gradient / curvature
            step = np.where((gradient * step).sum(0) < 0, step, -gradient / curvature)
    done[:, live] = w
    told = f"{len(live)} logistic probes have not converged: their directions may be off"
    warnings.warn(told, RuntimeWarning, stacklevel=4)
    return done


def _sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def solve_diff_of_means(design: DesignMatrix, y, alphas=ALPHAS, values: bool = False, seed: int = 0):
    """Mean of the concept's rows minus mean of the others, for values the covariance with y; A = 1.

    Score: +1 at the concept's mean and -1 at the others', or the regression of y on the projection.
    """
    weights = design.weights[:, None]
    if values:
        gap = design.z.T @ (weights * (y - design.weights @ y))
    else:
        gap = design.z.T @ (_share(weights, y > 0) - _share(weights, y < 0))
    return _calibrate(design, (design.basis @ gap) * design.scale[:, None], y, values)


def solve_random_direction(design: DesignMatrix, y, alphas=ALPHAS, values: bool = False, seed: int = 0):
    """A control: random directions, each turned and thresholded to fit y like `diff_of_means`; A = 1."""
    directions = np.random.default_rng(seed).standard_normal((len(design.mean), y.shape[1]))
    return _calibrate(design, directions, y, values)


def _share(weights, mask):
    """Weights restricted to a boolean mask [N, K], summing to 1 in each column."""
    inside = weights * mask
    return inside / np.maximum(inside.sum(0), 1e-30)


def _calibrate(design, directions, y, values):
    """Turn directions [D, K] to y, with slope and bias: midpoint rule for classes, regression for values."""
    projection = design.z @ (design.basis.T @ (directions * design.scale[:, None]))  # around the mean
    weights = design.weights[:, None]
    if values:
        bias = design.weights @ y
        slope = (weights * projection * (y - bias)).sum(0)
        slope = slope / ((weights * np.square(projection)).sum(0) + 1e-30)
    else:
        high, low = ((_share(weights, mask) * projection).sum(0) for mask in (y > 0, y < 0))
        gap = np.where(np.abs(high - low) > 1e-30, high - low, 1e-30)
        slope, bias = 2 / gap, -(high + low) / gap
    raw = directions * slope
    return raw[None], (bias - design.mean @ raw)[None]


@dataclass(frozen=True)
class Method:
    """A way to fit, and what sets it apart."""

    solve: Callable  # (design, y [N, K], alphas, values, seed) -> raw weights [A, D, K] and biases [A, K]
    loss: Callable = lambda scores, y: np.square(y - scores)  # [A, N, K]; its mean chooses the penalty
    penalised: bool = False  # without a penalty to choose, A is 1
    classes_only: bool = False  # can't read numbers


METHODS = {
    "logistic": Method(solve_logistic, lambda s, y: np.logaddexp(0, -y * s), True, classes_only=True),
    "mse": Method(solve_mse, penalised=True),
    "diff_of_means": Method(solve_diff_of_means),
    "random": Method(solve_random_direction),
}


@dataclass(frozen=True)
class Fit:
    """One method's read-outs of K concepts: score = x @ w + b, in activation space."""

    w: np.ndarray  # float64 [D, K]
    b: np.ndarray  # float64 [K]
    alpha: np.ndarray  # float64 [K], the penalty chosen; NaN for methods without one
    held_out: np.ndarray  # float32 [N, K], scores of rows from the inner folds without them, at that penalty


def fit(x, y, inner, methods, values: bool, blocks, fitting: Fitting) -> dict[str, Fit]:
    """Choose the penalty on inner folds, then fit on all rows; for every method and concept at once.

    x is float [N, D]; y [N, K], -1 or +1, or numbers where `values` is true; `inner`, int [N], the inner fold
    of every row. Columns with one number in `blocks`, int [K] (the classes of a label), share one penalty, so
    that their scores compare.
    """
    alphas = sorted(map(float, fitting.alphas), reverse=True)
    if not alphas or not all(0 < alpha < np.inf for alpha in alphas):
        raise ValueError(f"alphas={alphas} must hold one or more penalties above 0")
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    (n, k), methods, fits = y.shape, {name: METHODS[name] for name in methods}, {}
    tried = [np.full(k, alpha) for alpha in alphas]
    empty = lambda penalties: np.empty((penalties, n, k), np.float32)
    held_out = {name: empty(len(tried) if m.penalised else 1) for name, m in methods.items()}
    for fold in np.unique(inner):  # the solvers get y column by column, so that they round alike for any rows
        train = inner != fold
        design = prepare(x[train], standardize=fitting.standardize)
        for name, method in methods.items():
            w, b = method.solve(design, np.asfortranarray(y[train]), tried, values, fitting.seed)
            held_out[name][:, ~train] = x[~train] @ w.astype(np.float32) + b[:, None]
    design = prepare(x, standardize=fitting.standardize)
    for name, method in methods.items():
        scores = held_out[name]
        losses = method.loss(scores, y).mean(axis=1)
        losses = np.stack([losses[:, blocks == block].mean(1) for block in blocks], axis=1)
        best = losses.argmin(0)
        alpha = np.array(alphas)[best] if method.penalised else np.full(k, np.nan)
        w, b = method.solve(design, np.asfortranarray(y), [alpha], values, fitting.seed)
        fits[name] = Fit(w[0], b[0], alpha, scores[best, :, np.arange(k)].T)
    return fits
