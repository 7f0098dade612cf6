"""How fast `generate` is: beside audiocraft's own loop, transformers' and the machine's limit, in one run.

    python workshop/benchmarks/generation_speed.py [--shapes tiny musicgen-small] [--batches 1 32]
        [--frames 50] [--rounds 3] [--device cpu] [--dtype float32] [--cpu-time]
        [--arms audiocraft "ours, unsteered"]

Arms, all under guidance 3 where they generate, which makes two rows of every clip:

audiocraft                its own loop, attention and sampling, unsteered
transformers              its `MusicgenForConditionalGeneration` of the same shape, unsteered
ours, unsteered           `Model.generate`
ours, all layers          the same with one steering at every layer
ours, a strength per row  the same as a sweep: each clip at a strength of its own
torch linear              a step's matrix products of the language model by PyTorch's `linear`: no more
reading the weights       a step's limit: as many bytes as those matrices have, read once (cached if they fit)

Weights are random (speed doesn't depend on them). Arms run in turn, several rounds, and ratios are taken
within each round (their median), so that whatever else the machine does falls on all arms alike; ms per step
are the fastest round's. "Of the limit" is the limit's time as a share of the arm's. The first five are timed
whole, encoding of the prompt (twelve tokens of width 64) and decoding of the audio included; text encoders
and codecs are very small, transformers' too, which has a layer of T5 and one of an LSTM that audiocraft's
arms don't have. transformers has only sinusoidal positions; "tiny" has rotary ones as well elsewhere.

With other work on the machine, threads wait for each other: set OMP_NUM_THREADS=1 and --cpu-time.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

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

RATIOS = [8, 5, 4, 4]  # of the codecs: 50 frames a second at 32 kHz
LIMIT = "reading the weights"
ARMS = (
    "audiocraft",
    "transformers",
    "ours, unsteered",
    "ours, all layers",
    "ours, a strength per row",
    "torch linear",
    LIMIT,
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model, `card` codes a codebook; and what is timed unless options say otherwise."""

    dim: int
    layers: int
    heads: int
    card: int
    codebooks: int = 4
    positions: str = "sin"
    frames: int = 50
    batches: tuple[int, ...] = (1,)


SHAPES = {
    "tiny": Shape(256, 6, 4, 512, 6, "sin_rope", frames=200, batches=(1, 8, 32)),
    "musicgen-small": Shape(1024, 24, 16, 2048),
    "musicgen-medium": Shape(1536, 48, 24, 2048),
    "musicgen-large": Shape(2048, 48, 32, 2048),
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


def musicgen(shape: Shape, device: str, codec: dict | None = None) -> MusicGen:
    """audiocraft's classes, MusicGen's settings, random weights; the codec is very small but for `codec`."""
    sizes = {"n_filters": 4, "n_residual_layers": 1, "dimension": 32, "ratios": RATIOS} | (codec or {})
    modules = builders.audiocraft.modules
    quantizer = ResidualVectorQuantizer(
        dimension=sizes["dimension"], bins=shape.card, n_q=shape.codebooks, kmeans_init=False
    )
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
            DelayedPatternProvider(shape.codebooks),
            conditioners.ConditioningProvider({"description": Words(shape.dim)}),
            conditioners.ConditionFuser(fused),
            n_q=shape.codebooks,
            card=shape.card,
            dim=shape.dim,
            num_heads=shape.heads,
            num_layers=shape.layers,
            hidden_scale=4,
            norm_first=True,
            causal=True,
            memory_efficient=True,
            cross_attention=True,
            activation="gelu",
            bias_ff=False,
            bias_attn=False,
            bias_proj=False,
            positional_embedding=shape.positions,
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


def in_transformers(shape: Shape, device: str, dtype: torch.dtype):
    """transformers' MusicGen of a shape, random weights, with a very small T5 and codec."""
    import transformers  # takes seconds, and other benchmarks import this file

    transformers.logging.set_verbosity_error()  # it warns of MusicGen's own padding token
    decoder = {"vocab_size": shape.card, "num_codebooks": shape.codebooks, "hidden_size": shape.dim}
    decoder |= {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    decoder |= {"ffn_dim": 4 * shape.dim, "pad_token_id": shape.card, "bos_token_id": shape.card}
    text = transformers.T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    bits = (shape.codebooks + 0.5) * (shape.card - 1).bit_length()  # a frame, from which it counts codebooks
    codec = transformers.EncodecConfig(
        target_bandwidths=[50 * bits / 1000],
        sampling_rate=32000,
        hidden_size=32,
        num_filters=4,
        num_lstm_layers=1,
        upsampling_ratios=RATIOS,
        codebook_size=shape.card,
    )
    parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder}
    with torch.device(device):
        made = transformers.MusicgenForConditionalGeneration(transformers.MusicgenConfig(**parts))
    made.to(dtype).eval().audio_encoder.float()
    made.generation_config.update(decoder_start_token_id=shape.card, pad_token_id=shape.card)
    made.generation_config.update(do_sample=True, top_k=250, guidance_scale=3.0)
    return made


def matrices(lm: LMModel) -> list[torch.Tensor]:
    """The weights that every step multiplies by: those of the text's keys and values aren't among them."""
    found = []
    for layer in lm.transformer.layers:
        mine, cross = layer.self_attn, layer.cross_attention
        found += [mine.in_proj_weight, mine.out_proj.weight]
        found += [cross.in_proj_weight[: lm.dim], cross.out_proj.weight]
        found += [layer.linear1.weight, layer.linear2.weight]
    return found + [linear.weight for linear in lm.linears]


def products(model: Model, rows: int) -> Callable[[], None]:
    """One step's matrix products."""
    weights = matrices(model.lm)
    widths = {weight.shape[1] for weight in weights}
    inputs = {n: torch.randn(rows, n, device=model.device, dtype=model.dtype) for n in widths}

    def step():
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return step


def reading(model: Model) -> Callable[[], None]:
    """One step's bytes, read: a sum on a CPU; elsewhere a copy of half as many, which reads and writes."""
    size = sum(weight.nbytes for weight in matrices(model.lm))
    times = -(-size // 2**30)  # over 1 GB or less, which no cache holds
    if model.device.type == "cpu":
        values = torch.ones(size // times // 8, dtype=torch.float64)  # summed the fastest
        once = values.sum
    else:
        here, there = torch.ones(2, size // times // 8, device=model.device)
        once = lambda: there.copy_(here)

    def step():
        for _ in range(times):
            once()

    return step


def arms(model: Model, shape: Shape, other, batch: int) -> dict[str, Callable[[int], None]]:
    """Name to a function that generates `batch` clips of so many frames, or works as many steps."""
    prompts = ["slow jazz piano"] * batch
    vector = np.random.default_rng(0).normal(size=model.d_model)
    every_layer = Steering(vector, layers=range(model.n_layers), norm=1.0, strength=0.5)
    sweep = [0.1 * i * every_layer for i in range(batch)]
    tokens = torch.randint(1, 256, (batch, 12), device=model.device)

    def audiocraft(frames: int):
        model.musicgen.set_generation_params(duration=frames / model.frame_rate)
        with audiocrafts_own(model):
            model.musicgen.generate(prompts)

    def transformers(frames: int):
        other.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=frames + shape.codebooks - 1,
        )

    def ours(steering):
        return lambda frames: model.generate(
            prompts, frames / model.frame_rate, steering=steering, batch_size=batch, progress=False
        )

    def repeated(step):
        def run(frames: int):
            for _ in range(frames + shape.codebooks - 1):
                step()

        return run

    functions = audiocraft, transformers, ours(None), ours(every_layer), ours(sweep)
    functions += repeated(products(model, 2 * batch)), repeated(reading(model))
    return dict(zip(ARMS, functions, strict=True))


def timed(function: Callable[[int], None], frames: int, device: str, clock) -> float:
    """Seconds of one run, until the device has done its work too."""
    wait = lambda: torch.cuda.synchronize(device) if device.startswith("cuda") else None
    wait()
    start = clock()
    function(frames)
    wait()
    return clock() - start


def measured(shape: Shape, name: str, options) -> None:
    """The rows of one shape's table, printed as they come."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    frames, other = options.frames or shape.frames, None
    torch.manual_seed(0)
    made = musicgen(shape, options.device)
    model = Model(made, name, "random", device=options.device, dtype=options.dtype)
    made.autocast.enabled = False  # weights are of one dtype here; `generate` doesn't use autocast either
    if "transformers" in options.arms:
        other = in_transformers(shape, options.device, model.dtype)
    for batch in options.batches or shape.batches:
        functions = arms(model, shape, other, batch)
        functions = {arm: function for arm, function in functions.items() if arm in options.arms}
        for function in functions.values():
            timed(function, min(frames, 10), options.device, clock)  # warm up
        rounds = [
            {arm: timed(function, frames, options.device, clock) for arm, function in functions.items()}
            for _ in range(options.rounds)
        ]
        for arm in functions:
            step = 1000 * min(times[arm] for times in rounds) / (frames + shape.codebooks - 1)
            told = f"| {name} | {batch} | {arm} | {step:.2f} |"
            told += f" {ratio(rounds, arm, 'audiocraft')} | {ratio(rounds, LIMIT, arm)} |"
            print(told, flush=True)


def ratio(rounds: list[dict], arm: str, other: str) -> str:
    """The median of one arm's time by another's; "-" if either wasn't chosen."""
    if not {arm, other} <= set(rounds[0]):
        return "-"
    return f"{statistics.median(times[arm] / times[other] for times in rounds):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tiny", "musicgen-small"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="of the language model")
    parser.add_argument("--frames", type=int, help="instead of each shape's own")
    parser.add_argument("--batches", type=int, nargs="+", help="instead of each shape's own")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, metavar="ARM", help="default: all")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time: fairer on a busy machine"
    )
    options = parser.parse_args()
    where = options.device
    if where.startswith("cuda"):
        where = torch.cuda.get_device_name(where)
    print(f"{where}, {options.dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| shape | clips | arm | ms per step | of audiocraft's | of the limit |\n|---|---|---|---|---|---|")
    for name in options.shapes:
        measured(SHAPES[name], name, options)


if __name__ == "__main__":
    main()
