"""How often rounding alone makes a clip differ between being generated alone and in a batch.

    python workshop/benchmarks/batch_rounding.py [--clips 16] [--frames 200]

A row's tokens depend on its prompt, seed and steering; but matrix products of another size may round
differently, and a choice between two nearly equal tokens can then fall the other way. Random weights at the
shape of the embedded model.
"""

import argparse

import torch
from generation_speed import SHAPES, musicgen

from mechsteer.model.model import Model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = ["slow jazz piano", "rock", "a violin solo", None] * (options.clips // 4)
    print("| dtype | batch | clips that differ when alone | first frame that does | tokens per clip |")
    print("|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16") + (("float16",) if device == "cuda" else ()):
        torch.manual_seed(0)
        model = Model(musicgen(SHAPES["tiny"], device), "random", device=device, dtype=dtype)
        make = lambda size, model=model: (
            model.generate(prompts, options.frames / model.frame_rate, batch_size=size, progress=False).codes
        )
        alone = make(1)
        for size in (2, 8, 32):
            differ = (make(size) != alone).any(1)  # (clip, frame)
            clips, first = int(differ.any(1).sum()), differ.any(0).nonzero().min() if differ.any() else "-"
            print(
                f"| {dtype} | {size} | {clips} of {len(alone)} | {first} | {alone[0].numel()} |", flush=True
            )


if __name__ == "__main__":
    main()
