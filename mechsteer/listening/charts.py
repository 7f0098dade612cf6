"""Figures of listening tests from the tables of `stats` and `power`, in the style of `mechsteer.show.plots`.

Each says in its title what was found, and under it how many listeners count and whether they were simulated.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from ..show import plots
from .design import Design

__all__ = ["power", "results", "strengths"]


def results(table: pd.DataFrame, design: Design, who: str) -> go.Figure:
    """Shares of choices (preference, ABX) or mean ratings with their intervals by listener and item."""
    if design.kind == "rating":
        shown = (table[column] for column in ("condition", "mean", "lo", "hi"))
        fig = _dots(*shown, "rating, 0 to 100", (0, 100), None)
        most = table.loc[table["mean"].idxmax()]
        return _titled(fig, f"{design.question} Most: {most['condition']}, {most['mean']:.0f} of 100", who)
    other = "against" if design.kind == "abx" else "over"
    if design.kind == "abx":
        labels, x, span = table["condition"] + " / " + table[other], "share of X told rightly", (0, 1)
        fig = _dots(labels, table["share"], table["lo"], table["hi"], x, span, 0.5)
        most = table["share"].idxmax()
        best = f"Told apart best: {labels[most]}, X told rightly {table['share'][most]:.0%}"
        return _titled(fig, best if table["lo"][most] > 0.5 else "Not shown to be told apart", who)
    turned = table["share"] < 0.5  # the condition chosen more often is named first
    first = table["condition"].where(~turned, table[other])
    second = table[other].where(~turned, table["condition"])
    share = table["share"].where(~turned, 1 - table["share"])
    lo = table["lo"].where(~turned, 1 - table["hi"])
    hi = table["hi"].where(~turned, 1 - table["lo"])
    labels, most = first + " over " + second, share.idxmax()
    fig = _dots(labels, share, lo, hi, "share of choices for the first", (0, 1), 0.5)
    said = f"{labels[most].capitalize()}: {share[most]:.0%}" if lo[most] > 0.5 else "No difference is shown"
    return _titled(fig, f"{design.question} {said}", who)


def strengths(table: pd.DataFrame, design: Design, who: str) -> go.Figure:
    """Bradley-Terry strengths with their intervals; a difference of 1 is a preference of 73 %."""
    shown = (table[column] for column in ("condition", "strength", "lo", "hi"))
    fig = _dots(*shown, "strength, log odds", None, 0.0)
    return _titled(fig, f"{design.question} Most: {table.loc[table['strength'].idxmax(), 'condition']}", who)


def power(table: pd.DataFrame, target: float = 0.8, colour: str = "preference", title: str = "") -> go.Figure:
    """Power by number of listeners, a line for each value of `colour`; the target is dashed.

    `table` is what `listening.power.power` returns, for several preferences put together with a column
    `preference`.
    """
    missing = [column for column in ("listeners", "power", "error", colour) if column not in table]
    if missing:
        raise ValueError(f"The table lacks the column(s) {', '.join(missing)}; it has {', '.join(table)}.")
    fig = go.Figure()
    dashes = ("solid", "dash", "dot", "dashdot")
    for k, (name, part) in enumerate(table.groupby(colour, sort=True)):
        tint = plots.COLOURS[k % len(plots.COLOURS)]
        bars = {"array": list(1.96 * part["error"]), "thickness": 1, "width": 3}
        line = {"color": tint, "width": 2, "dash": dashes[k % 4]}
        label = f"{name:.0%}" if isinstance(name, float) else str(name)
        x, y = list(part["listeners"]), list(part["power"])
        fig.add_scatter(x=x, y=y, error_y=bars, name=label, line=line)
    fig.add_hline(y=target, line={"color": plots.GREY, "dash": "dash"}, annotation_text=f"{target:.0%}")
    fig.update_layout(template="mechsteer", title_text=title, width=760, height=440, legend_title_text=colour)
    fig.update_xaxes(title_text="listeners (simulated)", rangemode="tozero")
    return fig.update_yaxes(title_text="share of tests that see it", range=[0, 1.02], tickformat=".0%")


def _dots(labels, middle, lo, hi, x: str, span: tuple[float, float] | None, null: float | None) -> go.Figure:
    """A dot and a line per row, the first row on top."""
    fig = go.Figure()
    middle, lo, hi = (pd.Series(v).astype(float).to_numpy() for v in (middle, lo, hi))
    names, tint = [str(label) for label in labels], plots.COLOURS[0]
    bars = {"array": hi - middle, "arrayminus": middle - lo, "thickness": 2, "width": 6, "color": tint}
    look = {"marker": {"size": 11, "color": tint}, "hovertemplate": "%{y}: %{x:.3f}<extra></extra>"}
    fig.add_scatter(x=middle, y=names, mode="markers", error_x=bars, **look)
    if null is not None:
        fig.add_vline(x=null, line={"color": plots.GREY, "dash": "dash"})
    fig.update_layout(template="mechsteer", width=760, height=200 + 46 * len(middle), showlegend=False)
    fig.update_xaxes(title_text=x, range=span, tickformat=".0%" if span == (0, 1) else None)
    return fig.update_yaxes(autorange="reversed", automargin=True, ticks="", showline=False)


def _titled(fig: go.Figure, title: str, who: str) -> go.Figure:
    small = f"{who}; 95 % intervals by listener and item"
    said = f"{title}<br><span style='font-size:13px;color:{plots.GREY}'>{small}</span>"
    return fig.update_layout(title_text=said)
