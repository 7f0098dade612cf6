"""Show a test as a page of its own, by voila: `python -m mechsteer.listening.page data/listening/guitar`.

On this machine only unless told otherwise; up to `--most` listeners at once, each in a kernel of their own.
The page asks nothing of other servers, answers to its own names only, and serves no file of the test.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .design import load_design
from .test import write_page

SHARE = Path(__file__).with_name("jupyter")  # holds our voila template
ANY = ("0.0.0.0", "::", "")


def own_names(ip: str, more: Iterable[str] = ()) -> set[str]:
    """The names under which a page on `ip` is reached; with 0.0.0.0 all addresses of this machine."""
    found = {"localhost", "127.0.0.1", "::1", ip, *more}
    if ip in ANY:
        import psutil

        found |= {a.address.split("%")[0] for nets in psutil.net_if_addrs().values() for a in nets}
        found |= {socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn()}
    return {name.lower().strip("[]") for name in found - set(ANY)}


def serve(given: argparse.Namespace) -> None:
    """Show the test until stopped; kernels run a notebook of ours, never one from its folder."""
    from traitlets.config import Config

    from ._door import Kernels, Page

    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(SHARE), os.environ.get("JUPYTER_PATH")]))
    chosen = {"template": "listening", "theme": given.theme, "multi_kernel_manager_class": Kernels}
    chosen |= {"allow_template_override": "NO", "allow_theme_override": "NO"}
    with tempfile.TemporaryDirectory() as place:
        write_page(Path(place), Path(given.folder).resolve())
        ip, options = given.ip, {"port": given.port, "port_retries": 0, "config_file_paths": []}
        options |= {"notebook_path": str(Path(place) / "take.ipynb"), "open_browser": False}
        app = Page(ip=ip, log_level=30, **options)
        app.hosts, app.shown = own_names(ip, given.host), f"[{ip}]" if ":" in ip else ip
        if ip in ANY:
            app.shown = socket.gethostname()
        app.update_config(Config(VoilaConfiguration=chosen, Kernels={"most": given.most}))
        app.initialize([])
        app.start()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    import importlib.util

    about, open_to = __doc__.splitlines()[0], "0.0.0.0 lets other machines in: there is no password"
    parser = argparse.ArgumentParser(prog="python -m mechsteer.listening.page", description=about)
    parser.add_argument("folder", help="the test's folder, such as data/listening/guitar")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--ip", default="127.0.0.1", help=open_to)
    parser.add_argument("--theme", default="light", choices=["light", "dark"])
    named = "another name that listeners reach the page by, such as test.example.org (repeatable)"
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help=named)
    several = "listeners at once, each with a kernel of their own; the next is asked to come back later"
    parser.add_argument("--most", type=int, default=20, help=several)
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("voila") is None:
        parser.exit(2, "The page needs voila: uv sync --extra listening, or pip install voila\n")
    try:
        load_design(given.folder)  # may be a stranger's
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    serve(given)


if __name__ == "__main__":
    main()
