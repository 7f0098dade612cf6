"""A real browser before a real JupyterLab or voila, for tests: on loopback only, closed when the block ends.

    with jupyterlab(folder) as address, browser() as chrome, page(chrome) as tab:
        open_notebook(tab, address, "take.ipynb")
        run_all(tab)

`page` lets nothing leave the machine and keeps what was tried, along with page errors, in `tab.seen`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOOLBAR = "() => [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title || b.href || '')"
PATIENCE = 150  # s, for a server or a kernel on a busy machine
NOWHERE = {"server": "http://127.0.0.1:9", "bypass": "127.0.0.1"}  # a proxy for what isn't for this machine
UNSEEN = (  # parts of Chromium's own window, drawn anew for every page; and what playwright would leave out
    "WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup,"
    "DestroyProfileOnBrowserClose,HttpsUpgrades,MediaRouter,OptimizationHints,PaintHolding"
)


@dataclasses.dataclass
class Seen:
    """What a page asked for and complained of: addresses, refused ones, websocket frames, page errors."""

    requests: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    sent: list[str | bytes] = dataclasses.field(default_factory=list)
    received: list[str | bytes] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != "/favicon.ico":
            return super().do_GET()
        self.send_response(204)  # browsers ask for it on their own: no page leads there
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's files, on this machine only."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def _server(
    arguments: list[str], folder: Path, port: int, probe: str, stop: int = signal.SIGTERM
) -> Iterator[Path]:
    """Run a Jupyter server with its own settings until the block ends; yields its log, shown if it fails."""
    home = folder / ".jupyter-test"
    env = {
        **os.environ,
        **{f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    home.mkdir(exist_ok=True)
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + PATIENCE
            while not _answers(f"http://127.0.0.1:{port}{probe}"):
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        f"no server:\n{(home / 'server.log').read_text(errors='replace')[-3000:]}"
                    )
                time.sleep(0.2)
            yield home / "server.log"
        finally:
            server.send_signal(stop)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab on a folder; yields its address with `{}` where a notebook's path goes."""
    port, token = free_port(), secrets.token_hex(8)
    root = ["--allow-root"] if os.geteuid() == 0 else []
    arguments = [
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
    ]
    without = {"jupyter_lsp": False, "notebook_shim": False, "voila.server_extension": False}
    arguments += [  # nor does it look for node, language servers and newer versions of what it runs
        f"--ServerApp.jpserver_extensions={without}",
        f"--ServerApp.tornado_settings={dict(page_config_data=dict(buildCheck=False, buildAvailable=False))}",
        "--LabApp.extension_manager=readonly",
        "--LabApp.expose_app_in_browser=True",
        "--ServerApp.use_redirect_file=False",
        "--LabApp.news_url=",
        *root,
    ]
    with _server(arguments, folder, port, f"/api?token={token}"):
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"


@contextlib.contextmanager
def listening_page(folder: Path, theme: str = "light", *options: str) -> Iterator[str]:
    """A listening test as `python -m mechsteer.listening.page` shows it; yields the address to send.

    When the block ends it is stopped by Ctrl-C; what it says then is in `folder/.jupyter-test/server.log`.
    If there are answers, it analyses them and draws figures then, which takes a few seconds.
    """
    port = free_port()
    arguments = ["mechsteer.listening.page", str(folder), f"--port={port}", f"--theme={theme}", *options]
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # and so it is in what we start
    stop = signal.SIGTERM if ignored else signal.SIGINT
    with _server(arguments, folder, port, "/voila/static/voila.js", stop) as log:
        yield next(line for line in log.read_text().splitlines() if line.startswith("http://127.0.0.1:"))


@contextlib.contextmanager
def voila(path: Path) -> Iterator[str]:
    """A notebook as a page of its own, without its code; yields the page's address."""
    port = free_port()
    options = ["--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with _server(["voila", str(path), *options], path.parent, port, "/voila/static/voila.js"):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def browser() -> Iterator:
    """Headless Chromium of the system, by playwright; nothing is downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", f"--disable-features={UNSEEN}"]
        chrome = play.chromium.launch(executable_path=CHROME, args=options, proxy=NOWHERE)
        try:
            yield chrome
        finally:
            chrome.close()


@contextlib.contextmanager
def page(chrome, **options) -> Iterator:
    """A fresh page with its own cookies; `tab.seen` is a `Seen`. What would leave the machine fails."""
    context = chrome.new_context(**{"viewport": {"width": 1000, "height": 900}, **options})
    tab, seen = context.new_page(), Seen()

    def asked(request):  # playwright's own way to refuse one, a route, would turn the page's cache off
        seen.requests.append(request.url)
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            seen.refused.append(request.url)

    def socket_opened(link):
        link.on("framesent", lambda frame: seen.sent.append(frame))  # playwright takes no bound builtins
        link.on("framereceived", lambda frame: seen.received.append(frame))

    context.on("request", asked)
    tab.on("websocket", socket_opened)
    tab.on("pageerror", lambda error: seen.errors.append(str(error)))
    tab.set_default_timeout(PATIENCE * 1000)
    tab.seen = seen
    try:
        yield tab
    finally:
        context.close()


_READY = """() => {
    const app = window.jupyterapp;
    if (!app || !app.shell.currentWidget || !app.shell.currentWidget.context) return false;
    const session = app.shell.currentWidget.context.sessionContext;
    return session.isReady && session.session?.kernel?.status === 'idle';
}"""


def ready(tab) -> None:
    """Wait until the open notebook has a kernel and it is idle."""
    tab.wait_for_function(_READY)


def open_notebook(tab, address: str, name: str) -> None:
    """Open a notebook of a running JupyterLab and wait until its kernel is idle."""
    tab.goto(address.format(name))
    tab.wait_for_function(_READY)


def command(tab, name: str) -> None:
    """Run one of JupyterLab's commands, such as `docmanager:save`, and wait for it."""
    tab.evaluate("name => window.jupyterapp.commands.execute(name)", name)


def run_all(tab) -> None:
    """Run every cell of the open notebook and wait until the kernel is idle again."""
    command(tab, "notebook:run-all-cells")
    tab.wait_for_function(_READY)


def kernel_processes() -> list[int]:
    """Process numbers of the kernels that this very test process started, through its servers."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has just ended
            kernel = any("ipykernel_launcher" in part for part in process.cmdline())
            if kernel and process.ppid() != os.getpid():  # not one that runs notebooks for this test process
                found.append(process.pid)
    return found
