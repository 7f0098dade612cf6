"""Steered generation against audiocraft's own unsteered one: same weights, length and batch, side by side.

    python workshop/benchmarks/steering_speed.py [--shapes tiny musicgen-small] [--rounds 5] [--device cpu]
        [--dtype float32]

Weights are random (speed doesn't depend on them). Arms run in turn, several rounds, and the ratio is taken
within each round, so that whatever else the machine does falls on all arms alike. Times include encoding the
prompt and decoding.
"""

import argparse
import contextlib
import statistics
import time

import numpy as np
import torch

from mechsteer.model._audiocraft import (
    DelayedPatternProvider,
    LMModel,
    MusicGen,
    ResidualVectorQuantizer,
    builders,
    conditioners,
    transformer,
)
from mechsteer.model.model import Model
from mechsteer.model.steering import Steering

# dim, layers, heads, codes per book, frames, batch sizes
SHAPES = {
    "tiny": (256, 6, 4, 1024, 200, (1, 8, 32)),
    "musicgen-small": (1024, 24, 16, 2048, 16, (1,)),
    "musicgen-large": (2048, 48, 32, 2048, 50, (1, 4)),
}


class Words(conditioners.TextConditioner):
    """Twelve tokens of text per prompt, the length of a short caption."""

    def __init__(self, dim: int):
        super().__init__(64, dim)
        self.words = torch.nn.Embedding(256, 64)

    def tokenize(self, texts):
        rows = [[ord(c) % 256 for c in (text or "").ljust(12)[:12]] for text in texts]
        return torch.tensor(rows, device=self.words.weight.device)

    def forward(self, tokens):
        return self.output_proj(self.words(tokens)), torch.ones(tokens.shape, device=tokens.device)


def musicgen(
    dim: int, layers: int, heads: int, card: int, device: str, codec: dict | None = None
) -> MusicGen:
    """audiocraft's classes, MusicGen's settings, random weights; the codec is very small but for `codec`."""
    sizes = {"n_filters": 4, "n_residual_layers": 1, "dimension": 32, "ratios": [8, 5, 4, 4]} | (codec or {})
    modules = builders.audiocraft.modules
    quantizer = ResidualVectorQuantizer(dimension=sizes["dimension"], bins=card, n_q=4, kmeans_init=False)
    compression = builders.EncodecModel(
        modules.SEANetEncoder(**sizes),
        modules.SEANetDecoder(**sizes),
        quantizer,
        frame_rate=50,
        sample_rate=32000,
        channels=1,
    )
    fused = {"cross": ["description"], "prepend": [], "sum": [], "input_interpolate": []}
    with torch.device(device):
        lm = LMModel(
            DelayedPatternProvider(4),
            conditioners.ConditioningProvider({"description": Words(dim)}),
            conditioners.ConditionFuser(fused),
            n_q=4,
            card=card,
            dim=dim,
            num_heads=heads,
            num_layers=layers,
            hidden_scale=4,
            norm_first=True,
            causal=True,
            memory_efficient=True,
            cross_attention=True,
            activation="gelu",
            bias_ff=False,
            bias_attn=False,
            bias_proj=False,
        )
    return MusicGen("random", compression.eval(), lm.eval(), max_duration=30)


@contextlib.contextmanager
def audiocrafts_own(model: Model):
    """The language model as audiocraft ships it, without this package's attention and positions."""
    stack = model.lm.transformer
    attention = [part for layer in stack.layers for part in (layer.self_attn, layer.cross_attention)]
    ours = {module: module.__class__ for module in (stack, *attention)}
    stack.__class__ = transformer.StreamingTransformer
    for module in attention:
        module.__class__ = transformer.StreamingMultiheadAttention
    try:
        yield
    finally:
        for module, kind in ours.items():
            module.__class__ = kind


def arms(model: Model, batch: int, frames: int) -> dict:
    """Name to a function that generates `batch` clips of `frames` frames."""
    prompts, seconds = ["slow jazz piano"] * batch, frames / model.frame_rate
    vector = np.random.default_rng(0).normal(size=model.d_model)
    every_layer = Steering(vector, layers=range(model.n_layers), norm=1.0, strength=0.5)
    sweep = [0.1 * i * every_layer for i in range(batch)]

    def plain():
        model.musicgen.set_generation_params(duration=seconds)
        with audiocrafts_own(model):
            model.musicgen.generate(prompts)

    ours = lambda steering: model.generate(prompts, seconds, steering=steering, progress=False)
    return {
        "audiocraft": plain,
        "ours, unsteered": lambda: ours(None),
        "ours, all layers": lambda: ours(every_layer),
        "ours, a strength per row": lambda: ours(sweep),
    }


def timed(function, device: str, clock) -> float:
    start = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tiny", "musicgen-small"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="of the language model")
    parser.add_argument("--frames", type=int, help="instead of each shape's own")
    parser.add_argument("--batches", type=int, nargs="+", help="instead of each shape's own")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time: fairer on a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(
        f"{options.device}, {options.dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| shape | clips | arm | ms per step | of audiocraft's |\n|---|---|---|---|---|")
    for shape in options.shapes:
        dim, layers, heads, card, frames, batches = SHAPES[shape]
        frames = options.frames or frames
        torch.manual_seed(0)
        made = musicgen(dim, layers, heads, card, options.device)
        model = Model(made, shape, device=options.device, dtype=options.dtype)
        made.autocast.enabled = False  # weights are of one dtype here; `generate` doesn't use autocast either
        for batch in options.batches or batches:
            functions = arms(model, batch, frames)
            functions["audiocraft"]()  # warm up
            rounds = [
                {name: timed(f, options.device, clock) for name, f in functions.items()}
                for _ in range(options.rounds)
            ]
            for name in functions:
                ratio = statistics.median(r[name] / r["audiocraft"] for r in rounds)
                step = 1000 * min(r[name] for r in rounds) / (frames + 3)
                print(f"| {shape} | {batch} | {name} | {step:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
