"""What the study keeps in data/study, and how runs side by side share it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from filelock import FileLock

from mechsteer import paths
from mechsteer.measures.judges.hear import JUDGES


def kept_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """What ships of every clip, rounded."""
    heard = [f"{ear}_{what}" for ear in JUDGES for what in ("lead", "style", "drums", "tempo")]
    heard += [c for c in ("musicnn_lead", "librosa_tempo") if c in frame]
    numbers = [c for c in frame if c.startswith("twin_")] + ["nll_unprompted", "far"]
    few = frame[["setting", "part", "name", "refit", "strength", "clip", "seed", *heard, *numbers]]
    bpm = [c for c in heard if c.endswith("tempo")]
    return few.round({**dict.fromkeys(numbers, 2), **dict.fromkeys(bpm, 1)}).astype(
        dict.fromkeys([*numbers, *bpm], "float32")
    )


def direction_file(setting: str, name: str, folder: Path | None = None) -> Path:
    """Where the study keeps a direction: one safetensors file per setting and name."""
    stem = f"{setting} by {name}".replace(",", "").replace(" ", "_")
    return (folder or paths.data() / "study") / "directions" / f"{stem}.safetensors"


def add(table: pd.DataFrame, path: Path) -> None:
    """Put a setting into a file of them, in place of an older run and of all that other weights gave.

    Two runs with other `--only` may go on side by side: one waits for the other here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (old := earlier(path)) is not None:
            same = old["model_hash"] == table["model_hash"].iloc[0]
            others = same & ~old["setting"].isin(table["setting"])
            table = pd.concat([old[others], table], ignore_index=True)
        with paths.replacing(path) as scratch:
            table.to_parquet(scratch, compression="zstd", compression_level=19, index=False)


def earlier(path: Path) -> pd.DataFrame | None:
    """What earlier runs left in a file; None without one. SystemExit if it is damaged: says what to do."""
    try:
        return pd.read_parquet(path) if path.exists() else None
    except Exception as error:  # pyarrow's are of every kind
        told = "is damaged: delete it, and `make study` makes it anew from the cells kept in data/runs/study"
        raise SystemExit(f"{path} {told}") from error
