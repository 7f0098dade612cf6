"""Labelled clips as a DataFrame: the orchestra, a folder per class, or a manifest; and the audio of each row.

A row is one clip: `clip` (its name, unique), where its sound is (`path`, `start` and `duration` in seconds,
or `codes`), `group` (what must not be split between training and test), any labels, and `problem`: what is
wrong with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .._shared import number, spelled
from ..sound import SILENCE
from ._rows import SHORT, header_of, held_codes, printable, problem_of, seconds_of, wrong_length

KINDS = "wav flac mp3 ogg oga opus aif aiff au caf w64 m4a aac mp4 wma"
SUFFIXES = frozenset(f".{kind}" for kind in KINDS.split())
OWN = ("clip", "path", "codes", "codec", "start", "duration", "problem")
"""Columns that are not labels; `group` is kept beside the labels."""


@spelled
def clips(source="orchestra", segment: float | None = None, label: str = "genre", group=None) -> pd.DataFrame:
    """Labelled clips from where they are, checked by their headers; no audio is decoded yet.

    Parameters
    ----------
    source : str, Path or DataFrame
        `"orchestra"`: the shipped clips of the embedded model, as codes; `"orchestra_versions"`: test scores
        as they are and with other drums, tempo, tonic or mode (for `pairs`). A folder: one folder of audio
        files per class (GTZAN's layout), its name the label; any depth below. A .csv or .parquet manifest, or
        a DataFrame: column `path` (relative to the manifest), optional `clip`, `group`, `start`, `duration`,
        everything else labels. wav, flac, mp3 and ogg of any rate and number of channels.
    segment : float, optional
        Seconds: cut longer files into consecutive clips of this length, which stay in one group. The rest at
        the end is kept if it is at least half as long.
    label : str, name of the label of a folder per class
    group : str or function, optional
        The column to group by, or a function from a path (as in `path`) to a group. Default: the column
        `group`, else every file is its own group.

    Returns
    -------
    pd.DataFrame with columns clip, path or codes, start, duration (s), group, the labels, and `problem` for
    files: "" or why the file can't be used. `collect` skips those rows and lists them. For the orchestra,
    codes are uint16 arrays [codebook, frame] and `codec` is the hash of the codec that made them; labels are
    score, split, paired, lead, style, tempo (bpm), tonic, mode, register, loudness, drums, first_beat (s),
    chords_program, bass_program, lead_program, caption; the group is the score.

    Raises
    ------
    FileNotFoundError  if the source isn't there.
    ValueError  for a source without audio files or without a column `path`, a table that can't be read, or
        that has a column `problem` of its own, or a segment that isn't positive.

    Taught in 01_collect_activations.
    """
    segment = segment if segment is None else number("segment (s, None for whole files)", segment, 1e-3)
    if isinstance(source, str) and source in ("orchestra", "orchestra_versions"):
        if segment or group:
            raise ValueError("the orchestra's clips are whole and grouped by score: no segment, no group")
        from ..tiny import orchestra

        return orchestra.table(source)
    table, root = _listed(source, label)
    if callable(group):
        table["group"] = [str(group(path)) for path in table["path"]]
    elif group is not None:
        if group not in table:
            raise ValueError(f"no column {group!r} to group by; there are {', '.join(map(str, table))}")
        table["group"] = table[group].astype(str)
    own = table.get("group", table["path"])
    table["group"] = own.where(own.notna(), table["path"])
    table["clip"] = table["clip"].astype(str) if "clip" in table else table["path"]
    headers = [header_of(root, path) for path in table["path"]]
    table["path"] = [str(root / path) if path else "" for path in table["path"]]
    return _cut(table, headers, segment)


def _listed(source, label: str) -> tuple[pd.DataFrame, Path]:
    """The rows of a folder or manifest, and the folder their paths are relative to."""
    if isinstance(source, pd.DataFrame):
        table, root = source.copy(), Path()
    else:
        source = Path(source).expanduser()
        if not source.exists():
            give = "'orchestra', a folder of audio per class, or a .csv or .parquet table with 'path'"
            raise FileNotFoundError(f"no folder or manifest {source}; give {give}")
        if source.is_dir():
            files = sorted(p.relative_to(source) for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
            files = [p for p in files if not any(part.startswith(".") for part in p.parts)]
            if not files:
                raise ValueError(f"{source} holds no audio file ({', '.join(sorted(SUFFIXES))})")
            labels = [printable(p.parts[0]) if len(p.parts) > 1 else "" for p in files]
            return pd.DataFrame({"path": [printable(p.as_posix()) for p in files], label: labels}), source
        read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(source.suffix.lower())
        if read is None:
            raise ValueError(f"{source} is neither a folder nor a .csv or .parquet table")
        try:
            table, root = read(source), source.parent
        except (ValueError, OSError) as error:  # damaged, empty, of another encoding
            encoding = isinstance(error, UnicodeDecodeError)
            why = "it isn't UTF-8; save it as UTF-8" if encoding else str(error).partition("\n")[0][:100]
            raise ValueError(f"{source} can't be read as a table: {why}") from error
    if "problem" in table and table["problem"].fillna("").astype(str).str.strip().any():
        raise ValueError("the table has a column 'problem', which ms.clips fills: rename or drop it")
    if "path" not in table or table.empty:
        raise ValueError(f"the manifest needs rows and a column 'path'; it has {', '.join(map(str, table))}")
    table["path"] = table["path"].fillna("").astype(str).str.strip()
    return table.reset_index(drop=True), root


def _cut(table: pd.DataFrame, headers: list[tuple[str, float]], segment: float | None) -> pd.DataFrame:
    """Rows of files as rows of clips: start, duration, problem and a unique name each."""
    rows = []
    for i, (row, (problem, seconds)) in enumerate(zip(table.to_dict("records"), headers, strict=True)):
        row |= {"problem": problem, "clip": row["clip"] or f"row {i}"}
        begin, length = seconds_of(row, "start", 0.0), seconds_of(row, "duration", np.nan)
        length = seconds - begin if np.isnan(length) else length
        if not row["problem"] and not (begin >= 0 and 0 < length <= seconds - begin + SHORT):
            given = f"start {begin:g} s and duration {length:g} s"
            row["problem"] = f"{given} lie outside the file's {seconds:.2f} s"
        if segment is None or row["problem"] or length <= segment:
            rows.append(row | {"start": begin, "duration": length})
            continue
        for start in begin + segment * np.arange(int(length / segment + 0.5)):  # half a segment is one, too
            part = {"start": start, "duration": min(segment, begin + length - start)}
            rows.append(row | part | {"clip": f"{row['clip']}@{start:g}"})
    out = pd.DataFrame(rows)
    again = out.groupby("clip").cumcount()  # how many earlier rows have the name
    taken = "the name " + out["clip"].map(repr) + " is taken by an earlier row"
    out["problem"] = out["problem"].mask((again > 0) & (out["problem"] == ""), taken)
    out["clip"] = out["clip"].mask(again > 0, out["clip"] + " (" + (again + 1).astype(str) + ")")
    first = ["clip", "path", "start", "duration", "group"]
    return out[[*first, *(c for c in out if c not in (*first, "problem")), "problem"]]


def read_clip(row) -> tuple[np.ndarray, int]:
    """The audio of one row of `clips`: float32 (channel, sample), and its rate in Hz.

    Codes are decoded by the embedded model's codec. Reads only the clip's part of a long file.

    Raises
    ------
    ValueError  saying what is wrong: damaged, truncated, silent, not finite; codes of an absent codec.
    """
    codes = held_codes(row)
    if codes is not None:
        from ..tiny import orchestra

        audio, rate = orchestra.decode(codes, row.get("codec"))
        if problem := wrong_length(row, audio.shape[1] / rate, 0.1):
            raise ValueError(problem)
        return audio, rate
    import soundfile

    try:
        with soundfile.SoundFile(row["path"]) as file:
            rate = file.samplerate
            file.seek(round(row["start"] * rate))
            audio = file.read(round(row["duration"] * rate), dtype="float32", always_2d=True).T
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"damaged: {getattr(error, 'error_string', error)}") from error
    if audio.shape[1] < (row["duration"] - SHORT) * rate:
        raise ValueError(f"truncated: {audio.shape[1] / rate:.2f} s of {row['duration']:.2f} s could be read")
    if not np.isfinite(audio).all():
        raise ValueError("holds NaN or infinite samples")
    if np.abs(audio).max(initial=0.0) < SILENCE:
        raise ValueError("silent")
    return audio, rate


def check(table: pd.DataFrame) -> pd.DataFrame:
    """Read every file in full and list the clips that can't be used: clip, path, problem."""

    def problem(row: dict) -> str:
        try:
            if not problem_of(row) and held_codes(row) is None:
                read_clip(row)
        except ValueError as error:
            return str(error)
        return problem_of(row)

    found = table.assign(problem=list(map(problem, table.to_dict("records"))))
    found = found.reindex(columns=["clip", "path", "problem"], fill_value="")
    return found[found["problem"] != ""].reset_index(drop=True)
