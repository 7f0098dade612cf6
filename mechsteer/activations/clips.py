"""Labelled clips as a DataFrame: the orchestra, a folder per class, or a manifest; and the audio of each row.

A row is one clip: `clip` (its name, unique), where its sound is (`path`, `start` and `duration` in seconds,
or `codes`), `group` (what must not be split between training and test), any labels, and `problem`: what is
wrong with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

KINDS = "wav flac mp3 ogg oga opus aif aiff au caf w64 m4a aac mp4 wma"
SUFFIXES = frozenset(f".{kind}" for kind in KINDS.split())
OWN = ("clip", "path", "codes", "codec", "start", "duration", "problem")
"""Columns that are not labels; `group` is kept beside the labels."""
SILENCE = 1e-4  # -80 dB of full scale
SHORT = 0.02  # s; a file that lacks more than this of what its header promises is truncated


def clips(source="orchestra", segment: float | None = None, label: str = "genre", group=None) -> pd.DataFrame:
    """Labelled clips from where they are, checked by their headers; no audio is decoded yet.

    Parameters
    ----------
    source : str, Path or DataFrame
        `"orchestra"`: the shipped clips of the embedded model, as codes. A folder: one folder of audio files
        per class (GTZAN's layout), its name the label; any depth below. A .csv or .parquet manifest, or a
        DataFrame: column `path` (relative to the manifest), optional `clip`, `group`, `start`, `duration`,
        everything else labels. wav, flac, mp3 and ogg of any rate and number of channels.
    segment : float, optional
        Seconds: cut files into consecutive clips of this length, which stay in one group. The rest at the end
        is kept if it is at least half as long. A file shorter than `segment` is one clip.
    label : str, name of the label of a folder per class
    group : str or function, optional
        Name of the column to group by, or a function from a path (as in `path`) to a group. Default: the
        column `group`, else every file is its own group.

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
    ValueError  for a source without audio files or without a column `path`, or a segment that isn't positive.

    Taught in 01_collect_activations.
    """
    if segment is not None and not segment > 0:
        raise ValueError(f"segment={segment} s; give a positive length, or None for whole files")
    if isinstance(source, str) and source == "orchestra":
        if segment or group:
            raise ValueError("the orchestra's clips are whole and grouped by score: no segment, no group")
        from ..tiny import orchestra

        return orchestra.table()
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
    table["problem"], table["seconds"] = zip(*(_header(root / path) for path in table["path"]), strict=True)
    table["path"] = [str(root / path) for path in table["path"]]
    return _cut(table, segment)


def _listed(source, label: str) -> tuple[pd.DataFrame, Path]:
    """The rows of a folder or manifest, and the folder their paths are relative to."""
    if isinstance(source, pd.DataFrame):
        table, root = source.copy(), Path()
    else:
        source = Path(source).expanduser()
        if not source.exists():
            raise FileNotFoundError(
                f"no folder or manifest {source}; give 'orchestra', a folder with one folder of audio per "
                "class, or a .csv or .parquet table with a column 'path'"
            )
        if source.is_dir():
            files = sorted(p.relative_to(source) for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
            files = [p for p in files if not any(part.startswith(".") for part in p.parts)]
            if not files:
                raise ValueError(f"{source} holds no audio file ({', '.join(sorted(SUFFIXES))})")
            labels = [p.parts[0] if len(p.parts) > 1 else "" for p in files]
            return pd.DataFrame({"path": [p.as_posix() for p in files], label: labels}), source
        read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(source.suffix.lower())
        if read is None:
            raise ValueError(f"{source} is neither a folder nor a .csv or .parquet table")
        table, root = read(source), source.parent
    if "path" not in table or table.empty:
        there = ", ".join(map(str, table)) or "nothing"
        raise ValueError(f"the manifest needs rows and a column 'path'; it has {there}")
    table["path"] = table["path"].astype(str)
    return table.reset_index(drop=True), root


def _header(path: Path) -> tuple[str, float]:
    """What a file's header says: (problem or "", seconds)."""
    import soundfile

    if not path.is_file():
        return "missing file", 0.0
    if path.stat().st_size == 0:
        return "empty file", 0.0
    try:
        info = soundfile.info(str(path), verbose=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return "not audio that libsndfile reads (wav, flac, ogg, mp3), or damaged", 0.0
    if any(line.startswith("data ") and "should be" in line for line in info.extra_info.splitlines()):
        return f"truncated: {info.duration:.2f} s are there, the header promises more", info.duration
    return ("" if info.frames > 0 else "no samples (empty or truncated)"), info.duration


def _cut(table: pd.DataFrame, segment: float | None) -> pd.DataFrame:
    """Rows of files as rows of clips: start, duration and a unique name each."""
    rows, seen = [], {}
    for row in table.to_dict("records"):
        seconds = row.pop("seconds")
        begin = 0.0 if pd.isna(row.get("start")) else float(row["start"])
        length = seconds - begin if pd.isna(row.get("duration")) else float(row["duration"])
        if not row["problem"] and not (begin >= 0 and 0 < length <= seconds - begin + SHORT):
            given = f"start {begin:g} s and duration {length:g} s"
            row["problem"] = f"{given} lie outside the file's {seconds:.2f} s"
        name, pieces = row["clip"], 1
        longer = segment is not None and not row["problem"] and length > segment
        if longer:
            pieces = int(length // segment)
            pieces += length - pieces * segment >= segment / 2
        for i in range(pieces):
            start = begin + i * segment if longer else begin
            own = min(segment, begin + length - start) if longer else length
            clip = f"{name}@{start:g}" if longer else name
            problem = row["problem"]
            if clip in seen:
                problem = problem or f"the name {clip!r} is taken by an earlier row"
                seen[clip] += 1
                clip = f"{clip} ({seen[clip]})"
            seen[clip] = 1
            rows.append({**row, "clip": clip, "start": start, "duration": own, "problem": problem})
    first = ["clip", "path", "start", "duration", "group"]
    out = pd.DataFrame(rows)
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

        return orchestra.decode(codes, row.get("codec"))
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
    """Read every clip in full and list those that can't be used: clip, path, problem. Nothing is changed."""
    found = []
    for row in table.to_dict("records"):
        problem = problem_of(row)
        if not problem and held_codes(row) is None:
            try:
                read_clip(row)
            except ValueError as error:
                problem = str(error)
        if problem:
            found.append({"clip": row["clip"], "path": row.get("path", ""), "problem": problem})
    return pd.DataFrame(found, columns=["clip", "path", "problem"])


def problem_of(row) -> str:
    """What is wrong with a row, or ""; also where a table put together from several has NaN."""
    problem = row.get("problem")
    return "" if pd.isna(problem) else problem


def held_codes(row):
    """A row's codes, or None; also where a table put together from clips with and without codes has NaN."""
    codes = row.get("codes")
    return None if np.ndim(codes) == 0 else codes


def own_codes(row, codec: str):
    """The codes of a row that the model whose `Model.codec_hash` is `codec` takes as they are.

    uint16 or int [codebook, frame]; None where audio must be encoded, ValueError where there is no way to it.
    Codes that don't say whose they are count as the model's own.
    """
    codes, made_by = held_codes(row), row.get("codec")
    if codes is None or pd.isna(made_by) or made_by == codec:
        return codes
    from ..tiny import orchestra

    orchestra.codec_of(made_by)
    return None
