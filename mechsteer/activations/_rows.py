"""What one row of clips says and what is wrong with it, a sentence each: files, seconds, codes."""

from pathlib import Path

import numpy as np
import pandas as pd

from .._shared import number

SHORT = 0.02  # s; a file that lacks more than this of what its header promises is truncated


def printable(name: str) -> str:
    """A file's name as text that can be stored: bytes that aren't UTF-8 as escapes, like "\\udce9"."""
    return name.encode(errors="backslashreplace").decode()


def header_of(root: Path, name: str) -> tuple[str, float]:
    """What a file's header says: (problem or "", seconds)."""
    import soundfile

    path = root / name
    if not name:
        return "no path in this row", 0.0
    if not path.is_file():
        return "missing file" if "\\udc" not in name else "a name that isn't UTF-8: rename the file", 0.0
    try:
        info = soundfile.info(str(path), verbose=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return "not audio that libsndfile reads (wav, flac, ogg, mp3), or empty or damaged", 0.0
    if any(line.startswith("data ") and "should be" in line for line in info.extra_info.splitlines()):
        return f"truncated: {info.duration:.2f} s are there, the header promises more", info.duration
    return ("" if info.frames > 0 else "no samples (empty or truncated)"), info.duration


def seconds_of(row: dict, name: str, blank: float) -> float:
    """A row's number of seconds, `blank` if it gives none; notes in the row what isn't a number."""
    value = row.get(name)
    try:
        return blank if pd.isna(value) or value == "" else float(value)
    except (TypeError, ValueError):
        row["problem"] = row["problem"] or f"{name} {value!r:.40} isn't a number (of seconds)"
        return blank


def unusable(row, model) -> str:
    """What keeps `model` from taking a row of clips, or "": its length, or codes that aren't its codec's."""
    codes, most = own_codes(row, model.codec_hash), model.max_duration
    if codes is None:
        try:
            number("start (s)", row.get("start"), 0)
            seconds = number("duration (s)", row.get("duration"), 1e-9)
        except ValueError as error:
            return str(error)
    else:
        codes = np.asarray(codes)
        fits = codes.ndim == 2 and len(codes) == model.n_codebooks and codes.size and codes.dtype.kind in "iu"
        if not (fits and codes.min() >= 0 and codes.max() < model.lm.card):
            return f"codes {codes.dtype} {codes.shape} are not of this model's codec"
        seconds = codes.shape[1] / model.frame_rate
        if problem := wrong_length(row, seconds, 1 / model.frame_rate):
            return problem
    cut = f"longer than the {most:g} s this model was made for: ms.clips(..., segment={most:g}) cuts it"
    return f"lasts {seconds:.1f} s, {cut}" if seconds > most + SHORT else ""


def wrong_length(row, seconds: float, slack: float) -> str:
    """What to say of codes that last longer or shorter than a row's `duration`, or ""."""
    said = pd.to_numeric(row.get("duration"), errors="coerce")
    if pd.isna(said) or np.isclose(said, seconds, rtol=0, atol=slack + 1e-6):
        return ""
    return f"{seconds:.2f} s of codes, where duration says {said} s"


def problem_of(row) -> str:
    """What is wrong with a row, or ""; also where a table put together from several has NaN."""
    problem = row.get("problem")
    return "" if pd.isna(problem) else problem


def held_codes(row):
    """A row's codes, or None; also where a table put together from clips with and without codes has NaN."""
    codes = row.get("codes")
    return None if np.ndim(codes) == 0 else codes


def own_codes(row, codec: str):
    """Codes [codebook, frame] that the model whose `Model.codec_hash` is `codec` takes as they are.

    None where audio must be encoded, ValueError where there is no way to it. Codes that don't say whose they
    are count as the model's own.
    """
    codes, made_by = held_codes(row), row.get("codec")
    if codes is None or pd.isna(made_by) or made_by == codec:
        return codes
    from ..tiny import orchestra

    orchestra.codec_of(made_by)
    return None
