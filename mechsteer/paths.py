"""Where things are read and written, and how: one place that decides, two environment variables that overrule it.

`MECHSTEER_FIGURES` and `MECHSTEER_RUNS` redirect what notebooks write (tests and runs on other models use them).
"""

import os
from pathlib import Path

__all__ = ["data", "figures", "listening", "project", "replace", "runs"]


def project() -> Path:
    """The checkout this package sits in, or the working directory when the package is installed without one."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def data() -> Path:
    """What ships with the project and is only read: `data/`."""
    return project() / "data"


def figures() -> Path:
    """Where `save_figure` writes: `$MECHSTEER_FIGURES`, else `figures/`."""
    return Path(os.environ.get("MECHSTEER_FIGURES") or project() / "figures")


def runs() -> Path:
    """Where users' own runs go (git-ignored): `$MECHSTEER_RUNS`, else `data/runs/`."""
    return Path(os.environ.get("MECHSTEER_RUNS") or data() / "runs")


def listening() -> Path:
    """Where listening tests keep stimuli and answers: `data/listening/`; below the runs where those are redirected."""
    return (runs() if os.environ.get("MECHSTEER_RUNS") else data()) / "listening"


def replace(path: Path, content: str | bytes) -> Path:
    """Write a file, its folder too if need be, in one step or not at all; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path
