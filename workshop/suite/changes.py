"""Say of every figure whether the numbers behind it are the same as before, changed (by how much), or new."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["changes", "difference", "snapshot"]


def snapshot(folder: Path) -> dict[str, str]:
    """Name -> text of every figure's CSV in a folder, to be compared with what is there later."""
    files = sorted(Path(folder).glob("*.csv"))
    return {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in files}


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Name -> `new`, `same`, or how the numbers changed, for every figure of `after`."""
    return {name: difference(before[name], text) if name in before else "new" for name, text in after.items()}


def difference(before: str, after: str) -> str:
    """`same`, or what changed between two texts of one figure's CSV.

    The first line (provenance) counts only if the numbers are the same. Numeric columns are compared row by
    row: the column that moved most is named, with its largest absolute difference in the column's own unit.
    """
    if before == after:
        return "same"
    try:
        old, new = (pd.read_csv(io.StringIO(text), skiprows=1) for text in (before, after))
    except ValueError:  # one of them was cut off, or never was a table
        return "changed: what was there before, or is there now, can't be read"
    if list(old) != list(new):
        added, gone = [c for c in new if c not in old], [c for c in old if c not in new]
        said = [f"{way} {', '.join(names)}" for way, names in (("new", added), ("without", gone)) if names]
        return f"changed: columns {' and '.join(said) or 'in another order'}"
    if len(old) != len(new):
        return f"changed: {len(old)} rows became {len(new)}"
    moved = {}
    for column in old:
        if old[column].equals(new[column]):
            continue
        if not all(pd.api.types.is_numeric_dtype(table[column]) for table in (old, new)):
            return f"changed: the rows differ in {column}"
        gap = np.abs(new[column].astype(float) - old[column].astype(float))
        moved[column] = np.inf if (old[column].isna() != new[column].isna()).any() else float(gap.max())
    if not moved:
        return "same numbers, other provenance"
    column = max(moved, key=moved.get)
    return f"changed: {column} by at most {moved[column]:.3g}"
