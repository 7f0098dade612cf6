"""The same notebook twice, with folders apart: the same numbers and the same sounds."""

import shutil
from pathlib import Path

import pytest
from test_notebooks import RAN, SMALL

from workshop.suite import notebooks

CHEAP = ["00_start_here", "01_collect_activations"]


def drawn(stem: str, figures: Path) -> dict[str, bytes]:
    """What a notebook left in a folder of figures that can be compared: its tables and its sounds."""
    files = [*figures.glob(f"{stem[:2]}_*.csv"), *figures.glob(f"audio/{stem[:2]}_*")]
    return {path.relative_to(figures).as_posix(): path.read_bytes() for path in files}


def differing(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """Names of what isn't the same, or is in one run only."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def test_a_moved_number_and_a_missing_sound_are_told(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "04_x.csv").write_text("# {}\nshare\n0.5\n")
    (tmp_path / "05_y.csv").write_text("of another notebook")
    (tmp_path / "audio/04_x.mp3").write_bytes(b"sound")
    one = drawn("04_x", tmp_path)
    assert list(one) == ["04_x.csv", "audio/04_x.mp3"] and differing(one, one) == []
    (tmp_path / "04_x.csv").write_text("# {}\nshare\n0.500001\n")
    shutil.rmtree(tmp_path / "audio")
    assert differing(one, drawn("04_x", tmp_path)) == ["04_x.csv", "audio/04_x.mp3"]


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("notebooks")  # on the worker of the runs by hand, one of which is the first run here
@pytest.mark.parametrize("stem", CHEAP)
def test_a_second_run_draws_the_same_numbers_and_sounds(stem, run_notebook, tmp_path):
    """Run by hand, the first of them is the first in its kernel; here others have run there before."""
    (path,) = notebooks.find([stem])
    figures, runs = tmp_path / "figures", tmp_path / "runs"
    if stem not in RAN:
        run_notebook(path, SMALL[stem], figures=tmp_path / "first", runs=tmp_path / "first")
    first = drawn(stem, RAN.get(stem, tmp_path / "first"))
    run_notebook(path, SMALL[stem], figures=figures, runs=runs)
    assert first and not differing(first, drawn(stem, figures))
