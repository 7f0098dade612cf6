"""What `Model.generate` returns: clips that can be heard, seen and saved, also without loading audiocraft."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ..paths import replace
from ..sound import encode_file


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """What `Model.generate` returns, one entry per row; index it for clips. Jupyter shows it as players.

    Attributes
    ----------
    audio : np.ndarray, float32 (clip, channel, sample), as the codec decodes it (not normalised)
    codes : torch.Tensor, int64 (clip, codebook, frame)
    sample_rate : int, Hz
    prompts, seeds, steering : list, one per clip
    model : str, name and weights' hash
    settings : dict, the other options of the call
    ears : names of what `describe` asks about such music if nothing else is said (`Model.ears`)
    """

    audio: np.ndarray
    codes: Any
    sample_rate: int
    prompts: list[str | None]
    seeds: list[int]
    steering: list
    model: str = ""
    settings: dict = dataclasses.field(default_factory=dict)
    ears: tuple[str, ...] = ("cnn", "features")

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, index: int | slice) -> "Generation":
        """The chosen clips, as a Generation."""
        rows = np.atleast_1d(np.arange(len(self))[index]).tolist()
        lists = {name: [getattr(self, name)[i] for i in rows] for name in ("prompts", "seeds", "steering")}
        return dataclasses.replace(self, audio=self.audio[rows], codes=self.codes[rows], **lists)

    def __repr__(self) -> str:
        seconds = self.audio.shape[-1] / self.sample_rate
        return f"<Generation of {len(self)} clip{'s' * (len(self) != 1)}, {seconds:.1f} s, {self.model}>"

    def labels(self) -> list[str]:
        """One line per clip: prompt, seed and steering."""
        rows = zip(self.prompts, self.seeds, self.steering, strict=True)
        said = lambda steering: "" if steering is None else f", {steering!r}"
        return [f"{prompt or 'no prompt'} (seed {seed}){said(steering)}" for prompt, seed, steering in rows]

    def save(self, path: str | Path, overwrite: bool = False) -> list[Path]:
        """Write the clips as wav, flac or mp3, by the suffix of `path`; without one, a folder of wav files.

        Several clips get numbers: `take.flac` becomes `take-00.flac`, `take-01.flac`, ... Returns the paths.

        Raises FileExistsError if a file is there and `overwrite` is false; nothing is written then.
        """
        named = bool(Path(path).suffix)
        path = Path(path) if named else Path(path) / "clip.wav"
        paths = [path.with_stem(f"{path.stem}-{i:02d}") for i in range(len(self))]
        paths = [path] if named and len(self) == 1 else paths
        there = [str(p) for p in paths if p.exists()]
        if there and not overwrite:
            raise FileExistsError(f"{', '.join(there)} exists; pass overwrite=True to replace it")
        for clip, target in zip(self.audio, paths, strict=True):
            replace(target, encode_file(clip, self.sample_rate, path.suffix.lstrip(".").lower()))
        return paths

    def _repr_html_(self) -> str:
        from ..show.player import player  # the one arrow that runs forward: a clip shows itself when asked to

        shown = zip(self.audio, self.labels(), strict=True)
        return "\n".join(player(audio, self.sample_rate, label) for audio, label in shown)
