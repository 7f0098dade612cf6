"""What Sphinx reads, laid out in one folder: pages, README, notebooks, their pictures; links follow them there."""

import filecmp
import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import mechsteer

from . import notebook

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
FOLDERS = mechsteer._FOLDERS
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def lay_out(source: Path, extra: Path, repository: str = "") -> None:
    """Write the sources into `source` and files for the pages into `extra`; what hasn't changed is left alone.

    `repository` is "owner/name" on GitHub: with it notebooks get badges, and files that are no pages links.
    """
    written = set()

    def write(place: str, text: str) -> None:
        written.add(source / place)
        _write(source / place, text)

    for page in sorted([*HERE.rglob("*.md"), *map(ROOT.joinpath, PAGES)]):
        origin = page.relative_to(ROOT).as_posix()
        text = follow(page.read_text(encoding="utf-8"), origin, repository)
        write(placed(origin), _filled(text))
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        origin = path.relative_to(ROOT).as_posix()
        page, pictures = notebook.as_page(json.loads(path.read_text(encoding="utf-8")), path.stem, repository)
        for cell in page["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = follow("".join(cell["source"]), origin, repository)
        write(origin, json.dumps(page))
        for name, png in pictures.items():
            written.add(extra / "plots" / name)
            _write(extra / "plots" / name, png)
    if not (source / "figures").exists():
        (source / "figures").symlink_to(ROOT / "figures")
    for folder in (source, extra):
        for path in [
            p for p in folder.rglob("*") if p.is_file() and not p.is_relative_to(source / "figures")
        ]:
            if path not in written:
                path.unlink()


def _write(path: Path, content: str | bytes) -> None:
    content = content.encode() if isinstance(content, str) else content
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def placed(origin: str) -> str | None:
    """Where a file of the repository stands on the site, as a path from its root; None if it isn't there."""
    if origin in PAGES:
        return PAGES[origin]
    if origin.startswith("workshop/site/") and origin.endswith(".md"):
        return origin.removeprefix("workshop/site/")
    served = origin.startswith("figures/") and (ROOT / origin).is_file()
    return origin if served or re.fullmatch(r"notebooks/\d\w*\.ipynb", origin) else None


def follow(text: str, origin: str, repository: str = "") -> str:
    """Markdown with its links as they are on the site, for a page that stands at `origin` in the repository.

    Anchors are written small, as Sphinx has them and Jupyter hasn't. A link to a file that is no page leads to
    the repository where there is one, and else is text only.
    """
    home, here = PurePosixPath(origin).parent, PurePosixPath(placed(origin)).parent

    def replace(match: re.Match) -> str:
        mark, name, target, anchor = match[1], _LINK.sub(replace, match[2]), match[3], match[4] or ""
        if ":" in target:
            return f"{mark}[{name}]({target}{anchor})"
        path, anchor = os.path.normpath(home / unquote(target)), anchor.lower()
        if not target or not (ROOT / path).exists():
            return f"{mark}[{name}]({target}{anchor})"
        if (place := placed(path)) is not None:
            return f"{mark}[{name}]({os.path.relpath(place, here)}{anchor})"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{name}](https://github.com/{repository}/{kind}/main/{path})" if repository else name

    return _LINK.sub(replace, text)


def _filled(text: str) -> str:
    """A page with what its marks stand for: the notebooks' names, modules of a folder, the names of `ms`."""
    text = text.replace("<!-- toctree: notebooks -->", _notebooks())
    text = text.replace("<!-- names -->", _names())
    return re.sub(r"<!-- modules: (\w+) -->", lambda mark: _modules(mark.group(1)), text)


def _notebooks() -> str:
    names = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    lines = [f"{notebook.short_title(name)} <{name}>" for name in names]
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *lines, "```"])


def modules(folder: str) -> list[str]:
    """The modules of a folder of mechsteer that someone may call, as `model.steering`, in reading order."""
    root = ROOT / "mechsteer"
    found = [".".join(path.relative_to(root).with_suffix("").parts) for path in (root / folder).rglob("*.py")]
    public = [name for name in found if not re.search(r"\._|\.vocabulary$", name)]
    named = (root / folder / "__init__.py").read_text(encoding="utf-8").replace("`", " ").split()
    rank = {name: named.index(name.split(".")[1]) if name.split(".")[1] in named else 999 for name in public}
    return sorted(public, key=lambda name: (rank[name], name))


def _modules(folder: str) -> str:
    parts = []
    for name in modules(folder):
        parts += [
            f"## {name}",
            "",
            "```{eval-rst}",
            f".. automodule:: mechsteer.{name}",
            "   :members:",
            "```",
            "",
        ]
    return "\n".join(parts)


def _names() -> str:
    lines = ["| folder | names |", "|---|---|"]
    for folder in FOLDERS:
        own = {n: m for n, m in mechsteer._OWNERS.items() if m.split(".")[0] == folder}
        links = " · ".join(f"{{py:obj}}`{n} <mechsteer.{own[n]}.{n}>`" for n in sorted(own, key=str.lower))
        lines.append(f"| [{folder}]({folder}.md) | {links} |")
    return "\n".join(lines)


def copy_figures(out: Path) -> None:
    """Copy the files of figures/ that the built pages link to, and no others; their pages bring Plotly along."""
    used = {"figures/plotly.min.js"}
    for page in out.rglob("*.html"):
        if not page.is_relative_to(out / "figures"):
            found = re.findall(
                r'(?:src|href|data-full)="(?:\.\./)*(figures/[^"#?]+)"', page.read_text("utf-8")
            )
            used |= set(map(unquote, found))
    for name in sorted(used):
        if not (out / name).is_file() or not filecmp.cmp(ROOT / name, out / name, shallow=False):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, out / name)
