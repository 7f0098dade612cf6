"""The figures of the shipped study, drawn from its table of cells: 04 shows them, `make figures` draws them anew.

Each takes the table of data/study/doses.parquet and returns the figure and the rows behind it. Success is where both
judges hear the concept; intervals are 95 % (Wilson's for shares, bootstrap for KAD).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from . import paths, plots

__all__ = ["DRAWN", "dose_response", "facts", "penalties", "shipped", "sites", "ways"]

WAYS, PENALTY = "ways to add", "by penalty"
METHODS = ("logistic", "mse", "diff_of_means")


def shipped() -> pd.DataFrame:
    """The shipped table: one row per experiment, steering and strength (`dose.dose_table`, and what each was)."""
    return pd.read_parquet(paths.data() / "study" / "doses.parquet")


def facts(study: pd.DataFrame) -> dict:
    """Where the numbers come from, as `save_figure` keeps it."""
    row = study.iloc[0]
    return {"model": f"{row['model']} {row['model_hash']}", "seed": int(row["seed"]), "command": _COMMAND}


_COMMAND = "python -m mechsteer.study"


def of_study(study: pd.DataFrame) -> str:
    """For titles: "study of tiny, 100 clips a point"."""
    return f"study of {study['model'].iloc[0]}, {study['n'].min()} clips a point"


def dose_response(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """Success by strength in the residual stream: guitar, the other unprompted ones, transfers; the table is all."""
    shown = study[~study["experiment"].str.contains(" at |, ")]
    place = (shown["experiment"] != "guitar").astype(int) + (shown["source"] != "unprompted")
    shown = shown.loc[place.sort_values(kind="stable").index]
    found = shown[shown["kind"].isin(["read", "write"])]
    best = found.loc[found.groupby("experiment")["both_success"].idxmax(), "name"].value_counts()
    title = f"{best.index[0].replace('_', ' ').capitalize()} reaches most in {best.iloc[0]} of {best.sum()} panels"
    fig = _titled(plots.dose_curves(shown, "both_success"), title, of_study(study))
    fig.update_yaxes(title_text="target heard by both judges, share", col=1)
    return fig, study


def sites(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """What guitar costs in the residual stream, at attention outputs and at single heads: success against KAD."""
    rows = study[study["experiment"].str.startswith("guitar") & (study["source"] == "unprompted")]
    rows = rows[~rows["experiment"].str.contains(PENALTY)]
    rows = rows[rows["method"].isin(METHODS)].replace({"diff_of_means": "diff of means"}).sort_values("strength")
    rows["place"] = rows["experiment"].replace("guitar", "residual stream").str.replace("guitar at ", "")
    success, kad = rows["both_success"], rows["kad"]
    rows = rows.assign(up=rows["both_success_hi"] - success, down=success - rows["both_success_lo"])
    rows = rows.assign(right=rows["kad_hi"] - kad, left=kad - rows["kad_lo"])
    fig = px.line(
        rows, x="kad", y="both_success", color="method", facet_col="place", markers=True, range_y=[-0.02, 1.02],
        hover_data=["strength"], error_y="up", error_y_minus="down", error_x="right", error_x_minus="left",
        labels={"kad": "KAD to real guitar clips"}, color_discrete_sequence=list(plots.COLOURS), template="mechsteer",
        width=1080, height=420,
    )  # fmt: skip
    sizes = {"size": [5, 7, 10, 13]}  # the doses, from small to large
    fig.update_traces(line={"width": 1}, marker=sizes, error_x={"thickness": 1}, error_y={"thickness": 1})
    fig.for_each_annotation(lambda a: a.update(text=a.text.removeprefix("place=")))
    fig.update_yaxes(title="guitar heard by both judges, share", col=1)
    half = cost_of_half(study, rows).unstack("method").rename(dict(zip(rows["experiment"], rows["place"], strict=True)))
    ends = [f"{half.stack()[at]:.1f} ({at[0]}, {at[1]})" for at in (half.stack().idxmin(), half.stack().idxmax())]
    title = f"Half of the clips turned costs a KAD of {' to '.join(ends)}"
    _titled(fig, title, f"larger dots, larger strengths; {of_study(study)}")
    return fig, rows


def cost_of_half(study: pd.DataFrame, rows: pd.DataFrame, value: str = "kad") -> pd.Series:
    """`value` where success crosses one half on the way up, linear between doses, by experiment and method.

    NaN where it never gets there, or is there unsteered. `rows` are those of `study` to look at.
    """
    start = study[study["name"] == "unsteered"].set_index("experiment")

    def crossing(part: pd.DataFrame) -> float:
        part = pd.concat([start.loc[[part.name[0]]], part.sort_values("strength")])
        crossed = np.flatnonzero(part["both_success"].to_numpy() >= 0.5)
        if not len(crossed) or crossed[0] == 0:
            return np.nan
        pair = part.iloc[crossed[0] - 1 : crossed[0] + 1]
        return np.interp(0.5, pair["both_success"], pair[value])

    upwards = rows[rows["strength"] > 0]
    return upwards.groupby(["experiment", "method"], sort=False)[["strength", "both_success", value]].apply(crossing)


def ways(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """One direction, added in every way that `finders.Finder.ways` lists, and its two controls."""
    rows = study[study["experiment"].str.contains(WAYS) & (study["name"] != "unsteered")]
    order = rows.groupby("name")["both_success"].mean().sort_values().index
    order = sorted(order, key=lambda name: name not in ("random", "shuffled labels"))  # controls at the bottom
    rows = rows.sort_values(["strength", "name"]).assign(strength=lambda t: t["strength"].astype(str))
    fig = px.scatter(
        rows, x="both_success", y="name", color="strength", symbol="kind", template="mechsteer", height=700, width=1080,
        error_x=rows["both_success_hi"] - rows["both_success"],
        error_x_minus=rows["both_success"] - rows["both_success_lo"], hover_data=["success", "judge2_success", "kad"],
        color_discrete_sequence=list(plots.COLOURS), category_orders={"name": order[::-1]},
        labels={"both_success": "guitar heard by both judges, share of clips", "name": ""},
    )  # fmt: skip
    fig.update_layout(margin={"l": 270})
    _titled(fig, f"One direction, added in every way: most is heard by {order[-1]}", of_study(study))
    return fig, rows


def penalties(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """Logistic and MSE probes at every penalty: do they read, where do they point, do they write?

    At the right edge the difference of means, into which both turn as the penalty grows; grey, random directions.
    The probes at the penalty that cross-validation chooses are in the table, not in the picture.
    """
    rows = study[study["experiment"].str.contains(PENALTY)]
    rows = rows.assign(concept=rows["experiment"].str.removesuffix(f", {PENALTY}"))
    line = rows["name"].str.contains("penalty")
    weak, edge = rows.loc[line, "penalty"].min(), 10 * rows.loc[line, "penalty"].max()
    marks = [rows[line], rows[rows["name"] == "diff_of_means"].assign(penalty=edge)]
    marks += [rows[rows["name"] == "random"].assign(penalty=where) for where in (weak, edge)]
    marks = pd.concat(marks).sort_values("penalty").replace({"diff_of_means": "diff of means"})
    heard = {strength: f"both judges hear<br>it, strength {strength:g}" for strength in sorted(set(marks["strength"]))}
    success = marks["both_success"]
    written = marks.assign(what=marks["strength"].map(heard), value=success)
    written = written.assign(up=marks["both_success_hi"] - success, down=success - marks["both_success_lo"])
    once = marks[marks["strength"] == min(heard)]
    read = {"held_out": "it is read:<br>held-out AUC", "cosine": "cosine with the<br>difference of means"}
    parts = [once.assign(what=what, value=once[column]).dropna(subset="value") for column, what in read.items()]
    ends = rows[line & rows["penalty"].isin([weak, edge / 10]) & (rows["strength"] == min(heard))]
    ends = ends.pivot_table(index="concept", columns="penalty", values="both_success")
    said = ", ".join(f"{concept} {low:.2f} to {high:.2f}" for concept, low, high in ends.itertuples())
    colours = dict(zip(["logistic", "mse", "diff of means"], plots.COLOURS, strict=False)) | {"random": plots.GREY}
    fig = px.line(
        pd.concat([*parts, written]), x="penalty", y="value", color="method", facet_row="what", facet_col="concept",
        error_y="up", error_y_minus="down", markers=True, log_x=True, range_y=[-0.03, 1.05], template="mechsteer",
        color_discrete_map=colours, width=1250, height=900,
        category_orders={"what": [*read.values(), *heard.values()], "method": list(colours), "concept": [*ends.index]},
        labels={"value": ""}, hover_data=["held_out", "cosine", "kad"],
    )  # fmt: skip
    fig.update_traces(line={"width": 1.5}, error_y={"thickness": 1})
    fig.for_each_annotation(lambda a: a.update(text=a.text.split("=")[-1]))
    ticks = sorted(marks.loc[marks["penalty"] < edge, "penalty"].unique())
    fig.update_xaxes(tickvals=[*ticks, edge], ticktext=[*(f"{tick:g}" for tick in ticks), "∞"])
    fig.update_xaxes(title="penalty", row=1)
    small = f"mean of both methods at strength {min(heard):g}, weakest to strongest penalty; {of_study(study)}"
    _titled(fig, f"More penalty reads alike and writes more: {said}", small)
    fig.update_layout(legend={"orientation": "h", "y": -0.09, "title": ""})
    return fig, rows


def _titled(fig: go.Figure, title: str, small: str) -> go.Figure:
    return fig.update_layout(title=f"{title}<br><span style='font-size:13px'>{small}</span>", margin_t=115)


DRAWN = {"04_dose_response": dose_response, "04_penalties": penalties, "04_sites": sites, "04_ways": ways}
