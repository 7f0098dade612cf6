"""The first judge of `hear`: a small network that reads lead, style, drums, tempo and key from spectra.

Three branches, each built for what it must hear:

- timbre: two-dimensional convolutions over the log-mel spectrogram;
- rhythm: autocorrelation and Fourier magnitude of learnt onset curves on one axis of log period, read by
  convolutions whose dilation is an octave, so that one filter sees a beat together with its halves and
  doubles, at any tempo;
- key: statistics of the note spectrum by pitch class, read by circular convolutions, so that all tonics
  share weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

HOP = 256 / 16_000  # s between frames of the log-mel spectrogram
OCTAVE = 24  # periods per octave on the rhythm axis
SLACK = 10  # positions beyond each end of the axis, used to train on shifted tempi
PERIODS = 0.15 * 2 ** (torch.arange(-SLACK, 100 + SLACK) / OCTAVE)  # s; the judge sees 100 from 0.15 to 2.6 s
BEATS = slice(26, 70)  # positions on the axis of 100 that can be the beat: 55 to 189 bpm
EMBEDDING = 96


def beat_bpm() -> torch.Tensor:
    """Tempo in bpm at each position that can be the beat."""
    return 60 / PERIODS[SLACK:-SLACK][BEATS]


class Rhythm(nn.Module):
    """Log-mel (clip, band, frame) to periodicity of `curves` onset curves, (clip, 2 * curves, period)."""

    def __init__(self, bands: int, curves: int = 8):
        super().__init__()
        self.mix = nn.Parameter(torch.eye(curves).repeat_interleave(bands // curves, 1) * curves / bands)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        onset = self.mix @ F.relu(mel[..., 2:] - mel[..., :-2])  # how far each band rose over two frames
        onset = onset - F.avg_pool1d(onset, 63, stride=1, padding=31, count_include_pad=False)
        onset = onset / onset.square().mean(-1, keepdim=True).add(1e-4).sqrt()
        frames = onset.shape[-1]
        lag = (PERIODS / HOP).clamp(max=frames - 2.0)
        spectrum = torch.fft.rfft(onset, n=2 * frames)
        correlation = torch.fft.irfft(spectrum.abs().square(), n=2 * frames)[..., :frames]
        correlation = correlation / (frames - torch.arange(frames)).clamp(min=frames / 4)
        whole = lag.long()
        near = torch.lerp(correlation[..., whole], correlation[..., whole + 1], lag - whole)
        angle = 2 * math.pi * torch.arange(frames)[:, None] / lag
        windowed = onset * torch.hann_window(frames)
        power = (windowed @ angle.cos()) ** 2 + (windowed @ angle.sin()) ** 2
        return torch.cat([near, torch.sqrt(power + 1e-6) / math.sqrt(frames)], dim=1)


class Key(nn.Module):
    """Note magnitudes (clip, note from A1, frame) to logits of key, (clip, 2 modes, 12 tonics from A)."""

    def __init__(self, hidden: int = 48):
        super().__init__()
        distance = torch.arange(60)[None] - torch.tensor([6.0, 18.0, 30.0, 42.0, 54.0])[:, None]
        self.register_buffer("registers", torch.exp(-0.5 * (distance / 6) ** 2), persistent=False)
        self.hidden = nn.Conv1d(5 * 2 + 6, hidden, 12)
        self.second = nn.Conv1d(hidden, hidden, 12)
        self.out = nn.Conv1d(hidden, 2, 1)

    def forward(self, notes: torch.Tensor) -> torch.Tensor:
        weighted = notes[:, None] * self.registers[None, :, :, None]  # clip, register, note, frame
        pitch = weighted.unflatten(2, (5, 12)).sum(2)  # clip, register, pitch class, frame
        pitch = pitch / pitch.mean((2, 3), keepdim=True).clamp(min=1e-4)
        whole = pitch.mean(1)
        whole = whole / whole.norm(dim=1, keepdim=True).clamp(min=1e-4)
        together = torch.stack([(whole * whole.roll(-step, 1)).mean(-1) for step in range(1, 7)], dim=1)
        x = torch.cat([pitch.mean(-1), pitch.std(-1), 12 * together], dim=1)
        turn = lambda x: torch.cat([x, x[..., :11]], -1)  # pitch classes come round
        x = F.gelu(self.hidden(turn(x)))
        x = F.gelu(self.second(turn(x)))
        return self.out(x)


class Network(nn.Module):
    """Log-mel and note spectra to logits; see the module's docstring.

    forward(mel, notes, shift=0) returns a dict of logits: lead (clip, 6), style (clip, 4), drums (clip, 2),
    beat (clip, 44 positions of `beat_bpm`), key (clip, 2 modes, 12 tonics from A), and `embedding` (clip,
    96). `shift` moves the axis of periods by that many positions, at most SLACK: the music seems slower by a
    factor 2 ** (shift / 24).
    """

    def __init__(self, leads: int = 6, styles: int = 4, bands: int = 64):
        super().__init__()
        steps = []
        for before, after in ((1, 16), (16, 32), (32, 48), (48, 64)):
            steps += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
            steps += [nn.BatchNorm2d(after), nn.ReLU()]
        self.timbre = nn.Sequential(*steps).to(memory_format=torch.channels_last)  # twice as fast on a CPU
        fold = nn.Conv1d(64 * bands // 16, 96, 1, bias=False)
        self.fold = nn.Sequential(fold, nn.BatchNorm1d(96), nn.ReLU())
        self.time = nn.Sequential(
            nn.Conv1d(96, 96, 5, padding=2, bias=False), nn.BatchNorm1d(96), nn.ReLU(),
            nn.Conv1d(96, 96, 5, padding=4, dilation=2, bias=False), nn.BatchNorm1d(96), nn.ReLU(),
        )  # fmt: skip
        self.rhythm = Rhythm(bands)
        self.periods = nn.Sequential(
            nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 48, 5, padding=2 * OCTAVE, dilation=OCTAVE), nn.BatchNorm1d(48), nn.ReLU(),
        )  # fmt: skip
        self.embed = nn.Linear(2 * 96 + 2 * 48, EMBEDDING)
        self.classes = nn.Linear(EMBEDDING, leads + styles + 2)
        self.sizes = (leads, styles, 2)
        self.context = nn.Linear(EMBEDDING, 48)
        self.beat = nn.Sequential(nn.Conv1d(48, 48, 5, padding=2), nn.ReLU(), nn.Conv1d(48, 1, 1))
        self.key = Key()

    def forward(self, mel: torch.Tensor, notes: torch.Tensor, shift: int = 0) -> dict[str, torch.Tensor]:
        x = (mel - mel.mean((1, 2), keepdim=True))[:, None] / 3
        x = self.fold(self.timbre(x.to(memory_format=torch.channels_last)).flatten(1, 2))
        x = x + self.time(x)
        first = SLACK - shift
        periods = self.periods(self.rhythm(mel)[..., first : first + len(PERIODS) - 2 * SLACK])
        pooled = [x.mean(-1), x.amax(-1), periods.mean(-1), periods.amax(-1)]
        embedding = F.relu(self.embed(torch.cat(pooled, dim=1)))
        lead, style, drums = self.classes(embedding).split(self.sizes, dim=1)
        beat = self.beat(F.relu(periods + self.context(embedding)[..., None]))[:, 0, BEATS]
        heads = {"lead": lead, "style": style, "drums": drums, "beat": beat, "key": self.key(notes)}
        return heads | {"embedding": embedding}
