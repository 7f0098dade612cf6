"""The stand-in for xformers gives what the real one gives: logits of one fixed model, as a digest.

uv pip install --no-config --target build/xformers --no-deps xformers==0.0.35
python workshop/benchmarks/xformers_stand_in.py
PYTHONPATH=build/xformers python workshop/benchmarks/xformers_stand_in.py
"""

import hashlib
import sys

import torch
from generation_speed import Shape, musicgen

from mechsteer.model.model import Model


def main():
    torch.manual_seed(0)
    model = Model(musicgen(Shape(256, 6, 4, 1024), "cpu"), "random")
    made = model.generate(["slow jazz piano", None], 2.0, progress=False)
    with torch.no_grad():
        logits = model.lm.compute_predictions(made.codes, [], model.conditions(["rock", None], 2)).logits
    numbers = made.codes.numpy().tobytes() + logits.nan_to_num().numpy().tobytes()
    digest = hashlib.sha256(numbers).hexdigest()[:16]
    real = getattr(sys.modules["xformers"], "__file__", None)
    print(f"{'xformers ' + sys.modules['xformers'].__version__ if real else 'stand-in'}: {digest}")


if __name__ == "__main__":
    main()
