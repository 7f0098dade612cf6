"""How much memory does `collect` need beyond the loaded model: many clips, long ones, every frame, audio?

    python workshop/benchmarks/collect_memory.py [--shape small|tiny] [--threads 1]
        [--arms 2000x0.04 6x8 frames audio:4x10]

`NxS` reads N clips of S seconds at every layer. What is held at a time is one batch, of as many steps as fit
a budget, and one block of results; so if neither many clips nor long ones cost more, many long ones don't.
`frames` keeps every frame of layer 0 of 40 clips of 8 s; `audio:NxS` encodes N files of S seconds first. Each
arm runs in a fork of this process, and its highest resident memory starts at the loaded model's. `small` has
random weights in the shape of musicgen-small and of its EnCodec (24 layers of 1,024, float32). Aim: at most 1
GB at 2,000 clips.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
import xarray  # noqa: F401  (in memory before anything is measured)
import zarr  # noqa: F401
from generation_speed import SHAPES, musicgen

import mechsteer as ms
from mechsteer.activations.collect import collect
from mechsteer.model.model import Model

ARMS = ("64x0.04", "2000x0.04", "6x8", "1x30", "frames", "audio:4x10", "audio:2x30")
ENCODEC = {"n_filters": 64, "dimension": 128, "lstm": 2}  # of facebook/encodec_32khz


def small() -> Model:
    """A Model in musicgen-small's shape, with a codec in EnCodec's; random weights."""
    torch.manual_seed(0)
    made = musicgen(SHAPES["musicgen-small"], "cpu", ENCODEC)
    return Model(made, "random musicgen-small", dtype="float32")


def coded(model: Model, n: int, seconds: float) -> pd.DataFrame:
    """n clips of random codes."""
    shape = n, model.n_codebooks, max(model.seconds_to_frames(seconds), 1)
    codes = np.random.default_rng(0).integers(0, model.lm.card, shape).astype(np.uint16)
    names = [f"{i:05d}" for i in range(n)]
    return pd.DataFrame({"clip": names, "codes": list(codes), "duration": seconds, "group": names})


def recorded(folder: Path, n: int, seconds: float) -> pd.DataFrame:
    """n files of noise, 44.1 kHz, stereo."""
    rng = np.random.default_rng(0)
    for i in range(n):
        soundfile.write(folder / f"{i}.wav", rng.uniform(-0.5, 0.5, (round(seconds * 44_100), 2)), 44_100)
    return ms.clips(folder)


def megabytes() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def measure_arm(model: Model, arm: str, answer) -> None:
    """Collect one arm and send (clips, MB at the start, MB at the highest, s of processor time)."""
    with tempfile.TemporaryDirectory() as scratch:
        options = {"out": Path(scratch, "acts.zarr"), "progress": False}
        if arm == "frames":
            clips = coded(model, 40, 8.0)
            options |= {"layers": [0], "pool": "frames"}
        else:
            n, seconds = map(float, arm.removeprefix("audio:").split("x"))
            if arm.startswith("audio:"):
                clips = recorded(Path(scratch), int(n), seconds)
                options["layers"] = [0]
            else:
                clips = coded(model, int(n), seconds)
        before, began = megabytes(), time.process_time()
        acts = collect(model, clips, **options)
        answer.send((acts.sizes["clip"], before, megabytes(), time.process_time() - began))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("small", "tiny"), default="small")
    parser.add_argument("--arms", nargs="+", default=ARMS, metavar="ARM")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = small() if given.shape == "small" else ms.load("tiny")
    print(f"{model}\n\n| arm | clips | MB before | MB beyond it, at the highest | s of processor |")
    print("|---|---|---|---|---|")
    fork = multiprocessing.get_context("fork")
    for arm in given.arms:
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=measure_arm, args=(model, arm, there))
        child.start()
        there.close()
        n, before, highest, seconds = here.recv()
        child.join()
        print(f"| {arm} | {n} | {before:.0f} | {highest - before:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
