"""What MusicGen small, medium and large cost here: weights of the true shape, drawn at random.

    python workshop/benchmarks/real_models.py --shape small [--device cpu] [--dtype float32] [--frames 8]

One row of a table, one shape a process, since memory is the process's highest. The language model, EnCodec at
32 kHz and T5-base's encoder have the shapes of Meta's checkpoints and none of their weights, so nothing is
downloaded, and what comes out is noise; time and memory don't depend on the values.

parameters   millions: language model, codec, text encoder
disk         GB of Meta's two files: the language model in float16, the codec in float32; T5 comes besides
memory       GB: highest resident memory of this process, libraries included, on CUDA highest of the device;
             reading a checkpoint, which holds the file too, isn't in it
to generate  s per second of music, one clip under guidance 3 (two rows): the time of 4 + `--frames` frames
             less that of 4, by frames, times 50; later frames look back further and take a little longer
to hear      s of one forward pass over 8 s (400 frames), every layer read and averaged (`activations.read`)

Other work on the machine spoils the times, and two threads wait for each other then: see README.md here.
"""

import argparse
import resource
import sys
import time

import torch
from collect_memory import ENCODEC
from generation_speed import SHAPES, conditioners, musicgen

from mechsteer.activations.read import read
from mechsteer.model.model import Model

SHORT, HEARD = 4, 400  # frames
T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}


class Words(conditioners.TextConditioner):
    """T5-base's encoder with random weights, kept out of the language model's; twelve tokens a prompt."""

    def __init__(self, dim: int, device: str):
        from transformers import T5Config, T5EncoderModel

        super().__init__(T5_BASE["d_model"], dim)
        with torch.device(device):
            self.__dict__["t5"] = T5EncoderModel(T5Config(**T5_BASE)).eval()

    def tokenize(self, texts):
        return torch.ones(len(texts), 12, dtype=torch.long, device=self.t5.device)

    @torch.no_grad()
    def forward(self, tokens):
        found = self.t5(tokens).last_hidden_state.to(self.output_proj.weight)
        return self.output_proj(found), torch.ones_like(tokens)


def built(name: str, device: str, dtype: str | None) -> tuple[Model, torch.nn.Module]:
    """A Model of a shape with random weights, and its text encoder."""
    shape = SHAPES[name]
    made = musicgen(shape, device, ENCODEC)
    words = Words(shape.dim, device)
    made.lm.condition_provider.conditioners["description"] = words.to(device)
    return Model(made, name, "random", device, dtype), words.t5


def timed(model: Model, call) -> float:
    """Seconds of a call, until the device has done its work too."""
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def memory(model: Model) -> float:
    """GB: the highest so far."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def row(name: str, device: str, dtype: str | None, frames: int) -> list[str]:
    """The cells of a shape's row."""
    torch.manual_seed(0)
    model, t5 = built(name, device, dtype)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.lm, model.codec, t5)]
    generate = lambda n: timed(model, lambda: model.generate("slow jazz", n / 50, progress=False))
    codes = torch.randint(0, model.lm.card, (1, model.n_codebooks, HEARD))
    generate(SHORT)  # warm up
    a_frame = (generate(SHORT + frames) - generate(SHORT)) / frames
    read(model, codes[..., :SHORT])
    hear = timed(model, lambda: read(model, codes))
    told = [name.removeprefix("musicgen-"), " + ".join(f"{n / 1e6:,.0f}" for n in sizes)]
    told += [f"{(2 * sizes[0] + 4 * sizes[1]) / 1e9:.1f}", str(model.dtype).removeprefix("torch.")]
    return told + [f"{memory(model):.1f}", f"{50 * a_frame:.2f}", f"{hear:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes = [name.removeprefix("musicgen-") for name in SHAPES if name != "tiny"]
    parser.add_argument("--shape", required=True, choices=shapes)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="of the language model; default: what `load` would choose")
    parser.add_argument("--frames", type=int, default=8, help="to time, beyond 4")
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    told = f"{where}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.frames} frames"
    print(
        f"{told}\n\n| shape | parameters, M | disk, GB | dtype | memory, GB | to generate, s | to hear, s |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    cells = row(f"musicgen-{options.shape}", options.device, options.dtype, options.frames)
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
