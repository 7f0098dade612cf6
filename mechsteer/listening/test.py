"""Blind listening tests in a notebook: set up, take, analyse, hand on.

    conditions = {"steered": steered, "unsteered": plain}
    test = ms.ListeningTest(conditions, "Which sounds more like guitar?", name="guitar")
    test.take()        # the page, in JupyterLab; voila shows the notebook take.ipynb in the test's folder
    test.analyse()     # tables and figures, by the screening rule written down before anyone answered

A test is a folder: `design.json` (the plan and which sound is which), `stimuli/` (loudness-matched, under
random names), `answers.jsonl` (append-only) and `take.ipynb` (the page).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths
from .._shared import number, spelled
from .answers import AnswerStore
from .design import KINDS, Screening, gather, load_design, save_design, test_hash
from .session import Session
from .simulation import simulate

if TYPE_CHECKING:
    from .analysis import Analysis

AGAIN = '''"""Make the tables and figures of this folder again: python analyse.py (needs mechsteer)."""

from pathlib import Path

import pandas as pd

import mechsteer as ms

here = Path(__file__).parent
names = dict.fromkeys(["left", "right", "chosen", "x", "condition"], str)  # one may look like a number
answers = pd.read_csv(here / "answers.csv", dtype=names, keep_default_na=False, na_values=[""])
analysis = ms.ListeningTest.open(here).analyse(answers)
print(analysis)
analysis.save(here / "analysis")
'''

ABOUT = """# {name}: {question}

A blind listening test made with mechsteer. {who}.

- `design.json`: the plan, with the screening rule stated beforehand, and which sound is which
- `stimuli/`: the sounds as listeners heard them (before dither), at {loudness} LUFS
- `answers.csv`: every answer{whose}
- `analysis/`: tables and figures; `python analyse.py` makes them again from the files above
"""


@spelled
class ListeningTest:
    """A blind listening test over clips matched by position: the same seeds, or source, in each condition.

    Parameters
    ----------
    conditions : name -> Generation, or a sequence of (audio, sample_rate). Row k of every condition makes
        item k.
    question : what listeners are asked, such as "Which sounds more like guitar?".
    name : the folder's name under `data/listening/`: a-z, 0-9, - and _.
    kind : `preference`: two clips, choose one. `abx`: is X the same as A or as B? `rating`: all conditions of
        an item on one page, a slider from 0 to 100 each.
    pairs : (name, name) each; what is compared in forced choice. Default every pair.
    reference, anchor : for `rating`: the hidden reference, from which differences are taken (default the
        first condition), and a condition that should come out lowest or highest, by which one sees whether
        the scale was used. Like MUSHRA (ITU-R BS.1534), but with no open reference known to be best.
    seed : of every listener's order, sides and repeats.
    loudness : LUFS (BS.1770) of all clips; lower for all if one would clip (`loudness.match_loudness`).
    listen : seconds that each sound must be heard before an answer counts; at most 0.8 of the longest clip.
    practice, headphones, repeats : practice trials (clips of the test itself; not analysed), trials of the
        headphone check (0: none), and trials asked a second time with the sides exchanged.
    screening : whose answers count. It is stored with the plan, before the first answer.
    folder : default `data/listening/<name>`.

    Raises ValueError for clips that don't match, a silent clip, an unknown option, or a folder that holds
    answers to another test. The same call again finds its folder and goes on.
    """

    def __init__(
        self,
        conditions: Mapping[str, Any],
        question: str,
        name: str,
        kind: str = "preference",
        pairs: Sequence[tuple[str, str]] | None = None,
        reference: str | None = None,
        anchor: str | None = None,
        seed: int = 0,
        loudness: float = -23.0,
        listen: float = 2.0,
        practice: int = 1,
        headphones: int = 6,
        repeats: int = 0,
        screening: Screening | None = None,
        folder: str | Path | None = None,
    ):
        if kind not in KINDS or not re.fullmatch(r"[a-z0-9_-]+", name) or not question.strip():
            raise ValueError(f"a test needs a kind of {KINDS}, a name of a-z, 0-9, - and _, and a question")
        listen, loudness = number("listen (s)", listen, 0), number("loudness (LUFS)", loudness, -100, 0)
        counts = dict(seed=seed, repeats=repeats, practice=practice, headphones=headphones)
        for what, count in counts.items():
            number(what, count, 0, whole=True)
        clips, items, rate = gather(conditions)
        named = [tuple(pair) for pair in pairs or itertools.combinations(clips, 2)]
        unknown = {*itertools.chain(*named), reference, anchor} - {None, *clips}
        if unknown or any(a == b for a, b in named):
            raise ValueError(f"pairs, reference, anchor must be of {', '.join(clips)}; not {sorted(unknown)}")
        longest = max(clip.shape[-1] for part in clips.values() for clip in part) / rate
        if kind == "rating":
            named, reference = [], reference or next(iter(clips))
        options = dict(name=name, kind=kind, question=question, conditions=list(clips), items=items)
        options |= dict(pairs=[list(pair) for pair in named], reference=reference, anchor=anchor, **counts)
        options |= dict(loudness=loudness, listen=round(min(listen, 0.8 * longest), 3))
        options |= dict(screening=dataclasses.asdict(screening or Screening()))
        self.folder = Path(folder) if folder else paths.listening() / name
        if (self.folder / "design.json").exists():
            self.design = load_design(self.folder)
            answers, sounds = self.folder / "answers.jsonl", self.folder / "stimuli"
            same = self.design.test_hash == test_hash(clips, options)
            if same and sounds.is_dir():
                return
            if not same and answers.exists() and answers.stat().st_size:
                other = f"{self.folder} holds answers to other clips or options"
                raise ValueError(f"{other}: choose another name, or go on with ListeningTest.open(folder)")
            shutil.rmtree(sounds, ignore_errors=True)  # may be gone
        self.design = save_design(self.folder, clips, rate, options)
        write_page(self.folder)

    @classmethod
    def open(cls, folder: str | Path) -> ListeningTest:
        """The test in a folder, with its answers; FileNotFoundError if there is none."""
        test = cls.__new__(cls)
        test.folder, test.design = Path(folder), load_design(Path(folder))
        return test

    def __repr__(self) -> str:
        d, store = self.design, AnswerStore(self.folder / "answers.jsonl")
        given = f"{len(store.answers())} answers of {len(store.listeners())} listeners"
        size = f"{len(d.conditions)} conditions x {len(d.items)} items"
        return f"<ListeningTest {d.name}: {d.kind}, {size}, {given}>"

    def take(self):
        """The page for one listener at a time, as a widget; show it as a cell's last line."""
        from .widget import ListeningPage

        return ListeningPage(Session(self.design, self.folder))

    def answers(self):
        """The answers so far as a tidy DataFrame; see `listening.analysis.tidy`."""
        from .analysis import tidy  # pandas: a listener's page does without

        return tidy(AnswerStore(self.folder / "answers.jsonl").lines(), self.design)

    def simulate(self, listeners: int = 20, **options):
        """Made-up answers to try an analysis on, never written to the test; see `listening.simulation`."""
        from .analysis import tidy

        return tidy(simulate(self.design, listeners, **options), self.design)

    def analyse(self, answers=None, **options) -> Analysis:
        """Screen and analyse the answers of this test, or others of the same form (those of `simulate`)."""
        from .analysis import analyse

        return analyse(self.answers() if answers is None else answers, self.design, **options)

    def export(self, folder: str | Path, answers=None) -> Path:
        """Write stimuli, plan, answers, tables and figures to a new folder that anyone can analyse again.

        `answers` are a DataFrame, by default the real ones; numbers stand for the names of real listeners.
        Raises FileExistsError if the folder exists, and ValueError for answers that can't be analysed.
        """
        if (folder := Path(folder)).exists():
            raise FileExistsError(f"{folder} exists; an export goes to a new folder")
        found = self.analyse(answers)
        answers, whose = found.answers, ", of simulated listeners"
        if not found.simulated:
            answers = answers.assign(name=answers["listener"])
            whose = "; listeners' names are replaced by numbers"
        folder.mkdir(parents=True)
        shutil.copy(self.folder / "design.json", folder)
        shutil.copytree(self.folder / "stimuli", folder / "stimuli")
        paths.replace(folder / "answers.csv", answers.to_csv(index=False))
        paths.replace(folder / "analyse.py", AGAIN)
        paths.replace(folder / "README.md", ABOUT.format(who=found.who, whose=whose, **vars(self.design)))
        found.save(folder / "analysis")
        return folder


def write_page(folder: Path, test: str | Path = ".") -> None:
    """Write the notebook `take.ipynb`, which shows the page of the test in another folder, or in its own."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    source = f"import mechsteer as ms\n\nms.ListeningTest.open({str(test)!r}).take()"
    book = new_notebook(cells=[new_code_cell(source, id="page")])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    paths.replace(folder / "take.ipynb", nbformat.writes(book) + "\n")
