"""A sweep of steerings in one call against one call per setting: the same clips, measured the same way.

    python workshop/benchmarks/sweep_speed.py [--settings 30] [--clips 1] [--seconds 3] [--rounds 1]
        [--cpu-time]

A student who tries 5 methods at 6 strengths by hand calls `generate` 30 times. `generate` and `dose_response`
put all settings into the rows of few batches. Arms run in turn and the ratio is taken within each round.
Goal: 4 times as fast.
"""

import argparse
import statistics
import time

import numpy as np

import mechsteer as ms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=int, default=30, help="methods x strengths")
    parser.add_argument("--clips", type=int, default=1, help="seeds per setting")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time: fairer on a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    model = ms.load("tiny")
    vectors = np.random.default_rng(0).normal(size=(options.settings, model.d_model))
    steerings = [ms.Steering(v, layers=[model.n_layers // 2], norm=1.0, strength=0.1) for v in vectors]
    seeds = list(range(options.clips))
    each = lambda chosen: [s for s in chosen for _ in seeds]

    def together():
        made = model.generate(
            "jazz piano", options.seconds, seeds * options.settings, each(steerings), progress=False
        )
        return made.codes

    def one_by_one():
        calls = [
            model.generate("jazz piano", options.seconds, seeds, each([s]), progress=False) for s in steerings
        ]
        return np.concatenate([made.codes for made in calls])

    model.generate("jazz piano", 1.0, 0, progress=False)  # warm up
    ratios = []
    for _ in range(options.rounds):
        times, codes = [], []
        for arm in (one_by_one, together):
            begun = clock()
            codes.append(np.asarray(arm()))
            times.append(clock() - begun)
        ratios.append(times[0] / times[1])
        print(f"one call each {times[0]:.1f} s, one in all {times[1]:.1f} s: {ratios[-1]:.1f} times as fast")
        print(f"clips that are the same: {(codes[0] == codes[1]).all(axis=(1, 2)).mean():.2f}")
    print(f"median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
