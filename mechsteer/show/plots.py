"""Figures from tidy tables, in one colour-blind-safe style, saved as picture, interactive page and numbers.

Every function takes a pandas DataFrame and returns a Plotly figure to be changed further; `save_figure`
writes it. Title and takeaway are the caller's: pass `title=`. Nothing here imports torch.
"""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from .saving import read_figure, save_figure

__all__ = [
    "COLOURS",
    "accuracy_by_layer",
    "cosines_by_layer",
    "dose_curves",
    "head_map",
    "interval",
    "read_figure",
    "save_figure",
]

# Okabe & Ito 2008: told apart in every common form of colour blindness, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METRICS = {"r2": "R²", "auc": "AUC", "balanced_accuracy": "balanced accuracy"}  # as an axis says them
SHARES = ("accuracy", "balanced_accuracy", "auc")  # metrics between 0 and 1
GREY = "#767676"
_DASHES = ("solid", "dash", "dot", "dashdot")
_CONTROLS = ("dot", "dashdot", "2px,6px")  # of grey lines; the level ones are dashed

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


def interval(
    table: pd.DataFrame, by: Sequence[str], value: str = "score", level: float = 0.95
) -> pd.DataFrame:
    """Mean of `value` in each group of `by`, with Student's t interval over the group's rows (folds, seeds,
    clips).

    Where a column `metric` says that a score is a share (`SHARES`: accuracies, AUC), Student's interval is
    that of its logit, turned back: it stays between 0 and 1 and is wider towards the middle. For a mean of 0
    or 1 it is that mean.

    Returns
    -------
    pd.DataFrame, one row per group: the columns `by`, `mean`, `lo`, `hi`, `n`. Where n is 1, `lo` and `hi` are NaN.
    Folds share training data, so an interval over them is somewhat too narrow (Bengio & Grandvalet 2004).

    Source: Korn & Graubard 1998, *Confidence intervals for proportions with small expected number of positive
    counts*: the logit with the mean's standard error divided by mean (1 - mean).
    """
    from scipy.special import expit, logit, stdtrit

    _need(table, [*by, value])
    share = table["metric"].isin(SHARES) if "metric" in table and value == "score" else False
    groups = table.assign(share=share).groupby(list(by), sort=True, observed=True)
    found = groups[value].agg(["mean", "sem", "count"]).assign(share=groups["share"].all()).reset_index()
    mean, half = found["mean"], found["sem"] * stdtrit((found["count"] - 1).clip(lower=1), 0.5 + level / 2)
    inside = found["share"] & mean.between(0, 1, inclusive="neither")
    centre = mean.where(inside, 0.5)
    lo, hi = (
        (mean + sign * half).mask(inside, expit(logit(centre) + sign * half / (centre * (1 - centre))))
        for sign in (-1, 1)
    )
    return found.assign(lo=lo, hi=hi, n=found["count"])[[*by, "mean", "lo", "hi", "n"]]


def accuracy_by_layer(scores: pd.DataFrame, colour: str = "method", title: str = "") -> go.Figure:
    """Score by depth, one panel per concept, one line with its 95 % interval over folds per value of
    `colour`.

    Parameters
    ----------
    scores : columns concept, layer (0-based), fold, score, metric, chance, shuffled, and `colour`
        (`method`, `site` or `model`); the table that `02_accuracy_by_layer.csv` holds.
    colour : the column that tells the lines of a panel apart.
    title : the takeaway.

    Chance is dashed, the score with shuffled labels dotted, both grey. Raises ValueError for a missing
    column, or when rows of several metrics, sites or models would be averaged into one line.
    """
    _need(scores, ["concept", "layer", "score", "metric", "chance", "shuffled", colour])
    for column in ("metric", "site", "model", "method", "label"):
        if (
            column != colour
            and column in scores
            and (scores.groupby("concept", observed=True)[column].nunique() > 1).any()
        ):
            raise ValueError(
                f"Several values of {column!r} would be averaged: select one, or pass colour={column!r}."
            )
    fig, places = _panels(list(scores["concept"].unique()), title)
    lines = interval(scores, ["concept", colour, "layer"])
    for concept, row, col in places:
        here = scores[scores["concept"] == concept].groupby("layer", observed=True)
        for column, name, dash in (("chance", "chance", "dash"), ("shuffled", "shuffled labels", "dot")):
            level = here[column].mean()
            _line(fig, level.index, level, name, GREY, dash, row, col)
        for k, name in enumerate(scores[colour].unique()):
            part = lines[(lines["concept"] == concept) & (lines[colour] == name)]
            _band(fig, part["layer"], part["lo"], part["hi"], COLOURS[k % len(COLOURS)], row, col)
            tint, dash = COLOURS[k % len(COLOURS)], _DASHES[k % 4]
            _line(fig, part["layer"], part["mean"], str(name).replace("_", " "), tint, dash, row, col)
    metrics = " or ".join(METRICS.get(name, name) for name in scores["metric"].unique())
    return _axes(fig, places, "layer", metrics)


def head_map(
    scores: pd.DataFrame, value: str = "score", title: str = "", span: tuple[float, float] | None = None
) -> go.Figure:
    """Heat map of `value` over layers (down) and heads (across), mean over folds, one panel per concept.

    Parameters
    ----------
    scores : columns concept, layer, head (both 0-based) and `value`.
    span : ends of the colour scale; default from the smallest value to the largest.
    """
    _need(scores, ["concept", "layer", "head", value])
    fig, places = _panels(list(scores["concept"].unique()), title)
    means = scores.groupby(["concept", "layer", "head"], observed=True)[value].mean()
    low, high = span or (float(means.min()), float(means.max()))
    written = len(means) <= 80 * len(places)  # few enough to read
    for concept, row, col in places:
        grid = means[concept].unstack("head")
        fig.add_trace(
            go.Heatmap(
                z=grid.to_numpy(),
                x=grid.columns,
                y=grid.index,
                coloraxis="coloraxis",
                texttemplate="%{z:.2f}" if written else None,
                hovertemplate=f"layer %{{y}}, head %{{x}}: %{{z:.3f}}<extra>{concept}</extra>",
            ),
            row=row,
            col=col,
        )
    fig.update_layout(
        coloraxis={"cmin": low, "cmax": high, "colorscale": "Cividis", "colorbar": {"title": value}}
    )
    fig.update_yaxes(autorange="reversed", tickformat="d")
    return _axes(fig, places, "head", "layer")


def cosines_by_layer(cosines: pd.DataFrame, title: str = "") -> go.Figure:
    """Cosine between directions of two methods by depth, one panel per concept, with bootstrap and null
    bands.

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
        _band(fig, null.index, null["null_lo"], null["null_hi"], GREY, row, col, name="random directions")
        for (a, b), (tint, dash) in styles.items():
            part = here[(here["method_a"] == a) & (here["method_b"] == b)]
            _band(fig, part["layer"], part["lo"], part["hi"], tint, row, col)
            name = f"{a}, split halves" if a == b else f"{a} and {b}"
            _line(fig, part["layer"], part["cosine"], name.replace("_", " "), tint, dash, row, col)
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
    levels = [
        name for name in table["name"].unique() if (table.loc[table["name"] == name, "strength"] == 0).all()
    ]
    for group, row, col in places:
        here = table[table[panel] == group]
        ends = [min(0.0, here["strength"].min()), here["strength"].max()]
        for k, name in enumerate(
            levels
        ):  # what has no strength, such as the unsteered clips, is a level line
            for _, level in here[here["name"] == name].iterrows():
                _band(fig, ends, [level[f"{value}_lo"]] * 2, [level[f"{value}_hi"]] * 2, GREY, row, col)
                _line(fig, ends, [level[value]] * 2, name, GREY, "dash" if k == 0 else "longdash", row, col)
        drawn = [name for name in controls if name not in levels]
        for k, name in enumerate([*names, *drawn]):
            part = here[here["name"] == name].sort_values("strength")
            colour = GREY if name in drawn else COLOURS[k % len(COLOURS)]
            if len(part) and name not in levels:
                _band(fig, part["strength"], part[f"{value}_lo"], part[f"{value}_hi"], colour, row, col)
                dash = _CONTROLS[(k - len(names)) % 3] if name in drawn else _DASHES[k // len(COLOURS) % 4]
                _line(fig, part["strength"], part[value], name.replace("_", " "), colour, dash, row, col)
        below = (row + 1, col) not in {(r, c) for _, r, c in places}
        fig.update_xaxes(
            title_text="strength (multiples of the activation norm)" if below else None, row=row, col=col
        )
    fig.update_layout(height=max(fig.layout.height, 200 + 30 * table["name"].nunique()))
    fig.update_yaxes(title_text=f"{value.replace('_', ' ')}, {unit}", col=1)
    return fig


def _need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(
            f"The table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, table))}."
        )
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
    mode = "lines" if colour == GREY else "lines+markers"
    line = {"color": colour, "dash": dash, "width": 2}
    trace = go.Scatter(
        x=list(x), y=list(y), name=name, mode=mode, line=line, legendgroup=name, showlegend=first
    )
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
