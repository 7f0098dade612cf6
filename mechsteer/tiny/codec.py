"""The embedded model's codec: 16 kHz mono audio to 6 codebooks at 25 frames a second, and back.

An audiocraft `CompressionModel`, so that audiocraft's MusicGen takes it as it takes EnCodec. Its encoder is
log-magnitudes at three resolutions (a long window for pitch, short ones for attacks), ConvNeXt blocks and a
latent; then comes audiocraft's `ResidualVectorQuantizer`. Its decoder is ConvNeXt blocks (as in Vocos,
Siuzdak 2023) that set amplitudes and phase offsets of a bank of sinusoids at fixed frequencies, the
equal-tempered semitones and the places of their 5th, 7th and 11th harmonics, and the gains of noise bands (as
in DDSP, Engel et al. 2020). A pure tone is then a constant to predict, so that a small network keeps pitch.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..model._audiocraft import CompressionModel, QuantizedResult, ResidualVectorQuantizer

# (n_fft, hop, bands, lowest Hz, highest Hz) of the encoder's three views of the sound
VIEWS = ((4096, 640, 137, 40.0, 2100.0), (1024, 320, 80, 0.0, 8000.0), (256, 160, 24, 0.0, 8000.0))


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec. Rates in Hz; `hop` in samples per code frame."""

    sample_rate: int = 16_000
    hop: int = 640
    n_q: int = 6
    bins: int = 512
    latent: int = 64
    encoder_dim: int = 192
    decoder_dim: int = 256
    encoder_depth: int = 3
    decoder_depth: int = 3
    noise_bands: int = 40


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a perceptron per frame, added to the input [B, T, C]."""

    def __init__(self, dim: int, kernel: int, expansion: int = 3):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))


def triangles(centres: torch.Tensor, freqs: torch.Tensor, min_width: float) -> torch.Tensor:
    """Triangular filters [band, bin] at `centres`, as wide as their distance, at least `min_width` (Hz)."""
    width = torch.gradient(centres)[0].clamp(min=min_width)
    return (1 - (freqs[None] - centres[:, None]).abs() / width[:, None]).clamp(min=0)


def band_centres(bands: int, low: float, high: float) -> torch.Tensor:
    """Band centres in Hz: equal steps in pitch when `low` > 0, in mel otherwise."""
    if low > 0:
        return low * (high / low) ** torch.linspace(0, 1, bands)
    mel = 2595.0 * math.log10(1 + high / 700.0)
    return 700.0 * (10 ** (torch.linspace(0, mel, bands + 1)[1:] / 2595.0) - 1)


def oscillator_frequencies(sample_rate: int) -> torch.Tensor:
    """Hz of the decoder's sinusoids: every semitone from E1; from G#3 up also -31, -14 and +20 cents off."""
    semitones = torch.arange(28, 120, dtype=torch.float64)
    upper = semitones[semitones >= 56]
    notes = torch.cat([semitones, upper - 0.31, upper - 0.14, upper + 0.20]).sort().values
    freqs = 440.0 * 2 ** ((notes - 69) / 12)
    return freqs[freqs < 0.49 * sample_rate]


class Views(nn.Module):
    """Audio [B, 1, sample] to standardised log-magnitudes [B, frame, feature] of all resolutions."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.hop = config.hop
        for i, (n_fft, _, bands, low, high) in enumerate(VIEWS):
            freqs = torch.linspace(0, config.sample_rate / 2, n_fft // 2 + 1)
            filters = triangles(band_centres(bands, low, high), freqs, min_width=config.sample_rate / n_fft)
            self.register_buffer(f"filters_{i}", (filters / filters.sum(1, keepdim=True)).T, persistent=False)
            self.register_buffer(f"window_{i}", torch.hann_window(n_fft), persistent=False)
        self.size = sum(bands * (config.hop // hop) for _, hop, bands, _, _ in VIEWS)
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("std", torch.ones(self.size))

    def log_magnitudes(self, audio: torch.Tensor) -> torch.Tensor:
        B, _, T = audio.shape
        frames = math.ceil(T / self.hop)
        audio = F.pad(audio[:, 0], (0, frames * self.hop - T))
        views = []
        for i, (n_fft, hop, *_) in enumerate(VIEWS):
            filters, window = getattr(self, f"filters_{i}"), getattr(self, f"window_{i}")
            side = (n_fft - hop) // 2  # window i is centred on its hop
            windows = F.pad(audio, (side, side)).unfold(1, n_fft, hop) * window
            magnitude = torch.fft.rfft(windows).abs() / window.sum()
            views.append((magnitude @ filters).add(1e-5).log().reshape(B, frames, -1))
        return torch.cat(views, -1)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return (self.log_magnitudes(audio) - self.mean) / self.std


class Synth(nn.Module):
    """Sinusoids at fixed frequencies plus noise in bands. Controls at 100 Hz to a waveform."""

    WINDOW, HOP, NOISE_PERIOD = 640, 160, 401

    def __init__(self, config: CodecConfig):
        super().__init__()
        sr = config.sample_rate
        freqs = oscillator_frequencies(sr)
        self.n_osc, self.n_noise = len(freqs), config.noise_bands
        n = torch.arange(self.WINDOW, dtype=torch.float64) - self.WINDOW // 2
        angle = 2 * math.pi * freqs[:, None] * n[None] / sr
        length = self.NOISE_PERIOD * self.HOP + self.WINDOW
        noise = torch.randn(length, generator=torch.Generator().manual_seed(0))
        noise = noise.unfold(0, self.WINDOW, self.HOP)[: self.NOISE_PERIOD]
        bins = torch.linspace(0, sr / 2, self.WINDOW // 2 + 1)
        centres = band_centres(config.noise_bands, 0.0, sr / 2)
        buffers = {
            "turns": freqs * self.HOP / sr,  # cycles per control frame
            "cos": angle.cos().float(),
            "sin": angle.sin().float(),
            "noise": torch.fft.rfft(noise),
            "bands": triangles(centres, bins, min_width=sr / self.WINDOW),
            "hann": torch.hann_window(self.WINDOW),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, amplitude, phase, gain, first: int = 0):
        """Linear amplitude, phase (radians) [B, N, osc], linear gain [B, N, band] to audio [B, 1, 160 N].

        `first` is the control frame that they begin at: oscillators and noise run from the clip's start.
        """
        B, N, _ = amplitude.shape
        step = torch.arange(first, first + N, device=amplitude.device)
        turned = torch.remainder((step[:, None] + 0.5) * self.turns[None], 1.0).to(amplitude.dtype)
        angle = phase + turned * (2 * math.pi)
        frames = (amplitude * angle.cos()) @ self.cos - (amplitude * angle.sin()) @ self.sin
        noise = self.noise[step % self.NOISE_PERIOD] * (gain @ self.bands)
        frames = frames + torch.fft.irfft(noise, n=self.WINDOW)
        size = {"output_size": (1, (N - 1) * self.HOP + self.WINDOW), "kernel_size": (1, self.WINDOW)}
        fold = lambda x: F.fold(x.transpose(1, 2), **size, stride=(1, self.HOP))[:, 0, 0]
        audio = fold(frames * self.hann)
        weight = fold(self.hann.expand(1, N, -1)).clamp(min=0.5)
        edge = (self.WINDOW - self.HOP) // 2
        return (audio / weight)[:, None, edge : edge + N * self.HOP]


class Decoder(nn.Module):
    """Latents [B, latent, frame], quantised, to audio [B, 1, hop * frame]; `views` predicts the features."""

    def __init__(self, config: CodecConfig, n_features: int):
        super().__init__()
        dim, depth = config.decoder_dim, config.decoder_depth
        self.synth = Synth(config)
        self.input = nn.Linear(config.latent, dim)
        self.trunk = nn.Sequential(*[ConvNeXtBlock(dim, 5) for _ in range(depth)])
        self.views = nn.Linear(dim, n_features)
        self.upsample = nn.Linear(dim, 2 * dim)
        self.fine = nn.Sequential(*[ConvNeXtBlock(dim, 5) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.amplitude = nn.Linear(dim, 2 * self.synth.n_osc)
        self.phase = nn.Linear(dim, self.synth.n_osc)
        self.gain = nn.Linear(dim, 2 * self.synth.n_noise)
        nn.init.constant_(self.amplitude.bias, -6.0)
        nn.init.constant_(self.gain.bias, -6.0)
        nn.init.zeros_(self.phase.bias)

    def coarse(self, latent: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.input(latent.transpose(1, 2)))

    def forward(self, latent: torch.Tensor, first: int = 0) -> torch.Tensor:
        h = self.coarse(latent)
        B, T, C = h.shape
        h = self.norm(self.fine(self.upsample(h).reshape(B, 2 * T, C)))
        amplitude = self.amplitude(h).clamp(max=1.0).exp().reshape(B, 4 * T, -1)
        phase = self.phase(h).repeat_interleave(2, dim=1)
        gain = self.gain(h).clamp(max=2.0).exp().reshape(B, 4 * T, -1)
        return self.synth(amplitude, phase, gain, 4 * first)


class Codec(CompressionModel):
    """16 kHz mono, 25 frames a second, `n_q` codebooks of `bins` codes; see the module's docstring."""

    def __init__(self, config: CodecConfig | None = None):
        super().__init__()
        self.config = config = config or CodecConfig()
        self.features = Views(config)
        dim = config.encoder_dim
        self.encoder = nn.Sequential(
            nn.Linear(self.features.size, dim),
            *[ConvNeXtBlock(dim, 3) for _ in range(config.encoder_depth)],
            nn.LayerNorm(dim),
            nn.Linear(dim, config.latent),
        )
        sizes = {"dimension": config.latent, "n_q": config.n_q, "bins": config.bins}
        self.quantizer = ResidualVectorQuantizer(**sizes, threshold_ema_dead_code=0)
        self.decoder = Decoder(config, self.features.size)

    def latents(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, frame, feature] to latents [B, latent, frame], before quantising."""
        return self.encoder(features).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> QuantizedResult:
        quantized = self.quantizer(self.latents(self.features(x)), self.frame_rate)
        quantized.x = self.decoder(quantized.x)[..., : x.shape[-1]]
        return quantized

    def encode(self, x: torch.Tensor):
        """Audio [B, 1, sample] to (codes [B, n_q, frame], None)."""
        return self.quantizer.encode(self.latents(self.features(x))), None

    def decode(self, codes: torch.Tensor, scale=None, first: int = 0) -> torch.Tensor:
        """Codes [B, n_q, frame], the first of them frame `first` of a clip, to audio [B, 1, hop * frame]."""
        return self.decoder(self.decode_latent(codes), first)

    def decode_latent(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, n_q, frame] to quantised latents [B, latent, frame]."""
        return self.quantizer.decode(codes)

    def set_num_codebooks(self, n: int):
        self.quantizer.set_num_codebooks(n)

    channels = property(lambda self: 1)
    frame_rate = property(lambda self: self.config.sample_rate / self.config.hop)
    sample_rate = property(lambda self: self.config.sample_rate)
    cardinality = property(lambda self: self.config.bins)
    num_codebooks = property(lambda self: self.quantizer.num_codebooks)
    total_codebooks = property(lambda self: self.quantizer.total_codebooks)
