"""How many times faster than real time the judges and the pitch measures are, on one core and as installed.

python workshop/benchmarks/judge_speed.py [--clips 32] [--seconds 8]
"""

import argparse
import os

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

import mechsteer as ms
from mechsteer.measures.kept import shared

RATE = 16_000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    shape = options.clips, 1, round(options.seconds * RATE)
    audio = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    jobs = {
        "hear, cnn": lambda: ms.hear(audio, RATE, "cnn"),
        "hear, features": lambda: ms.hear(audio, RATE, "features"),
        "kept.shared": lambda: shared(audio, audio[::-1], RATE),
    }
    print(f"{options.clips} clips of {options.seconds:g} s; real time / time taken (wall clock, processor)")
    for name, job in jobs.items():
        job()
        wall, busy = time.perf_counter(), time.process_time()
        job()
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        total = options.clips * options.seconds
        print(f"{name:20s} {total / wall:7.0f} x {total / busy:7.0f} x")


if __name__ == "__main__":
    main()
