"""Does collecting cost more than running the model? Clips per second of `collect` against a forward pass.

    python workshop/benchmarks/collect_speed.py [--shape tiny|small] [--clips 64] [--seconds 8] [--rounds 3]
        [--threads 1]

Four routes on the same codes and batches, in turn, `--rounds` times; the median of each: audiocraft's forward
pass and nothing else; `read.read` of every layer; `collect` into a store on disk; nnsight's trace with
pooled saves of every layer. Then the size of the store. `small` is random weights in musicgen-small's shape
(24 layers of 1,024, 50 frames a second). On a CPU it counts processor time, which other work on the machine
doesn't change. Aim: collect at least 0.8 of bare. Memory: `collect_memory.py`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from generation_speed import SHAPES, musicgen

import mechsteer as ms
from mechsteer.activations.read import auto_batch, read
from mechsteer.model.model import Model


def small() -> Model:
    """A Model in musicgen-small's shape with random weights and a very small codec."""
    torch.manual_seed(0)
    return Model(musicgen(SHAPES["musicgen-small"], "cpu"), "random musicgen-small", dtype="float32")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("tiny", "small"), default="tiny")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = ms.load("tiny") if given.shape == "tiny" else small()
        frames = model.seconds_to_frames(given.seconds)
        codes = np.random.default_rng(0).integers(0, model.lm.card, (given.clips, model.n_codebooks, frames))
        names = [f"{i:05d}" for i in range(given.clips)]
        clips = pd.DataFrame({"clip": names, "codes": list(codes), "duration": given.seconds, "group": names})
        size = min(auto_batch(model, frames), 32)
        batches = [codes[i : i + size] for i in range(0, given.clips, size)]

        def bare():
            for batch in batches:
                sequence = model.sequence(torch.as_tensor(batch))
                model.lm(sequence, [], model.conditions(None, len(batch))).float().sum().item()

        def reading():
            for batch in batches:
                read(model, list(batch))

        def traced():
            steps = model.valid_steps(frames)
            for batch in batches:
                found = []
                with model.trace(batch):
                    for i in range(model.n_layers):
                        found.append(model.resid[i][:, steps].float().mean(1).save())

        stores = iter(range(given.rounds + 1))
        collect = lambda: ms.collect(model, clips, out=Path(scratch, f"{next(stores)}.zarr"), progress=False)
        routes = {"bare": bare, "read": reading, "collect": collect, "nnsight": traced}
        times = {name: [] for name in routes}
        for turn in range(given.rounds + 1):  # the first warms up
            for name, route in routes.items():
                began = time.process_time() if model.device.type == "cpu" else time.perf_counter()
                route()
                took = (time.process_time() if model.device.type == "cpu" else time.perf_counter()) - began
                if turn:
                    times[name].append(took)
        clock = "CPU time" if model.device.type == "cpu" else "wall time"
        print(f"{model}\n{given.clips} clips of {given.seconds:g} s in batches of {size}, {clock}")
        fastest = statistics.median(times["bare"])
        for name, values in times.items():
            middle = statistics.median(values)
            print(f"{name:8s} {given.clips / middle:8.2f} clips/s   {fastest / middle:5.2f} of bare")
        held = sum(p.stat().st_size for p in Path(scratch, "0.zarr").rglob("*") if p.is_file()) / 1e6
        print(f"store: {held:.1f} MB")


if __name__ == "__main__":
    main()
