"""Draw the stored figures again, in the present style, without a model: `python -m workshop.suite.redraw`.

A figure is stored as its numbers (csv), as Plotly's JSON, as a page (html) and a picture (png); page and
picture are written anew from the JSON. Said of each: whether its numbers are those of the last commit, if it
was drawn from these very numbers, if they belong to the present weights, and which of its files are missing
or can't be read, of every figure that is there, or was in the last commit. Where one doesn't hold, the line
names the command that computes it anew. The pictures that explain (`diagrams`) are drawn from code alone.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from mechsteer import paths
from mechsteer.show import plots, saving

from . import changes, diagrams

__all__ = [
    "committed",
    "figure_changed",
    "look",
    "main",
    "names_in",
    "numbers",
    "redraw",
    "unusable",
    "weights_changed",
]


def redraw(name: str, folder: Path) -> str:
    """Write page and picture of one figure anew; says if the picture is `same`, `redrawn` or `not written`.

    Raises
    ------
    ValueError  when there is nothing to draw from; names the notebook whose run writes it.
    """
    png, stored = folder / f"{name}.png", saving.stored_figure(name, folder)
    before = png.read_bytes() if png.is_file() else None
    fig = go.Figure(stored).update_layout(template="mechsteer")
    # compared as objects: the order of keys is nobody's business
    restyled = json.loads(fig.to_json()) != json.loads(stored.to_json())
    if not restyled and not _plain(html := folder / f"{name}.html"):
        saving.write_page(fig, html)
    return _told(png, before, saving.write_picture(fig, name, folder, page=restyled))


def _plain(html: Path) -> bool:
    """Whether a page is there to its end, with the script it shares and the present toolbar."""
    if not html.is_file() or not html.with_name("plotly.min.js").is_file():
        return False
    text = html.read_text(encoding="utf-8", errors="replace")
    toolbar = (f'"{key}": {json.dumps(value)}' for key, value in plots.CONFIG.items() if value != "")
    return text.rstrip().endswith("</html>") and all(part in text for part in toolbar)


def _told(png: Path, before: bytes | None, written: list[Path]) -> str:
    if png not in written:
        return "not written"
    return "same" if png.read_bytes() == before else "redrawn"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; None if it says no, or isn't there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def committed(name: str, folder: Path) -> str | None:
    """A figure's csv as of the last commit; None if it is not in there, or there is no git."""
    return _git(folder, "show", f"HEAD:./{name}.csv")


def names_in(folder: Path) -> list[str]:
    """Every figure that the folder holds a part of, or held in the last commit."""
    files = {path.name for path in folder.iterdir() if path.is_file()}
    files |= set((_git(folder, "ls-tree", "--name-only", "HEAD", "./") or "").split())
    parts = [re.fullmatch(r"([a-z0-9_]+)\.(csv|json|html|png)", file) for file in files]
    return sorted({part[1] for part in parts if part and (part[2] != "png" or re.match(r"\d\d_", part[1]))})


def unusable(name: str, folder: Path) -> dict[str, str]:
    """Which of a figure's csv and JSON are missing or can't be read: {"csv": "missing: 03_heads.csv"}."""
    said = {}
    for kind, read in (("csv", numbers), ("json", saving.stored_figure)):
        file = folder / f"{name}.{kind}"
        try:
            read(name, folder)
        except (OSError, ValueError):
            said[kind] = f"{'unreadable' if file.exists() else 'missing'}: {file.name}"
    return said


def numbers(name: str, folder: Path) -> pd.DataFrame:
    """The numbers behind a saved figure; `attrs` holds the provenance. ValueError for any other csv.

    pandas alone should be told `skiprows=1`, not `comment="#"`, which would cut the notes C# and F# short.
    """
    path = folder / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        facts = json.loads(file.readline().removeprefix("# "))
    table = pd.read_csv(path, skiprows=1)
    if not isinstance(facts, dict):
        raise ValueError(f"{path.name} doesn't begin with its provenance")
    table.attrs.update(facts)
    return table


def weights_changed(name: str, folder: Path) -> str:
    """If the embedded model has other weights than made a figure: which, and what to run; else ""."""
    card = paths.data() / "tiny" / "card.json"
    made = str(numbers(name, folder).attrs.get("model", "")).removeprefix("tiny").strip()
    now = json.loads(card.read_text(encoding="utf-8"))["model_hash"] if card.is_file() else made
    if made in ("", "none", now) or len(made.split()) > 1:  # two words: another model
        return ""
    return f"from other weights of tiny ({made}; now {now}): {saving.made_by(name)} makes it anew"


def figure_changed(name: str, folder: Path) -> str:
    """If a figure was drawn from other numbers than those in its csv: that, and what to run; else ""."""
    meta = saving.stored_figure(name, folder).layout.meta
    stamp = meta.get("numbers") if isinstance(meta, dict) else None
    _, _, table = (folder / f"{name}.csv").read_text(encoding="utf-8").partition("\n")
    if stamp == saving.numbers_hash(table):
        return ""
    told = "drawn from other numbers" if stamp else "the figure names no numbers"
    return f"{told}: {saving.made_by(name)} makes it anew"


def look(name: str, folder: Path) -> tuple[list[str], list[str]]:
    """Draw one figure again; returns what there is to say of it, and what of that isn't as it should be."""
    lacks = unusable(name, folder)
    picture = None if "json" in lacks else redraw(name, folder)
    wrong = [f"{', '.join(lacks.values())}; {saving.made_by(name)} makes it anew"] if lacks else []
    said = [f"picture {picture}"] if picture else []
    if "csv" not in lacks:
        now, before = (folder / f"{name}.csv").read_text(encoding="utf-8"), committed(name, folder)
        said = [f"numbers {'new' if before is None else changes.difference(before, now)}", *said]
        wrong += [weights_changed(name, folder), "" if "json" in lacks else figure_changed(name, folder)]
    return said, list(filter(None, wrong))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every figure is there and belongs to what is shipped, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m workshop.suite.redraw", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", help="which figures (03_heads, or 03 for all of that notebook); default all"
    )
    given, folder = parser.parse_args(arguments), paths.figures(paths.shipped_figures())
    folder.mkdir(parents=True, exist_ok=True)
    every = names_in(folder)
    names = [n for n in every if not given.names or any(n == g or n.startswith(f"{g}_") for g in given.names)]
    explain = "diagrams" in given.names or not given.names and (folder / "diagrams").is_dir()
    if explain:
        diagrams.main(folder)
    if not names and not explain:
        parser.exit(2, f"No such figure; {folder} has {', '.join(every) or 'none'}.\n")
    right = True
    for name in names:
        said, wrong = look(name, folder)
        right &= not wrong
        print(f"{name:30s} {'; '.join([*said, *wrong])}", flush=True)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
