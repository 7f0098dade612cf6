"""Build the site: `python -m workshop.site`, or into another folder with `--out`. Runs no notebook."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from . import stage


def main(arguments: list[str] | None = None) -> int:
    """Lay the sources out, let Sphinx build them, and copy what the pages link to; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m workshop.site", description=__doc__)
    parser.add_argument("--out", type=Path, default=stage.ROOT / "build" / "site")
    parser.add_argument("--lenient", action="store_true", help="warnings don't stop the build")
    chosen = parser.parse_args(arguments)
    begin, out = time.monotonic(), chosen.out.absolute()
    work = out.with_name(out.name + "-work")
    for folder, mark in ((out, "searchindex.js"), (work, "source")):
        if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
            parser.error(f"{folder} holds something else than a site; choose an empty folder")
        shutil.rmtree(folder, ignore_errors=True)
    from sphinx.cmd.build import main as sphinx

    stage.lay_out(work / "source", work / "extra", os.environ.get("SITE_REPOSITORY", ""))
    options = ["-b", "html", "-q", "-d", str(work / "doctrees"), "-c", str(stage.HERE)]
    options += ["-D", f"html_extra_path={work / 'extra'}"]
    options += [] if chosen.lenient else ["-W", "--keep-going"]
    if code := sphinx([*options, str(work / "source"), str(out)]):
        return code
    stage.copy_figures(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out / 'index.html'}: {size:.1f} MB in {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
