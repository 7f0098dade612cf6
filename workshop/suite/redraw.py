"""Draw the stored figures again, in the present style, without a model: `python -m workshop.suite.redraw`.

A figure is stored as its numbers (csv), as Plotly's JSON, as a page (html) and a picture (png). The figures
of the shipped study are drawn from its table in data/study; of the others page and picture are written anew
from the JSON. Said of each: whether its numbers are those of the last commit, whether it was drawn from these
very numbers, and whether they belong to the present weights. Where one doesn't hold, the line names the
notebook that computes it anew.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from mechsteer import paths
from mechsteer.show import saving

from ..study.figures import DRAWN, facts, shipped
from . import changes

__all__ = ["committed", "figure_changed", "main", "redraw", "redraw_study", "weights_changed"]


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
    page = restyled or not (folder / f"{name}.html").is_file()
    return _told(png, before, saving.write_picture(fig, name, folder, page=page))


def redraw_study(name: str, folder: Path) -> str:
    """Draw a figure of the shipped study anew from its table; says of the picture what `redraw` says."""
    png, study = folder / f"{name}.png", shipped()
    before = png.read_bytes() if png.is_file() else None
    fig, table = DRAWN[name](study)
    return _told(png, before, saving.save_figure(fig, table, name, folder, **facts(study)))


def _told(png: Path, before: bytes | None, written: list[Path]) -> str:
    if png not in written:
        return "not written"
    return "same" if png.read_bytes() == before else "redrawn"


def committed(name: str, folder: Path) -> str | None:
    """A figure's csv as of the last commit; None if it is not in there, or there is no git."""
    try:
        show = ["git", "show", f"HEAD:./{name}.csv"]
        done = subprocess.run(show, cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.decode() if done.returncode == 0 else None


def weights_changed(name: str, folder: Path) -> str:
    """If the embedded model has other weights than made a figure: which, and what to run; else ""."""
    card = paths.data() / "tiny" / "card.json"
    made = str(saving.read_figure(name, folder).attrs.get("model", "")).removeprefix("tiny").strip()
    now = json.loads(card.read_text(encoding="utf-8"))["model_hash"] if card.is_file() else made
    if made in ("", "none", now) or len(made.split()) > 1:  # two words: another model
        return ""
    return f"from other weights of tiny ({made}; now {now}): {saving.made_by(name)} makes it anew"


def figure_changed(name: str, folder: Path) -> str:
    """If a figure was drawn from other numbers than those in its csv: that, and what to run; else ""."""
    stamp = (saving.stored_figure(name, folder).layout.meta or {}).get("numbers")
    _, _, table = (folder / f"{name}.csv").read_text(encoding="utf-8").partition("\n")
    if stamp == saving.numbers_hash(table):
        return ""
    told = "drawn from other numbers" if stamp else "the figure names no numbers"
    return f"{told}: {saving.made_by(name)} makes it anew"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every figure could be drawn and belongs to what is shipped, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m workshop.suite.redraw", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", help="which figures (02_heads, or 02 for all of that notebook); default all"
    )
    given, folder = parser.parse_args(arguments), paths.figures()
    every = sorted(path.stem for path in folder.glob("*.csv"))
    names = [n for n in every if not given.names or any(n == g or n.startswith(f"{g}_") for g in given.names)]
    if not names:
        parser.exit(2, f"No such figure; {folder} has {', '.join(every) or 'none'}.\n")
    right = True
    for name in names:
        drawn = redraw_study(name, folder) if name in DRAWN else None
        now, before = (folder / f"{name}.csv").read_text(encoding="utf-8"), committed(name, folder)
        numbers = "new" if before is None else changes.difference(before, now)
        try:
            told = [f"picture {drawn or redraw(name, folder)}"]
            stale = [check(name, folder) for check in (figure_changed, weights_changed)]
        except ValueError as error:
            told, stale = [], [str(error)]
        stale = list(filter(None, stale))
        right &= not stale
        print(f"{name:30s} {'; '.join([f'numbers {numbers}', *told, *stale])}", flush=True)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
