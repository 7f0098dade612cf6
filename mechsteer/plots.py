"""Figures from tidy tables, in one colour-blind-safe style, saved as picture, interactive page and numbers.

Every function takes a pandas DataFrame and returns a Plotly figure to be changed further; `save_figure` writes it.
Title and takeaway are the caller's: pass `title=`. Nothing here imports torch.
"""

import atexit
import functools
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from . import paths

__all__ = [
    "COLOURS",
    "accuracy_by_layer",
    "chrome",
    "cosines_by_layer",
    "dose_curves",
    "head_map",
    "interval",
    "read_figure",
    "save_figure",
    "write_picture",
]

# Okabe & Ito 2008: told apart in every common form of colour blindness, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#767676"
_DASHES = ("solid", "dash", "dot", "dashdot")

_axis = {
    "showline": True,
    "linecolor": "#444444",
    "gridcolor": "#E6E6E6",
    "ticks": "outside",
    "zeroline": False,
    "title": {"standoff": 8, "font": {"size": 14}},
}
pio.templates["mechsteer"] = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"family": "Arial, Helvetica, sans-serif", "size": 14, "color": "#222222"},
        "title": {"x": 0, "xref": "paper", "font": {"size": 17}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorscale": {"sequential": "Cividis", "diverging": "RdBu"},
        "margin": {"l": 70, "r": 25, "t": 85, "b": 65},
        "xaxis": _axis,
        "yaxis": _axis,
    }
)


def interval(table: pd.DataFrame, by: Sequence[str], value: str = "score", level: float = 0.95) -> pd.DataFrame:
    """Mean of `value` in each group of `by`, with Student's t interval over the group's rows (folds, seeds, clips).

    Returns
    -------
    pd.DataFrame, one row per group: the columns `by`, `mean`, `lo`, `hi`, `n`. Where n is 1, `lo` and `hi` are NaN.
    Folds share training data, so an interval over them is somewhat too narrow (Bengio & Grandvalet 2004).
    """
    from scipy.special import stdtrit

    _need(table, [*by, value])
    groups = table.groupby(list(by), sort=True, observed=True)[value].agg(["mean", "sem", "count"]).reset_index()
    half = groups["sem"] * stdtrit((groups["count"] - 1).clip(lower=1), 0.5 + level / 2)
    return groups.assign(lo=groups["mean"] - half, hi=groups["mean"] + half, n=groups["count"])[
        [*by, "mean", "lo", "hi", "n"]
    ]


def accuracy_by_layer(scores: pd.DataFrame, colour: str = "method", title: str = "") -> go.Figure:
    """Score by depth, one panel per concept, one line with its 95 % interval over folds per value of `colour`.

    Parameters
    ----------
    scores : columns concept, layer (0-based), fold, score, metric, chance, shuffled, and `colour`
        (`method`, `site` or `model`); the table that `02_accuracy_by_layer.csv` holds.
    colour : the column that tells the lines of a panel apart.
    title : the takeaway.

    Chance is dashed, the score with shuffled labels dotted, both grey. Raises ValueError for a missing column, or when
    rows of several metrics, sites or models would be averaged into one line.
    """
    _need(scores, ["concept", "layer", "score", "metric", "chance", "shuffled", colour])
    for column in ("metric", "site", "model", "method", "label"):
        if (
            column != colour
            and column in scores
            and (scores.groupby("concept", observed=True)[column].nunique() > 1).any()
        ):
            raise ValueError(f"Several values of {column!r} would be averaged: select one, or pass colour={column!r}.")
    fig, places = _panels(list(scores["concept"].unique()), title)
    lines = interval(scores, ["concept", colour, "layer"])
    for concept, row, col in places:
        here = scores[scores["concept"] == concept].groupby("layer", observed=True)
        for column, name, dash in (("chance", "chance", "dash"), ("shuffled", "shuffled labels", "dot")):
            level = here[column].mean()
            _line(fig, level.index, level, name, _GREY, dash, row, col)
        for k, name in enumerate(scores[colour].unique()):
            part = lines[(lines["concept"] == concept) & (lines[colour] == name)]
            _band(fig, part["layer"], part["lo"], part["hi"], COLOURS[k % len(COLOURS)], row, col)
            _line(fig, part["layer"], part["mean"], str(name), COLOURS[k % len(COLOURS)], _DASHES[k % 4], row, col)
    metrics = " / ".join(scores["metric"].unique())
    return _axes(fig, places, "layer", metrics)


def head_map(
    scores: pd.DataFrame, value: str = "score", title: str = "", span: tuple[float, float] | None = None
) -> go.Figure:
    """Heat map of `value` over layers (down) and heads (across), mean over folds, one panel per concept.

    Parameters
    ----------
    scores : columns concept, layer, head (both 0-based) and `value`.
    span : ends of the colour scale; default from the mean of `chance`, where that column is, to the largest value.
    """
    _need(scores, ["concept", "layer", "head", value])
    fig, places = _panels(list(scores["concept"].unique()), title)
    means = scores.groupby(["concept", "layer", "head"], observed=True)[value].mean()
    low = float(scores["chance"].mean()) if "chance" in scores else float(means.min())
    low, high = span or (low, float(means.max()))
    for concept, row, col in places:
        grid = means[concept].unstack("head")
        fig.add_trace(
            go.Heatmap(
                z=grid.to_numpy(),
                x=grid.columns,
                y=grid.index,
                coloraxis="coloraxis",
                hovertemplate=f"layer %{{y}}, head %{{x}}: %{{z:.3f}}<extra>{concept}</extra>",
            ),
            row=row,
            col=col,
        )
    fig.update_layout(coloraxis={"cmin": low, "cmax": high, "colorscale": "Cividis", "colorbar": {"title": value}})
    fig.update_yaxes(autorange="reversed", tickformat="d")
    return _axes(fig, places, "head", "layer")


def cosines_by_layer(cosines: pd.DataFrame, title: str = "") -> go.Figure:
    """Cosine between directions of two methods by depth, one panel per concept, with bootstrap and null bands.

    Parameters
    ----------
    cosines : columns concept, layer (0-based), method_a, method_b, cosine, lo, hi, null_lo, null_hi; the table that
        `03_direction_cosines.csv` holds. A pair of a method with itself is its split-half stability.

    The grey band is where random directions of that dimension fall.
    """
    _need(cosines, ["concept", "layer", "method_a", "method_b", "cosine", "lo", "hi", "null_lo", "null_hi"])
    fig, places = _panels(list(cosines["concept"].unique()), title)
    pairs = cosines[["method_a", "method_b"]].drop_duplicates().itertuples(index=False)
    styles = {pair: (COLOURS[k % len(COLOURS)], _DASHES[k % 4]) for k, pair in enumerate(map(tuple, pairs))}
    for concept, row, col in places:
        here = cosines[cosines["concept"] == concept].sort_values("layer")
        null = here.groupby("layer", observed=True).agg({"null_lo": "min", "null_hi": "max"})
        _band(fig, null.index, null["null_lo"], null["null_hi"], _GREY, row, col, name="random directions")
        for (a, b), (tint, dash) in styles.items():
            part = here[(here["method_a"] == a) & (here["method_b"] == b)]
            _band(fig, part["layer"], part["lo"], part["hi"], tint, row, col)
            name = f"{a}, split halves" if a == b else f"{a} and {b}"
            _line(fig, part["layer"], part["cosine"], name, tint, dash, row, col)
    return _axes(fig, places, "layer", "cosine")


def dose_curves(
    table: pd.DataFrame,
    value: str = "success",
    panel: str = "experiment",
    title: str = "",
    unit: str = "share of clips",
) -> go.Figure:
    """A measure against steering strength, one panel per `panel`, one line with its 95 % interval per name.

    Parameters
    ----------
    table : columns name, strength, `value`, `<value>_lo`, `<value>_hi`, `panel`, and optionally kind: the rows of
        `dose.dose_table`, with the unsteered ones. Names of kind "control" are grey.
    value, unit : what to draw, and in what unit it is

    Grey lines from edge to edge are what has no strength: the unsteered clips, or another prompt.
    """
    _need(table, ["name", "strength", value, f"{value}_lo", f"{value}_hi", panel])
    fig, places = _panels(list(table[panel].unique()), title)
    kind = table["kind"] if "kind" in table else pd.Series("", index=table.index)
    steered = table[table["name"] != "unsteered"]
    controls = list(steered.loc[kind == "control", "name"].unique())
    names = [name for name in steered["name"].unique() if name not in controls]
    levels = [name for name in table["name"].unique() if (table.loc[table["name"] == name, "strength"] == 0).all()]
    for group, row, col in places:
        here = table[table[panel] == group]
        ends = [0.0, here["strength"].max()]
        for k, name in enumerate(levels):  # what has no strength, such as the unsteered clips, is a level line
            for _, level in here[here["name"] == name].iterrows():
                _band(fig, ends, [level[f"{value}_lo"]] * 2, [level[f"{value}_hi"]] * 2, _GREY, row, col)
                _line(fig, ends, [level[value]] * 2, name, _GREY, "dash" if k == 0 else "longdash", row, col)
        for k, name in enumerate([*names, *controls]):
            part = here[here["name"] == name].sort_values("strength")
            colour = _GREY if name in controls else COLOURS[k % len(COLOURS)]
            if len(part) and name not in levels:
                _band(fig, part["strength"], part[f"{value}_lo"], part[f"{value}_hi"], colour, row, col)
                dash = _DASHES[1 + (k - len(names)) % 3] if name in controls else _DASHES[k // len(COLOURS) % 4]
                _line(fig, part["strength"], part[value], name.replace("_", " "), colour, dash, row, col)
        below = (row + 1, col) not in {(r, c) for _, r, c in places}
        fig.update_xaxes(title_text="strength (multiples of the activation norm)" if below else None, row=row, col=col)
    fig.update_layout(height=max(fig.layout.height, 200 + 30 * table["name"].nunique()))
    fig.update_yaxes(title_text=f"{value.replace('_', ' ')}, {unit}", col=1)
    return fig


def _need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"The table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, table))}.")
    if table.empty:
        raise ValueError("The table has no rows, so there is nothing to draw.")


def _panels(names: Sequence[str], title: str) -> tuple[go.Figure, list[tuple[str, int, int]]]:
    """A grid of at most three panels a row, and where each name sits (row and column from 1)."""
    cols = min(3, len(names))
    rows = math.ceil(len(names) / cols)
    fig = make_subplots(
        rows=rows,
        cols=cols,
        subplot_titles=[str(name) for name in names],
        shared_yaxes="all",
        horizontal_spacing=0.05,
        vertical_spacing=min(0.2, 0.28 / rows),
    )
    fig.update_layout(template="mechsteer", title_text=title, width=330 * cols + 330, height=270 * rows + 150)
    fig.update_annotations(font_size=15)
    return fig, [(name, k // cols + 1, k % cols + 1) for k, name in enumerate(names)]


def _axes(fig: go.Figure, places: Sequence[tuple[str, int, int]], x: str, y: str) -> go.Figure:
    cells = {(row, col) for _, row, col in places}
    count = 1 + max(value for trace in fig.data for value in trace.x)
    tick = math.ceil(count / 8)
    for _, row, col in places:
        fig.update_xaxes(
            title_text=None if (row + 1, col) in cells else x, tickformat="d", dtick=tick, row=row, col=col
        )
        if col == 1:
            fig.update_yaxes(title_text=y, row=row, col=col)
    return fig


def _line(fig: go.Figure, x, y, name: str, colour: str, dash: str, row: int, col: int) -> None:
    first = all(trace.legendgroup != name for trace in fig.data)
    mode = "lines" if colour == _GREY else "lines+markers"
    line = {"color": colour, "dash": dash, "width": 2}
    trace = go.Scatter(x=list(x), y=list(y), name=name, mode=mode, line=line, legendgroup=name, showlegend=first)
    fig.add_trace(trace, row=row, col=col)


def _band(fig: go.Figure, x, lo, hi, colour: str, row: int, col: int, name: str | None = None) -> None:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    first = name is not None and all(trace.legendgroup != name for trace in fig.data)
    x, lo, hi = list(x), list(lo), list(hi)
    trace = go.Scatter(
        x=x + x[::-1],
        y=hi + lo[::-1],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.2)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=name,
        legendgroup=name,
        showlegend=first,
    )
    fig.add_trace(trace, row=row, col=col)


def chrome() -> str | None:
    """The Chrome or Chromium that can turn figures into PNG, or None."""
    from choreographer.browsers.chromium import Chromium

    return os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False)


def _picture(fig: go.Figure, scale: float = 1.5) -> bytes:
    """PNG of a figure, from one Chrome kept for all pictures of this process: 0.2 s each instead of 4 s."""
    import kaleido

    _start_chrome()
    size = {key: fig.layout[key] for key in ("width", "height") if fig.layout[key]}
    return kaleido.calc_fig_sync(fig.to_dict(), opts={"format": "png", "scale": scale, **size})


@functools.cache
def _start_chrome() -> None:
    import kaleido

    # Plotly's own exports (a figure shown in a notebook) use this server too, and would warn of it every time.
    warnings.filterwarnings("ignore", message="The kopts argument is ignored if using a server")
    kaleido.start_sync_server(n=1, silence_warnings=True)
    atexit.register(kaleido.stop_sync_server, silence_warnings=True)


def save_figure(fig: go.Figure, data: pd.DataFrame, name: str, folder: Path | None = None, **provenance) -> list[Path]:
    """Write `name`.csv, `name`.html (works offline) and, where there is a Chrome, `name`.png.

    Parameters
    ----------
    data : the numbers behind the figure, one row per drawn thing; its `attrs` join the provenance.
    name : `NN_what_it_shows`, as in `02_accuracy_by_layer`.
    folder : default `figures/` (see `mechsteer.paths.figures`).
    **provenance : what made the numbers, such as model (its hash), seed and command; kept as the CSV's first line.

    Returns
    -------
    The paths written. Without a Chrome, or if it fails, there is no PNG and a warning says what to install.

    Raises
    ------
    ValueError  for a name with anything but a-z, 0-9 and _, or a table without rows.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"A figure's name has only a-z, 0-9 and _ (like 02_accuracy_by_layer), not {name!r}.")
    if data.empty:
        raise ValueError(f"The table behind figure {name!r} has no rows.")
    folder = Path(folder or paths.figures())
    folder.mkdir(parents=True, exist_ok=True)
    from . import __version__

    facts = {"mechsteer": __version__, **data.attrs, **provenance}
    line = json.dumps(facts, sort_keys=True, default=lambda v: v.item() if hasattr(v, "item") else str(v))
    table = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    csv = folder / f"{name}.csv"
    _replace(csv, f"# {line}\n{table}".encode())
    return [*write_picture(fig, name, folder), csv]


def write_picture(fig: go.Figure, name: str, folder: Path, page: bool = True) -> list[Path]:
    """The part of `save_figure` that a reader looks at: `name`.png, where there is a Chrome, and `name`.html."""
    png, html = (folder / f"{name}.{kind}" for kind in ("png", "html"))
    if page:
        fig.write_html(html, include_plotlyjs="directory", div_id=name)
    try:
        if chrome() is None:
            raise RuntimeError("there is no Chrome or Chromium (Debian: apt install chromium)")
        _replace(png, _picture(fig))
    except Exception as error:  # whatever stops a browser, the numbers and the page are written
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"{png.name} was not written, its numbers and {html.name} are there: {reason}.", stacklevel=3)
        return [html]
    return [png, html]


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as scratch:
        scratch.write(content)
    Path(scratch.name).chmod(0o644)
    os.replace(scratch.name, path)


def read_figure(name: str | Path, folder: Path | None = None) -> pd.DataFrame:
    """The numbers behind a saved figure (its name or the CSV's path); `attrs` holds the provenance.

    pandas alone should be told `skiprows=1`, not `comment="#"`, which would cut the note names C# and F# short.
    """
    path = Path(name) if str(name).endswith(".csv") else Path(folder or paths.figures()) / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        facts = json.loads(file.readline().removeprefix("# "))
    table = pd.read_csv(path, skiprows=1)
    table.attrs.update(facts)
    return table
