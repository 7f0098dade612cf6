"""What safety costs: planning a thousand steerings, hashing sound files, writing and verifying a store.

    python workshop/benchmarks/safety_cost.py [--megabytes 300]

Planning is for 1 s of the embedded model, at all its layers, under guidance; aim: at most 2 s for each mode.
The rest is in seconds per GB, with files just written, and so in the machine's memory; a plain copy and a
plain write beside them say what this machine does without.
"""

import argparse
import functools
import hashlib
import operator
import os
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

import mechsteer as ms
from mechsteer.activations._job import clip_keys
from mechsteer.activations._store import Store
from mechsteer.model.effects import check, plan
from mechsteer.model.steering import MODES, Steering


def timed(work, *given, **options) -> float:
    began = time.perf_counter()
    work(*given, **options)
    return time.perf_counter() - began


def planning(model, mode: str, apart: bool) -> float:
    """s to check and plan a thousand different steerings, on one schedule or `apart`, each on its own."""
    rng = np.random.default_rng(0)
    options = dict(layers=range(model.n_layers), norm=10.0, strength=0.01, mode=mode)
    parts = [
        Steering(rng.standard_normal(model.d_model), start=i / 2000 * apart, **options) for i in range(1000)
    ]
    rows, frames = [functools.reduce(operator.or_, parts)], round(model.frame_rate)
    halves = ("cond", "uncond")
    return timed(lambda: plan(check(rows, frames, model, halves), frames + model.n_codebooks, model, halves))


def storing(megabytes: int, folder: Path) -> dict[str, float]:
    """s per GB of activations, in blocks of 8 MB."""
    clips, block = megabytes // 8 * 64, 64
    arrays = {"resid": ({"layer": 8, "d_model": 4096}, "float32", np.nan)}
    labels = pd.DataFrame({"clip": [str(i) for i in range(clips)]})
    values = np.random.default_rng(0).standard_normal((block, 8, 4096)).astype("float32")

    def write(path, checksum):
        store = Store.begin(path, arrays, labels, {"block": block}, ["key"] * clips)
        with mock.patch.object(Store, "_checksum", checksum):
            for k in range(clips // block):
                store.write(k, {"resid": values}, [""] * block)

    gigabytes = clips * 8 * 4096 * 4 / 1e9
    plain = timed(write, folder / "plain", lambda self, block: 1)
    summed = timed(write, folder / "summed", Store._checksum)
    verify = timed(Store.at(folder / "summed").damaged)
    found = {"write without checksum": plain, "write with checksum": summed, "verify": verify}
    return {name: seconds / gigabytes for name, seconds in found.items()}


def hashing(megabytes: int, folder: Path) -> dict[str, float]:
    """s per GB of sound files of 5 MB."""
    paths = [folder / f"{k}.wav" for k in range(megabytes // 5)]
    for path in paths:
        path.write_bytes(os.urandom(5_000_000))
    table = pd.DataFrame({"clip": [p.name for p in paths], "path": paths, "start": 0.0, "duration": 30.0})
    gigabytes = len(paths) * 5e6 / 1e9
    copy = timed(lambda: [shutil.copy(path, folder / "copy") for path in paths])
    sha = timed(lambda: [hashlib.sha256(path.read_bytes()) for path in paths])
    ours = timed(clip_keys, table, told=False, seeds=False)
    found = {"copy of the files": copy, "sha256 of them": sha, "keys of their clips": ours}
    return {name: seconds / gigabytes for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=300)
    given, model = parser.parse_args(), ms.load("tiny", device="cpu")
    print("planning a thousand steerings, s")
    for mode in MODES:
        print(f"  {mode:10s} {planning(model, mode, False):6.2f} on one schedule", end="")
        print(f" {planning(model, mode, True):6.2f} each on its own")
    with tempfile.TemporaryDirectory() as folder:
        costs = storing(given.megabytes, Path(folder)) | hashing(given.megabytes, Path(folder))
    print("s per GB")
    for name, seconds in costs.items():
        print(f"  {name:24s} {seconds:6.2f}")


if __name__ == "__main__":
    main()
