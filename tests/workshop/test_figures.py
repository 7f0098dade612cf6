"""`make figures`: drawn again from what is stored, and what changed is said."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
from conftest import ROOT, require

from mechsteer import errors, paths
from mechsteer.show import plots, saving
from workshop.suite import redraw

pytestmark = pytest.mark.xdist_group("figures")


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A project with one committed figure of the embedded model, `02_line`, and no study."""
    folder = tmp_path_factory.mktemp("committed")
    card = folder / "data/tiny/card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"model_hash": "abc"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "chrome", lambda: None)
        save([0.5, 0.75], folder / "figures")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "figures"]):
        subprocess.run([*git, *step], cwd=folder, check=True)
    return folder


@pytest.fixture
def shelf(committed, tmp_path, monkeypatch):
    """The figures of a copy of that project, which is the one at work."""
    shutil.copytree(committed, tmp_path, dirs_exist_ok=True)
    monkeypatch.delenv("MECHSTEER_FIGURES", raising=False)
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    monkeypatch.setattr(paths, "data", lambda: tmp_path / "data")
    monkeypatch.setattr(saving, "chrome", lambda: None)
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
    save([1.0], shelf, model="none", name="09_power")
    assert redraw.weights_changed("09_power", shelf) == ""
    stampless = saving.stored_figure("09_power", shelf).update_layout(meta=None)
    saving.write_picture(stampless, "09_power", shelf)
    told = "the figure names no numbers: make notebooks ONLY=09"
    assert redraw.figure_changed("09_power", shelf).startswith(told)


def test_what_cannot_be_drawn_names_its_notebook(shelf, capsys):
    (shelf / "02_line.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="isn.t what it should be.*: make notebooks ONLY=02"):
        redraw.redraw("02_line", shelf)
    (shelf / "02_line.json").unlink()
    with pytest.raises(ValueError, match="no 02_line.json to draw from: make notebooks ONLY=02"):
        redraw.redraw("02_line", shelf)
    with pytest.raises(SystemExit) as stop:
        redraw.main(["07"])
    assert stop.value.code == 2 and "has 02_line" in capsys.readouterr().err


def damage(path, content):
    """Take a file away, cut it in two, or write something else in its place."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "cut" else content)


@pytest.mark.filterwarnings("ignore:.*was not written")
@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("csv", None, "missing: 02_line.csv; make notebooks ONLY=02 makes it anew"),
        ("csv", b"x,y\n0,1\n", "unreadable: 02_line.csv; make notebooks ONLY=02 makes it anew"),
        ("csv", b"", "unreadable: 02_line.csv; make notebooks ONLY=02"),
        ("csv", b"# 5\nx,y\n0,1\n", "unreadable: 02_line.csv; make notebooks ONLY=02"),
        ("csv", b'# {"model": "tiny abc"}\n', "unreadable: 02_line.csv; make notebooks ONLY=02"),
        ("csv", b"\x89PNG\r\n\x1a\n\xff", "unreadable: 02_line.csv; make notebooks ONLY=02"),
        ("csv", "cut", "02_line.csv; make notebooks ONLY=02"),
        ("json", None, "missing: 02_line.json; make notebooks ONLY=02 makes it anew"),
        ("json", "cut", "unreadable: 02_line.json; make notebooks ONLY=02 makes it anew"),
        ("json", b"null", "unreadable: 02_line.json; make notebooks ONLY=02"),
        ("json", b"{}", "unreadable: 02_line.json; make notebooks ONLY=02"),
        ("json", b"\xff\xfe", "unreadable: 02_line.json; make notebooks ONLY=02"),
    ],
)
def test_a_part_that_is_missing_or_damaged_is_named_with_its_command(shelf, capsys, kind, content, said):
    damage(shelf / f"02_line.{kind}", content)
    (shelf / "02_line.html").unlink()
    assert redraw.main([]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("02_line") and said in line
    drawn = kind == "csv"  # from the JSON, which is there
    assert (shelf / "02_line.html").is_file() == drawn == ("picture" in line)
    assert ("numbers same" in line) == (kind == "json")


@pytest.mark.filterwarnings("ignore:.*was not written")
def test_a_figure_that_is_gone_altogether_is_known_from_the_last_commit(shelf, capsys):
    shutil.rmtree(shelf)
    assert redraw.main(["02_line"]) == 1
    assert "missing: 02_line.csv, missing: 02_line.json; make notebooks" in capsys.readouterr().out
    save([1.0], shelf, name="05_new")
    for name in ("listening_dark", "06_left"):
        (shelf / f"{name}.png").write_bytes(b"")
    (shelf / "plotly.min.js").touch()
    assert redraw.names_in(shelf) == ["02_line", "05_new", "06_left"]
    shutil.rmtree(shelf.parent / ".git")
    assert redraw.names_in(shelf) == ["05_new", "06_left"], "without git, what is there"


@pytest.mark.parametrize("name", ["verdicts", "doses", "clips"])
@pytest.mark.parametrize("content", [None, b"", "cut", b"PAR1 and no more", "other"])
def test_a_study_table_that_cannot_be_read_is_one_sentence(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data", lambda: tmp_path)
    path = tmp_path / f"study/{name}.parquet"
    path.parent.mkdir()
    shutil.copy(ROOT / f"data/study/{name}.parquet", path)
    if content == "other":
        pd.DataFrame({"x": [1]}).to_parquet(path)
    else:
        damage(path, content)
    with pytest.raises(errors.Told) as told:
        saving.study_table(name)
    state = "missing" if content is None else "damaged"
    assert f"{path} is {state}" in str(told.value) and "`make study`" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_page_of_an_older_toolbar_is_written_again_and_nothing_else_is(shelf):
    html, before = shelf / "02_line.html", (shelf / "02_line.json").read_bytes()
    page = html.read_text(encoding="utf-8")
    html.write_text(re.sub(r'\{"showSendToCloud.*?\}', '{"responsive": true}', page), encoding="utf-8")
    assert "showSendToCloud" not in html.read_text(encoding="utf-8")
    with pytest.warns(UserWarning):
        assert redraw.main([]) == 0
    assert '"showSendToCloud": false' in html.read_text(encoding="utf-8")
    assert (shelf / "02_line.json").read_bytes() == before


def test_the_present_style_is_drawn(shelf, monkeypatch):
    monkeypatch.undo()
    require(saving.chrome(), "chromium")
    old = plots.go.layout.Template(layout={"paper_bgcolor": "#ff0000"})
    fig = saving.stored_figure("02_line", shelf).update_layout(template=old)
    saving.write_picture(fig, "02_line", shelf)
    assert redraw.redraw("02_line", shelf) == "redrawn"
    assert "#ff0000" not in (shelf / "02_line.html").read_text(encoding="utf-8")
    assert redraw.redraw("02_line", shelf) == "same"


def test_every_figure_that_ships_can_be_drawn_again():
    names = redraw.names_in(ROOT / "figures")
    assert len(names) >= 18
    for name in names:
        assert redraw.unusable(name, ROOT / "figures") == {}
        assert saving.stored_figure(name, ROOT / "figures").data, name
        assert redraw.figure_changed(name, ROOT / "figures") == "", name


def test_no_page_that_ships_offers_an_upload():
    pages = sorted((ROOT / "figures").glob("*.html"))
    assert len(pages) >= 18
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert '"showSendToCloud": false' in text and '"displaylogo": false' in text, page.name
        assert "cloud.plotly" not in text and "plotlyServerURL" not in text, page.name


def test_the_earlier_results_of_a_study_are_read_before_it_goes_on(tmp_path, monkeypatch):
    from workshop.study import run

    (tmp_path / "clips.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("sys.argv", ["run", "--out", str(tmp_path)])
    monkeypatch.setattr(run, "load", lambda name: pytest.fail("computes before it looks"))
    with pytest.raises(SystemExit, match="clips.parquet is damaged: delete it, and `make study`"):
        run.main()
