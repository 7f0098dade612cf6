"""How long ears and comparisons take for some clips, decoded test clips of the orchestra; one thread.

python workshop/benchmarks/judge_speed.py [--clips 100] [--seconds 5]
"""

import argparse
import os

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

import mechsteer as ms
from mechsteer.measures.ears import asking
from mechsteer.measures.kept import shared


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    test = ms.clips("orchestra").query("split == 'test'").sample(options.clips, random_state=0)
    read = [ms.read_clip(row) for row in test.to_dict("records")]
    rate = read[0][1]
    audio = np.stack([clip[:, : round(options.seconds * rate)] for clip, _ in read])
    jobs = asking.named(["both", "musicnn", "chords"])
    jobs["kept.shared"] = lambda audio, rate: shared(audio, audio[::-1], rate)
    print(
        f"{options.clips} clips of {options.seconds:g} s: s of wall clock, of the processor; times real time"
    )
    for name, job in jobs.items():
        job(audio[:2], rate)  # what is loaded and compiled once
        wall, busy = time.perf_counter(), time.process_time()
        job(audio, rate)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        print(f"{name:20s} {wall:7.1f} {busy:7.1f} {options.clips * options.seconds / wall:7.0f} x")


if __name__ == "__main__":
    main()
