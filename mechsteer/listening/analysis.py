"""From answers to tables: made tidy, screened by the rule of the plan, analysed; one call for all three."""

from __future__ import annotations

import dataclasses
import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import paths
from . import stats
from .answers import records
from .design import Design, Trial, trials

if TYPE_CHECKING:
    import plotly.graph_objects as go


def tidy(lines: Sequence[dict], design: Design) -> pd.DataFrame:
    """Answers as a table, in the order given; what doesn't belong to the plan is skipped, with a warning.

    Returns
    -------
    pd.DataFrame with the columns listener (L01, or S01 for a simulated one), name, simulated, stage, trial,
    item, repeat, time, seconds, switches, and for forced choice, one row per answer: left, right (conditions
    heard as A and B), choice (the letter), chosen (the condition), x and correct (ABX and headphone check);
    for ratings, one row per slider: position (0 is A), condition, rating.
    """
    known, skipped = records(lines)
    who = lambda line: (line["listener"], bool(line.get("simulated")))
    names = {who(line): line["name"] for line in known if line["kind"] == "listener"}
    plans = {n: {t.key: t for t in trials(design, n)} for n in {line["listener"] for line in known}}
    rows = []
    for line in (line for line in known if line["kind"] == "answer"):
        number, made = who(line)
        trial = plans[number].get(line["trial"])
        if trial is None or not _answers(line, trial):
            skipped += 1
            continue
        check, name = trial.stage == "headphones", names.get((number, made), f"listener {number}")
        row = {"listener": f"{'S' if made else 'L'}{number:02d}", "name": name, "simulated": made}
        row |= {"stage": trial.stage, "trial": trial.key}
        row |= {"item": f"tone {trial.item}" if check else design.items[trial.item], "repeat": trial.repeat}
        row |= {key: line.get(key) for key in ("time", "seconds", "switches")}
        if trial.kind == "rating":
            heard = enumerate(trial.slots)
            rows += [row | {"position": k, "condition": c, "rating": line["ratings"][c]} for k, c in heard]
            continue
        right = "quiet" if check else trial.x
        row |= dict(zip(("left", "right"), trial.slots, strict=False))  # a check has a third sound
        row |= {key: line.get(key) for key in ("choice", "chosen", "x")}
        rows.append(row | {"correct": line["chosen"] == right if right else None})
    if skipped:
        told = f"{skipped} answer(s) don't belong to the plan of this test and are skipped."
        warnings.warn(told, stacklevel=2)
    return pd.DataFrame(rows)


def _answers(line: dict, trial: Trial) -> bool:
    """Whether an answer is to this very trial, and is one that can be given."""
    if any(line.get(key) != value for key, value in {**trial.facts(), "x": trial.x}.items()):
        return False
    number = lambda value, most: type(value) in (int, float) and 0 <= value <= most
    if not all(number(line.get(key) or 0, np.inf) for key in ("seconds", "switches")):
        return False
    if trial.kind != "rating":
        return (line.get("choice"), line.get("chosen")) in zip("ABC", trial.slots, strict=False)
    given = line.get("ratings")
    whole = isinstance(given, dict) and given.keys() == set(trial.slots)
    return whole and all(number(value, 100) for value in given.values())


def screen(answers: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Apply the plan's screening rule.

    Returns a pd.DataFrame, one row per listener: listener, answered (share of the test), headphones_wrong,
    one_side, repeats_agree (NaN where too few answers tell), kept, and why not.
    """
    exceeds = lambda a, b: a is not None and b is not None and a > b
    asked = sum(trial.stage == "main" for trial in trials(design, 1))
    rule, rows = design.screening, []
    for listener, own in answers.groupby("listener", sort=True):
        once, check = own[own["stage"] == "main"].drop_duplicates("trial"), own[own["stage"] == "headphones"]
        wrong = int((~check["correct"].astype(bool)).sum()) if len(check) else np.nan
        side = agree = np.nan
        if design.kind != "rating":
            if len(once) >= 8:
                side = once["choice"].value_counts(normalize=True).max()
            again = once[once["repeat"]].assign(trial=lambda t: t["trial"].str.removesuffix(":again"))
            both = again.merge(once[~once["repeat"]], on="trial")
            if len(both) >= 2:
                agree = (both["chosen_x"] == both["chosen_y"]).mean()
        broken = {
            "headphone check": exceeds(wrong, rule.headphones_wrong),
            "nearly always the same side": exceeds(side, rule.one_side),
            "repeats disagree": exceeds(rule.repeats_agree, agree),
            "too few answers": exceeds(rule.answered, len(once) / asked),
        }
        why = [text for text, is_so in broken.items() if is_so]
        row = {"listener": listener, "answered": len(once) / asked, "headphones_wrong": wrong}
        rows.append(row | {"one_side": side, "repeats_agree": agree, "kept": not why, "why": ", ".join(why)})
    return pd.DataFrame(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """What a test says: tables, and the figures drawn from them.

    Attributes
    ----------
    results : `stats.preferences`, `stats.discrimination` or `stats.ratings` over the kept listeners
    strengths : `stats.bradley_terry` for preferences over three or more conditions, else None
    agreement : Krippendorff's alpha between the kept listeners: on the condition chosen or, in ABX, on which
        trials are told rightly, both against chance within each pair of conditions; or on the ratings
    listeners : `screen`, one row per listener
    answers : the tidy answers, all of them
    simulated : whether the answers are simulated listeners'; then every table, figure and text says so
    """

    design: Design
    results: pd.DataFrame
    strengths: pd.DataFrame | None
    agreement: float
    listeners: pd.DataFrame
    answers: pd.DataFrame
    simulated: bool

    @property
    def who(self) -> str:
        """How many listeners count, and of which sort: "19 of 20 simulated listeners"."""
        kept, every = int(self.listeners["kept"].sum()), len(self.listeners)
        sort = "simulated listener" if self.simulated else "listener"
        return f"{kept} of {every} {sort}{'s' * (every != 1)}"

    def figures(self) -> dict[str, go.Figure]:
        """Name -> Plotly figure: `results`, and `strengths` where there are any."""
        from . import charts

        found = {"results": charts.results(self.results, self.design, self.who)}
        if self.strengths is not None:
            found["strengths"] = charts.strengths(self.strengths, self.design, self.who)
        return found

    def save(self, folder: str | Path) -> None:
        """Write every figure as `ms.save_figure` does (picture, page, numbers), and the screening as CSV."""
        from ..show.saving import save_figure

        folder, design = Path(folder), self.design
        facts = {"test": design.name, "test_hash": design.test_hash, "listeners": self.who}
        for name, fig in self.figures().items():
            save_figure(fig, getattr(self, name), f"listening_{name}", folder, **facts)
        text = self.listeners.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        paths.replace(folder / "listening_screening.csv", text)

    def _shown(self) -> tuple[str, list[pd.DataFrame]]:
        tables = [table.round(3) for table in (self.results, self.strengths) if table is not None]
        return f"{self.who}, agreement (alpha) {self.agreement:.2f}", tables

    def __repr__(self) -> str:
        said, tables = self._shown()
        return "\n".join([self.design.question, said, *(t.to_string(index=False) for t in tables)])

    def _repr_html_(self) -> str:
        said, tables = self._shown()
        head = f"<p><b>{html.escape(self.design.question)}</b> {said}</p>"
        return head + "".join(table.to_html(index=False) for table in tables)


def analyse(answers: pd.DataFrame, design: Design, boots: int = 1000, seed: int = 0) -> Analysis:
    """Screen and analyse tidy answers; practice, headphone check and repeats are left out of the results.

    `boots` and `seed` are those of the bootstrap over listeners and items.

    Raises ValueError if there are no answers, real and simulated ones are mixed, or the rule keeps nobody.
    """
    if answers.empty or not (answers["stage"] == "main").any():
        raise ValueError("there are no answers to the test yet (practice and headphone check don't count)")
    if answers["simulated"].nunique() > 1:
        raise ValueError("simulated and real answers can't be analysed together")
    listeners = screen(answers, design)
    kept = listeners.loc[listeners["kept"], "listener"]
    if kept.empty:
        raise ValueError(f"the rule keeps none of {len(listeners)} listeners: {listeners['why'].unique()}")
    counted = (answers["stage"] == "main") & ~answers["repeat"].astype(bool)
    chosen, strengths = answers[answers["listener"].isin(kept) & counted], None
    if design.kind == "rating":
        results = stats.ratings(chosen, design.reference, boots, seed)
        grid = chosen.pivot_table(index="listener", columns=["item", "condition"], values="rating")
        alpha = stats.agreement(grid, "interval")
    else:
        results = (stats.discrimination if design.kind == "abx" else stats.preferences)(chosen, boots, seed)
        if design.kind == "preference" and len(design.conditions) > 2:
            strengths = stats.bradley_terry(chosen, boots, seed)
        # X differs from listener to listener, so what they can agree on is which trials are told rightly
        told = "correct" if design.kind == "abx" else "chosen"
        judged = chosen.pivot(index="listener", columns="trial", values=told)
        pairs = {trial.key: str(sorted(trial.slots)) for trial in trials(design, 1)}
        alpha = stats.agreement(judged, within=[pairs[trial] for trial in judged])
    made = bool(answers["simulated"].iloc[0])
    for table in (results, strengths, listeners):
        if table is not None:
            table["simulated"] = made
    return Analysis(design, results, strengths, alpha, listeners, answers, made)
