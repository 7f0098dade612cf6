"""What Sphinx reads, laid out in one folder: pages, README, notebooks, their pictures; links follow them."""

import json
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import mechsteer

from ..suite.notebook_text import contents_table
from . import notebook

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
FOLDERS = mechsteer._FOLDERS
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def lay_out(source: Path, extra: Path, repository: str = "") -> None:
    """Write what Sphinx reads into `source`, and files that pages name into `extra`.

    `repository` is "owner/name" on GitHub: with it notebooks get badges, and files that are no pages links.
    """
    for page in sorted([*HERE.rglob("*.md"), *map(ROOT.joinpath, PAGES)]):
        origin = page.relative_to(ROOT).as_posix()
        text = follow(page.read_text(encoding="utf-8"), origin, repository)
        _write(source / placed(origin), _filled(text).encode())
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        origin = path.relative_to(ROOT).as_posix()
        page, pictures = notebook.as_page(json.loads(path.read_text(encoding="utf-8")), path.stem, repository)
        for cell in page["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = follow("".join(cell["source"]), origin, repository)
        _write(source / origin, json.dumps(page).encode())
        for name, png in pictures.items():
            _write(extra / "plots" / name, png)
    (source / "figures").symlink_to(ROOT / "figures")


def _write(path: Path, content: bytes) -> None:
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
    """Markdown with its links as they are on the site, for a page at `origin` in the repository.

    Anchors are written small, as Sphinx has them and Jupyter hasn't. A link to a file that is no page leads
    to the repository where there is one, and else is text only.
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
    text = re.sub("<!-- toctree: notebooks -->", lambda _: _notebooks(), text)
    text = re.sub("<!-- names -->", lambda _: _names(), text)
    return re.sub(r"<!-- modules: (\w+) -->", lambda mark: _modules(mark.group(1)), text)


def _notebooks() -> str:
    shelf = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    lines = [f"{notebook.short_title(path.stem)} <{path.stem}>" for path in shelf]
    return "\n".join([contents_table(shelf), "", "```{toctree}", ":hidden:", "", *lines, "```"])


def modules(folder: str) -> list[str]:
    """The modules of a folder of mechsteer that someone may call, as `model.steering`, in reading order."""
    root = ROOT / "mechsteer"
    found = [".".join(path.relative_to(root).with_suffix("").parts) for path in (root / folder).rglob("*.py")]
    public = [name for name in found if not re.search(r"\._|\.vocabulary$", name)]
    named = (root / folder / "__init__.py").read_text(encoding="utf-8").replace("`", " ").split()
    rank = {name: named.index(name.split(".")[1]) if name.split(".")[1] in named else 999 for name in public}
    return sorted(public, key=lambda name: (rank[name], name))


def _modules(folder: str) -> str:
    """Each module under a heading; then what `ms` names of modules that one needn't read."""
    parts = [(name, f".. automodule:: mechsteer.{name}\n   :members:") for name in modules(folder)]
    for name, module in mechsteer._OWNERS.items():
        if module.startswith(f"{folder}._"):
            parts.append((f"ms.{name}", f".. autofunction:: mechsteer.{module}.{name}"))
    return "\n\n".join(f"## {heading}\n\n```{{eval-rst}}\n{rest}\n```" for heading, rest in parts)


def _names() -> str:
    lines = ["| folder | names |", "|---|---|"]
    for folder in FOLDERS:
        own = {n: m for n, m in mechsteer._OWNERS.items() if m.split(".")[0] == folder}
        links = " · ".join(f"{{py:obj}}`{n} <mechsteer.{own[n]}.{n}>`" for n in sorted(own, key=str.lower))
        lines.append(f"| [{folder}]({folder}.md) | {links} |")
    return "\n".join(lines)


def copy_figures(out: Path) -> None:
    """Copy the files of figures/ that built pages link to, and no others; their pages bring Plotly along."""
    used, link = {"figures/plotly.min.js"}, re.compile(r'(?:src|href)="(?:\.\./)*(figures/[^"#?]+)"')
    for page in out.rglob("*.html"):
        used |= set(map(unquote, link.findall(page.read_text(encoding="utf-8"))))
    for name in sorted(used):
        _write(out / name, (ROOT / name).read_bytes())
