"""The door of the page: who may come in, how many at once, and what they may say to a kernel.

voila's server believes in its visitors: a websocket message that isn't of the kernel protocol makes it count
for ever, every visit starts a kernel for good, any host name will do. So voila sees nothing unchecked: names,
the path, whose kernel it is, and the frame of every message.
"""

import asyncio
import collections
import contextlib
import contextvars
import datetime
import itertools
import json
import secrets
import struct
import time
from collections.abc import Set
from urllib.parse import unquote

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import httputil, web
from tornado.httpserver import HTTPServer
from tornado.routing import Router
from traitlets import Integer
from voila.app import Voila
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

PROTOCOL = "v1.kernel.websocket.jupyter.org"
COOKIE = "mechsteer-listener"
OPEN = ("/voila/static/", "/voila/templates/", "/voila/labextensions/")
SAID = ("comm_open", "comm_msg", "comm_close", "comm_info_request", "kernel_info_request")
LARGEST = 2**18  # bytes of a message or body; a page's longest are some hundred
UNREAD = 2**27  # bytes that a client may leave unread
RATE = (100, 10)  # messages, in so many seconds
ALONE, IDLE = 600, 7200  # s in which nothing happens, without and with a page, until a kernel ends
PAGE = """<!doctype html><title>Listening test</title><body style="font: 1.2em sans-serif; margin: 4em">
<h1>{}</h1><p>{}</p>"""
TOLD = {
    403: ("This address isn't whole", "Please open it as it was sent to you, with the code at its end."),
    503: ("The test is full at the moment", "Please come back later: reload this page in a few minutes."),
}

visitor: contextvars.ContextVar[str] = contextvars.ContextVar("visitor")


def may_be_said(message: str | bytes) -> bool:
    """Whether a websocket message is a frame of the kernel protocol that a page of widgets sends.

    A frame is a count and offsets (8 bytes each, little endian), the channel, and four parts of JSON: header,
    parent, metadata, content. Nothing is run: what widgets say to each other, and questions about the kernel.
    """
    try:
        offsets = struct.unpack_from("<7Q", message)
        if offsets[0] != 6 or [56, *offsets[2:6], len(message)] != sorted(offsets[1:]):
            return False
        channel, *parts = (message[a:b] for a, b in itertools.pairwise(offsets[1:]))
        header, *_, content = parts = [json.loads(part.decode()) for part in parts]
    except (TypeError, ValueError, RecursionError, struct.error):
        return False
    known = channel == b"shell" and all(isinstance(part, dict) for part in parts)
    if not known or header.get("msg_type") not in SAID:
        return False
    return header["msg_type"] != "comm_open" or content.get("target_name") == "jupyter.widget.control"


class Kernels(AsyncMappingKernelManager):
    """One kernel per visitor, so many at most; those that nobody uses are ended."""

    most = Integer(20, config=True)
    cull_idle_timeout, cull_interval = ALONE, 30

    def __init__(self, **options):
        super().__init__(**options)
        self.held: dict[str, str] = {}  # visitor -> kernel
        self._one_by_one = asyncio.Lock()

    def check(self) -> None:
        """Raise HTTPError 503 if there is no place for the visitor."""
        if self.held.get(visitor.get()) not in self and len(self) >= self.most:
            raise web.HTTPError(503)

    async def start_kernel(self, **options) -> str:
        """A kernel for the visitor, in place of the one there was."""
        async with self._one_by_one:
            self.check()
            if (old := self.held.pop(visitor.get(), None)) in self:
                with contextlib.suppress(KeyError, web.HTTPError):  # its page may be ending it too
                    await self.shutdown_kernel(old)
            self.held = {who: kernel for who, kernel in self.held.items() if kernel in self}
            new = self.held[visitor.get()] = await super().start_kernel(**options)
            return new

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        last = self.get_kernel(kernel_id).last_activity
        idle = (datetime.datetime.now(datetime.UTC) - last).total_seconds()
        if idle > (IDLE if self._kernel_connections.get(kernel_id) else ALONE):
            await self.shutdown_kernel(kernel_id)


class Visit(TornadoVoilaHandler):
    """The page itself: gives a visitor a cookie and a kernel, or says what is missing: a code, a place."""

    def get_login_url(self) -> str:
        raise web.HTTPError(403)  # voila would ask for the code on a page of its own

    async def get(self, path: str | None = None) -> None:
        visitor.set(self.get_cookie(COOKIE) or secrets.token_urlsafe())
        self.kernel_manager.check()
        self.set_cookie(COOKIE, visitor.get(), httponly=True, samesite="Lax")
        _ = self.xsrf_token  # makes the cookie without which a page that is left couldn't end its kernel
        await super().get(path)

    def write_error(self, status_code: int, **facts) -> None:
        if status_code not in TOLD:
            return super().write_error(status_code, **facts)
        self.finish(PAGE.format(*TOLD[status_code]))


class Channels(VoilaKernelWebsocketHandler):
    """A page's websocket to its kernel; closes at the first message that the page wouldn't send."""

    async def open(self, kernel_id: str) -> None:
        self._times: collections.deque[float] = collections.deque(maxlen=RATE[0])
        self.ws_connection.stream.max_write_buffer_size = UNREAD
        await super().open(kernel_id)

    def on_message(self, message: str | bytes) -> None:
        flood = len(self._times) == RATE[0] and time.monotonic() - self._times[0] < RATE[1]
        self._times.append(time.monotonic())
        if flood or not may_be_said(message):
            return self.close(1008, "not a message of this page")
        super().on_message(message)


class Refusal(web.RequestHandler):
    """One sentence in place of what was asked for."""

    def initialize(self, status: int, reason: str) -> None:
        self.prepare = lambda: self.send_error(status, reason=reason)


class Door(Router):
    """Passes on to voila what the page needs and refuses the rest, before a body or message is read."""

    def __init__(self, app: web.Application, hosts: Set[str], shown: str):
        self.app, self.hosts, self.shown = app, hosts, shown

    def listen(self, port: int, address: str) -> None:
        options = {"max_body_size": LARGEST, "body_timeout": 10, "idle_connection_timeout": 120}
        try:
            HTTPServer(self, **options).listen(port, address)
        except OSError as error:
            raise SystemExit(f"{address}:{port} isn't free ({error}): choose another --port") from None
        print(f"Send this to your listeners, and stop with Ctrl-C:\n{self.shown}", flush=True)

    def find_handler(self, request: httputil.HTTPServerRequest, **_) -> httputil.HTTPMessageDelegate:
        status, reason = self.check(request)
        if status != 200:
            return self.app.get_handler_delegate(request, Refusal, {"status": status, "reason": reason})
        return self.app.find_handler(request)

    def check(self, request: httputil.HTTPServerRequest) -> tuple[int, str]:
        """Status and reason; 200 if the request may go on."""
        method, path, headers = request.method, request.path, request.headers
        host, origin = headers.get("Host", "").lower(), headers.get("Origin", "").lower()
        if httputil.split_host_and_port(host)[0].strip("[]") not in self.hosts:
            return 403, "This page isn't known by that name: whoever started it can add it with --host."
        if origin and origin not in (f"http://{host}", f"https://{host}"):
            return 403, "This page talks to itself only, not to other sites."
        if method == "GET" and (path == "/" or path.startswith(OPEN) and ".." not in unquote(path)):
            return 200, ""
        cookie = request.cookies.get(COOKIE)
        mine = self.app.settings["kernel_manager"].held.get(cookie and cookie.value, "/")
        if (method, path) in (("GET", f"/api/kernels/{mine}"), ("POST", f"/voila/api/shutdown/{mine}")):
            return 200, ""
        if (method, path) != ("GET", f"/api/kernels/{mine}/channels"):
            return 404, "There is nothing here."
        offered = map(str.strip, headers.get("Sec-WebSocket-Protocol", "").split(","))
        good = origin and PROTOCOL in offered
        return (200, "") if good else (400, f"A page says where it comes from and speaks {PROTOCOL}.")


class Page(Voila):
    """voila with our handlers, behind the door."""

    hosts: Set[str]  # the names that it answers to
    shown: str  # the address to tell

    def init_handlers(self) -> list:
        ours = {TornadoVoilaHandler: Visit, VoilaKernelWebsocketHandler: Channels}
        return [(path, ours.get(handler, handler), *more) for path, handler, *more in super().init_handlers()]

    def listen(self) -> None:
        self.app.settings["websocket_max_message_size"] = LARGEST
        self.app = Door(self.app, self.hosts, self.shown)
        super().listen()
