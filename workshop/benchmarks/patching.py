"""What a patching map costs: by swapping, by gradient, and on a model of musicgen-small's shape.

    python workshop/benchmarks/patching.py [--pairs 40] [--seconds 8] [--arms map memory small]

map      the embedded model: every layer x 4 sites x 8 windows x `pairs` pairs of clips of `seconds`, by swap
         and by gradient, one after the other in the same process; and the same swaps as whole forward passes
         with PyTorch hooks, timed on a few places and extrapolated
memory   the peak of a process that patches 8 pairs, and of one that patches all of them
small    random weights in the shape of musicgen-small: one pair of 50 frames, 2 windows, all layers

Codes are random: speed doesn't depend on them.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from generation_speed import SHAPES, musicgen

import mechsteer as ms
from mechsteer.model.model import Model
from mechsteer.model.sites import hook

SITES, WINDOWS = ("resid", "attn", "cross", "mlp"), 8


def timed(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def codes(model, pairs: int, frames: int, seed: int) -> torch.Tensor:
    shape = pairs, model.n_codebooks, frames
    return torch.randint(model.lm.card, shape, generator=torch.Generator().manual_seed(seed))


def by_hooks(model, clean, changed, places: int) -> float:
    """Seconds of `places` whole runs with one place replaced, all pairs at once."""
    clean, changed = (model.sequence(c)[..., :-1] for c in (clean, changed))
    told, values = model.conditions(None, len(clean)), {}

    def run(tokens, layer, act):
        handle = hook(model.lm, "attn", layer, act)
        with torch.no_grad():
            model.lm(tokens, [], told)
        handle.remove()

    def swapped(h):
        h = h.clone()
        h[:, 4:8] = values["clean"][:, 4:8]
        return h

    run(clean, 0, lambda h: values.update(clean=h))
    return timed(lambda: [run(changed, k % model.n_layers, swapped) for k in range(places)])


def whole_map(pairs: int, seconds: float) -> None:
    model = ms.load("tiny")
    both = [codes(model, pairs, model.seconds_to_frames(seconds), seed) for seed in (0, 1)]
    ms.patch(model, *(c[:2] for c in both), windows=2, progress=False)
    swap = timed(lambda: ms.patch(model, *both, SITES, windows=WINDOWS, progress=False))
    slope = timed(lambda: ms.patch(model, *both, SITES, windows=WINDOWS, by="gradient", progress=False))
    places, few = model.n_layers * len(SITES) * WINDOWS, 8
    hooks = by_hooks(model, *both, few) * places / few
    print(f"{places} places x {pairs} pairs of {seconds:g} s: swap {swap:.1f} s, gradient {slope:.2f} s")
    print(f"gradient {swap / slope:.0f} times faster; whole passes with hooks about {hooks:.0f} s")


def memory(pairs: int, seconds: float) -> None:
    """Peak memory of a process that makes a map of so many pairs."""
    model = ms.load("tiny")
    both = [codes(model, pairs, model.seconds_to_frames(seconds), seed) for seed in (0, 1)]
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ms.patch(model, *both, SITES, layers=[0], windows=2, progress=False)
    ms.patch(model, *both, SITES, windows=2, by="gradient", progress=False)
    print(f"{pairs} pairs: a peak of {peak():.0f} MiB")


def small() -> None:
    model = Model(musicgen(SHAPES["musicgen-small"], "cpu"), "musicgen-small", "random", "cpu", "float32")
    both = [codes(model, 1, 50, seed) for seed in (0, 1)]
    swap = timed(lambda: ms.patch(model, *both, SITES, windows=2, progress=False))
    slope = timed(lambda: ms.patch(model, *both, SITES, windows=2, by="gradient", progress=False))
    lens = timed(lambda: ms.lens(model, both[0]))
    places = model.n_layers * len(SITES) * 2
    print(f"musicgen-small's shape, one pair of 1 s, {places} places: swap {swap:.1f} s", end="")
    print(f" ({swap / places:.2f} s a place), gradient {slope:.1f} s, lens {lens:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--arms", nargs="+", default=["map", "memory", "small"])
    given = parser.parse_args()
    if "map" in given.arms:
        whole_map(given.pairs, given.seconds)
    if "memory of" in given.arms:
        memory(given.pairs, given.seconds)
    for pairs in (8, given.pairs) if "memory" in given.arms else ():
        one = ["--arms", "memory of", "--pairs", str(pairs), "--seconds", str(given.seconds)]
        subprocess.run([sys.executable, __file__, *one], check=True)
    if "small" in given.arms:
        small()


if __name__ == "__main__":
    main()
