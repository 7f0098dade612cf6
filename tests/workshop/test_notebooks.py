"""The runner of the notebooks, on small notebooks written here; and the stored notebooks themselves."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import mechsteer as ms
from mechsteer import errors, paths
from mechsteer.show.saving import chrome
from workshop.suite import notebooks
from workshop.suite.notebook_text import answer, contents, cost, navigation, normalise, title

STORED = notebooks.find()
# Values for the cell tagged `parameters` that let a notebook run in seconds; one entry a stored notebook.
TRIED = {"TRIES": 1, "LAYERS": 1, "GAPS": [1.0], "CLIPS": 1}
SMALL: dict[str, dict] = {
    "00_start_here": {"DURATION": 3.6, "START": 0.5, "SCORES": 3, "CLIPS": 1},
    "01_collect_activations": {"SCORES": 1, "BOOTS": 20},
    "02_reach_inside": {"CLIPS": 2, "SECONDS": 4.0, "SCORES": 3, "DURATION": 1.0},
    "03_probe_every_layer": {"SCORES": 6, "MORE_SCORES": 24, "SECONDS": 4.0, "FRAME_CLIPS": 12, "FOLDS": 3},
    "04_compare_directions": {"SCORES": 6, "MORE_SCORES": 24, "SECONDS": 4.0, "BOOTS": 3, "HALVES": 2},
    "05_steer_and_listen": {"N": 1, "GAPS": [0.01, 1.0], "SCORES": 4, "REAL": 8},
    "06_logistic_or_mse": {"SCORES": 6, "REFITS": 2, "N": 2},
    "07_against_the_prompt": {"CLIPS": 8, "SECONDS": 1.0, "STEPS": 2, "N": 1},
    "08_where_is_it_used": {
        "PAIRS": 2,
        "SECONDS": 3.6,
        "WINDOWS": 2,
        "SCORES": 6,
        "N": 1,
        "CONTROLS": 1,
        "EVERY": 3,
    },
    "09_blind_listening_test": {"SCORES": 4, "ITEMS": 2, "SECONDS": 3.0, "LISTENERS": 8, "RUNS": 20},
    "10_your_own_model_and_music": {"FILES": 3, "DURATION": 3.2} | TRIED,
}
# Smaller still, for a model of Meta's format, which hears the orchestra's clips anew.
SMALLEST: dict[str, dict] = {
    "01_collect_activations": {"SCORES": 1, "BOOTS": 5},
    "02_reach_inside": {"CLIPS": 2, "SECONDS": 4.0, "SCORES": 3, "DURATION": 1.0},
    "03_probe_every_layer": {"SCORES": 6, "MORE_SCORES": 24, "SECONDS": 4.0, "FRAME_CLIPS": 12, "FOLDS": 3},
    "10_your_own_model_and_music": {"FILES": 3, "DURATION": 3.2, "SEGMENT": 4.0} | TRIED,
}

RAN: dict[str, Path] = {}  # the figures of each run by hand, which test_twice compares with a second run

NOISY = """
import sys, time
from tqdm import tqdm
import ipywidgets
from IPython.display import display
for _ in tqdm(range(3)):
    time.sleep(0.01)
print("kept", N)
print("half\\rwhole")
display(ipywidgets.IntSlider())
object()
"""


def write(path: Path, *cells, name: str = "Does it run?") -> Path:
    """A notebook with a title, the parameters N and MODEL, and the cells given as source."""
    parameters = new_code_cell("N = 2\nMODEL = 'tiny'", metadata={"tags": ["parameters"]})
    head = [new_markdown_cell(f"# {name}\n\nIt does.\n\n*Cost: 1 s on a CPU; needs nothing.*"), parameters]
    book = new_notebook(cells=[*head, *(c if isinstance(c, dict) else new_code_cell(c) for c in cells)])
    for k, cell in enumerate(book.cells):
        cell.id = f"cell-{k}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def texts(book) -> str:
    return json.dumps([cell.get("outputs", []) for cell in book.cells])


def test_a_run_is_stored_without_its_noise_and_the_same_twice(tmp_path):
    path = write(
        tmp_path / "notebooks/01_make_noise.ipynb",
        NOISY,
        "import sys; assert sys.executable\nsys.flags.optimize",
    )
    notebooks.run_notebook(path)
    first = path.read_bytes()
    assert notebooks.problems(path) == []
    notebooks.run_notebook(path)
    assert path.read_bytes() == first
    book = nbformat.read(path, 4)
    shown = texts(book)
    assert "kept 2" in shown and "whole" in shown and "run this cell to use it" in shown
    assert not any(noise in shown for noise in ("it/s", "half", "widget-view", " at 0x"))
    assert (
        "papermill" not in first.decode() and "iopub" not in first.decode() and "widgets" not in book.metadata
    )
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in book.cells)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_kernel_is_this_environments_and_writes_where_it_is_told(tmp_path, monkeypatch):
    decoy = tmp_path / "jupyter/kernels/python3/kernel.json"
    decoy.parent.mkdir(parents=True)
    decoy.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "decoy", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = (
        "import sys\nfrom mechsteer import paths\nprint(sys.executable, paths.figures(), paths.runs(), N)"
    )
    path = write(tmp_path / "notebooks/01_where.ipynb", source)
    figures, runs = tmp_path / "figures", tmp_path / "runs"
    book = notebooks.execute(path, {"N": 7}, figures=figures, runs=runs)
    shown = next(cell.outputs[0].text for cell in book.cells if cell.get("outputs"))
    assert shown.split() == [sys.executable, str(figures), str(runs), "7"]
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "jupyter")


def test_a_failing_run_leaves_the_stored_copy_and_shows_where(tmp_path):
    path = write(tmp_path / "notebooks/01_fail.ipynb", "print('so far')", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(
        notebooks.NotebookError, match="01_fail: cell 3 failed with ZeroDivisionError.*half-run copy"
    ) as told:
        notebooks.run_notebook(path, failed=tmp_path / "build")
    assert "1 / 0" in str(told.value) and "\x1b" not in str(told.value)
    assert path.read_bytes() == before
    assert "so far" in texts(nbformat.read(tmp_path / "build/01_fail.ipynb", 4))


def test_an_error_that_says_all_is_told_in_its_one_sentence(tmp_path, monkeypatch, capsys):
    """As of a model that is damaged, which the next test has."""
    source = "from mechsteer import errors\nraise errors.Told('nothing in ' + MODEL)"
    path = write(tmp_path / "notebooks/01_load.ipynb", source)
    with pytest.raises(notebooks.NotebookError) as told:
        notebooks.run_notebook(path, failed=tmp_path / "build")
    assert str(told.value) == "01_load stopped. nothing in tiny" and not (tmp_path / "build").exists()
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    assert notebooks.main(["--model", "some/where"]) == 1
    assert capsys.readouterr().err.strip() == "01_load stopped. nothing in some/where"


def damage(folder: Path, fault: str) -> Path:
    """Spoil a checkpoint of Meta's format."""
    import torch

    file = folder / "state_dict.bin"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif fault == "another zip":
        file.unlink()
        shutil.make_archive(str(file), "zip", folder.parent, folder.name)
        file.with_name("state_dict.bin.zip").rename(file)
    else:
        package = torch.load(file, weights_only=True)
        part = {
            "no configuration": {"xp.cfg": "a: [1"},
            "other weights": {"best_state": {"a": torch.ones(1)}},
        }
        torch.save(package | part[fault], file)
    return folder


@pytest.mark.parametrize("fault", ["cut", "another zip", "no configuration", "other weights"])
def test_a_damaged_model_is_one_sentence_that_names_it(fault, meta_folder, tmp_path):
    folder = damage(shutil.copytree(meta_folder, tmp_path / "broken"), fault)
    with pytest.raises(errors.Told) as told:  # which the runner tells without a traceback
        ms.load(folder)
    said = str(told.value)
    assert str(folder) in said and "\n" not in said and len(said) < 500, said


def test_a_run_past_its_limit_is_stopped(tmp_path):
    path = write(tmp_path / "notebooks/01_sleep.ipynb", "print('so far')", "import time\ntime.sleep(600)")
    with pytest.raises(notebooks.NotebookError, match="ran longer than 2 s"):
        notebooks.run_notebook(path, limit=2)


def test_too_large_a_copy_is_refused_and_the_cell_named(tmp_path):
    path = write(
        tmp_path / "notebooks/01_large.ipynb", "print('x')", "# the heavy one\nprint('y' * 1_100_000)"
    )
    before = path.read_bytes()
    with pytest.raises(notebooks.NotebookError, match="1.1 MB, over the limit of 1 MB.*# the heavy one"):
        notebooks.run_notebook(path)
    assert path.read_bytes() == before


def test_unknown_parameters_are_refused_before_anything_runs(tmp_path):
    path = write(tmp_path / "notebooks/01_do.ipynb", "open('ran', 'w')")
    with pytest.raises(notebooks.NotebookError, match="no parameter M; it has N, MODEL"):
        notebooks.execute(path, {"M": 3})
    assert not (path.parent / "ran").exists()


def test_another_model_goes_to_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    monkeypatch.setenv("MECHSTEER_RUNS", str(tmp_path / "runs"))
    draw = "import os, pathlib\nfolder = pathlib.Path(os.environ['MECHSTEER_FIGURES'])"
    draw += "\nfolder.mkdir(parents=True)\n_ = (folder / '01_sizes.csv').write_text('# {}\\nn\\n1\\n')"
    path = write(
        tmp_path / "notebooks/01_name.ipynb",
        "assert MODEL == 'tiny', 'as tiny'",
        "print('model:', MODEL)",
        draw,
    )
    before = path.read_bytes()
    assert notebooks.main(["--model", "facebook/musicgen-small"]) == 0
    copy = tmp_path / "runs/facebook_musicgen-small/notebooks/01_name.ipynb"
    assert "model: facebook/musicgen-small" in texts(nbformat.read(copy, 4))
    assert path.read_bytes() == before
    told = capsys.readouterr()
    assert "01_name" in told.out and "figure 01_sizes: new" in told.out
    assert "01_name: not so with this model, cell 3: as tiny" in told.err, "and the run goes on"
    with pytest.raises(notebooks.NotebookError, match="AssertionError: as tiny"):
        notebooks.execute(path, {"MODEL": "other"})


def test_only_the_command_line_writes_the_figures_that_ship(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    draw = "from mechsteer import paths\nfolder = paths.figures()\nfolder.mkdir(parents=True, exist_ok=True)"
    draw += "\n_ = (folder / '01_sizes.csv').write_text('# {}\\nn\\n1\\n')"
    path = write(tmp_path / "notebooks/01_draw.ipynb", draw)
    notebooks.execute(path)
    assert not (tmp_path / "figures").exists() and (paths.runs() / "figures/01_sizes.csv").is_file()
    (tmp_path / "README.md").write_text("")
    assert notebooks.main([]) == 0
    assert (tmp_path / "figures/01_sizes.csv").is_file()
    assert "figure 01_sizes: new" in capsys.readouterr().out


def test_tests_and_hand_runs_write_beside_the_figures_that_ship(monkeypatch):
    assert not paths.figures().is_relative_to(ROOT), "the tests' own runs are outside the checkout"
    monkeypatch.delenv("MECHSTEER_RUNS")
    assert paths.figures() == ROOT / "data/runs/figures" and paths.shipped_figures() == ROOT / "figures"
    assert paths.figures(paths.shipped_figures()) == ROOT / "figures"
    for place in (paths.figures(), paths.listening()):
        ignored = subprocess.run(["git", "check-ignore", "-q", place / "any"], cwd=ROOT)
        assert ignored.returncode == 0 or not (ROOT / ".git").exists()
    monkeypatch.setenv("MECHSTEER_FIGURES", "elsewhere")
    assert paths.figures() == paths.figures(paths.shipped_figures()) == Path("elsewhere")


def test_the_command_line_reports_failure_and_wrong_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    write(tmp_path / "notebooks/01_fail.ipynb", "raise SystemError('no')")
    assert notebooks.main([]) == 1
    assert "SystemError" in capsys.readouterr().err
    assert notebooks.main(["--check"]) == 1
    assert "not from one clean run" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        notebooks.main(["7"])
    assert stop.value.code == 2 and "there are 01_fail" in capsys.readouterr().err


def test_after_one_failure_the_others_run_and_the_last_line_names_all_that_failed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    for name, source in (("01_a", "1 / 0"), ("02_b", "print(N)"), ("04_d", "print(M)")):
        write(tmp_path / f"notebooks/{name}.ipynb", source)
    (tmp_path / "notebooks/09_e.ipynb").write_text("{")
    (tmp_path / "README.md").write_text("as it was")
    assert notebooks.main(["09", "04", "02", "01"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("02_b") and "09_e: " in said.err
    assert said.err.index("04_d: cell 2 failed with Name") < said.err.index("01_a: cell 2 failed with Zero")
    last = said.out.splitlines()[-1]
    assert last.startswith("1 of 4 notebooks in ") and last.endswith("; failed: 09_e, 04_d, 01_a")
    assert notebooks.problems(tmp_path / "notebooks/02_b.ipynb") == [], "what ran is stored"
    assert (tmp_path / "README.md").read_text() == "as it was"


def test_names_choose_notebooks_in_the_order_given_each_once(tmp_path):
    for name in ("02_b", "01_a", "10_c", "draft"):
        write(tmp_path / f"{name}.ipynb")
    assert [p.stem for p in notebooks.find(folder=tmp_path)] == ["01_a", "02_b", "10_c"]
    names = ["10", "notebooks/01_a.ipynb", "10_c", "10"]
    assert [p.stem for p in notebooks.find(names, tmp_path)] == ["10_c", "01_a"]


def test_links_and_contents_are_generated(tmp_path):
    shelf = [write(tmp_path / f"{n}.ipynb", name=f"Title {n[:2]}") for n in ("00_start", "01_a", "02_b")]
    lines = []
    for path in shelf:
        book = nbformat.read(path, 4)
        navigation(book, path, shelf)
        navigation(book, path, shelf)  # a second time replaces, never adds
        lines.append([cell.source for cell in book.cells if "navigation" in cell.metadata.get("tags", [])])
    assert lines == [
        ["[next: Title 01](01_a.ipynb)"],
        ["[previous: Title 00](00_start.ipynb) | [contents](00_start.ipynb) | [next: Title 02](02_b.ipynb)"],
        ["[previous: Title 01](01_a.ipynb) | [contents](00_start.ipynb)"],
    ]
    start = new_notebook(cells=[new_markdown_cell("", metadata={"tags": ["contents"]})])
    contents(start, shelf)
    assert "| 02 | [Title 02](02_b.ipynb) | 1 s on a CPU; needs nothing |" in start.cells[0].source
    assert cost(nbformat.read(shelf[0], 4)) == "1 s on a CPU; needs nothing"
    with pytest.raises(ValueError, match="no title"):
        title(new_notebook(cells=[new_markdown_cell("## only a section")]))


def test_a_new_notebook_changes_its_neighbours_links_and_nothing_else(tmp_path):
    first = write(tmp_path / "notebooks/01_a.ipynb", "print(N)", name="A?")
    notebooks.run_notebook(first)
    second = write(tmp_path / "notebooks/02_b.ipynb", name="B?")
    assert notebooks.problems(first) == ["its links to the other notebooks are out of date"]
    assert notebooks.relink([first, second]) == [first, second]
    assert notebooks.problems(first) == [] and notebooks.relink([first, second]) == []
    book = nbformat.read(first, 4)
    assert "[next: B?](02_b.ipynb)" in book.cells[-1].source and "2" in texts(book)


def test_a_notebook_opens_with_the_answer_that_its_run_gave(tmp_path):
    tagged = {"metadata": {"tags": ["answer"]}}
    place, told = (
        new_markdown_cell("an older answer", **tagged),
        new_code_cell("Markdown(f'{N} is even')", **tagged),
    )
    path = write(tmp_path / "notebooks/01_answer.ipynb", place, "from IPython.display import Markdown", told)
    notebooks.run_notebook(path)
    book = nbformat.read(path, 4)
    assert book.cells[2].source == "2 is even"
    book.cells[-2].outputs = []
    answer(book)
    assert book.cells[2].source == "2 is even", "a cell that shows nothing changes nothing"
    del book.cells[2]
    answer(book)


def test_paths_of_this_machine_are_taken_out(tmp_path):
    output = nbformat.v4.new_output("stream", name="stderr", text=f"{tmp_path}/.venv/a.py:3: UserWarning\n")
    book = normalise(new_notebook(cells=[new_code_cell("1", outputs=[output])]), tmp_path)
    assert book.cells[0].outputs[0].text == ".venv/a.py:3: UserWarning\n"


def test_stored_copies_that_are_stale_or_broken_are_told(tmp_path):
    path = write(
        tmp_path / "notebooks/01_link.ipynb", "N + 1", new_markdown_cell("[gone](nowhere.ipynb#part)")
    )
    notebooks.run_notebook(path)
    assert notebooks.problems(path) == ["its link to nowhere.ipynb leads nowhere"]
    book = nbformat.read(path, 4)
    book.cells[2].source = "N + 2"
    book.cells[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(book, path)
    told = "; ".join(notebooks.problems(path))
    assert "code has changed" in told and "holds an error" in told


def test_every_stored_notebook_is_in_order():
    wrong = {path.stem: notebooks.problems(path) for path in STORED}
    assert not {name: told for name, told in wrong.items() if told}
    assert {path.stem for path in STORED} == set(SMALL), (
        "SMALL should have one entry for each stored notebook"
    )


def test_a_solution_is_folded(tmp_path):
    book = normalise(
        new_notebook(cells=[new_code_cell("1", metadata={"tags": ["solution"]}), new_code_cell("2")]),
        tmp_path,
    )
    assert [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in book.cells] == [
        True,
        False,
    ]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_parameter_of_a_notebook_can_be_given_from_outside(path):
    (cell,) = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    named = [node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
    assert sorted(named) == sorted(notebooks.parameters_of(path)), "one name a line, for papermill"


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_notebook_has_exercises_with_a_check_and_a_solution_that_runs(path):
    """An exercise's cell ends with `_ = checks.name(answer)`; the next is its solution and asserts it."""
    cells = nbformat.read(path, 4).cells
    asked = [k for k, cell in enumerate(cells) if cell.cell_type == "code" and "\n_ = checks." in cell.source]
    assert 2 <= len(asked) <= 3
    for number, k in enumerate(asked, 1):
        name = cells[k].source.split("_ = checks.")[1].split("(")[0]
        assert f"**{number}.** " in cells[k - 1].source and "..." in cells[k].source
        assert "solution" in cells[k + 1].metadata.get("tags", []), f"{name} has no solution below it"
        assert f"assert checks.{name}(" in cells[k + 1].source


if STORED:

    @pytest.mark.timeout(600)
    @pytest.mark.xdist_group("notebooks")
    @pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
    def test_the_notebook_runs_by_hand_and_changes_nothing_that_git_tracks(path, checkout, run_notebook):
        book = run_notebook(path, SMALL[path.stem])
        assert all(
            cell.execution_count for cell in book.cells if cell.cell_type == "code" and cell.source.strip()
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True
        )
        assert status.returncode == 0 and status.stdout == ""
        drawn = checkout / "data/runs/figures"
        assert list(drawn.glob(f"{path.stem[:2]}_*.csv"))
        if path.stem.startswith("00"):
            assert not chrome() or list(drawn.glob("00_*.png"))
            assert (drawn / "audio/00_pushed.mp3").is_file()
        RAN[path.stem] = drawn

    @pytest.mark.timeout(600)
    @pytest.mark.xdist_group("notebooks")
    @pytest.mark.parametrize("stem", SMALLEST)
    def test_a_model_of_metas_format_takes_the_same_notebook(stem, meta_folder, run_notebook, tmp_path):
        (path,) = notebooks.find([stem])
        parameters = SMALLEST[stem] | {"MODEL": str(meta_folder)}
        book = run_notebook(path, parameters, figures=tmp_path / "figures", runs=tmp_path / "runs")
        assert f"<Model {meta_folder.name}: " in texts(book)
        assert list((tmp_path / "figures").glob(f"{stem[:2]}_*.csv"))
