"""Load a MusicGen, look inside it, steer it.

Everything else talks to `Model`, which is the same for the embedded model and for Meta's checkpoints.
"""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from .. import _machine
from .._shared import OneAtATime, did_you_mean, number, spelled
from .._shared import progress as progress_bar
from ..errors import memory_told
from ..sound import to_clips
from . import _audiocraft, _checkpoints
from ._audiocraft import MusicGen, attributes
from ._calls import each, in_rows
from ._decoding import decode
from ._engine import Engine
from .effects import check, plan, steered
from .generation import Generation
from .sampling import Sampler
from .sites import SITES, Site, module_of
from .steering import Steering, Steerings, to_frames
from .stream import codec_reach, stream
from .tracing import trace, tracing_generation


@spelled
def load(
    name: str | Path = "tiny", device: str | None = None, dtype: torch.dtype | str | None = None
) -> "Model":
    """Load a MusicGen: the embedded model, one from the Hugging Face hub, or a folder of Meta's format.

    Parameters
    ----------
    name : `"tiny"`, a hub id such as `"facebook/musicgen-small"` (from the local cache when offline), or a
        folder with `state_dict.bin` and `compression_state_dict.bin`. Text models, mono or stereo.
    device : default CUDA, else Apple's MPS where it computes what the CPU computes (checked here), else CPU
    dtype : torch.dtype or str, optional
        Of the language model; the codec stays float32. Default: float32 below 100 M parameters and on MPS;
        above, float16 on CUDA, and on a CPU bfloat16 where the processor multiplies it natively, else
        float32.

    Raises
    ------
    MissingWeights  (a FileNotFoundError): what was looked for, where, and what to do.
    NoSuchDevice, TooLittleMemory  (a ValueError, a MemoryError) before anything is loaded.
    ValueError  for an unknown dtype, a file that is damaged or holds code (`weights_only=True`), a model that
        needs more than text, or other modules than audiocraft 1.3 has.
    """
    _machine.check_device(device)
    dtype = dtype and _machine.named_dtype(dtype)
    if str(name) == "tiny":
        from ..tiny import loading

        musicgen, weights = loading.load_embedded(), None
    else:
        musicgen, weights = _audiocraft.build(name)
    return Model(musicgen, Path(name).name if Path(name).is_dir() else str(name), weights, device, dtype)


class Model:
    """A MusicGen to look into and to steer; the same for the embedded model and Meta's. Made by `load`.

    Attributes
    ----------
    n_layers, d_model, n_heads, d_head, n_codebooks : int
    sample_rate : int, Hz; frame_rate : float, frames per second; max_duration : float, s
    window : float, s that a stream looks back at most: the length of the clips that a model was trained on
    resid, attn, heads, cross, mlp : Site
        Block output, self-attention output, input of its output projection split per head, cross-attention
        output, feed-forward output. Layers are 0-based.
    ears : names of what `measures.describe` asks about its music: ears trained for it, if it brings any
    name, hash : str; the hash names the weights, whatever dtype they are held in
    device : torch.device; dtype : torch.dtype, of the language model
    lm, codec, nn : audiocraft's LMModel and CompressionModel, and `NNsight(lm)`
    alone : held by every call that runs `lm`, a trace included, as two at once would share hooks and caches:
        another thread waits. What runs `lm` by itself should do `with model.alone("..."):`

    Notes
    -----
    Time: sequence step 0 holds the special token and codebook k of frame t stands at step t + 1 + delay[k];
    for MusicGen delay[k] = k. A value at step s has seen codebook 0 up to frame s - 1 and predicts frame s's.
    """

    def __init__(self, musicgen: MusicGen, name: str, hash: str | None = None, device="cpu", dtype="float32"):
        self.musicgen, self.name, self.alone = musicgen, name, OneAtATime()
        self.lm, self.codec = lm, codec = _audiocraft.adopt(musicgen.lm), musicgen.compression_model.eval()
        self.hash = hash or _checkpoints.weights_hash(lm.state_dict(), codec.state_dict())
        codec.requires_grad_(False)
        self.n_layers, self.d_model = len(lm.transformer.layers), lm.dim
        self.n_heads = lm.transformer.layers[0].self_attn.num_heads
        self.d_head = self.d_model // self.n_heads
        self.n_codebooks = lm.num_codebooks
        self.sample_rate, self.frame_rate = int(codec.sample_rate), float(codec.frame_rate)
        self.max_duration = float(musicgen.max_duration)
        self.window = float(getattr(musicgen, "window", self.max_duration))
        self.ears = getattr(musicgen, "ears", ("clap", "musicnn"))
        for site in SITES:
            setattr(self, site, Site(self, site))
        self.device = torch.device(device or _machine.pick_device(lm))
        self.dtype = _machine.named_dtype(dtype or _machine.pick_dtype(self.device.type, lm))
        _audiocraft.move(musicgen, self.device, self.dtype)
        _audiocraft.check_sites(lm, self.conditions(None, 1))
        self._engine = self._state = None
        if odd := _audiocraft.strange(lm):
            slow = f"{name} has {odd}: it generates in audiocraft's own loop, which is slower"
            warnings.warn(slow, stacklevel=3)

    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers, d_model {self.d_model}, {self.n_heads} heads"
        sound = f"{self.n_codebooks} codebooks at {self.frame_rate:g} Hz, {self.sample_rate} Hz audio"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<Model {self.name}: {sizes}; {sound}; {dtype} on {self.device}; {self.hash}>"

    @functools.cached_property
    def nn(self):
        """nnsight's wrapper of `lm`, made when first asked for."""
        return _audiocraft.wrapped(self.lm, self.alone)

    @property
    def engine(self) -> Engine | None:
        """What `generate` and `stream` run on; None for audiocraft's own loop, as with hooks on modules."""
        if _audiocraft.is_hooked(self.lm):
            return None
        if (state := _audiocraft.weights_state(self.lm)) != self._state:
            self._engine = None if _audiocraft.strange(self.lm) else Engine(self.lm)
            self._state = state
        return self._engine

    def __getattr__(self, name: str):
        hint = did_you_mean(name, [*vars(self), *vars(Model)], "dir(model) lists what it has")
        raise AttributeError(f"a Model has no {name!r}. {hint}")

    @functools.cached_property
    def codec_hash(self) -> str:
        """Names the weights that codes depend on: those of the codec without its decoder."""
        return _checkpoints.codec_hash(self.codec.state_dict())

    def module_of(self, site: str, layer: int) -> torch.nn.Module:
        """The PyTorch module of a site; `sites.SITES` says which of its values the site is."""
        return module_of(self.lm.transformer.layers, site, layer)

    def seconds_to_frames(self, seconds: float) -> int:
        return to_frames(seconds, self.frame_rate)

    def frames_of(self, duration: float, given: int = 0) -> int:
        """Frames of a generation of `duration` seconds; ValueError unless longer than the `given` frames."""
        n_frames = self.seconds_to_frames(number("duration", duration, 0, 1e6))
        if not given < n_frames <= self.seconds_to_frames(self.max_duration):
            raise ValueError(
                f"duration={duration:g} s is {n_frames} frames; it must be longer than the audio prompt "
                f"({given}) and at most {self.max_duration:g} s, the longest this model was made for"
            )
        return n_frames

    def valid_steps(self, n_frames: int) -> slice:
        """The steps of a trace to average over: t + 1 for every frame t, which has just seen its codebook 0.

        Leaves out step 0, the special token; a trace has no steps after the last frame.
        """
        return slice(1, n_frames + 1)

    @torch.no_grad()
    def conditions(self, prompts: str | None | Sequence[str | None], rows: int) -> dict:
        """audiocraft's condition tensors for `rows` clips; None is the unconditional one of guidance.

        A prompt that all share is encoded once. Raises ValueError for another number of prompts than clips.
        """
        provider = self.lm.condition_provider
        encode = lambda texts: provider(provider.tokenize(attributes(self.lm, texts)))
        if prompts is None or isinstance(prompts, str):
            shared = encode([prompts]).items()
            return {name: tuple(t.expand(rows, *t.shape[1:]) for t in pair) for name, pair in shared}
        return encode(each(prompts, rows, "prompts"))

    @torch.no_grad()
    def encode(self, audio, sample_rate: int, batch_size: int = 8) -> torch.Tensor:
        """Codes, int64 (clip, codebook, frame), of audio as `sound.to_clips` takes it.

        Raises ValueError for audio that isn't usable, or is shorter than one frame.
        """
        size = number("batch_size", batch_size, 1, whole=True)
        clips = to_clips(audio, sample_rate, self.sample_rate, self.codec.channels, cancelling=False)
        clips = torch.from_numpy(clips)
        if clips.shape[-1] * self.frame_rate < self.sample_rate:
            short = f"shorter than one frame of the model ({1 / self.frame_rate:g} s)"
            raise ValueError(f"{clips.shape[-1] / self.sample_rate:g} s of audio: {short}")
        device = next(self.codec.parameters()).device
        return torch.cat([self.codec.encode(part.to(device))[0].cpu() for part in clips.split(size)])

    @torch.no_grad()
    def decode(self, codes, batch_size: int = 8) -> np.ndarray:
        """Audio, float32 (clip, channel, sample) at `sample_rate`, of codes (clip, codebook, frame)."""
        parts = self._codes(codes).split(number("batch_size", batch_size, 1, whole=True))
        return torch.cat([_audiocraft.sound(self.codec, part).cpu() for part in parts]).numpy()

    def _codes(self, codes) -> torch.Tensor:
        codes = torch.as_tensor(codes)
        codes = codes[None] if codes.ndim == 2 else codes
        whole = codes.dtype != torch.bool and not (codes.is_floating_point() or codes.is_complex())
        if not whole or codes.ndim != 3 or codes.shape[1] != self.n_codebooks or not codes.numel():
            wanted = f"codes are integers (clip, {self.n_codebooks} codebooks, frame)"
            raise ValueError(f"{wanted}, not {codes.dtype} {tuple(codes.shape)}")
        codes = codes.long()
        if codes.min() < 0 or codes.max() >= self.lm.card:
            raise ValueError(f"codes lie in [0, {self.lm.card}), these in [{codes.min()}, {codes.max()}]")
        return codes.to(self.device).contiguous()

    def sequence(self, codes) -> torch.Tensor:
        """What a trace reads, int64 (clip, codebook, frame + 1): codes in the delay pattern.

        The logits at step s predict the sequence at step s + 1.
        """
        codes = self._codes(codes)
        pattern = self.lm.pattern_provider.get_pattern(codes.shape[-1])
        return pattern.build_pattern_sequence(codes, self.lm.special_token_id, keep_only_valid_steps=True)[0]

    @spelled
    @torch.no_grad()
    def nll(self, codes, prompts=None, steering=None, batch_size: int = 16) -> np.ndarray:
        """Teacher-forced negative log-likelihood of each clip: nats per token, over all valid positions.

        Without guidance: the rows count as the conditional half for `steering`, one for all or one per clip.
        """
        codes, size = self._codes(codes), number("batch_size", batch_size, 1, whole=True)
        prompts = each(prompts, len(codes), "prompts")
        rows = check(each(steering, len(codes), "steerings"), codes.shape[-1], self, ("cond",))
        found = []
        for at in range(0, len(codes), size):
            some = slice(at, at + size)
            planned = plan(rows[some], codes.shape[-1] + 1, self, ("cond",))
            with self.alone("nll"), steered(self.lm, planned):
                conditions = self.conditions(prompts[some], len(codes[some]))
                out = self.lm.compute_predictions(codes[some], [], conditions)
            loss = F.cross_entropy(out.logits.float().permute(0, 3, 1, 2), codes[some], reduction="none")
            loss = torch.where(out.mask, loss, 0.0)  # (clip, codebook, frame)
            found.append(loss.sum((1, 2)) / out.mask.sum((1, 2)))
        return torch.cat(found).cpu().numpy()

    @spelled
    def generate(
        self,
        prompts: str | None | Sequence[str | None] = None,
        duration: float = 8.0,
        seed: int | Sequence[int] = 0,
        steering: Steering | Steerings | None | Sequence[Steering | Steerings | None] = None,
        audio_prompt=None,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
        batch_size: int = 32,
        progress: bool = True,
    ) -> Generation:
        """Generate clips, steered or not.

        Parameters
        ----------
        prompts, seed, steering, audio_prompt
            One for all rows or one per row; the longest list gives the number of rows. A whole sweep is one
            call: `model.generate("jazz piano", steering=[None, 0.5 * s, s])`. Prompt None is unconditional.
        duration : float, s in all, audio prompt included; at most `max_duration`
        seed : int
            One int is the first row's and counts up over a list of *prompts*; a single prompt keeps one seed
            in all rows, which then differ by their steering only. Give a list to choose otherwise.
        steering : Steering or None
            The schedule runs on the clip's time, audio prompt included; one that starts after its end warns.
        audio_prompt : codes (clip, codebook, frame) or (audio, sample_rate), from which the clips go on
        guidance : float
            Classifier-free guidance. The unconditional half is computed at any guidance but 1, if there is a
            prompt or a steering that names a branch. At 1 a steering of `uncond` does nothing, and warns.
        temperature, top_k : of sampling; temperature 0 is greedy, top_k 0 keeps all tokens
        batch_size, progress : rows at a time (results don't depend on it), and whether to show a bar

        Raises
        ------
        ValueError  when the lists' lengths differ, a number is out of range, or a steering doesn't fit; or if
            what the model says next is NaN, as under far too strong a steering.
        UserWarning  for a steering that does nothing, or that was found on another model.

        Notes
        -----
        A row's tokens depend on its prompt, seed and steering, not on the other rows: every row has its own
        random numbers, and padding of shorter prompts is left out. What remains is rounding, which depends on
        the batch size: workshop/benchmarks/README.md says how rarely it flips a token.
        """
        size, top_k = number("batch_size", batch_size, 1, whole=True), number("top_k", top_k, 0, whole=True)
        guidance, temperature = number("guidance", guidance), number("temperature", temperature, 0)
        if isinstance(audio_prompt, tuple):
            audio_prompt = self.encode(*audio_prompt)
        audio_prompt = None if audio_prompt is None else self._codes(audio_prompt)
        prompts, seeds, rows, starts = in_rows(prompts, seed, steering, audio_prompt)
        given = 0 if audio_prompt is None else audio_prompt.shape[-1]
        n_frames = self.frames_of(duration, given)
        check(rows, n_frames, self, ("cond",) if guidance == 1 else ("cond", "uncond"))
        settings = dict(duration=duration, guidance=guidance, temperature=temperature, top_k=top_k)
        settings["prompt_frames"] = given
        pattern = self.lm.pattern_provider.get_pattern(n_frames)
        codes, batches = [], [slice(at, at + size) for at in range(0, len(rows), size)]
        todo = len(pattern.layout) - pattern.get_first_step_with_timesteps(given)
        with progress_bar(total=todo * len(batches), unit="step", show=progress) as bar:
            for some in batches:
                start = None if starts[0] is None else torch.stack(starts[some])
                sampler = Sampler(seeds[some], guidance, temperature, top_k)
                with memory_told("give a smaller batch_size or a shorter duration"), self.alone("generate"):
                    made = decode(self, prompts[some], rows[some], start, sampler, n_frames, bar.update)
                codes.append(made)
        codes, name = torch.cat(codes), f"{self.name} {self.hash}"
        facts = (prompts, seeds, rows, name, settings, self.ears)
        return Generation(self.decode(codes), codes, self.sample_rate, *facts)

    codec_reach = functools.cached_property(codec_reach)
    stream, trace, tracing_generation = stream, trace, tracing_generation
