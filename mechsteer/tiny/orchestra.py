"""The embedded model's music as it ships: clips as codes, their labels, notes and chords, and their sound."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

from .. import paths
from ..errors import AGAIN, reading
from .vocabulary import SECONDS


def table(kind: str = "orchestra") -> pd.DataFrame:
    """Every clip, as `ms.clips(kind)` gives it; there stands what its columns mean.

    Raises FileNotFoundError where the data are missing, or the package is installed without them; ValueError
    for codes and labels of two versions.
    """
    labels, path = _table(f"{kind}.parquet").rename(columns={"start": "first_beat"}), f"{kind}_codes.npz"
    with reading(path, AGAIN), np.load(_where(path), allow_pickle=False) as held:
        codes, codec = held["codes"], held.get("codec")
    if codec is None or len(codes) != len(labels):
        raise ValueError(f"{path} and {kind}.parquet are not of one version; fetch both again")
    own = {"clip": _names(labels), "codes": list(codes), "codec": str(codec), "start": 0.0}
    own |= {"duration": SECONDS, "group": [f"{score:05d}" for score in labels["score"]]}
    return pd.DataFrame(own).join(labels.drop(columns=["clip", "version"], errors="ignore"))


def notes() -> pd.DataFrame:
    """The music as it was written, one row per note: clip, onset and offset (s), pitch (MIDI), velocity, part
    (lead, chords, bass or drums)."""
    return _events("notes")


def chords() -> pd.DataFrame:
    """Every chord of every clip: clip, onset, offset (s), root (pitch class, 0 is C), quality (as `maj`)."""
    return _events("chords")


def codec_of(made_by: str | None):
    """The codec that decodes codes made by `made_by`: the embedded one or nobody's; None is taken for it.

    Raises ValueError for codes of another codec, naming both.
    """
    codec, own = _codec()
    if not pd.isna(made_by) and made_by != own:
        mend = "fetch data/tiny and orchestra_codes.npz of one version, or `python -m workshop.tiny.ship`"
        told = f"codes of codec {made_by} can be neither read nor decoded: the embedded codec is {own}"
        raise ValueError(f"{told}; {mend} both")
    return codec


def decode(codes, made_by: str | None = None) -> tuple[np.ndarray, int]:
    """Audio (channel, sample) of codes (codebook, frame), and its rate in Hz. Raises as `codec_of`."""
    import torch

    codec = codec_of(made_by)
    codes = torch.from_numpy(np.asarray(codes, dtype="int64"))
    with torch.no_grad():
        return codec.decode(codes[None])[0].numpy(), int(codec.sample_rate)


@functools.cache
def _codec():
    """The embedded model's codec, and the hash of what its codes depend on."""
    from ..model._checkpoints import codec_hash
    from .loading import load_codec

    codec = load_codec()
    return codec, codec_hash(codec.state_dict())


def _names(labels: pd.DataFrame) -> list[str]:
    """What the clips are called: score, lead and style, and what was changed; no two are alike."""
    names = labels["score"].map("{:05d}".format) + "-" + labels["lead"] + "-" + labels["style"]
    return list(names + "-" + labels["version"] if "version" in labels else names)


def _events(kind: str) -> pd.DataFrame:
    labels, events = (_table(f"orchestra{of}.parquet") for of in ("", f"_{kind}"))
    events["clip"] = events["clip"].map(dict(zip(labels["clip"], _names(labels), strict=True)))
    return events


def _table(name: str) -> pd.DataFrame:
    path = _where(name)
    with reading(path, AGAIN):
        return pd.read_parquet(path)


def _where(name: str):
    """The path of a shipped file; FileNotFoundError saying how to get it."""
    path = paths.data() / name
    if not path.is_file():
        mend = "clone the project's repository, which has it, or rebuild it with `make orchestra tiny`"
        raise FileNotFoundError(f"{path} is not there: {mend}")
    return path
