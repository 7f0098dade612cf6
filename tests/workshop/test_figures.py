"""`make figures`: drawn again from what is stored, and what changed is said."""

import json
import subprocess

import pandas as pd
import pytest
from conftest import require

from mechsteer import paths
from mechsteer.show import plots, saving
from workshop.study import figures as study_figures
from workshop.suite import redraw as figures


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A project with one committed figure of the embedded model, `02_line`."""
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    monkeypatch.setattr(saving, "chrome", lambda: None)
    card = tmp_path / "data/tiny/card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"model_hash": "abc"}))
    save([0.5, 0.75], tmp_path / "figures")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "figures"]):
        subprocess.run([*git, *step], cwd=tmp_path, check=True)
    return tmp_path / "figures"


def save(values, folder, model="tiny abc", name="02_line"):
    table = pd.DataFrame({"x": range(len(values)), "y": values})
    fig = plots.go.Figure(
        plots.go.Scatter(x=table["x"].to_numpy(), y=table["y"].to_numpy(), line={"dash": "dot"})
    )
    fig.update_layout(
        template="mechsteer", title="A line", annotations=[{"text": 'here, "(so)" ;<b>', "x": 1}]
    )
    with pytest.warns(UserWarning, match="apt install chromium"):
        plots.save_figure(fig, table, name, folder, model=model)
    return fig


def test_a_page_gives_its_figure_back(shelf):
    fig = save([1.0, float("nan"), 3.0], shelf)
    page = figures.read_page(shelf / "02_line.html")
    assert page.layout.meta["numbers"] and fig.layout.meta is None, "the caller's figure stays as it was"
    assert page.update_layout(meta=None).to_plotly_json() == json.loads(fig.to_json())


def test_nothing_changed_is_said_and_writes_the_same_bytes(shelf, capsys):
    before = {path.name: path.read_bytes() for path in shelf.iterdir()}
    with pytest.warns(UserWarning):
        assert figures.main([]) == 0
    assert capsys.readouterr().out.split(maxsplit=1)[1] == "numbers same; picture not written\n"
    assert {path.name: path.read_bytes() for path in shelf.iterdir()} == before


def test_changed_numbers_new_figures_and_other_weights_are_told(shelf, capsys):
    save([0.5, 0.5], shelf, model="tiny old")
    save([1, 2], shelf, model="facebook/musicgen-small 123", name="03_other")
    with pytest.warns(UserWarning):
        assert figures.main([]) == 1
    line, other = capsys.readouterr().out.splitlines()
    assert "02_line" in line and "changed: y by at most 0.25" in line
    assert "other weights of tiny (old; now abc): make notebooks ONLY=02" in line
    assert "03_other" in other and "numbers new" in other and "weights" not in other


def test_a_page_that_was_not_drawn_from_its_numbers_is_told(shelf, capsys):
    csv = shelf / "02_line.csv"
    csv.write_text(csv.read_text(encoding="utf-8").replace("0.75", "0.76"), encoding="utf-8")
    with pytest.warns(UserWarning):
        assert figures.main([]) == 1
    said = capsys.readouterr().out
    assert "changed: y by at most 0.01" in said and "drawn from other numbers: make notebooks ONLY=02" in said


@pytest.mark.filterwarnings("ignore:.*was not written")
def test_a_page_without_a_stamp_and_a_figure_without_a_model_are_told_apart(shelf, capsys):
    save([1.0], shelf, model="none", name="05_power")
    assert figures.weights_changed("05_power", shelf) == ""
    saving.write_picture(
        figures.read_page(shelf / "05_power.html").update_layout(meta=None), "05_power", shelf
    )
    assert figures.page_changed("05_power", shelf).startswith(
        "the page names no numbers: make notebooks ONLY=05"
    )


def test_what_cannot_be_drawn_names_its_notebook(shelf, capsys):
    (shelf / "02_line.html").unlink()
    assert figures.main(["02"]) == 1
    assert "no 02_line.html to draw from: make notebooks ONLY=02" in capsys.readouterr().out
    (shelf / "02_line.html").write_text("<p>Plotly.newPlot(nothing)")
    assert figures.main(["02_line"]) == 1
    assert "holds no figure" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        figures.main(["07"])
    assert stop.value.code == 2 and "has 02_line" in capsys.readouterr().err


def test_the_present_style_is_drawn(shelf, monkeypatch):
    monkeypatch.undo()
    require(saving.chrome(), "chromium")
    old = plots.go.layout.Template(layout={"paper_bgcolor": "#ff0000"})
    fig = figures.read_page(shelf / "02_line.html").update_layout(template=old)
    saving.write_picture(fig, "02_line", shelf)
    assert figures.redraw("02_line", shelf) == "redrawn"
    assert "#ff0000" not in (shelf / "02_line.html").read_text(encoding="utf-8")
    assert figures.redraw("02_line", shelf) == "same"


def test_the_figures_of_the_study_are_drawn_from_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    study = study_figures.shipped()
    for name, draw in study_figures.DRAWN.items():
        with pytest.warns(UserWarning, match="Chrome"):
            assert figures.redraw_study(name, tmp_path) == "not written"
        assert not figures.page_changed(name, tmp_path)
        read = saving.read_figure(name, tmp_path)
        assert read.attrs["model"].split()[-1] == study["model_hash"].iloc[0]
        assert read["both_success"].to_numpy() == pytest.approx(
            draw(study)[1]["both_success"].to_numpy(), abs=1e-5
        )
    duels = study_figures.duels(
        study, pd.read_parquet(study_figures.paths.data() / "study" / "clips.parquet")
    )
    shares = study.set_index(["name", "experiment", "strength"])["both_success"]
    for name in ("logistic", "mse"):
        assert duels[name].to_numpy() == pytest.approx(shares[name].reindex(duels.index).to_numpy()), (
            "clips and table"
        )
    assert (duels["logistic"] - duels["mse"]).to_numpy() == pytest.approx(
        (duels["logistic only"] - duels["mse only"]).to_numpy() / 100
    )
    fig, _ = study_figures.dose_response(study)
    drawn = next(t for t in fig.data if t.name == "mse")
    rows = study[(study["experiment"] == "guitar") & (study["name"] == "mse")].sort_values("strength")
    assert list(drawn.y) == rows["both_success"].tolist(), "guitar has the first panel"
