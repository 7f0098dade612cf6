"""Figures of listening tests from the tables of `stats` and `power`, in the style of `mechsteer.show.plots`.

Each says in its title what was found, and under it how many listeners count and whether they were simulated.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from ..measures.intervals import need
from ..show import plots
from .design import Design


def results(table: pd.DataFrame, design: Design, who: str) -> go.Figure:
    """Shares of choices (preference, ABX) or mean ratings with their intervals by listener and item."""
    if design.kind == "rating":
        fig = _dots(table, "condition", "mean", "rating, 0 to 100", (0, 100), None)
        most = table.loc[table["mean"].idxmax()]
        return _titled(fig, f"{design.question} Most: {most['condition']}, {most['mean']:.0f} of 100", who)
    if design.kind == "abx":
        shown = table.assign(pair=table["condition"] + " / " + table["against"])
        fig = _dots(shown, "pair", "share", "share of X told rightly", (0, 1), 0.5)
        most = shown.loc[shown["share"].idxmax()]
        best = f"Told apart best: {most['pair']}, X told rightly {most['share']:.0%}"
        return _titled(fig, best if most["lo"] > 0.5 else "Not shown to be told apart", who)
    turned = {"condition": table["over"], "over": table["condition"]}
    turned |= {"share": 1 - table["share"], "lo": 1 - table["hi"], "hi": 1 - table["lo"]}
    shown = table.mask(table["share"] < 0.5, table.assign(**turned))  # what was chosen more often comes first
    shown = shown.assign(pair=shown["condition"] + " over " + shown["over"])
    fig = _dots(shown, "pair", "share", "share of choices for the first", (0, 1), 0.5)
    most = shown.loc[shown["share"].idxmax()]
    said = f"{most['pair'].capitalize()}: {most['share']:.0%}"
    return _titled(fig, f"{design.question} {said if most['lo'] > 0.5 else 'No difference is shown'}", who)


def strengths(table: pd.DataFrame, design: Design, who: str) -> go.Figure:
    """Bradley-Terry strengths with their intervals; a difference of 1 is a preference of 73 %."""
    fig = _dots(table, "condition", "strength", "strength, log odds", None, 0.0)
    return _titled(fig, f"{design.question} Most: {table.loc[table['strength'].idxmax(), 'condition']}", who)


def power_curves(
    table: pd.DataFrame, target: float = 0.8, colour: str = "preference", title: str = ""
) -> go.Figure:
    """Power by number of listeners, a line for each value of `colour`; the target is dashed.

    `table` is what `listening.power.power` returns, for several preferences put together with a column
    `preference`.
    """
    need(table, ["listeners", "power", "error", colour])
    fig, dashes = go.Figure(), ("solid", "dash", "dot", "dashdot")
    for k, (name, part) in enumerate(table.groupby(colour, sort=True)):
        bars = {"array": list(1.96 * part["error"]), "thickness": 1, "width": 3}
        line = {"color": plots.COLOURS[k % len(plots.COLOURS)], "width": 2, "dash": dashes[k % 4]}
        label = f"{name:.0%}" if isinstance(name, float) else str(name)
        x, y = list(part["listeners"]), list(part["power"])
        fig.add_scatter(x=x, y=y, error_y=bars, name=label, line=line)
    fig.add_hline(y=target, line={"color": plots.GREY, "dash": "dash"}, annotation_text=f"{target:.0%}")
    fig.update_layout(template="mechsteer", title_text=title, width=760, height=440, legend_title_text=colour)
    fig.update_xaxes(title_text="listeners (simulated)", rangemode="tozero")
    return fig.update_yaxes(title_text="share of tests that see it", range=[0, 1.02], tickformat=".0%")


def _dots(
    table: pd.DataFrame, label: str, value: str, x: str, span: tuple[float, float] | None, null: float | None
) -> go.Figure:
    """A dot at `value` and a line from `lo` to `hi` per row, the first row on top."""
    middle, lo, hi = (table[column].astype(float).to_numpy() for column in (value, "lo", "hi"))
    fig, names, tint = go.Figure(), [str(name) for name in table[label]], plots.COLOURS[0]
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
