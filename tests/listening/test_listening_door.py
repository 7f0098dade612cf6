"""The page before visitors who mean no good: a real server, raw requests, a listener who notices nothing."""

import asyncio
import contextlib
import datetime
import http.client
import json
import re
import struct
import threading
import time
import uuid
from types import SimpleNamespace
from urllib.parse import urlsplit

import psutil
import pytest
import websocket
from browser import listening_page, page
from listening_clips import make
from test_listening_browser import (
    answers,
    by_keyboard,
    by_mouse,
    complete,
    enter,
    finish,
    give_nothing_away,
    go_on,
    state,
)

pytest.importorskip("voila")
from mechsteer.listening import _door  # noqa: E402
from mechsteer.listening.page import main, own_names  # noqa: E402

PLACES = 3
GARBAGE = [b"\x7f" * 4096, b"\xff" * 4096, b"", b"{}", struct.pack("<Q", 2**40), struct.pack("!i", 2**30) * 9]


class Client:
    """A visitor without a browser, who may lie about the host, the origin and who they are."""

    def __init__(self, address: str):
        self.port, self.home = urlsplit(address).port, f"/?{urlsplit(address).query}"
        self.cookies: dict[str, str] = {}
        self.kernel = ""

    @property
    def cookie(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def ask(self, path: str = "", method: str = "GET", body: bytes | None = None, **headers):
        """Status and text of an answer; without a path, to the whole address that listeners are sent."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(line):
            line.request(method, path or self.home, body, {"Cookie": self.cookie, **headers})
            reply = line.getresponse()
            for cookie in reply.headers.get_all("Set-Cookie") or []:
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value
                assert name != _door.COOKIE or "HttpOnly" in cookie and "SameSite=Lax" in cookie
            return reply.status, reply.read().decode(errors="replace")

    def visit(self, path: str = "") -> int:
        status, text = self.ask(path)
        found = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
        self.kernel = found[0] if found else ""
        return status

    def socket(self, protocol: str | None = _door.PROTOCOL, **options) -> websocket.WebSocket:
        options = {"origin": f"http://127.0.0.1:{self.port}", "cookie": self.cookie, "timeout": 10, **options}
        address = f"ws://127.0.0.1:{self.port}/api/kernels/{self.kernel}/channels?session_id=x"
        return websocket.create_connection(address, subprotocols=[protocol] if protocol else None, **options)

    def refused(self, **options) -> int:
        with pytest.raises(websocket.WebSocketBadStatusException) as error:
            self.socket(**options)
        return error.value.status_code


def frame(kind: str, content: dict | None = None, channel: bytes = b"shell") -> bytes:
    """A message of the kernel protocol, as JupyterLab's client packs it."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "x", "username": "", "version": "5.2"}
    parts = [channel, *(json.dumps(part).encode() for part in (header, {}, {}, content or {}))]
    ends = [56]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return struct.pack("<7Q", 6, *ends) + b"".join(parts)


def closed_with(link: websocket.WebSocket) -> int:
    """The code that the server closes with (0: it just hangs up); what it sends before is read."""
    with contextlib.suppress(OSError, websocket.WebSocketConnectionClosedException):
        while (found := link.recv_frame()).opcode != websocket.ABNF.OPCODE_CLOSE:
            pass
        return struct.unpack("!H", found.data[:2])[0]
    return 0


def server(client: Client) -> psutil.Process:
    mine = (p for p in psutil.Process().children() if f"--port={client.port}" in p.cmdline())
    return next(mine)


def kernels(client: Client) -> set[int]:
    """Process numbers of the kernels that the client's server runs."""
    return {p.pid for p in server(client).children() if "ipykernel_launcher" in p.cmdline()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    make(folder, items=3, listen=0.3, headphones=0, practice=0)
    (folder / "take.ipynb").write_text("a stranger's notebook is never run")
    (folder / "picture.png").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with listening_page(folder, "light", f"--most={PLACES}") as address:
        yield address


@pytest.fixture(scope="module")
def ann(address, folder) -> Client:
    (folder / "mechsteer.py").write_text("raise SystemExit('nor is a stranger's module imported')")
    client = Client(address)
    assert client.visit() == 200 and client.kernel and client.cookie
    return client


def test_only_its_own_names_and_its_own_pages_are_answered(address):
    client, path = Client(address), "/voila/static/voila.js"
    for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{client.port}", "[::1]:80"):
        assert client.ask(path, Host=host)[0] == 200, host
        assert client.ask(path, Host=host, Origin=f"http://{host}")[0] == 200, host
    for host in ("evil.example", f"evil.example:{client.port}", "", "localhost.evil.example", "a@localhost"):
        status, text = client.ask(path, Host=host)
        assert status == 403 and "--host" in text or status == 400, host
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:1",
        f"http://127.0.0.1:{client.port}.evil",
    ):
        assert client.ask(path, Host=f"localhost:{client.port}", Origin=origin)[0] == 403, origin
    assert client.ask("/", Host="evil.example")[0] == 403 and not client.cookie


def test_without_the_code_there_is_no_page_no_kernel_and_no_socket(address, ann):
    before = kernels(ann)
    other = "A" if ann.home.endswith("B") else "B"
    wrong = ["/", "/?token=", "/?token=guess", ann.home[:-1], ann.home[:-1] + other, f"{ann.home}A"]
    for path in wrong:
        stranger = Client(address)
        status, text = stranger.ask(path)
        assert status == 403 and "as it was sent to you" in text, path
        assert "steered" not in text and not stranger.cookies.keys() & ann.cookies.keys(), path
    thief = Client(address)
    thief.kernel, thief.cookies = ann.kernel, {_door.COOKIE: ann.cookies[_door.COOKIE]}
    assert thief.ask(f"/api/kernels/{ann.kernel}")[0] == 403 and thief.refused() == 403
    assert kernels(ann) == before
    assert ann.visit("/") == 200, "who has been let in needs no code to load the page anew"
    assert ann.visit("/?token=guess") == 200 and len(kernels(ann)) == len(before)


PRIVATE = [
    "design.json", "answers.jsonl", "take.ipynb", "picture.png", "stimuli/", "../design.json", "etc/passwd",
]  # fmt: skip


def test_no_file_of_the_test_and_nothing_but_the_page_is_served(address, folder, ann):
    client, before = Client(address), kernels(ann)
    paths = [f"/{home}{name}" for home in ("", "files/", "voila/files/", "voila/static/") for name in PRIVATE]
    paths += ["/voila/static/%2e%2e/%2e%2e/voila.py", "/voila/templates/../static/x"]
    paths += [f"/voila/files/{folder}", f"/voila/render/{folder}/take.ipynb", "/voila/tree", "//", "/metrics"]
    paths += ["/api", "/api/kernels", "/api/contents", "/api/sessions", "/api/kernelspecs", "/login"]
    for path in paths:
        for method in ("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"):
            status, text = client.ask(path, method)
            assert status in (403, 404) and "steered" not in text, (path, method)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
        assert client.ask("/", method)[0] == 404
        assert ann.ask(f"/api/kernels/{ann.kernel}", method)[0] == 404
    for action in ("interrupt", "restart", "execute", "channels/x"):
        assert ann.ask(f"/api/kernels/{ann.kernel}/{action}", "POST")[0] == 404
    with contextlib.suppress(OSError):  # hangs up before all is sent
        assert client.ask("/voila/static/voila.js", "GET", b"x" * 2**20)[0] == 400
    assert kernels(ann) == before


def test_a_kernel_is_its_visitors_only(address, ann):
    client = Client(address)
    client.kernel = ann.kernel
    for cookie in (None, "", "guess", f"{ann.cookies[_door.COOKIE]}x"):
        client.cookies = {} if cookie is None else {_door.COOKIE: cookie}
        assert client.ask(f"/api/kernels/{ann.kernel}")[0] == 404
        assert client.ask(f"/voila/api/shutdown/{ann.kernel}", "POST")[0] == 404
        assert client.refused() == 404
    assert ann.ask(f"/api/kernels/{ann.kernel}")[0] == 200
    nobody = Client(address)
    nobody.kernel = "None"
    assert nobody.refused() == 404 and nobody.ask("/api/kernels/None")[0] == 404


def test_a_socket_without_the_protocol_is_refused_before_a_message_is_read(ann):
    for protocol in (None, "v0.kernel.websocket.jupyter.org", "v1"):
        assert ann.refused(protocol=protocol) == 400
    assert ann.refused(origin="http://evil.example") == 403 and ann.refused(suppress_origin=True) == 400
    assert ann.refused(host="evil.example") == 403


def test_garbage_closes_the_socket_and_costs_nothing(ann):
    before = server(ann).memory_info().rss
    for message in GARBAGE:
        with contextlib.closing(ann.socket()) as link:
            link.send_binary(message)
            assert closed_with(link) == 1008
    with contextlib.closing(ann.socket()) as link:
        link.send("{}")
        assert closed_with(link) == 1008
    with contextlib.closing(ann.socket()) as link:
        link.send_binary(b"x" * (_door.LARGEST + 1))
        assert closed_with(link) in (0, 1009)
    with contextlib.closing(ann.socket()) as link:
        with contextlib.suppress(OSError):
            for _ in range(10 * _door.RATE[0]):
                link.send_binary(frame("kernel_info_request"))
        assert closed_with(link) in (0, 1008)
    began = time.monotonic()
    assert ann.ask("/voila/static/voila.js")[0] == 200 and time.monotonic() - began < 5
    assert server(ann).memory_info().rss < before + 50e6


def test_no_code_is_run_for_a_socket(ann, tmp_path):
    code = {"code": f"open({str(tmp_path / 'run')!r}, 'w')", "silent": False}
    for message in (frame("execute_request", code), frame("execute_request", code, b"control")):
        with contextlib.closing(ann.socket()) as link:
            link.send_binary(message)
            assert closed_with(link) == 1008
    with contextlib.closing(ann.socket(timeout=1)) as link:
        heard, end = b"", time.monotonic() + 20
        while b"kernel_info_reply" not in heard:
            assert time.monotonic() < end
            link.send_binary(frame("kernel_info_request"))  # lost if the kernel isn't connected yet
            with contextlib.suppress(websocket.WebSocketTimeoutException):
                heard += link.recv()
    assert not list(tmp_path.iterdir())


def test_a_visitor_has_one_kernel_and_there_are_so_many_at_most(address, ann):
    first = ann.kernel
    assert ann.visit() == 200 and ann.kernel != first
    assert ann.ask(f"/api/kernels/{first}")[0] == 404 and len(kernels(ann)) == 1
    others = [Client(address) for _ in range(PLACES + 2)]
    said: list[int] = []
    flood = [threading.Thread(target=lambda one=one: said.append(one.visit())) for one in others]
    for one in flood:
        one.start()
    for one in flood:
        one.join()
    assert sorted(said) == [200] * (PLACES - 1) + [503] * 3
    assert len(kernels(ann)) == PLACES
    status, text = Client(address).ask()
    assert status == 503 and "come back later" in text and "Traceback" not in text
    assert ann.visit() == 200, "who has a place keeps it"
    (inside, *_) = (one for one in others if one.kernel)
    said = {"X-XSRFToken": inside.cookies["_xsrf"]}
    assert inside.ask(f"/voila/api/shutdown/{inside.kernel}", "POST", **said)[0] == 204
    assert len(kernels(ann)) == PLACES - 1 and Client(address).visit() == 200


@pytest.mark.parametrize(
    ("minutes", "sockets", "ends"), [(1, 0, False), (20, 0, True), (20, 1, False), (200, 1, True)]
)
def test_a_kernel_that_nobody_uses_ends(minutes, sockets, ends):
    now = datetime.datetime.now(datetime.UTC)
    kernels, ended = _door.Kernels(), []
    kernels._kernels["k"] = SimpleNamespace(last_activity=now - datetime.timedelta(minutes=minutes))
    kernels._kernel_connections["k"] = sockets

    async def end(kernel_id):
        ended.append(kernel_id)

    kernels.shutdown_kernel = end
    asyncio.run(kernels.cull_kernels())
    assert ended == ["k"] * ends and kernels.cull_idle_timeout > 0


def test_only_frames_of_the_protocol_that_widgets_send_may_be_said():
    control, other = ({"target_name": name} for name in ("jupyter.widget.control", "jupyter.widget"))
    for kind in ("comm_msg", "comm_close", "comm_info_request", "kernel_info_request"):
        assert _door.may_be_said(frame(kind))
    assert _door.may_be_said(frame("comm_open", control)) and not _door.may_be_said(frame("comm_open", other))
    for kind in ("execute_request", "complete_request", "inspect_request", "shutdown_request", "input_reply"):
        assert not _door.may_be_said(frame(kind))
    assert not _door.may_be_said(frame("comm_msg", channel=b"control"))
    assert not _door.may_be_said(frame("comm_msg") + b"more") and not _door.may_be_said("{}")
    assert not _door.may_be_said(frame("comm_msg").replace(b"{}", b"[]"))
    deep = frame("comm_msg", {"x": "y"}).replace(b'{"x": "y"}', b"[" * 50_000)
    assert not any(map(_door.may_be_said, [*GARBAGE, deep, frame("comm_msg")[:-1]]))


def test_any_bytes_are_refused_and_nothing_raises():
    hypothesis = pytest.importorskip("hypothesis")
    st, whole = hypothesis.strategies, frame("comm_msg", {"comm_id": "x"})
    parts = st.tuples(st.integers(0, len(whole)), st.binary(max_size=8)).map(
        lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + len(cut[1]) :]
    )

    @hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @hypothesis.given(st.binary(max_size=80) | parts)
    def check(message):
        assert _door.may_be_said(message) is False or message[56:61] == b"shell"

    check()


def test_a_page_for_other_machines_answers_under_this_machines_names(tmp_path, capsys):
    assert own_names("127.0.0.1") == {"127.0.0.1", "localhost", "::1"}
    assert own_names("192.0.2.7", ["Test.Example.org"]) >= {"192.0.2.7", "test.example.org"}
    everywhere = own_names("0.0.0.0")
    nets = psutil.net_if_addrs().values()
    addresses = {a.address for net in nets for a in net if a.family.name == "AF_INET"}
    assert everywhere > addresses and "0.0.0.0" not in everywhere and "" not in everywhere
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SystemExit):
            main([str(folder)])
        assert "holds no listening test" in capsys.readouterr().err


def test_a_listener_goes_on_while_others_mean_no_good(chrome, tmp_path):
    test = make(tmp_path, items=3, listen=0.3, headphones=0, practice=0)
    with listening_page(tmp_path, "light", f"--most={PLACES}") as address, page(chrome) as tab:
        tab.goto(address, wait_until="commit")
        enter(tab, "Ann")
        stop, full, failed = threading.Event(), threading.Event(), []

        def attack():
            mallory = Client(address)
            try:
                assert mallory.visit() == 200
                while not stop.is_set():
                    assert mallory.refused(protocol=None) == 400
                    assert mallory.refused(origin="http://evil.example") == 403
                    assert mallory.ask(Host="evil.example")[0] == 403
                    assert Client(address).ask("/?token=guess")[0] == 403
                    for message in (*GARBAGE, b"x" * 2**20):
                        with contextlib.closing(mallory.socket()) as link:
                            with contextlib.suppress(OSError):
                                link.send_binary(message)
                            assert closed_with(link) in (0, 1008, 1009)
                    status = Client(address).visit()
                    assert status in (200, 503)
                    if status == 503:
                        full.set()
            except BaseException as error:
                failed.append(error)
                full.set()

        mallory = threading.Thread(target=attack)
        mallory.start()
        try:
            go_on(tab)
            state(tab, "trial-preference")
            for act in (by_mouse, by_keyboard):
                act(tab, 0)
            give_nothing_away(tab, test.design)
            assert full.wait(120)
            finish(tab, 0)
        finally:
            stop.set()
            mallory.join(60)
        assert not failed, failed
        assert len(kernels(Client(address))) == PLACES and Client(address).visit() == 503
        assert server(Client(address)).memory_info().rss < 250e6
        complete(tmp_path, ["Ann"], 3)
        assert {line["choice"] for line in answers(tmp_path)} == {"A"}
        (tmp_path / "answers.jsonl").unlink()  # or it is analysed as the page ends
