"""Figures: what is drawn is what the table says, and saving leaves picture, page and numbers."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import xarray as xr
from conftest import require

import mechsteer as ms
from mechsteer import paths
from mechsteer.measures.intervals import means_by
from mechsteer.show import plots, saving
from workshop.suite import changes, redraw

pytestmark = pytest.mark.xdist_group("figures")  # with test_figures.py: one Chrome draws for both


@pytest.fixture
def scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    grid = [
        (c, m, n, f)
        for c in ("guitar", "jazz")
        for m in ("logistic", "ridge")
        for n in range(4)
        for f in range(5)
    ]
    table = pd.DataFrame(grid, columns=["concept", "method", "layer", "fold"])
    score = 0.6 + 0.05 * table["layer"] + 0.01 * rng.standard_normal(len(table))
    return table.assign(label="lead", site="resid", metric="accuracy", score=score, chance=0.5, shuffled=0.49)


def test_accuracy_draws_the_mean_of_the_folds_and_both_controls(scores):
    fig = plots.layer_curves(scores, title="Ridge reads as well")
    assert fig.layout.title.text == "Ridge reads as well"
    assert [a.text for a in fig.layout.annotations] == ["guitar", "jazz"]
    line = next(t for t in fig.data if t.name == "ridge" and t.xaxis == "x2")
    here = scores[(scores["concept"] == "jazz") & (scores["method"] == "ridge")]
    np.testing.assert_allclose(line.y, here.groupby("layer")["score"].mean())
    assert {t.name for t in fig.data if t.showlegend} == {"chance", "shuffled labels", "logistic", "ridge"}
    assert len([t for t in fig.data if t.fill == "toself"]) == 4


def test_the_rows_order_does_not_change_the_lines(scores):
    one, two = (plots.layer_curves(t) for t in (scores, scores.iloc[::-1]))
    lines = [
        {(t.name, fig.layout.annotations[int(t.xaxis[1:] or 1) - 1].text): t.y for t in fig.data if t.name}
        for fig in (one, two)
    ]
    assert set(lines[0]) == set(lines[1]) and len(lines[0]) == 8
    for key, y in lines[0].items():
        np.testing.assert_allclose(y, lines[1][key])


def test_what_would_be_averaged_silently_is_refused(scores):
    both = pd.concat([scores, scores.assign(site="attn")])
    with pytest.raises(ValueError, match="'site'.*colour='site'"):
        plots.layer_curves(both)
    one = both[both["method"] == "ridge"]
    assert {"resid", "attn"} <= {t.name for t in plots.layer_curves(one, colour="site").data}


@pytest.fixture(scope="module")
def collected() -> pd.DataFrame:
    """The table of real probes: of two layers the upper one knows the lead, and the input half does."""
    rng, lead = np.random.default_rng(0), np.array(["flute", "guitar", "piano"]).repeat(30)
    planted = 3.0 * np.eye(8)[np.unique(lead, return_inverse=True)[1]]
    noise = lambda: rng.standard_normal((90, 8))
    acts = xr.Dataset(
        {
            "resid": (
                ("clip", "layer", "d_model"),
                np.stack([noise(), noise() + planted], 1).astype("float32"),
            ),
            "input": (("clip", "feature"), (noise() + planted / 3).astype("float32")),
        },
        {
            "layer": [0, 1],
            "lead": ("clip", lead),
            "tempo": ("clip", np.arange(90.0)),
            "group": ("clip", np.arange(90)),
        },
    )
    return ms.accuracy_by_layer(acts, ["lead", "tempo"], ("mse", "diff_of_means"), folds=3, progress=False)


def test_the_table_of_collected_activations_is_drawn_as_it_is(collected):
    assert set(collected["site"]) == {"resid", "input"} and collected["metric"].nunique() == 4
    lead = collected[collected["label"] == "lead"]
    fig = plots.layer_curves(lead)
    panel = [a.text for a in fig.layout.annotations].index("all")
    here = [t for t in fig.data if (t.xaxis or "x") == ("x", *(f"x{k}" for k in range(2, 9)))[panel]]
    line, point = (
        next(t for t in here if t.name == "mse" and t.mode == mode) for mode in ("lines+markers", "markers")
    )
    rows = lead[(lead["concept"] == "all") & (lead["method"] == "mse") & (lead["metric"] == "accuracy")]
    assert list(line.x) == [0, 1] and list(line.y) == rows.groupby("layer")["score"].mean().tolist()
    known = means_by(rows[rows["site"] == "input"], ["site"]).loc[0]
    assert list(point.x) == [-1] and point.y[0] == known["mean"], "the input, left of layer 0"
    assert point.y[0] + point.error_y.array[0] == pytest.approx(known["hi"])
    assert line.y[1] > point.y[0] > line.y[0]
    assert list(fig.layout.xaxis.ticktext) == ["input", "0", "1"] and list(fig.layout.xaxis.tickvals) == [
        -1,
        0,
        1,
    ]
    assert fig.layout.yaxis.title.text == "accuracy"


def test_the_metric_is_one_and_said(collected):
    both = collected[collected["concept"].isin(["all", "tempo"])]
    fig = plots.layer_curves(both.drop(columns="label"))
    assert fig.layout.yaxis.title.text == "accuracy or R²"
    only = both[both["metric"] == "balanced_accuracy"]
    assert plots.layer_curves(only).layout.yaxis.title.text == "balanced accuracy"
    assert {"input", "resid"} <= {
        t.name for t in plots.layer_curves(both[both["method"] == "mse"], "site").data
    }


def test_a_table_read_from_its_csv_looks_the_same(collected, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    fig = plots.layer_curves(collected[collected["label"] == "lead"])
    with pytest.warns(UserWarning):
        saving.save_figure(fig, collected, "02_scores", tmp_path)
    again = redraw.numbers("02_scores", tmp_path)
    again = plots.layer_curves(again[again["label"] == "lead"])
    for one, two in zip(fig.data, again.data, strict=True):
        assert one.x == two.x and np.allclose(one.y, two.y, atol=1e-4, equal_nan=True)


def test_a_deep_models_input_has_room_for_its_tick(scores):
    deep = pd.concat([scores.assign(layer=layer) for layer in (0, 47)] + [scores.assign(layer=pd.NA)])
    fig = plots.layer_curves(deep.assign(layer=deep["layer"].astype("Int64")))
    assert list(fig.layout.xaxis.tickvals) == [-6, *range(0, 48, 6)]


def test_head_map_shows_layers_down_and_heads_across(scores):
    heads = scores[scores["method"] == "ridge"].assign(head=scores["fold"] % 3)
    with pytest.raises(ValueError, match="'method' would be averaged: select one"):
        plots.head_map(scores.assign(head=0))
    fig = plots.head_map(heads)
    assert np.shape(fig.data[0].z) == (4, 3)
    expected = heads.query("concept == 'guitar' and layer == 2 and head == 1")["score"].mean()
    assert fig.data[0].z[2][1] == pytest.approx(expected)
    assert fig.layout.coloraxis.cmin == pytest.approx(
        heads.groupby(["concept", "layer", "head"])["score"].mean().min()
    )


@pytest.mark.parametrize("draw", [plots.layer_curves, plots.head_map])
def test_a_wrong_table_is_named(draw, scores):
    with pytest.raises(ValueError, match="lacks the column.*it has label"):
        draw(scores[["label", "score"]])
    with pytest.raises(ValueError, match="no rows"):
        others = (
            "head method_a method_b cosine lo hi null_lo null_hi name strength success success_lo success_hi"
        )
        others += " experiment"
        draw(scores.assign(**dict.fromkeys(others.split(), 0)).iloc[:0])


def test_colours_are_told_apart_by_the_colour_blind():
    """Machado et al. 2009, full protanopia and deuteranopia: no two line colours fall together."""
    machado = {
        "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    }
    rgb = np.array([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in plots.COLOURS])
    for matrix in machado.values():
        seen = (rgb**2.2 @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
        assert apart.min() > 0.12


def test_saving_without_a_chrome_still_writes_page_and_numbers(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    with pytest.warns(UserWarning, match="apt install chromium"):
        written = saving.save_figure(
            plots.layer_curves(scores), scores, "02_scores", tmp_path, seed=np.int64(3)
        )
    assert [p.name for p in written] == ["02_scores.html", "02_scores.json", "02_scores.csv"]
    page = (tmp_path / "02_scores.html").read_text(encoding="utf-8")
    assert 'src="plotly.min.js"' in page and "https://cdn" not in page and len(page) < 100_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1e6
    again = redraw.numbers("02_scores", tmp_path)
    pd.testing.assert_frame_equal(again, scores, rtol=1e-5, check_dtype=False)
    assert again.attrs["seed"] == 3


def test_saving_twice_writes_the_same_bytes(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    for folder in ("a", "b"):
        with pytest.warns(UserWarning):
            saving.save_figure(
                plots.layer_curves(scores), scores, "02_scores", tmp_path / folder, model="tiny"
            )
    for kind in ("html", "json", "csv"):
        assert (tmp_path / f"a/02_scores.{kind}").read_bytes() == (
            tmp_path / f"b/02_scores.{kind}"
        ).read_bytes()
    assert not list(tmp_path.rglob(".*"))


def test_a_saved_figure_can_be_drawn_again(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    fig = plots.layer_curves(scores, title='A line, "(so)" ;<b>')
    with pytest.warns(UserWarning):
        saving.save_figure(fig, scores, "02_scores", tmp_path)
    again = saving.stored_figure("02_scores", tmp_path)
    _, _, table = (tmp_path / "02_scores.csv").read_text(encoding="utf-8").partition("\n")
    assert again.layout.meta["numbers"] == saving.numbers_hash(table)
    assert fig.layout.meta is None, "the caller's figure stays as it was"
    assert again.update_layout(meta=None) == fig
    stored = saving.stored_figure("02_scores", tmp_path)
    with pytest.warns(UserWarning):
        assert len(saving.write_picture(stored, "02_scores", tmp_path)) == 2
    assert saving.stored_figure("02_scores", tmp_path) == stored
    (tmp_path / "02_scores.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="02_scores.json.* isn't what it should be.*make notebooks ONLY=02"):
        saving.stored_figure("02_scores", tmp_path)
    for name, command in {
        "03_other": "make notebooks ONLY=03",
        "tiny_card": "workshop.tiny.card --figures",
    }.items():
        with pytest.raises(ValueError, match=f"no {name}.json to draw from: .*{command} writes it"):
            saving.stored_figure(name, tmp_path)


def test_note_names_and_provenance_survive_the_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    table = pd.DataFrame({"tonic": ["C", "C#", "F#"], "n": [1, 2, 3]})
    table.attrs["model"] = "tiny, 1a2b"
    with pytest.warns(UserWarning):
        saving.save_figure(go.Figure(), table, "tiny_tonics", tmp_path, command="make notebooks")
    again = redraw.numbers("tiny_tonics", tmp_path)
    assert list(again["tonic"]) == ["C", "C#", "F#"]
    assert again.attrs["model"] == "tiny, 1a2b" and again.attrs["command"] == "make notebooks"


@pytest.mark.parametrize("name", ["../up", "With Space", "", "a.b"])
def test_a_figures_name_is_a_plain_one(name, scores, tmp_path):
    with pytest.raises(ValueError, match="only a-z, 0-9 and _"):
        saving.save_figure(go.Figure(), scores, name, tmp_path)


def test_the_figure_folder_can_be_redirected(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    monkeypatch.setenv("MECHSTEER_FIGURES", str(tmp_path / "elsewhere"))
    with pytest.warns(UserWarning):
        saving.save_figure(plots.layer_curves(scores), scores, "02_scores")
    assert (tmp_path / "elsewhere" / "02_scores.csv").exists()


def test_a_run_by_hand_is_read_before_what_ships(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    monkeypatch.delenv("MECHSTEER_FIGURES", raising=False)
    monkeypatch.setenv("MECHSTEER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    fig = plots.layer_curves(scores, title="Ships")
    with pytest.warns(UserWarning):
        saving.save_figure(fig, scores, "02_scores", tmp_path / "figures")
    assert saving.stored_figure("02_scores").layout.title.text == "Ships"
    with pytest.warns(UserWarning):
        written = saving.save_figure(fig.update_layout(title="Mine"), scores.assign(score=0), "02_scores")
    assert {path.parent for path in written} == {tmp_path / "runs/figures"}
    assert saving.stored_figure("02_scores").layout.title.text == "Mine"
    assert saving.stored_figure("02_scores", paths.shipped_figures()).layout.title.text == "Ships"


@pytest.mark.parametrize("text", ["", "layer,score\n0,1\n", "# 5\nlayer\n0\n", "# {}\n"])
def test_what_is_no_figures_table_is_refused(text, tmp_path):
    (tmp_path / "02_scores.csv").write_text(text)
    with pytest.raises(ValueError):
        redraw.numbers("02_scores", tmp_path)


def test_nothing_shown_or_saved_offers_to_upload(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    fig = plots.layer_curves(scores)
    off = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False}
    for renderer in ("plotly_mimetype", "jupyterlab", "vscode", "plotly_mimetype+notebook"):
        monkeypatch.setattr(pio.renderers, "default", renderer)
        bundle = fig._repr_mimebundle_()
        assert bundle["application/vnd.plotly.v1+json"]["config"] == off
        assert '"showSendToCloud": false' in bundle.get("text/html", '"showSendToCloud": false')
    with pytest.warns(UserWarning):
        saving.save_figure(fig, scores, "02_scores", tmp_path)
    page = (tmp_path / "02_scores.html").read_text(encoding="utf-8")
    assert '"showSendToCloud": false' in page and '"displaylogo": false' in page
    assert "plotly.com" not in page and "plotlyServerURL" not in page


def test_a_fresh_kernel_shows_figures_without_the_upload():
    """As JupyterLab starts it, whatever part of `show` is imported."""
    show = "fig = go.Figure(go.Scatter(y=[1])); b = fig._repr_mimebundle_()"
    show += "; print(b['application/vnd.plotly.v1+json']['config']['showSendToCloud'], *sorted(b))"
    for part in ("plots", "saving"):
        code = f"import plotly.graph_objects as go; from mechsteer.show import {part}; {show}"
        env = os.environ | {"PLOTLY_RENDERER": "plotly_mimetype"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["False", "application/vnd.plotly.v1+json"], part


def test_a_chrome_that_is_named_and_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chrome"))
    assert saving.chrome() is None, "kaleido would wait for it for ever"


def test_a_picture_is_drawn_by_chrome(scores, tmp_path, monkeypatch):
    """Saved; and shown, too, where the runner asks for it."""
    require(saving.chrome(), "chromium")
    fig = plots.layer_curves(scores, title="One picture")
    written = saving.save_figure(fig, scores, "02_scores", tmp_path)
    picture = (tmp_path / "02_scores.png").read_bytes()
    assert written[0].name == "02_scores.png" and picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == round(1.5 * fig.layout.width)
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype+png")
    assert sorted(fig._repr_mimebundle_()) == ["application/vnd.plotly.v1+json", "image/png"]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("# {}\nlayer,score\n0,0.5\n1,\n", "same"),
        ('# {"seed": 1}\nlayer,score\n0,0.5\n1,\n', "same numbers, other provenance"),
        ("# {}\nlayer,score\n0,0.75\n1,\n", "changed: score by at most 0.25"),
        ("# {}\nlayer,score\n0,0.5\n1,1\n", "changed: score by at most inf"),
        ("# {}\nlayer,score\n0,0.5\n", "changed: 2 rows became 1"),
        ("# {}\nlayer,auc\n0,0.5\n1,\n", "changed: columns new auc and without score"),
        ("# {}\nscore,layer\n0.5,0\n,1\n", "changed: columns in another order"),
        ("# {}\nlayer,score\n0,half\n1,\n", "changed: the rows differ in score"),
    ],
)
def test_a_figures_change_is_said_in_its_own_unit(after, said):
    before = "# {}\nlayer,score\n0,0.5\n1,\n"
    assert changes.changes({"a": before}, {"a": after, "b": after}) == {"a": said, "b": "new"}
