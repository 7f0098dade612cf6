"""A figure as four files: a picture (png), a page that works offline (html), Plotly's own form of the figure
(json), from which both can be drawn anew, and the numbers behind it (csv). The csv's first line says what
made the numbers; the figure carries their hash, so `make figures` can tell whether the two belong together.
"""

import atexit
import functools
import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from .. import paths
from ..errors import Told, reading
from .plots import CONFIG


def chrome() -> str | None:
    """The Chrome or Chromium that can turn figures into PNG, or None."""
    from choreographer.browsers.chromium import Chromium

    return shutil.which(os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False) or "")


def _picture(fig: go.Figure, scale: float = 1.5) -> bytes:
    """PNG of a figure, from one Chrome kept for all pictures of this process: 0.2 s each instead of 4 s."""
    import kaleido

    _start_chrome()
    size = {key: fig.layout[key] for key in ("width", "height") if fig.layout[key]}
    return kaleido.calc_fig_sync(fig.to_dict(), opts={"format": "png", "scale": scale, **size})


@functools.cache
def _start_chrome() -> None:
    import kaleido

    # Plotly's own exports (a figure shown in a notebook) use this server too, and would warn of it each time.
    warnings.filterwarnings("ignore", message="The kopts argument is ignored if using a server")
    kaleido.start_sync_server(n=1, silence_warnings=True)
    atexit.register(kaleido.stop_sync_server, silence_warnings=True)


def save_figure(
    fig: go.Figure, data: pd.DataFrame, name: str, folder: Path | None = None, **provenance
) -> list[Path]:
    """Write `name`.csv, .json, .html (works offline) and, where there is a Chrome, .png.

    Parameters
    ----------
    data : the numbers behind the figure, one row per drawn thing; its `attrs` join the provenance.
    name : `NN_what_it_shows`, as in `03_accuracy_by_layer`.
    folder : default `data/runs/figures/` (see `mechsteer.paths.figures`), which git ignores.
    **provenance : what made the numbers, such as model (its hash), seed and command; the CSV's first line.

    Returns the paths written. Without a Chrome, or if it fails, there is no PNG and a warning says what to
    install. Raises ValueError for a name with anything but a-z, 0-9 and _, or a table without rows.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"A figure's name has only a-z, 0-9 and _ (like 03_heads), not {name!r}.")
    if data.empty:
        raise ValueError(f"The table behind figure {name!r} has no rows.")
    from .. import __version__

    folder = Path(folder or paths.figures())
    facts = {"mechsteer": __version__, **data.attrs, **provenance}
    line = json.dumps(facts, sort_keys=True, default=lambda v: v.item() if hasattr(v, "item") else str(v))
    table = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    csv = paths.replace(folder / f"{name}.csv", f"# {line}\n{table}")
    stamped = go.Figure(fig).update_layout(meta={"numbers": numbers_hash(table)})
    return [*write_picture(stamped, name, folder), csv]


def numbers_hash(table: str) -> str:
    """Twelve hex digits that name the numbers of a figure: the text of its csv, without the first line."""
    return hashlib.sha256(table.encode()).hexdigest()[:12]


def write_picture(fig: go.Figure, name: str, folder: Path, page: bool = True) -> list[Path]:
    """The part of `save_figure` that is drawn: `name`.png, where there is a Chrome, .html and .json.

    Without `page` only the picture is written, and the other two stay as they are.
    """
    png, html, figure = (folder / f"{name}.{kind}" for kind in ("png", "html", "json"))
    if page:
        paths.replace(figure, fig.to_json() + "\n")
        write_page(fig, html)
    try:
        if chrome() is None:
            raise RuntimeError("there is no Chrome or Chromium (Debian: apt install chromium)")
        paths.replace(png, _picture(fig))
    except Exception as error:  # whatever stops a browser, the numbers and the page are written
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        told = f"{png.name} was not written, its numbers and {html.name} are there: {reason}."
        warnings.warn(told, stacklevel=3)
        return [html, figure]
    return [png, html, figure]


def write_page(fig: go.Figure, html: Path) -> None:
    """The page alone, beside the plotly.min.js that its folder's pages share; nothing in it leads outside."""
    with paths.replacing(html) as scratch:
        fig.write_html(scratch, include_plotlyjs="directory", div_id=html.stem, config=dict(CONFIG))


def stored_figure(name: str, folder: Path | None = None) -> go.Figure:
    """A saved figure, to be drawn again; `layout.meta["numbers"]` is the `numbers_hash` of what it shows.

    Without a folder it is the one that your own run saved, or, where there is none, the shipped one.

    Raises ValueError if there is none, or if the file holds something else; it says what writes one.
    """
    path = Path(folder or paths.figures()) / f"{name}.json"
    if not folder and not path.is_file():
        path = paths.shipped_figures() / path.name
    if not path.is_file():
        raise ValueError(f"no {path.name} to draw from: {made_by(name)} writes it")
    with reading(path, f"{made_by(name)} writes it anew"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        return go.Figure({"data": stored["data"], **stored})


def made_by(name: str) -> str:
    """The command that makes a figure of the project: a notebook's run, or the embedded model's card."""
    number = name.split("_")[0]
    return f"make notebooks ONLY={number}" if number.isdigit() else "python -m workshop.tiny.card --figures"


def study_table(name: str = "doses") -> pd.DataFrame:
    """A table of the shipped study: `verdicts`, `doses` (a row per strength) or `clips` (a row each).

    Raises Told (one sentence) if it is missing or damaged; names the file and what brings it back.
    """
    path = paths.data() / "study" / f"{name}.parquet"
    mend = f"`git checkout {path.parent}` brings the shipped one back, `make study` makes it anew"
    if not path.is_file():
        raise Told(f"{path} is missing: {mend}")
    with reading(path, mend):
        table = pd.read_parquet(path)
        table["model_hash"]
    return table
