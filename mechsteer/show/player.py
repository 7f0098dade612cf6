"""Sound that can be seen: a player under its mel spectrogram, as HTML."""

import base64
import html
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..measures._spectra import power_spectrum, slaney_filters
from ..sound import encode_file


def player(clip: np.ndarray, sample_rate: int, label: str = "", strips: Mapping | None = None) -> str:
    """HTML of an audio player below a mel spectrogram, about 10 kB per second; never normalised.

    A line moves along while it plays, and a click in the picture plays from there.

    Parameters
    ----------
    clip : (channel, sample)
    sample_rate : int, Hz
    strips : caption -> values (row, time) over the whole clip: pictures on the same time axis (`heat_png`).
    """
    import soundfile

    format, kind = ("mp3", "mpeg") if "MP3" in soundfile.available_formats() else ("wav", "wav")
    sound = base64.b64encode(encode_file(clip, sample_rate, format)).decode()
    pictures = [("mel spectrogram", mel_png(clip, sample_rate), "auto")]
    pictures += [(name, heat_png(values), "pixelated") for name, values in (strips or {}).items()]
    shown = ""
    for name, png, how in pictures:
        name, data = html.escape(name), base64.b64encode(png).decode()
        shown += f'<div style="font-size:80%;opacity:.75;line-height:1.6">{name}</div>' if strips else ""
        shown += f'<img alt="{name}" style="display:block;width:100%;height:96px;image-rendering:{how}"'
        shown += f' src="data:image/png;base64,{data}">'
    seconds = clip.shape[-1] / sample_rate
    return (
        '<figure style="margin:0 0 1em 0;max-width:480px">'
        f'<figcaption style="font-size:90%">{html.escape(label)}</figcaption>'
        f'<div style="position:relative;overflow:hidden;cursor:pointer" onclick="{_SEEK % seconds}">{shown}'
        '<i style="position:absolute;top:0;bottom:0;left:-2px;width:2px;background:#56B4E9"></i></div>'
        f'<audio controls preload="none" style="width:100%" ontimeupdate="{_MOVE % seconds}"'
        f' onplay="{_FOLLOW}" src="data:audio/{kind};base64,{sound}"></audio></figure>'
    )


# Handlers inside the tags, since scripts don't run in a widget: where the line is, while it plays, a click.
_MOVE = "this.previousElementSibling.lastElementChild.style.left=Math.min(100*this.currentTime/%g,100)+'%%'"
_FOLLOW = "const a=this;(function f(){a.ontimeupdate();a.paused||requestAnimationFrame(f)})()"
_SEEK = (
    "const a=this.nextElementSibling,b=this.getBoundingClientRect();"
    "a.currentTime=%g*(event.clientX-b.left)/b.width;a.play()"
)

# Red, green and blue from the lowest level to the highest.
_MAGMA = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]
_BLUE_RED = [[0, 68, 136], [103, 169, 207], [247, 247, 247], [239, 138, 98], [170, 30, 30]]


def mel_png(clip: np.ndarray, sample_rate: int, bands: int = 64, decibels: float = 70.0) -> bytes:
    """A PNG of the log-mel spectrogram of (channel, sample), low bands at the bottom; the loudest is 0 dB."""
    mono = np.asarray(clip, dtype="float32").mean(axis=0)
    power = power_spectrum(mono[None], 1024, max(256, mono.size // 480))[0].T
    mel = np.maximum(slaney_filters(1024, bands, sample_rate).T @ power, 1e-15)
    return _png(np.clip(10 * np.log10(mel / mel.max()) / decibels + 1, 0, 1), _MAGMA)


def heat_png(values: Any) -> bytes:
    """A PNG of values (row, time), row 0 at the bottom; NaN is the lowest colour.

    Values of one sign run from dark (0) to bright, of both from blue over white (0) to red; the scale ends
    where 1 % of the magnitudes lie beyond it.
    """
    values = np.nan_to_num(np.asarray(values, dtype="float32"))
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a strip has dims (row, time), not {values.shape}")
    end = max(float(np.quantile(np.abs(values), 0.99)), 1e-12)
    both = values.min() < 0 < values.max()
    level = np.clip((values / end + 1) / 2 if both else np.abs(values) / end, 0, 1)
    return _png(level, _BLUE_RED if both else _MAGMA)


def _png(level: np.ndarray, colours: list[list[int]]) -> bytes:
    """An 8-bit RGB picture as a PNG file, of levels in [0, 1] (row, time), row 0 at the bottom."""
    (height, width), at = level.shape, np.linspace(0, 1, len(colours))
    rgb = np.stack([np.interp(level[::-1], at, channel) for channel in zip(*colours, strict=True)], axis=-1)
    rows = rgb.round().astype("uint8").reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (1, 0)))  # each begins with its filter, 0 for none
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
