"""A listening test as a folder to hand on: everything that is needed to make its tables and figures again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .answers import AnswerStore

if TYPE_CHECKING:
    import pandas as pd

    from .test import ListeningTest

__all__ = ["export"]

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


def export(test: ListeningTest, folder: Path, answers: pd.DataFrame | None, names: bool) -> Path:
    """See `ListeningTest.export`."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; an export goes to a new folder")
    analysis = test.analyse(answers)  # what can't be analysed isn't exported
    folder.mkdir(parents=True)
    shutil.copy(test.folder / "design.json", folder)
    shutil.copytree(test.folder / "stimuli", folder / "stimuli")
    if answers is None:
        lines = AnswerStore(test.folder / "answers.jsonl").lines()
        if not names:
            lines = [
                {**line, "name": f"listener {line['listener']}"} if "name" in line else line for line in lines
            ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "answers.jsonl").write_text(text, encoding="utf-8")
        call, said = "", "`answers.jsonl`: every answer, a line each"
        said += "" if names else "; listeners' names are replaced by numbers"
    else:
        if not names and not analysis.simulated:
            answers = answers.assign(name=answers["listener"])
        answers.to_csv(folder / "answers.csv", index=False)
        call = 'pd.read_csv(here / "answers.csv")'
        said = f"`answers.csv`: the answers ({'of simulated listeners' if analysis.simulated else 'given'})"
    script = SCRIPT.format(answers=call)
    if call:
        script = script.replace("import mechsteer as ms", "import pandas as pd\n\nimport mechsteer as ms")
    (folder / "analyse.py").write_text(script, encoding="utf-8")
    design = test.design
    facts = {"name": design.name, "question": design.question, "loudness": design.loudness, "answers": said}
    (folder / "README.md").write_text(TEXT.format(who=analysis.who, **facts), encoding="utf-8")
    analysis.save(folder / "analysis")
    return folder
