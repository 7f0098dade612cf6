"""Figures of listening tests from the tables of `stats` and `power`, in the style of `mechsteer.show.plots`.

Each says in its title what was found, and under it how many listeners count and whether they were simulated.
"""

from __future__ import annotations

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from ..show import plots
from .design import Design

DARKER = ("#999999", "#777777", "#444444", "#000000")  # no colour: those of the suite mean methods


def results(table: pd.DataFrame, design: Design, who: str) -> go.Figure:
    """Shares of choices (preference, ABX) or mean ratings with their intervals by listener and item."""
    if design.kind == "rating":
        most = table.loc[table["mean"].idxmax()]
        title = f"{design.question} Most: {most['condition']}, {most['mean']:.0f} of 100"
        return _dots(table["condition"], table, "mean", title, who, "rating, 0 to 100", (0, 100))
    if design.kind == "abx":
        shown, joined, axis = table.rename(columns={"against": "over"}), " / ", "share of X told rightly"
    else:
        turned = {"condition": table["over"], "over": table["condition"]}
        turned |= {"share": 1 - table["share"], "lo": 1 - table["hi"], "hi": 1 - table["lo"]}
        shown = table.mask(table["share"] < 0.5, table.assign(**turned))  # the more often chosen comes first
        joined, axis = " over ", "share of choices for the first"
    pairs = shown["condition"] + joined + shown["over"]
    most = shown["share"].idxmax()
    clear, pair, share = shown["lo"][most] > 0.5, pairs[most], f"{shown['share'][most]:.0%}"
    if design.kind == "abx":
        found = f"Told apart best: {pair}, X told rightly {share}" if clear else "Not shown to be told apart"
    else:
        found = f"{design.question} {f'{pair.capitalize()}: {share}' if clear else 'No difference is shown'}"
    return _dots(pairs, shown, "share", found, who, axis, (0, 1), null=0.5)


def strengths(table: pd.DataFrame, design: Design, who: str) -> go.Figure:
    """Bradley-Terry strengths with their intervals; a difference of 1 is a preference of 73 %."""
    title = f"{design.question} Most: {table.loc[table['strength'].idxmax(), 'condition']}"
    return _dots(table["condition"], table, "strength", title, who, "strength, log odds", null=0.0)


def power_curves(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Power by number of listeners, a line for each preference; a power of 80 % is dashed.

    `table` is what `listening.power.power` returns, for several preferences put together with a column
    `preference`.
    """
    shown = table.assign(preference=table["preference"].map("{:.0%}".format), error=1.96 * table["error"])
    look = {"color": "preference", "line_dash": "preference", "color_discrete_sequence": DARKER}
    look |= {"line_dash_sequence": ["dot", "dashdot", "dash", "solid"], "title": title, "markers": True}
    fig = px.line(shown, "listeners", "power", error_y="error", template="mechsteer", **look)
    fig.add_hline(y=0.8, line={"color": plots.GREY, "dash": "dash"}, annotation_text="80%")
    fig.update_layout(width=760, height=440).update_xaxes(title="listeners (simulated)", rangemode="tozero")
    return fig.update_yaxes(title="share of tests that see it", range=[0, 1.02], tickformat=".0%")


def _dots(names, table, value: str, title: str, who: str, axis: str, span=None, null=None) -> go.Figure:
    """A dot at `value` and a line from `lo` to `hi` per row, the first row on top; `null` is dashed."""
    middle, lo, hi = (table[column].astype(float).to_numpy() for column in (value, "lo", "hi"))
    fig, tint = go.Figure(), DARKER[2]
    bars = {"array": hi - middle, "arrayminus": middle - lo, "thickness": 2, "width": 6, "color": tint}
    look = {"marker": {"size": 11, "color": tint}, "hovertemplate": "%{y}: %{x:.3f}<extra></extra>"}
    fig.add_scatter(x=middle, y=list(names), mode="markers", error_x=bars, **look)
    if null is not None:
        fig.add_vline(x=null, line={"color": plots.GREY, "dash": "dash"})
    said = f"{who}; 95 % intervals by listener and item"
    title += f"<br><span style='font-size:13px;color:{plots.GREY}'>{said}</span>"
    size = {"width": 760, "height": 200 + 46 * len(middle)}
    fig.update_layout(template="mechsteer", title_text=title, showlegend=False, **size)
    fig.update_xaxes(title_text=axis, range=span, tickformat=".0%" if span == (0, 1) else None)
    return fig.update_yaxes(autorange="reversed", automargin=True, ticks="", showline=False)
