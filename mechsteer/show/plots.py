"""Figures from tidy tables, in one colour-blind-safe style.

Every function takes a pandas DataFrame and returns a Plotly figure to be changed further; `save_figure`
writes it. Title and takeaway are the caller's: pass `title=`. Nothing here imports torch.
"""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import plotly.io as pio
import xarray as xr
from plotly.subplots import make_subplots

from ..measures.intervals import means_by, need

# Okabe & Ito 2008: told apart in every common form of colour blindness, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# As an axis says them, and in the order in which a figure prefers them: values have R² only.
METRICS = {"accuracy": "accuracy", "r2": "R²", "balanced_accuracy": "balanced accuracy", "auc": "AUC"}
GREY = "#767676"
METHOD_COLOURS = {  # one colour means one thing in the whole suite
    **{"logistic": COLOURS[0], "mse": COLOURS[1]},
    **dict.fromkeys(("diff_of_means", "difference of means"), COLOURS[2]),
    **{"caption contrast": COLOURS[3], "optimised vector": COLOURS[4], "words": COLOURS[6]},
    **dict.fromkeys(("control", "random", "shuffled labels", "unsteered"), GREY),
}
_DASHES = ("solid", "dash", "dot", "dashdot")
_CONTROLS = ("dot", "dashdot", "2px,6px")  # of grey lines; the level ones are dashed

_axis = {"showline": True, "linecolor": "#444444", "gridcolor": "#E6E6E6", "ticks": "outside"}
_axis |= {"zeroline": False, "title": {"standoff": 8, "font": {"size": 14}}}
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
# Plotly's toolbar would offer to upload the figure, and its logo leads outside: off, on pages and in Jupyter.
CONFIG = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False}
for _way in map(pio.renderers.__getitem__, pio.renderers):
    if hasattr(_way, "config"):
        _way.config = {**(_way.config or {}), **CONFIG}


def layer_curves(scores: pd.DataFrame, colour: str = "method", title: str = "") -> go.Figure:
    """Score by depth, one panel per concept, one line with its 95 % interval per value of `colour`.

    Parameters
    ----------
    scores : columns concept, layer (0-based), score, metric, chance, shuffled, and `colour`
        What `ms.accuracy_by_layer` returns for one label, as it is. Intervals are those of `means_by`. Of
        several metrics every concept has the first of `METRICS` drawn: accuracy for classes and flags, R² for
        values, and another only where the table holds no row of these.
    colour : the column that tells the lines of a panel apart: `method`, `site`, `model` or `label`.

    Rows without a layer are those of the model's input: a diamond with its interval, left of layer 0. Chance
    is dashed, the score with shuffled labels dotted, both grey. Raises ValueError for a missing column, or
    when rows of several sites, models, methods, labels or heads would be averaged into one line.
    """
    need(scores, ["concept", "layer", "score", "metric", "chance", "shuffled", colour])
    scores = _one_of_each(scores, {colour})
    fig, places = _panels(list(scores["concept"].unique()), title)
    layers = scores["layer"].astype("Float64")
    step = _step(layers.max() if layers.notna().any() else 0)
    scores = scores.assign(x=layers.fillna(-step).astype(int))  # the input, a tick left of layer 0
    lines = means_by(scores, ["concept", colour, "x"])
    for concept, row, col in places:
        here = scores[scores["concept"] == concept].groupby("x")
        for column, name, dash in (("chance", "chance", "dash"), ("shuffled", "shuffled labels", "dot")):
            level = here[column].mean()
            _line(fig, level.index, level, name, GREY, dash, row, col)
        for k, name in enumerate(scores[colour].unique()):
            part = lines[(lines["concept"] == concept) & (lines[colour] == name)]
            name, tint = str(name).replace("_", " "), METHOD_COLOURS.get(name, COLOURS[k % len(COLOURS)])
            inside, source = part[part["x"] >= 0], part[part["x"] < 0]
            if len(inside):
                _band(fig, inside["x"], inside["lo"], inside["hi"], tint, row, col)
                _line(fig, inside["x"], inside["mean"], name, tint, _DASHES[k % 4], row, col)
            if len(source):
                up, down = list(source["hi"] - source["mean"]), list(source["mean"] - source["lo"])
                look = {"mode": "markers", "marker": {"symbol": "diamond", "size": 9, "color": tint}}
                look["error_y"] = {"array": up, "arrayminus": down, "color": tint}
                _add(fig, source["x"], source["mean"], name, row, col, **look)
    _axes(fig, places, "layer", " or ".join(METRICS.get(name, name) for name in scores["metric"].unique()))
    if layers.isna().any():
        ticks = range(0, int(scores["x"].max()) + 1, step)
        fig.update_xaxes(tickvals=[-step, *ticks], ticktext=["input", *map(str, ticks)], dtick=None)
    return fig


def head_map(scores: pd.DataFrame, title: str = "") -> go.Figure:
    """Heat map of the score over layers (down) and heads (across), mean over folds, one panel per concept.

    `scores` has the columns concept, layer, head (both 0-based) and score; of several metrics the one that
    `layer_curves` prefers is drawn. Raises ValueError for a missing column, or if several sites, models,
    methods or labels would be averaged.
    """
    need(scores, ["concept", "layer", "head", "score"])
    scores = _one_of_each(scores, {"head"})
    fig, places = _panels(list(scores["concept"].unique()), title)
    means = scores.groupby(["concept", "layer", "head"], observed=True)["score"].mean()
    texts = "%{z:.2f}" if len(means) <= 80 * len(places) else None  # few enough to read
    for concept, row, col in places:
        grid = means[concept].unstack("head")
        hover = f"layer %{{y}}, head %{{x}}: %{{z:.3f}}<extra>{concept}</extra>"
        look = {"coloraxis": "coloraxis", "texttemplate": texts, "hovertemplate": hover}
        fig.add_trace(go.Heatmap(z=grid.to_numpy(), x=grid.columns, y=grid.index, **look), row=row, col=col)
    ends = {"cmin": float(means.min()), "cmax": float(means.max())}
    fig.update_layout(coloraxis={**ends, "colorscale": "Cividis", "colorbar_title": "score"})
    fig.update_yaxes(autorange="reversed", tickformat="d")
    return _axes(fig, places, "head", "layer")


def heat_maps(grid: xr.DataArray, panels: str, title: str = "") -> go.Figure:
    """Shares from 0 to 1 over sites (down) and layers (across), one panel for each value of the dim `panels`.

    `grid` (panels, site, layer) in any order of its dims; a panel is named as its coordinate says.
    """
    rows, depth = math.ceil(grid.sizes[panels] / 3), grid.sizes["layer"]
    look = {"facet_col_wrap": 3, "aspect": "auto", "color_continuous_scale": "Blues"}
    look |= {"text_auto": ".2f" if depth <= 12 else False}  # where there is room to read them
    look |= {"template": "mechsteer", "width": 980, "height": 120 + 190 * rows, "zmin": 0, "zmax": 1}
    fig = px.imshow(grid.transpose(panels, "site", "layer"), facet_col=panels, title=title, **look)
    fig.for_each_annotation(lambda told: told.update(text=told.text.removeprefix(f"{panels}=")))
    fig.update_layout(coloraxis_colorbar_title="share").update_xaxes(dtick=_step(depth - 1))
    return fig.update_traces(textfont_size=12)


def tradeoff_curves(
    curve: pd.DataFrame, upto: float, controls: Sequence[str] = (), title: str = ""
) -> go.Figure:
    """Success over what was lost, one line per name through its strengths; `Tradeoff.figure` calls it.

    `curve` as in `measures.tradeoff.Tradeoff`; names in `controls` are grey. Bars are 95 % intervals of
    success, and the dotted line is where gains are integrated to.
    """
    fig = go.Figure(layout={"template": "mechsteer", "title": title, "width": 720, "height": 470})
    grey, tinted = iter(_CONTROLS * len(curve)), iter(COLOURS * len(curve))
    for name, part in curve.groupby("name", sort=False):
        colour, dash = (GREY, next(grey)) if name in controls else (next(tinted), "solid")
        above, below = part["success_hi"] - part["success"], part["success"] - part["success_lo"]
        bars = {"array": above, "arrayminus": below, "thickness": 1, "color": colour}
        said = [f"strength {s:g}" if s else "unsteered" for s in part["strength"]]
        line = {"color": colour, "dash": dash}
        fig.add_scatter(x=part["lost"], y=part["success"], error_y=bars, name=name, line=line, text=said)
    fig.add_vline(upto, line={"color": GREY, "dash": "dot", "width": 1})
    fig.update_xaxes(title="lost (0: the unsteered clip, 1: as unlike it as another clip)")
    return fig.update_yaxes(title="success, share of clips")


def _one_of_each(scores: pd.DataFrame, drawn: set[str]) -> pd.DataFrame:
    """The rows of one metric per concept; ValueError if others than in `drawn` would be averaged."""
    if "metric" in scores:
        have = scores.groupby("concept", observed=True)["metric"].unique()
        chosen = have.map(lambda of: next((name for name in METRICS if name in of), of[0]))
        scores = scores[scores["metric"] == scores["concept"].map(chosen)]
    for column in (c for c in ("site", "model", "method", "label", "head") if c in scores and c not in drawn):
        rows = scores[scores["layer"].notna()] if column == "site" else scores  # the input has its own place
        if (rows.groupby("concept", observed=True)[column].nunique() > 1).any():
            advice = f"select one, or pass colour={column!r}" if "head" not in drawn else "select one"
            raise ValueError(f"Several values of {column!r} would be averaged: {advice}.")
    return scores


def _panels(names: Sequence[str], title: str) -> tuple[go.Figure, list[tuple[str, int, int]]]:
    """A grid of at most three panels a row, and where each name sits (row and column from 1)."""
    cols = min(3, len(names))
    rows = math.ceil(len(names) / cols)
    options = {"horizontal_spacing": 0.05, "vertical_spacing": min(0.2, 0.28 / rows), "shared_yaxes": "all"}
    fig = make_subplots(rows=rows, cols=cols, subplot_titles=[str(name) for name in names], **options)
    fig.update_layout(template="mechsteer", title_text=title, width=330 * cols + 330, height=270 * rows + 150)
    fig.update_annotations(font_size=15)
    return fig, [(name, k // cols + 1, k % cols + 1) for k, name in enumerate(names)]


def _step(last: float) -> int:
    """Every how many layers, or heads, an axis from 0 to `last` has a tick."""
    return math.ceil((1 + last) / 8)


def _axes(fig: go.Figure, places: Sequence, x: str, y: str) -> go.Figure:
    """The figure with its axes named, and ticks at whole numbers only."""
    last = max(v for trace in fig.data for v in trace.x)
    ticks = {"tickformat": "d", "dtick": _step(last)}
    cells = {(row, col) for _, row, col in places}
    for row, col in cells:
        below = None if (row + 1, col) in cells else x
        fig.update_xaxes(title_text=below, row=row, col=col, **ticks)
    return fig.update_yaxes(title_text=y, col=1)


def _line(fig: go.Figure, x, y, name: str, colour: str, dash: str, row: int, col: int) -> None:
    mode = "lines" if colour == GREY else "lines+markers"
    _add(fig, x, y, name, row, col, mode=mode, line={"color": colour, "dash": dash, "width": 2})


def _band(fig: go.Figure, x, lo, hi, colour: str, row: int, col: int) -> None:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    fill = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.2)", "hoverinfo": "skip"}
    x, y = [*x, *list(x)[::-1]], [*hi, *list(lo)[::-1]]
    _add(fig, x, y, None, row, col, mode="lines", line={"width": 0}, **fill)


def _add(fig: go.Figure, x, y, name: str | None, row: int, col: int, **look) -> None:
    """A trace that the legend names once, however many panels it is in, or never if it has no name."""
    first = name is not None and all(trace.legendgroup != name for trace in fig.data)
    trace = go.Scatter(x=list(x), y=list(y), name=name, legendgroup=name, showlegend=first, **look)
    fig.add_trace(trace, row=row, col=col)
