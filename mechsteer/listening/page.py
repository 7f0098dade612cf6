"""Show a test as a page of its own, by voila: `python -m mechsteer.listening.page data/listening/guitar`.

It prints the address to send to listeners, with a code that lets them in; and when it is stopped (Ctrl-C),
the results so far, with their figures in the test's folder. The page asks nothing of other servers, answers
to its own names only, and serves no file of the test.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import secrets
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from .test import ListeningTest, write_page

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


def told_name(ip: str) -> str:
    """The name to tell others; for 0.0.0.0 the address by which the network knows this machine."""
    if ip not in ANY:
        return f"[{ip}]" if ":" in ip else ip
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # chooses the way there; nothing is sent
        return probe.getsockname()[0]
    return socket.gethostname()


def serve(given: argparse.Namespace) -> None:
    """Show the test until stopped; kernels run a notebook of ours, never one from its folder."""
    from traitlets.config import Config

    from ._door import Kernels, Page

    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(SHARE), os.environ.get("JUPYTER_PATH")]))
    chosen = {"template": "listening", "theme": given.theme, "multi_kernel_manager_class": Kernels}
    chosen |= {"allow_template_override": "NO", "allow_theme_override": "NO"}
    chosen["extension_allowlist"] = ["anywidget", "@voila-dashboards/widgets-manager8"]  # else all are sent
    with tempfile.TemporaryDirectory() as place:
        write_page(Path(place), Path(given.folder).resolve())
        code = given.code or secrets.token_urlsafe(9)
        options = {"ip": given.ip, "port": given.port, "port_retries": 0, "token": code, "log_level": 30}
        options |= {"notebook_path": f"{place}/take.ipynb", "open_browser": False, "config_file_paths": []}
        app = Page(**options, config=Config(VoilaConfiguration=chosen, Kernels={"most": given.most}))
        app.hosts, name = own_names(given.ip, given.host), (given.host or [told_name(given.ip)])[0]
        app.shown = f"http://{name}:{given.port}/?token={quote(code)}"
        app.initialize([])
        app.start()


def tell(test: ListeningTest) -> None:
    """Print the results so far, and write them with their figures to `analysis/` in the test's folder."""
    try:
        found = test.analyse()
    except ValueError as error:  # nobody has answered, or nobody counts
        return print(f"No results: {error}")
    found.save(test.folder / "analysis")
    print(found, f"Their figures are in {test.folder / 'analysis'}", sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    about, named = __doc__.splitlines()[0], "another name that listeners reach the page by (repeatable)"
    parser = argparse.ArgumentParser(prog="python -m mechsteer.listening.page", description=about)
    parser.add_argument("folder", help="the test's folder, such as data/listening/guitar")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--ip", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--code", help="what lets listeners in; by default another one each time")
    parser.add_argument("--theme", default="light", choices=["light", "dark"])
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help=named)
    parser.add_argument("--most", type=int, default=20, help="listeners at once; others are asked to wait")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("voila") is None:
        parser.exit(2, "The page needs voila: uv sync --extra listening, or pip install voila\n")
    try:
        test = ListeningTest.open(given.folder)  # may be a stranger's
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    serve(given)
    tell(test)


if __name__ == "__main__":
    main()
