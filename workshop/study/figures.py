"""The figures of the shipped study, drawn from its table of cells, as `make figures` draws them anew.

Each takes the table of data/study/doses.parquet and returns the figure and the rows behind it. Success is
where both judges hear the concept; intervals are 95 % (Wilson's for shares, bootstrap for distances).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from scipy.stats import binomtest

from mechsteer.directions.scores import PROBES
from mechsteer.measures.describe import success
from mechsteer.show import plots
from mechsteer.show.saving import study_table

from . import COMMAND

__all__ = ["DRAWN", "by_dose", "by_penalty", "by_site", "by_way", "cost_of_half", "duels", "facts", "shipped"]

PLACES = {"resid": "residual stream", "attn": "attention outputs", "heads": "the best heads"}
CHOSEN = ", penalty chosen for reading"
_TINTS = dict(zip(["logistic", "mse", "diff of means"], plots.COLOURS, strict=False))
_TINTS |= {f"{name}{CHOSEN}": _TINTS[name] for name in ("logistic", "mse")}
_TINTS |= dict.fromkeys(("random", "unsteered"), plots.GREY)
_ORDER = lambda names: names.map({name: k for k, name in enumerate(_TINTS)})


def shipped() -> pd.DataFrame:
    """The shipped table: a row per experiment, steering and strength, as `run.run_experiment` returns it.

    Raises Told if it is missing or damaged; names the file and what brings it back.
    """
    return study_table("doses")


def facts(study: pd.DataFrame) -> dict:
    """Where the numbers come from, as `save_figure` keeps it."""
    row = study.iloc[0]
    return {"model": f"{row['model']} {row['model_hash']}", "seed": int(row["seed"]), "command": COMMAND}


def of_study(study: pd.DataFrame) -> str:
    """For titles: "study of tiny, 100 clips a point"."""
    return f"study of {study['model'].iloc[0]}, {study['n'].min()} clips a point"


def by_dose(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """Success by strength in the residual stream: guitar, other unprompted ones, transfers; rows are all."""
    shown = study[study["question"] == "dose"]
    prompted = shown["source"] != "unprompted"
    place = 2 * prompted + (~prompted & (shown["target"] != "guitar"))
    shown = shown.loc[place.sort_values(kind="stable").index]
    best = shown[shown["kind"].isin(["read", "write"])].groupby("experiment")["both_success"].max()
    random = shown[shown["name"] == "random"].groupby("experiment")["both_success"].max()
    spans = [f"{of.min():.2f} to {of.max():.2f}" for of in (best, random)]
    title = f"At its best strength the best direction reaches {spans[0]}, random ones {spans[1]}"
    fig = _titled(plots.dose_curves(shown, "both_success"), title, of_study(study))
    fig.update_yaxes(title_text="target heard by both judges, share", col=1)
    return fig, study


def by_site(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """What guitar costs in the residual stream, at attention outputs, at heads: success against distance."""
    rows = study[(study["target"] == "guitar") & (study["source"] == "unprompted")]
    rows = rows[rows["question"].isin(["dose", "site"])]
    place = rows[rows["site"] != ""].groupby("experiment")["site"].first()  # unsteered rows have no site
    rows = rows.assign(place=rows["experiment"].map(place).map(PLACES))
    rows = rows[rows["method"].isin([*PROBES, "unsteered"])].sort_values("strength")
    rows = rows.replace({"diff_of_means": "diff of means"}).sort_values("name", key=_ORDER, kind="stable")
    success, cost = rows["both_success"], rows["texture_distance"]
    rows = rows.assign(up=rows["both_success_hi"] - success, down=success - rows["both_success_lo"])
    rows = rows.assign(right=rows["texture_distance_hi"] - cost, left=cost - rows["texture_distance_lo"])
    start = rows.loc[rows["name"] == "unsteered", "texture_distance"].iloc[0]
    fig = px.line(
        rows, x="texture_distance", y="both_success", color="method", facet_col="place", markers=True,
        range_y=[-0.02, 1.02], hover_data=["strength"], error_y="up", error_y_minus="down", error_x="right",
        error_x_minus="left",
        labels={"texture_distance": "texture distance to real guitar clips"}, color_discrete_map=_TINTS,
        template="mechsteer", width=1080, height=420,
    )  # fmt: skip
    sizes = {"size": [5, 7, 10, 13]}  # the doses, from small to large
    fig.update_traces(line={"width": 1}, marker=sizes, error_x={"thickness": 1}, error_y={"thickness": 1})
    fig.for_each_annotation(lambda a: a.update(text=a.text.removeprefix("place=")))
    fig.update_yaxes(title="guitar heard by both judges, share", col=1)
    half = cost_of_half(study, rows[rows["strength"] > 0]).groupby("method").agg(["min", "max"])
    title = "; ".join(f"{name} {low:.1f} to {high:.1f}" for name, low, high in half.itertuples())
    small = f"by site, larger dots for larger strengths; {of_study(study)}"
    _titled(fig, f"Texture distance with half of the clips turned (unsteered {start:.1f}): {title}", small)
    return fig, rows


def cost_of_half(study: pd.DataFrame, rows: pd.DataFrame, value: str = "texture_distance") -> pd.Series:
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

    upwards = rows[rows["strength"] > 0].groupby(["experiment", "method"], sort=False)
    return upwards[["strength", "both_success", value]].apply(crossing)


def by_way(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """One direction, added in every way that `finders.Finder.ways` lists, and its two controls."""
    rows = study[(study["question"] == "ways") & (study["name"] != "unsteered")]
    controls = set(rows.loc[rows["kind"] == "control", "name"])
    order = rows.groupby("name")["both_success"].mean().sort_values().index
    order = sorted(order, key=lambda name: name not in controls)  # those at the bottom
    rows = rows.sort_values(["strength", "name"]).assign(strength=lambda t: t["strength"].astype(str))
    fig = px.scatter(
        rows, x="both_success", y="name", color="strength", symbol="kind", template="mechsteer",
        height=700, width=1080, hover_data=["success", "judge2_success", "texture_distance"],
        error_x=rows["both_success_hi"] - rows["both_success"],
        error_x_minus=rows["both_success"] - rows["both_success_lo"],
        color_discrete_sequence=list(plots.COLOURS), category_orders={"name": order[::-1]},
        labels={"both_success": "guitar heard by both judges, share of clips", "name": ""},
    )  # fmt: skip
    fig.update_layout(margin={"l": 270})
    title = f"One direction, added in every way: guitar is heard most often with {order[-1]!r}"
    return _titled(fig, title, of_study(study)), rows


def by_penalty(study: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    """Logistic and MSE probes at every penalty: do they read, where do they point, do they write?

    On the lines all activations are scaled by one number, so that at the right edge (no end of penalty) both
    are the difference of means. Open circles: the probes of the other figures, with every feature scaled to
    unit variance and the penalty of least held-out loss. Grey: random directions.
    """
    rows = study[study["question"] == "penalty"]
    line = rows["penalty"].notna() & (rows["name"] != rows["method"])  # the chosen are named as their method
    weak, strong = rows.loc[line, "penalty"].min(), rows.loc[line, "penalty"].max()
    marks = [rows[line], rows[rows["name"] == "diff_of_means"].assign(penalty=10 * strong)]
    marks += [rows[rows["name"] == "random"].assign(penalty=where) for where in (weak, 10 * strong)]
    chosen = rows[rows["penalty"].notna() & ~line]
    marks += [chosen.assign(method=chosen["method"] + CHOSEN)]
    marks = pd.concat(marks).replace({"diff_of_means": "diff of means"}).sort_values("penalty")
    heard = {x: f"both judges hear<br>it, strength {x:g}" for x in sorted(set(marks["strength"]))}
    success = marks["both_success"]
    written = marks.assign(what=marks["strength"].map(heard), value=success)
    written = written.assign(up=marks["both_success_hi"] - success, down=success - marks["both_success_lo"])
    once = marks[marks["strength"] == min(heard)]
    read = {"held_out": "it is read:<br>held-out AUC", "cosine": "cosine with the<br>difference of means"}
    parts = [once.assign(what=what, value=once[column]) for column, what in read.items()]
    parts = [part.dropna(subset="value") for part in parts]
    targets = sorted(set(rows["target"]))
    order = {"what": [*read.values(), *heard.values()], "method": list(_TINTS), "target": targets}
    fig = px.line(
        pd.concat([*parts, written]), x="penalty", y="value", color="method", facet_row="what",
        facet_col="target", error_y="up", error_y_minus="down", markers=True, log_x=True,
        template="mechsteer", range_y=[-0.03, 1.05], color_discrete_map=_TINTS, category_orders=order,
        width=400 + 300 * len(targets), height=920, labels={"value": ""},
        hover_data=["held_out", "texture_distance"],
    )  # fmt: skip
    fig.update_traces(line={"width": 1.5}, error_y={"thickness": 1})
    open_circle = {"symbol": "circle-open", "size": 10}
    fig.for_each_trace(lambda t: t.update(marker=open_circle) if t.name.endswith(CHOSEN) else None)
    fig.for_each_annotation(lambda a: a.update(text=a.text.split("=")[-1]))
    fig.update_yaxes(matches=None, range=[0.9, 1.005], row=len(heard) + 2)  # all of them read: a closer look
    ticks = sorted(rows.loc[line, "penalty"].unique())
    fig.update_xaxes(tickvals=[*ticks, 10 * strong], ticktext=[*(f"{tick:g}" for tick in ticks), "∞"])
    fig.update_xaxes(title="penalty", row=1)
    ends = rows[line & rows["penalty"].isin([weak, strong]) & (rows["strength"] == min(heard))]
    ends = ends.pivot_table(index=["method", "target"], columns="penalty", values="both_success")
    ends = ends.groupby("method")
    said = ["; ".join(f"{name} {a:.2f} to {b:.2f}" for (_, name), a, b in of.itertuples()) for _, of in ends]
    said = ", ".join(f"{method} ({of})" for method, of in zip(ends.groups, said, strict=True))
    small = f"success at strength {min(heard):g}, from the weakest to the strongest penalty"
    fig.update_layout(legend={"orientation": "h", "y": -0.08, "title": ""})
    return _titled(fig, f"What a probe's penalty writes: {said}", f"{small}; {of_study(study)}"), rows


def duels(study: pd.DataFrame, clips: pd.DataFrame, a: str = "logistic", b: str = "mse") -> pd.DataFrame:
    """Two methods on the same clips: success of each, clips that only one turned, and McNemar's exact p.

    `clips` is data/study/clips.parquet. One row per experiment and strength that has both; index these two.
    """
    found = []
    both = study[study["name"].isin([a, b])].groupby(["experiment", "strength"], sort=False)
    for (experiment, strength), rows in both:
        if set(rows["name"]) != {a, b}:
            continue
        here = clips[(clips["experiment"] == experiment) & (clips["strength"] == strength)]
        each = [here[here["name"] == name].set_index("clip") for name in (a, b)]
        turned = [success(part, asked(rows), "both") for part in each]
        only = [int((turned[i] & ~turned[1 - i]).sum()) for i in (0, 1)]
        p = binomtest(only[0], max(sum(only), 1)).pvalue if sum(only) else 1.0
        row = {"experiment": experiment, "strength": strength, a: turned[0].mean(), b: turned[1].mean()}
        found.append(row | {f"{a} only": only[0], f"{b} only": only[1], "p": p})
    return pd.DataFrame(found).set_index(["experiment", "strength"])


def asked(rows: pd.DataFrame) -> dict:
    """What counts as success in these rows of one experiment, as `success` takes it: {"lead": "guitar"}."""
    ((label, value),) = rows[["label", "value"]].drop_duplicates().to_numpy()
    return {label: {"True": True, "False": False}.get(value, value)}  # the table's values are text


def _titled(fig: go.Figure, title: str, small: str) -> go.Figure:
    return fig.update_layout(title=f"{title}<br><span style='font-size:13px'>{small}</span>", margin_t=115)


DRAWN = {"05_dose_response": by_dose, "05_penalties": by_penalty, "05_sites": by_site, "05_ways": by_way}
