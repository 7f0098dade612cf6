"""Show a test as a page of its own, by voila: `python -m mechsteer.listening.page data/listening/guitar`.

On this machine only unless told otherwise; any number of listeners may come, each visit gets its own kernel.
The page asks for nothing from other servers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

SHARE = Path(__file__).with_name("jupyter")  # holds our voila template


def command(folder: str | Path, port: int = 8866, ip: str = "127.0.0.1", theme: str = "light") -> list[str]:
    """The arguments that start voila on the test in `folder`; it needs `environment` too.

    Raises FileNotFoundError if the folder holds no test.
    """
    page = Path(folder) / "take.ipynb"
    if not page.is_file():
        raise FileNotFoundError(f"{folder} holds no listening test (take.ipynb): make one with ListeningTest")
    options = [f"--port={port}", f"--Voila.ip={ip}", f"--theme={theme}", "--template=listening"]
    return [sys.executable, "-m", "voila", str(page), *options, "--no-browser"]


def environment() -> dict[str, str]:
    """The environment in which voila finds our template."""
    places = filter(None, [str(SHARE), os.environ.get("JUPYTER_PATH")])
    return {**os.environ, "JUPYTER_PATH": os.pathsep.join(places)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: becomes voila's process."""
    import importlib.util

    about, open_to = __doc__.splitlines()[0], "0.0.0.0 lets other machines in: there is no password"
    parser = argparse.ArgumentParser(prog="python -m mechsteer.listening.page", description=about)
    parser.add_argument("folder", help="the test's folder, such as data/listening/guitar")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--ip", default="127.0.0.1", help=open_to)
    parser.add_argument("--theme", default="light", choices=["light", "dark"])
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("voila") is None:
        parser.exit(2, "The page needs voila: uv sync --extra listening, or pip install voila\n")
    try:
        line = command(given.folder, given.port, given.ip, given.theme)
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")
    print(f"The test is at http://{given.ip}:{given.port}/ (stop with Ctrl-C)", flush=True)
    os.execve(line[0], line, environment())


if __name__ == "__main__":
    main()
