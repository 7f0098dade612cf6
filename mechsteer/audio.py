"""Sound at the boundary: any audio in, and generated clips that can be heard, seen and saved.

Kept apart from the model so that saved clips can be shown without loading audiocraft.
"""

import base64
import dataclasses
import html
import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def to_clips(audio: Any, sample_rate: int, to_rate: int, channels: int) -> np.ndarray:
    """Audio of any rate, channels and dtype as float32 (clip, channel, sample) at `to_rate` with `channels`.

    Parameters
    ----------
    audio : array or tensor
        (sample,), (channel, sample) or (clip, channel, sample). Integers are scaled by their full range.
    sample_rate, to_rate : int
        Hz; resampled with soxr. Channels are averaged into one, or one is copied into several.

    Raises
    ------
    ValueError  for empty, non-finite or complex audio, more than three dims, or what looks like (sample, channel).
    """
    x = np.asarray(audio.detach().cpu() if hasattr(audio, "detach") else audio)
    if not 1 <= x.ndim <= 3 or x.size == 0 or sample_rate <= 0:
        raise ValueError(
            f"audio of shape {x.shape} at {sample_rate} Hz; give (channel, sample) or (clip, channel, sample)"
        )
    x = x.reshape((1,) * (3 - x.ndim) + x.shape)
    if x.shape[1] > 16 and x.shape[2] <= 16:
        raise ValueError(f"audio of shape {audio.shape} looks like (sample, channel); transpose it first")
    if x.dtype.kind in "iu":
        middle = 128.0 if x.dtype == np.uint8 else 0.0
        x = (x.astype("float32") - middle) / (128.0 if x.dtype == np.uint8 else -float(np.iinfo(x.dtype).min))
    elif x.dtype.kind != "f":
        raise ValueError(f"audio of dtype {x.dtype}; give floats in [-1, 1] or integers")
    x = x.astype("float32")
    if not np.isfinite(x).all():
        raise ValueError("the audio holds NaN or infinite samples")
    if x.shape[1] != channels:
        x = np.repeat(x.mean(axis=1, keepdims=True), channels, axis=1)
    if sample_rate != to_rate:
        import soxr

        x = np.stack([soxr.resample(clip.T, sample_rate, to_rate).T for clip in x])
    return np.ascontiguousarray(x, dtype="float32")


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """What `Model.generate` returns: one entry per row. Shows itself in Jupyter as players; iterate or index for clips.

    Attributes
    ----------
    audio : np.ndarray, float32 (clip, channel, sample), as the codec decodes it (not normalised)
    codes : torch.Tensor, int64 (clip, codebook, frame)
    sample_rate : int, Hz
    prompts, seeds, steering : list, one per clip
    model : str, name and weights' hash
    settings : dict, the other options of the call
    """

    audio: np.ndarray
    codes: Any
    sample_rate: int
    prompts: list[str | None]
    seeds: list[int]
    steering: list
    model: str = ""
    settings: dict = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, index: int | slice) -> "Generation":
        """The chosen clips, as a Generation."""
        rows = range(len(self))[index]
        rows = [rows] if isinstance(rows, int) else list(rows)
        pick = lambda values: [values[i] for i in rows]
        return dataclasses.replace(
            self,
            audio=self.audio[rows],
            codes=self.codes[rows],
            prompts=pick(self.prompts),
            seeds=pick(self.seeds),
            steering=pick(self.steering),
        )

    def __repr__(self) -> str:
        seconds = self.audio.shape[-1] / self.sample_rate
        return f"<Generation of {len(self)} clip{'s' * (len(self) != 1)}, {seconds:.1f} s, {self.model}>"

    def labels(self) -> list[str]:
        """One line per clip: prompt, seed and steering."""
        steering = [f", {s!r}" if s is not None else "" for s in self.steering]
        return [f"{p or 'no prompt'} (seed {n}){s}" for p, n, s in zip(self.prompts, self.seeds, steering, strict=True)]

    def save(self, path: str | Path, overwrite: bool = False) -> list[Path]:
        """Write the clips as wav, flac or mp3, by the suffix of `path`; without a suffix it is a folder of wav files.

        Several clips get numbers: `take.flac` becomes `take-00.flac`, `take-01.flac`, ... Returns the paths.

        Raises
        ------
        FileExistsError  if a file is there and `overwrite` is false; nothing is written then.
        """
        path = Path(path)
        stem, suffix, folder = (path.stem, path.suffix, path.parent) if path.suffix else ("clip", ".wav", path)
        names = (
            [f"{stem}{suffix}"]
            if len(self) == 1 and path.suffix
            else [f"{stem}-{i:02d}{suffix}" for i in range(len(self))]
        )
        paths = [folder / name for name in names]
        there = [str(p) for p in paths if p.exists()]
        if there and not overwrite:
            raise FileExistsError(f"{', '.join(there)} exists; pass overwrite=True to replace it")
        folder.mkdir(parents=True, exist_ok=True)
        for clip, target in zip(self.audio, paths, strict=True):
            target.write_bytes(encode_file(clip, self.sample_rate, suffix.lstrip(".").lower()))
        return paths

    def _repr_html_(self) -> str:
        return "\n".join(player(a, self.sample_rate, label) for a, label in zip(self.audio, self.labels(), strict=True))


def encode_file(clip: np.ndarray, sample_rate: int, format: str = "wav") -> bytes:
    """One clip (channel, sample) as the bytes of a wav, flac, ogg or mp3 file; what is beyond full scale is clipped."""
    import soundfile

    if format.upper() not in soundfile.available_formats():
        raise ValueError(f"can't write {format!r}; this libsndfile writes wav, flac, ogg and mp3 at most")
    out = io.BytesIO()
    soundfile.write(out, np.clip(clip.T, -1, 1), sample_rate, format=format.upper())
    return out.getvalue()


def player(
    clip: np.ndarray, sample_rate: int, label: str = "", format: str = "mp3", strips: Mapping[str, Any] | None = None
) -> str:
    """HTML of an audio player below a mel spectrogram; loudness as it is (never normalised), about 10 kB per second.

    A line moves along while it plays, and a click in the picture plays from there. `strips` adds pictures on the same
    time axis: caption -> values (row, time) over the whole clip, row 0 at the bottom; see `heat_png` for the colours.
    """
    import soundfile

    format = format if format.upper() in soundfile.available_formats() else "wav"
    sound = base64.b64encode(encode_file(clip, sample_rate, format)).decode()
    kind = {"mp3": "mpeg"}.get(format, format)
    pictures = [("mel spectrogram", mel_png(clip, sample_rate), 96, "auto")]
    pictures += [(name, heat_png(values), 96, "pixelated") for name, values in (strips or {}).items()]
    shown = "".join(
        (f'<div style="font-size:80%;opacity:.75;line-height:1.6">{html.escape(name)}</div>' if strips else "")
        + f'<img alt="{html.escape(name)}" style="display:block;width:100%;height:{high}px;image-rendering:{how}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png, high, how in pictures
    )
    seconds = clip.shape[-1] / sample_rate
    return (
        '<figure style="margin:0 0 1em 0;max-width:480px">'
        f'<figcaption style="font-size:90%">{html.escape(label)}</figcaption>'
        f'<div style="position:relative;overflow:hidden;cursor:pointer" onclick="{_SEEK % seconds}">{shown}'
        '<i style="position:absolute;top:0;bottom:0;left:-2px;width:2px;background:#56B4E9"></i></div>'
        f'<audio controls preload="none" style="width:100%" ontimeupdate="{_MOVE % seconds}" onplay="{_FOLLOW}"'
        f' src="data:audio/{kind};base64,{sound}"></audio></figure>'
    )


# Handlers inside the tags, since scripts don't run in a widget: where the line is, every frame while it plays, a click.
_MOVE = "this.previousElementSibling.lastElementChild.style.left=Math.min(100*this.currentTime/%g,100)+'%%'"
_FOLLOW = "const a=this;(function f(){a.ontimeupdate();a.paused||requestAnimationFrame(f)})()"
_SEEK = (
    "const a=this.nextElementSibling,b=this.getBoundingClientRect();"
    "a.currentTime=%g*(event.clientX-b.left)/b.width;a.play()"
)


_MAGMA = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], dtype="float32")


def mel_png(clip: np.ndarray, sample_rate: int, bands: int = 64, decibels: float = 70.0) -> bytes:
    """A PNG of the log-mel spectrogram of (channel, sample): low bands at the bottom, 0 dB is the clip's loudest."""
    import librosa

    mono = np.asarray(clip, dtype="float32").mean(axis=0)
    hop = max(256, mono.size // 480)
    mel = librosa.feature.melspectrogram(y=mono, sr=sample_rate, n_fft=1024, hop_length=hop, n_mels=bands)
    level = np.clip(librosa.power_to_db(mel, ref=max(float(mel.max()), 1e-10), top_db=decibels) / decibels + 1, 0, 1)
    return _png(_coloured(level, _MAGMA))


_BLUE_RED = np.array([[0, 68, 136], [103, 169, 207], [247, 247, 247], [239, 138, 98], [170, 30, 30]], dtype="float32")


def heat_png(values: Any) -> bytes:
    """A PNG of values (row, time), row 0 at the bottom; NaN is the lowest colour.

    Values of one sign run from dark (0) to bright, of both from blue over white (0) to red; the scale ends where 1 % of
    the magnitudes lie beyond it.
    """
    values = np.nan_to_num(np.asarray(values, dtype="float32"))
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a strip has dims (row, time), not {values.shape}")
    end = max(float(np.quantile(np.abs(values), 0.99)), 1e-12)
    both = values.min() < 0 < values.max()
    level = np.clip((values / end + 1) / 2 if both else np.abs(values) / end, 0, 1)
    return _png(_coloured(level, _BLUE_RED if both else _MAGMA))


def _coloured(level: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Colours (row, time, 3) of levels in [0, 1], row 0 at the bottom."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(level[::-1], at, channel) for channel in stops.T], axis=-1).round().astype("uint8")


def _png(rgb: np.ndarray) -> bytes:
    """An 8-bit RGB image (height, width, 3) as a PNG file."""
    height, width, _ = rgb.shape
    rows = np.concatenate([np.zeros((height, 1), "uint8"), rgb.reshape(height, -1)], axis=1)  # filter 0 on each row
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    )
