"""Sound at the boundary: any audio in, and generated clips that can be heard, seen and saved.

Kept apart from the model so that saved clips can be shown without loading audiocraft.
"""

import dataclasses
import io
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
    """What `Model.generate` returns: one entry per row. Shows itself in Jupyter as players; iterate or index
    for clips.

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
        return [
            f"{p or 'no prompt'} (seed {n}){s}"
            for p, n, s in zip(self.prompts, self.seeds, steering, strict=True)
        ]

    def save(self, path: str | Path, overwrite: bool = False) -> list[Path]:
        """Write the clips as wav, flac or mp3, by the suffix of `path`; without a suffix it is a folder of
        wav files.

        Several clips get numbers: `take.flac` becomes `take-00.flac`, `take-01.flac`, ... Returns the paths.

        Raises
        ------
        FileExistsError  if a file is there and `overwrite` is false; nothing is written then.
        """
        path = Path(path)
        stem, suffix, folder = (
            (path.stem, path.suffix, path.parent) if path.suffix else ("clip", ".wav", path)
        )
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
        from ..show.player import (
            player,
        )  # the one arrow that runs forward: a clip shows itself, when it is asked to

        return "\n".join(
            player(a, self.sample_rate, label) for a, label in zip(self.audio, self.labels(), strict=True)
        )


def encode_file(clip: np.ndarray, sample_rate: int, format: str = "wav") -> bytes:
    """One clip (channel, sample) as the bytes of a wav, flac, ogg or mp3 file; what is beyond full scale is clipped."""
    import soundfile

    if format.upper() not in soundfile.available_formats():
        raise ValueError(f"can't write {format!r}; this libsndfile writes wav, flac, ogg and mp3 at most")
    out = io.BytesIO()
    soundfile.write(out, np.clip(clip.T, -1, 1), sample_rate, format=format.upper())
    return out.getvalue()
