"""Let Google Colab use this checkout, on its own Python and torch: `python -m workshop.suite.colab`.

Colab's page talks to Colab's Python and what is installed there, so the locked environment can't be used.
What the session lacks is installed beside what it has, in versions of the day; its torch, which fits its
GPU, stays. Nothing happens outside Colab.
"""

import importlib.util
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["link", "main", "requirements"]

# What Colab's page and its GPU are built on, and what only runs notebooks from the command line.
ITS_OWN = {
    "torch",
    "torchaudio",
    "ipykernel",
    "ipywidgets",
    "jupyterlab",
    "nbclient",
    "nbformat",
    "papermill",
}


def requirements(project: Mapping, lock: Mapping) -> tuple[list[str], list[str]]:
    """What pip is to install: (with dependencies, without them).

    Parameters
    ----------
    project, lock : what pyproject.toml and uv.lock say.

    audiocraft pins packages of 2023, so it comes without its dependencies; those it needs are named by the
    lock, where the superfluous ones are left out already, and come in whatever version the session has.
    """
    from packaging.requirements import Requirement

    asked = {Requirement(text).name: text for text in project["project"]["dependencies"]}
    (audiocraft,) = (package for package in lock["package"] if package["name"] == "audiocraft")
    needed = {package["name"]: package["name"] for package in audiocraft["dependencies"]} | asked
    rest = [needed[name] for name in sorted(needed) if name not in ITS_OWN | {"audiocraft"}]
    return rest, [asked["audiocraft"]]


def link(package: Path, site: Path) -> Path:
    """Make `package` importable from `site`, where Python looks already: no session has to be restarted."""
    place = site / package.name
    if place.is_symlink():
        place.unlink()
    place.symlink_to(package, target_is_directory=True)
    return place


def main() -> int:
    """Install what this session lacks; 0 when that worked, or when this isn't Colab."""
    try:
        on_colab = importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:  # no package google at all
        on_colab = False
    if not on_colab:
        print("This isn't Google Colab, so nothing was done. `make lab` opens the notebooks here.")
        return 0
    package = Path(__file__).resolve().parents[2] / "mechsteer"
    project, lock = (
        tomllib.loads((package.parent / name).read_text(encoding="utf-8"))
        for name in ("pyproject.toml", "uv.lock")
    )
    rest, alone = requirements(project, lock)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([*pip, *rest], [*pip, "--no-deps", *alone]):  # in this order pip has no pins to tell of
        if subprocess.run(command).returncode:
            told = "pip could not install this (see above); is the session connected to the internet?"
            print(told, file=sys.stderr)
            return 1
    link(package, Path(sysconfig.get_paths()["purelib"]))
    print("Ready. Should Colab ask for it, restart the session, then run on from `%cd`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
