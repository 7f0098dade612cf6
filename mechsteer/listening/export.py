"""A listening test as a folder to hand on: everything that is needed to make its tables and figures again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from .answers import AnswerStore

if TYPE_CHECKING:
    import pandas as pd

    from .analysis import Analysis

SCRIPT = '''"""Make the tables and figures of this folder again: python analyse.py (needs mechsteer)."""

from pathlib import Path

import mechsteer as ms

here = Path(__file__).parent
test = ms.ListeningTest.open(here)
analysis = test.analyse({answers})
print(analysis)
analysis.save(here / "analysis")
'''

TEXT = """# {name}: {question}

A blind listening test made with mechsteer. {who}.

- `design.json`: the plan, with the screening rule stated beforehand, and which sound is which
- `stimuli/`: the sounds as listeners heard them (before dither), at {loudness} LUFS
- {answers}
- `analysis/`: tables and figures; `python analyse.py` makes them again from the files above
"""


def export(
    test: Path, folder: Path, analysis: Analysis, answers: pd.DataFrame | None = None, names: bool = False
) -> Path:
    """Copy the test in one folder to a new one, with its analysis; `ListeningTest.export` says the rest.

    Parameters
    ----------
    test, folder : the test's folder, and the one to make.
    analysis : of the answers that are exported: what can't be analysed isn't exported.
    answers : in place of the test's own.
    """
    folder.mkdir(parents=True)
    shutil.copy(test / "design.json", folder)
    shutil.copytree(test / "stimuli", folder / "stimuli")
    if answers is None:
        lines = AnswerStore(test / "answers.jsonl").lines()
        for line in lines:
            if "name" in line and not names:
                line["name"] = f"listener {line['listener']}"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        paths.replace(folder / "answers.jsonl", text)
        hidden = "" if names else "; listeners' names are replaced by numbers"
        call, said = "", f"`answers.jsonl`: every answer, a line each{hidden}"
    else:
        if not names and not analysis.simulated:
            answers = answers.assign(name=answers["listener"])
        paths.replace(folder / "answers.csv", answers.to_csv(index=False))
        call = 'pd.read_csv(here / "answers.csv")'
        said = f"`answers.csv`: the answers ({'of simulated listeners' if analysis.simulated else 'given'})"
    script = SCRIPT.format(answers=call)
    if call:
        script = script.replace("import mechsteer as ms", "import pandas as pd\n\nimport mechsteer as ms")
    paths.replace(folder / "analyse.py", script)
    design = analysis.design
    facts = {"name": design.name, "question": design.question, "loudness": design.loudness, "answers": said}
    paths.replace(folder / "README.md", TEXT.format(who=analysis.who, **facts))
    analysis.save(folder / "analysis")
    return folder
