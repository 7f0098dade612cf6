"""Sound at the boundary: any audio in, as float32 clips, and files of it out."""

import io
from typing import Any

import numpy as np

from ._shared import number

SILENCE = 1e-4  # -80 dB of full scale


def to_clips(
    audio: Any, sample_rate: int, to_rate: int, channels: int, cancelling: bool = True
) -> np.ndarray:
    """Audio of any rate, channels and dtype as float32 (clip, channel, sample) at `to_rate` with `channels`.

    Parameters
    ----------
    audio : (sample,), (channel, sample) or (clip, channel, sample); integers are scaled by their full range
    sample_rate, to_rate : int, Hz; resampled with soxr
    channels : int; several are averaged into one, or one is copied
    cancelling : whether channels may cancel each other in that average, which leaves silence

    Raises
    ------
    ValueError  for empty, non-finite or complex audio, (sample, channel), and a rate outside 100 Hz to 1 MHz.
    """
    sample_rate = number("sample_rate (Hz)", sample_rate, 100, 1e6)
    x = np.asarray(audio.detach().cpu() if hasattr(audio, "detach") else audio)
    if not 1 <= x.ndim <= 3 or x.size == 0:
        raise ValueError(f"audio of shape {x.shape}; give (channel, sample) or (clip, channel, sample)")
    x = x.reshape((1,) * (3 - x.ndim) + x.shape)
    if x.shape[1] > 16 and x.shape[2] <= 16:
        raise ValueError(f"audio of shape {audio.shape} looks like (sample, channel); transpose it first")
    if x.dtype == np.uint8:
        x = (x.astype("float32") - 128) / 128
    elif x.dtype.kind == "i":
        x = x.astype("float32") / -float(np.iinfo(x.dtype).min)
    elif x.dtype.kind != "f":
        raise ValueError(f"audio of dtype {x.dtype}; give floats in [-1, 1] or integers")
    x = x.astype("float32")
    if not np.isfinite(x).all():
        raise ValueError("the audio holds NaN or infinite samples")
    if x.shape[1] != channels:
        mix = x.mean(axis=1, keepdims=True)
        gone = (abs(mix).max((1, 2)) < SILENCE) & (abs(x).max((1, 2)) >= SILENCE)
        if gone.any() and not cancelling:
            raise ValueError("the channels cancel each other: averaged, the clip is silent; give one of them")
        x = np.repeat(mix, channels, axis=1)
    if sample_rate != to_rate:
        import soxr

        x = np.stack([soxr.resample(clip.T, sample_rate, to_rate).T for clip in x])
    return np.ascontiguousarray(x, dtype="float32")


def encode_file(clip: np.ndarray, sample_rate: int, format: str = "wav") -> bytes:
    """One clip (channel, sample) as the bytes of a wav, flac, ogg or mp3 file, clipped at full scale."""
    import soundfile

    if not np.isfinite(clip).all():
        raise ValueError("the clip holds NaN or infinite samples")
    out, rate = io.BytesIO(), number("sample_rate (Hz)", sample_rate, 100, 1e6, whole=True)
    soundfile.write(out, np.clip(clip.T, -1, 1), rate, format=format.upper())
    return out.getvalue()
