"""The shipped study: what it says of itself, a slice of it made again, and how its verdicts are reached."""

import re
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy.stats import binomtest

import mechsteer as ms
from mechsteer import paths
from workshop.study import baselines, cells, run, settings, verdicts
from workshop.study.finders import Finder


@pytest.fixture(scope="module")
def finder(shallow):
    return Finder(shallow, scores=8)


@pytest.fixture(scope="module")
def shipped():
    return {n: pd.read_parquet(paths.data() / f"study/{n}.parquet") for n in ("verdicts", "doses", "clips")}


def one(name):
    return settings.chosen([name])[0]


def test_refits_learn_from_samples_of_scores_and_readers_and_writers_from_the_same_clips(finder):
    setting = one("piano to guitar")
    every, sample = finder.rows(setting), finder.rows(setting, 3)
    assert set(finder.clips.iloc[every]["lead"]) == {"piano", "guitar"} and set(sample) < set(every)
    per_score = finder.clips.iloc[sample].groupby(["score", "lead"]).size().unstack()
    assert (per_score["piano"] == per_score["guitar"]).all() and per_score.to_numpy().max() > 1
    assert (finder.rows(setting, 3) == sample).all() and len(finder.rows(setting, 4)) == len(sample)
    contrast, again = finder.contrast(setting, None), finder.contrast(setting, 3)
    table = finder.clips.iloc[every]
    told = [setting.captions(row) for row in table.to_dict("records")]
    assert {c for pair in told for c in pair} <= {
        f"{s} {i}" for s in set(table["style"]) for i in ("piano", "guitar")
    }
    plain = ms.caption_contrast(
        finder.model,
        ms.codes(finder.model, table),
        *map(list, zip(*told, strict=True)),
        layers=[finder.layer],
    )
    assert ms.directions.geometry.cosine(contrast, plain.values[0]) > 0.9999
    assert 0.5 < ms.directions.geometry.cosine(contrast, again) < 0.9999


def test_a_strength_of_one_is_the_distance_between_the_class_means(finder):
    for name in ("guitar", "guitar at attention outputs", "drums"):
        setting = one(name)
        acts, layers = finder.acts, finder.layers(setting)
        y = acts[setting.label].values == setting.value
        x = acts[setting.site].sel(layer=layers).values
        means = finder.probes(setting, None)["diff_of_means"]
        pushed = finder.steering(setting, means).vectors().values
        assert np.allclose(pushed, x[y].mean(0) - x[~y].mean(0), atol=1e-3 * np.abs(pushed).max())
        random = finder.steering(setting, finder.controls(setting, 0)["random"]).vectors().values
        assert np.allclose(np.linalg.norm(random, axis=1), np.linalg.norm(pushed, axis=1), rtol=1e-3)


def test_with_all_penalty_both_probes_are_the_difference_of_means(finder):
    plain = finder.probes(one("guitar"), 0)["diff_of_means"]
    for alpha, least, most in ((1e-4, -1, 0.9), (1e4, 0.999, 1.001)):
        made = finder.probes(one("guitar"), 0, alphas=(alpha,), standardize="layer")
        for method in ("logistic", "mse"):
            assert least < float((made[method].squeeze() * plain.squeeze()).sum()) < most


def test_every_way_to_add_changes_the_music(shallow, finder):
    ways = finder.ways(one("piano to guitar, ways to add"), 0)
    made = shallow.generate("jazz piano", 1.0, [0] * (len(ways) + 1), [None, *ways.values()], progress=False)
    moved = (made.codes[1:] != made.codes[:1]).any(axis=(1, 2))
    assert moved.all(), f"nothing changed by {[name for name, m in zip(ways, moved, strict=True) if not m]}"
    (heads,) = ways["best 8 heads"].parts
    assert int((heads.direction.weight != 0).sum()) == 8


def test_between_two_captions_lie_both_and_the_model_is_as_it_was(tiny):
    codes = {}
    for share in (0.0, 0.5, 1.0):
        with baselines.between(tiny, "jazz piano", "jazz guitar", share):
            codes[share] = tiny.generate(["jazz piano", "rock organ"], 1.0, 3, progress=False).codes
    plain = tiny.generate(["jazz piano", "rock organ"], 1.0, 3, progress=False).codes
    asked = tiny.generate(["jazz guitar", "rock organ"], 1.0, 3, progress=False).codes
    assert (
        (codes[0.0] == plain).all()
        and (codes[1.0][0] == asked[0]).all()
        and (codes[0.5][1] == plain[1]).all()
    )
    assert not (codes[0.5][0] == plain[0]).all() and "conditions" not in vars(tiny)


def test_captions_of_other_lengths_have_no_way_between_them():
    class Model:
        def conditions(self, prompts, rows):  # a token a letter, as an encoder without fixed places gives
            return {"text": (torch.ones(rows, len(prompts[0]), 2), torch.ones(rows, len(prompts[0])))}

    model = Model()
    with baselines.between(model, "jazz", "rock", 0.5):
        assert model.conditions(["jazz"], 1)["text"][0].shape == (1, 4, 2)
    with baselines.between(model, "jazz", "polka", 0.5), pytest.raises(ValueError, match="numbers of tokens"):
        model.conditions(["jazz"], 1)


def test_a_setting_runs_from_sweep_to_verdict(shallow, finder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Finder", lambda *given: {(shallow, 8): finder}[given])  # made once for all
    monkeypatch.setattr(run, "STRENGTHS", (0.5, 1.0))
    real = run.real_texture
    monkeypatch.setattr(run, "real_texture", lambda chosen, most: real(chosen, 12))
    study = run.Study(shallow, refits=2, n=2, scores=8, out=tmp_path, duration=3.0)
    setting = one("rock")
    frame = study.main(setting)
    refits = frame[frame["part"] == "refits"]
    sizes = refits.groupby("name").size().to_dict()
    assert sizes == {"unsteered": 2, "random": 4, "shuffled labels": 4} | dict.fromkeys(run.READERS, 4)
    seeds = frame.groupby("part")["seed"].agg(set)
    assert not seeds["sweep"] & seeds["refits"], "strengths are chosen on other seeds than they are judged on"
    best = study.best(setting, frame[frame["part"] == "sweep"])
    for name in run.READERS:
        assert (refits.loc[refits["name"] == name, "strength"] == best[name]).all()
    cell, seen = refits[refits["name"] == "mse"], set()
    for row in cell.itertuples():
        seen.add((row.refit, row.seed))
    assert seen == {(k, run.OTHERS + i) for k in range(2) for i in range(2)}, "every refit on the same seeds"
    kept = run.kept_columns(frame)
    table = verdicts.decide(kept).set_index(["claim", "about"])
    found = table.loc[("mse turns more clips than logistic", "rock")]
    hits = [
        ms.success(refits[refits["name"] == n], {"style": "rock"}, "both").mean() for n in ("mse", "logistic")
    ]
    assert found["estimate"] == pytest.approx(hits[0] - hits[1]) and found["n_refits"] == 2
    cells_ = cells.table_of(setting, refits)
    assert set(cells_["n_refits"]) == {1, 2} and cells_["lost"].notna().all()


def test_the_interval_of_two_levels_holds_the_truth_where_refits_differ_and_where_not():
    """In simulations of known spread it holds the true mean as often as it says, or a little more."""
    rng = np.random.default_rng(0)
    for of_refit, of_clip in ((0.0, 0.0), (0.3, 0.0), (0.2, 0.2)):
        inside = 0
        for _ in range(300):
            x = (
                rng.normal(0, of_refit, (12, 1))
                + rng.normal(0, of_clip, (1, 24))
                + rng.normal(0, 0.5, (12, 24))
            )
            _, lo, hi = cells.two_level(x)
            inside += lo < 0 < hi
        assert inside / 300 > 0.93, (of_refit, of_clip)
    one_row = cells.two_level(np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert one_row.value == 0.5 and one_row.lo == pytest.approx(0.5 - 3.182 * np.sqrt(1 / 12), abs=1e-3)


@pytest.mark.parametrize(
    ("lo", "hi", "verdict", "reads"),
    [
        (0.06, 0.2, "yes", "more"),
        (0.01, 0.2, "open", "more"),
        (-0.04, 0.04, "no", "alike"),
        (-0.2, -0.1, "no", "less"),
        (-0.1, 0.1, "open", ""),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_margin(lo, hi, verdict, reads):
    row = verdicts._claim("c", "x", "y", ((lo + hi) / 2, lo, hi), np.zeros((12, 24)), "a", 0.05, "share")
    assert (row["verdict"], row["reads"], row["n_refits"], row["n_clips"]) == (verdict, reads, 12, 24)


def test_a_name_that_no_setting_has_is_told_with_those_there_are(monkeypatch):
    monkeypatch.setattr(run, "load", None)
    with pytest.raises(ValueError, match="called 'guitra'. Did you mean 'guitar'.* There are 'guitar',"):
        settings.chosen(["rock", "guitra"])
    monkeypatch.setattr("sys.argv", ["run", "--only", "typo"])
    with pytest.raises(SystemExit, match="called 'typo'. Did you mean 'tempo'.* There are 'guitar',"):
        run.main()


def test_what_the_engine_lacks_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(run, "load", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for workers, says in (("0", "--workers: give one or more"), ("3", "needs Ray: `uv sync --extra ray`")):
        monkeypatch.setattr("sys.argv", ["run", "--engine", "ray", "--workers", workers])
        with pytest.raises(SystemExit, match=says):
            run.main()


def test_results_of_other_weights_and_of_an_older_run_give_way(tmp_path):
    path = tmp_path / "doses.parquet"
    row = lambda name, weights, x: pd.DataFrame([{"setting": name, "model_hash": weights, "success": x}])
    for given in (("rock", "old", 0.1), ("guitar", "new", 0.2), ("drums", "new", 0.3), ("drums", "new", 0.4)):
        run.add(row(*given), path)
    kept = pd.read_parquet(path)
    assert kept["setting"].tolist() == ["guitar", "drums"] and kept["success"].tolist() == [0.2, 0.4]
    assert {p.name for p in tmp_path.iterdir()} <= {"doses.parquet", "doses.lock"}


def test_the_shipped_study_says_where_it_comes_from_and_has_every_setting(shipped):
    doses = shipped["doses"]
    assert doses["model"].nunique() == doses["model_hash"].nunique() == 1
    assert doses[["command", "date"]].notna().all(axis=None)
    assert set(doses["setting"]) == set(shipped["clips"]["setting"]) == {s.name for s in settings.SETTINGS}
    for name, rows in doses.groupby("setting"):
        assert {"unsteered", "random"} <= set(rows["name"]), f"{name} lacks a control"
    refits = doses[
        (doses["part"] == "refits") & (doses["question"] == "main") & doses["name"].isin(run.READERS)
    ]
    assert (refits["n_refits"] >= 12).all() and (refits["n_clips"] >= 288).all()
    cell = ["setting", "part", "name", "strength"]
    assert shipped["clips"].groupby(cell).size().to_dict() == doses.set_index(cell)["n_clips"].to_dict()


def test_the_shipped_verdicts_are_those_of_the_shipped_clips(shipped):
    again, told = verdicts.decide(shipped["clips"]), shipped["verdicts"]
    assert again[["claim", "about", "verdict"]].equals(told[["claim", "about", "verdict"]])
    assert again["estimate"].to_numpy() == pytest.approx(told["estimate"].to_numpy(), abs=1e-6)
    claims = told[told["verdict"] != ""]
    assert set(claims["verdict"]) <= {"yes", "no", "open"} and claims["margin"].gt(0).all()
    assert ((told["lo"] <= told["estimate"] + 1e-9) & (told["estimate"] <= told["hi"] + 1e-9)).all()


NUMBER = re.compile(r"(?<![\w.])[-−+]?\d*\.\d+(?![\w.])")
QUOTED = {"README.md": "What came out so far", **{f"notebooks/{n}": "" for n in ("05", "06", "07")}}


@pytest.mark.parametrize("place", QUOTED)
def test_every_number_in_prose_is_one_of_the_studys(place, shipped):
    """In README's paragraph of findings, and on the first screens of the three notebooks on the claim."""
    told, doses, clips = (shipped[name] for name in ("verdicts", "doses", "clips"))
    cells = [c for c in doses if c.startswith(("both_success", "lost"))]
    far = clips[clips["name"] == "unsteered"].groupby(["setting", "part"])["far"].mean()
    exact = [told[["estimate", "lo", "hi", "margin"]], doses[["strength", *cells]]]
    known = {f"{x:.2f}" for table in exact for x in table.to_numpy().ravel()}
    rough = [told.loc[told["unit"] != "share of clips", ["estimate", "lo", "hi"]], far]
    known |= {f"{x:.1f}" for table in rough for x in table.to_numpy().ravel()}
    if place.endswith(".md"):
        text = (ROOT / place).read_text(encoding="utf-8")
        text = next(part for part in text.split("\n\n") if part.startswith(QUOTED[place]))
    else:
        (file,) = ROOT.glob(f"{place}_*.ipynb")
        first = nbformat.read(file, 4).cells[:2]
        text = "\n".join(cell.source for cell in first if cell.cell_type == "markdown")
    text = re.sub(r"which are [\d.]+ away", "", text)  # measured by the notebook itself
    text = re.sub(r"\(http[^)]*\)|arXiv \S+|`[^`]*`", "", text)
    numbers = [x.replace("−", "-").lstrip("+") for x in NUMBER.findall(text)]
    as_told = [re.sub(r"^(-?)\.", r"\g<1>0.", x) for x in numbers]
    assert numbers, "a finding without a number"
    odd = [x for x in as_told if x not in known and f"{float(x):.2f}" not in known]
    assert not odd, f"{odd} of {place} aren't in the tables of data/study"


def test_a_slice_made_again_lies_within_the_shipped_study(shipped, tiny):
    doses = shipped["doses"]
    assert doses["model_hash"].iloc[0] == tiny.hash, "the study is of other weights: run `make study`"
    rows = doses.query("setting == 'guitar' and name == 'diff_of_means' and part == 'refits'")
    direction, row = ms.load_direction(run.direction_file("guitar", "diff_of_means"), tiny), rows.iloc[0]
    n, push = 8, float(row["push"])
    made = tiny.generate(None, 5.0, list(range(n)), push * ms.Steering(direction), progress=False)
    heard = ms.hear(made.audio, made.sample_rate)
    both = (heard.pivot(index="clip", columns="judge", values="lead") == "guitar").all(axis=1)
    assert binomtest(int(both.sum()), n, float(row["both_success"])).pvalue > 0.01
