"""Probes by closed form and conjugate gradients against gradient descent, same data, same folds.

    python workshop/benchmarks/probe_speed.py [--clips 3000 --layers 6 --width 256 --folds 5]

Gradient descent as in the seed paper's code (arXiv 2506.10225): a linear layer without bias on L2-normalised
activations, Adam at 5e-3, batches of 1,024, 250 epochs, cross-entropy or squared error on the one-hot
classes. Kinder than theirs: batches are slices of one permutation instead of a DataLoader, nothing is
evaluated while training, and one-hot targets are right. It chooses no penalty. Ours chooses one per label and
fold, on inner folds, and its time holds that choice; the last line adds diff-of-means and shuffled controls,
as `accuracy_by_layer` runs by default.
Accuracy: classes with the largest score, mean over labels, layers and folds.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import xarray as xr

from mechsteer.directions._labels import fold_of, read_groups, read_target, states
from mechsteer.directions.scores import PROBES, accuracy_by_layer

CLASSES = {
    "lead": 6,
    "style": 4,
    "drums": 2,
    "tempo": 3,
    "tonic": 12,
    "mode": 2,
    "register": 3,
    "loudness": 2,
}


def orchestra_like(clips: int, layers: int, width: int, seed: int = 0) -> xr.Dataset:
    """Correlated features, a pattern per score (6 clips each), and eight class labels, clearer with depth."""
    rng = np.random.default_rng(seed)
    score = np.arange(clips) // 6
    labels = {name: rng.integers(0, k, clips) for name, k in CLASSES.items()}
    spread = rng.standard_normal((width, width)) * np.arange(1, width + 1) ** -0.6
    x = np.empty((clips, layers, width), np.float32)
    for layer in range(layers):
        own = rng.standard_normal((clips, width)) @ spread.T / 2
        shared = rng.standard_normal((score[-1] + 1, width))[score] / 2
        concepts = sum(rng.standard_normal((k, width))[labels[name]] for name, k in CLASSES.items())
        x[:, layer] = own + shared + 0.15 * (layer + 1) / layers * concepts + 3 * rng.standard_normal(width)
    coords = {name: ("clip", [f"{name} {c}" for c in values]) for name, values in labels.items()}
    coords |= {"layer": np.arange(layers), "group": ("clip", score)}
    return xr.Dataset({"resid": (("clip", "layer", "d_model"), x)}, coords=coords)


def descend(x: torch.Tensor, y: torch.Tensor, k: int, squared: bool, epochs: int) -> torch.nn.Linear:
    """One probe by Adam; x [n, d] L2-normalised, y [n] class numbers."""
    probe = torch.nn.Linear(x.shape[1], k, bias=False)
    optimiser = torch.optim.Adam(probe.parameters(), lr=5e-3)
    one_hot = torch.nn.functional.one_hot(y, k).float()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(1024):
            optimiser.zero_grad()
            if squared:
                error = torch.nn.functional.mse_loss(probe(x[rows]), one_hot[rows])
            else:
                error = torch.nn.functional.cross_entropy(probe(x[rows]), y[rows])
            error.backward()
            optimiser.step()
    return probe


def by_gradient_descent(acts: xr.Dataset, fold: np.ndarray, epochs: int) -> dict[str, list[float]]:
    """Test accuracies of every label, layer and fold, by loss."""
    hits = {"logistic": [], "mse": []}
    for _, x in states(acts, "resid"):
        x = torch.nn.functional.normalize(torch.from_numpy(x))
        for label, k in CLASSES.items():
            y = torch.from_numpy(read_target(acts, label, "class").y.argmax(1))
            for f in np.unique(fold):
                train = torch.from_numpy(fold != f)
                for method, found in hits.items():
                    probe = descend(x[train], y[train], k, method == "mse", epochs)
                    with torch.no_grad():
                        found.append((probe(x[~train]).argmax(1) == y[~train]).float().mean().item())
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"clips": 3000, "layers": 6, "width": 256, "folds": 5, "epochs": 250, "seed": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    acts = orchestra_like(args.clips, args.layers, args.width, args.seed)
    fold = fold_of(read_groups(acts), args.folds, args.seed)
    options = {"folds": args.folds, "seed": args.seed, "progress": False}
    rows, clock = [], lambda: np.array([time.perf_counter(), time.process_time()])

    start = clock()
    hits = by_gradient_descent(acts, fold, args.epochs)
    rows.append((f"Adam, {args.epochs} epochs", clock() - start, {m: np.mean(h) for m, h in hits.items()}))
    for name, methods, shuffles in (
        ("ours, same two methods", ["logistic", "mse"], 0),
        ("ours, three methods + shuffled controls", PROBES, 1),
    ):
        start = clock()
        table = accuracy_by_layer(acts, list(CLASSES), methods, shuffles=shuffles, **options)
        seconds = clock() - start
        every = table[(table.concept == "all") & (table.metric == "accuracy")]
        rows.append((name, seconds, every.groupby("method").score.mean().to_dict()))

    print(f"{args.clips} clips, {args.layers} layers, width {args.width}, {args.folds} folds", end=", ")
    print(f"{len(CLASSES)} labels, {os.cpu_count()} cores, {torch.get_num_threads()} threads\n")
    print("| | seconds | of CPU | times faster (CPU) | accuracy logistic | mse | diff_of_means |")
    print("|---|---|---|---|---|---|---|")
    for name, (wall, cpu), accuracy in rows:
        shown = " | ".join(f"{accuracy[m]:.3f}" if m in accuracy else "-" for m in PROBES)
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {rows[0][1][1] / cpu:.1f} | {shown} |")


if __name__ == "__main__":
    main()
