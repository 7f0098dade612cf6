"""What README, CONTRIBUTING and the guide say holds: code runs; every command, name and link is there."""

import importlib.util
import re
import subprocess

import pytest

import mechsteer as ms
from mechsteer import paths

ROOT = paths.project()
PAGES = sorted(ROOT.glob("workshop/site/**/*.md"))
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}


def test_the_ten_lines_turn_clips_where_a_random_direction_turns_fewer(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    done = {}
    exec(code, done)
    assert done["acts"].sizes["clip"] == 60 and done["music"].audio.shape[0] == 12
    said = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.count(" ") == 1)
    assert float(said["diff_of_means"]) > float(said["random"]) + 0.5
    saved = [f"violin_by_{name}-{i:02}.wav" for name in ("diff_of_means", "random") for i in range(12)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == saved


def test_a_concept_of_ones_own_is_a_column():
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["CONTRIBUTING.md"], re.DOTALL)
    done = {}
    exec(code, done)
    assert set(done["scores"]["concept"]) == {"calm"} and done["calm"].dims == ("layer", "d_model")


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", TEXTS[name]) if "://" not in t]
    targets += re.findall(r"`((?:figures|data|tests|workshop|mechsteer|notebooks)/[\w./]+\w)`", TEXTS[name])
    made = (
        "data/runs",
        "data/listening",
        "notebooks/NN",
        "notebooks/11_verb",
    )  # written by use; and patterns
    homes = ROOT, (ROOT / name).parent
    assert not [t for t in targets if not any((h / t).exists() for h in homes) and not t.startswith(made)]


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_and_name_is_there(name):
    text = TEXTS[name]
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)) <= known
    modules = set(re.findall(r"-m\s+((?:mechsteer|workshop)[\w.]*\w)", text))
    assert not [module for module in modules if importlib.util.find_spec(module) is None]
    for dotted in set(re.findall(r"\bms\.([\w.]*\w)", text)):
        found = ms
        for part in dotted.split("."):
            found = getattr(found, part)


def test_the_readmes_house_has_one_line_a_folder():
    _, house, _ = re.split(r"## The house\n|\n## More", TEXTS["README.md"])
    rooms = [f"mechsteer/{path.parent.name}" for path in (ROOT / "mechsteer").glob("*/__init__.py")]
    rooms += ["workshop/", "notebooks/", "tests/"]
    assert sorted(re.findall(r"^\| `([^`]+)` \|", house, re.MULTILINE)) == sorted(rooms)


def test_the_command_lines_take_the_options_that_are_named():
    for module, option in re.findall(
        r"-m\s+((?:mechsteer|workshop)[\w.]*)(?: [^`\n#]*?)?(--[a-z-]+)", "".join(TEXTS.values())
    ):
        path = ROOT / (module.replace(".", "/") + ".py")
        assert f'"{option}"' in path.read_text(encoding="utf-8"), f"{module} takes no {option}"


def test_every_tracked_notebook_is_in_the_readmes_table():
    command = ["git", "ls-files", "notebooks/*.ipynb"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout and all(f"({path})" in TEXTS["README.md"] for path in listed.stdout.split())


def test_the_readme_is_short_and_leads_to_every_page():
    text = TEXTS["README.md"]
    assert text.count("\n") <= 180
    guide = [page for page in TEXTS if "/guide/" in page and not page.endswith("/index.md")]
    assert guide and all(f"({page})" in text for page in guide)
