"""`make figures`: drawn again from what is stored, and what changed is said."""

import json
import subprocess

import pandas as pd
import pytest
from conftest import ROOT, require

from mechsteer import paths
from mechsteer.show import plots, saving
from workshop.study import figures
from workshop.suite import redraw


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A project with one committed figure of the embedded model, `02_line`."""
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    monkeypatch.setattr(paths, "data", lambda: tmp_path / "data")
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
        saving.save_figure(fig, table, name, folder, model=model)
    return fig


def test_a_stored_figure_comes_back_as_it_was(shelf):
    fig = save([1.0, float("nan"), 3.0], shelf)
    back = saving.stored_figure("02_line", shelf)
    assert back.layout.meta["numbers"] and fig.layout.meta is None, "the caller's figure stays as it was"
    assert back.update_layout(meta=None).to_plotly_json() == json.loads(fig.to_json())


def test_nothing_changed_is_said_and_writes_the_same_bytes(shelf, capsys):
    before = {path.name: path.read_bytes() for path in shelf.iterdir()}
    with pytest.warns(UserWarning):
        assert redraw.main([]) == 0
    assert capsys.readouterr().out.split(maxsplit=1)[1] == "numbers same; picture not written\n"
    assert {path.name: path.read_bytes() for path in shelf.iterdir()} == before


def test_changed_numbers_new_figures_and_other_weights_are_told(shelf, capsys):
    save([0.5, 0.5], shelf, model="tiny old")
    save([1, 2], shelf, model="facebook/musicgen-small 123", name="03_other")
    with pytest.warns(UserWarning):
        assert redraw.main([]) == 1
    line, other = capsys.readouterr().out.splitlines()
    assert "02_line" in line and "changed: y by at most 0.25" in line
    assert "other weights of tiny (old; now abc): make notebooks ONLY=02" in line
    assert "03_other" in other and "numbers new" in other and "weights" not in other


def test_a_figure_that_was_not_drawn_from_its_numbers_is_told(shelf, capsys):
    csv = shelf / "02_line.csv"
    csv.write_text(csv.read_text(encoding="utf-8").replace("0.75", "0.76"), encoding="utf-8")
    with pytest.warns(UserWarning):
        assert redraw.main([]) == 1
    said = capsys.readouterr().out
    assert "changed: y by at most 0.01" in said and "drawn from other numbers: make notebooks ONLY=02" in said


@pytest.mark.filterwarnings("ignore:.*was not written")
def test_a_figure_without_a_stamp_and_a_figure_without_a_model_are_told_apart(shelf, capsys):
    save([1.0], shelf, model="none", name="05_power")
    assert redraw.weights_changed("05_power", shelf) == ""
    stampless = saving.stored_figure("05_power", shelf).update_layout(meta=None)
    saving.write_picture(stampless, "05_power", shelf)
    told = "the figure names no numbers: make notebooks ONLY=05"
    assert redraw.figure_changed("05_power", shelf).startswith(told)


def test_what_cannot_be_drawn_names_its_notebook(shelf, capsys):
    (shelf / "02_line.json").unlink()
    assert redraw.main(["02"]) == 1
    assert "no 02_line.json to draw from: make notebooks ONLY=02" in capsys.readouterr().out
    (shelf / "02_line.json").write_text("[1, 2")
    assert redraw.main(["02_line"]) == 1
    assert "holds no Plotly figure" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        redraw.main(["07"])
    assert stop.value.code == 2 and "has 02_line" in capsys.readouterr().err


def test_the_present_style_is_drawn(shelf, monkeypatch):
    monkeypatch.undo()
    require(saving.chrome(), "chromium")
    old = plots.go.layout.Template(layout={"paper_bgcolor": "#ff0000"})
    fig = saving.stored_figure("02_line", shelf).update_layout(template=old)
    saving.write_picture(fig, "02_line", shelf)
    assert redraw.redraw("02_line", shelf) == "redrawn"
    assert "#ff0000" not in (shelf / "02_line.html").read_text(encoding="utf-8")
    assert redraw.redraw("02_line", shelf) == "same"


def test_the_figures_of_the_study_are_drawn_from_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    study = figures.shipped()
    for name, draw in figures.DRAWN.items():
        with pytest.warns(UserWarning, match="Chrome"):
            assert redraw.redraw_study(name, tmp_path) == "not written"
        assert not redraw.figure_changed(name, tmp_path)
        read = saving.read_figure(name, tmp_path)
        assert read.attrs["model"].split()[-1] == study["model_hash"].iloc[0]
        assert read["both_success"].to_numpy() == pytest.approx(
            draw(study)[1]["both_success"].to_numpy(), abs=1e-5
        )
    fig, _ = figures.by_dose(study)
    drawn = next(t for t in fig.data if t.name == "mse")
    rows = study[(study["experiment"] == "guitar") & (study["name"] == "mse")].sort_values("strength")
    assert list(drawn.y) == rows["both_success"].tolist(), "guitar has the first panel"


def test_every_figure_that_ships_can_be_drawn_again():
    names = sorted(path.stem for path in (ROOT / "figures").glob("*.csv"))
    assert len(names) >= 18 and set(figures.DRAWN) <= set(names)
    for name in names:
        assert saving.stored_figure(name, ROOT / "figures").data, name
        assert redraw.figure_changed(name, ROOT / "figures") == "", name
