"""Where things are read and written, and how.

`MECHSTEER_FIGURES` and `MECHSTEER_RUNS` redirect what notebooks write (tests and runs on other models use
them). A notebook that is run by hand writes nothing that git tracks.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from .errors import NoCheckout


def _checkout() -> Path | None:
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "data").is_dir() else None


def project() -> Path:
    """The checkout this package sits in; the working directory when the package is installed without one."""
    return _checkout() or Path.cwd()


def data() -> Path:
    """What ships and is only read: `data/` of the checkout; NoCheckout, a FileNotFoundError, without one."""
    if (root := _checkout()) is None:
        raise NoCheckout(
            "the embedded model, its music and the study ship with mechsteer's repository, and this copy "
            "is installed without it: clone the repository and run `make lab` there. Models of Meta's format "
            "and music of your own work without"
        )
    return root / "data"


def figures(otherwise: Path | None = None) -> Path:
    """Where `save_figure` writes: `$MECHSTEER_FIGURES`, else `otherwise`, else `data/runs/figures/`."""
    return Path(os.environ.get("MECHSTEER_FIGURES") or otherwise or runs() / "figures")


def shipped_figures() -> Path:
    """The figures that ship: `figures/` of the checkout, where only the project's commands write."""
    return project() / "figures"


def runs() -> Path:
    """Where users' own runs go (git-ignored): `$MECHSTEER_RUNS`, else `data/runs/`."""
    return Path(os.environ.get("MECHSTEER_RUNS") or project() / "data" / "runs")


def listening() -> Path:
    """Where listening tests keep stimuli and answers: `data/listening/`, or below `$MECHSTEER_RUNS`."""
    return (runs() if os.environ.get("MECHSTEER_RUNS") else project() / "data") / "listening"


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file written in one step or not at all: what is written to the path that this yields replaces `path`.

    The folder is made if need be. What fails inside the block leaves `path` as it was, and nothing beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def replace(path: str | Path, content: str | bytes) -> Path:
    """Write text or bytes in one step or not at all (see `replacing`); returns the path."""
    with replacing(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def write_table(table, path: Path, name: str = "") -> None:
    """Write a DataFrame as parquet in one step or not at all, sealed by checksums and a name."""
    table = table.copy()
    table.attrs = {"seal": _seal(table, name)}
    with replacing(path) as scratch:
        table.to_parquet(scratch, write_page_checksum=True)


def read_table(path: Path, name: str = ""):
    """The DataFrame that `write_table` wrote under this name; None if it is absent, damaged or another."""
    import pandas as pd

    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
        return table if table.attrs.pop("seal", None) == _seal(table, name) else None
    except Exception:  # parquet has many ways to complain
        return None


def _seal(table, name: str) -> str:
    return f"{name} {zlib.crc32(table.to_json(orient='split', double_precision=15).encode())}"
