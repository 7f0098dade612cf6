"""A listening test as a folder to hand on: everything that is needed to make its tables and figures again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths

if TYPE_CHECKING:
    from .analysis import Analysis

SCRIPT = '''"""Make the tables and figures of this folder again: python analyse.py (needs mechsteer)."""

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

TEXT = """# {name}: {question}

A blind listening test made with mechsteer. {who}.

- `design.json`: the plan, with the screening rule stated beforehand, and which sound is which
- `stimuli/`: the sounds as listeners heard them (before dither), at {loudness} LUFS
- `answers.csv`: every answer{whose}
- `analysis/`: tables and figures; `python analyse.py` makes them again from the files above
"""


def export(test: Path, folder: Path, analysis: Analysis) -> None:
    """Copy the test in one folder to a new one, with an analysis and the answers that it is of."""
    design, answers = analysis.design, analysis.answers
    folder.mkdir(parents=True)
    shutil.copy(test / "design.json", folder)
    shutil.copytree(test / "stimuli", folder / "stimuli")
    whose = ", of simulated listeners"
    if not analysis.simulated:
        whose = "; listeners' names are replaced by numbers"
        answers = answers.assign(name=answers["listener"])
    paths.replace(folder / "answers.csv", answers.to_csv(index=False))
    paths.replace(folder / "analyse.py", SCRIPT)
    paths.replace(folder / "README.md", TEXT.format(who=analysis.who, whose=whose, **vars(design)))
    analysis.save(folder / "analysis")
