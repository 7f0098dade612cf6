"""The page of a listening test in JupyterLab and voila: an anywidget that passes messages to a `Session`.

Sounds travel as binary messages and live in the page's memory only: nothing of a trial is in the widget's
state, in a saved notebook, or behind an address.
"""

from __future__ import annotations

from pathlib import Path

import anywidget

from .session import Session

HERE = Path(__file__).parent


class ListeningPage(anywidget.AnyWidget):
    """Shows a `Session`; every message from the page gets one answer."""

    _esm = "\n".join((HERE / f).read_text("utf-8") for f in ("../show/page.js", "player.js", "widget.js"))
    _css = HERE / "widget.css"

    def __init__(self, session: Session):
        super().__init__()
        self._session = session
        self.on_msg(self._on_page)

    def _on_page(self, _, message: dict, __) -> None:
        page, sounds = self._session.handle(message)
        number = message.get("id") if isinstance(message, dict) else None
        self.send({**page, "reply": number if isinstance(number, int) else None}, sounds)
