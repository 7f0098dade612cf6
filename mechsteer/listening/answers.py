"""The answers of a listening test: one append-only file, each line on the disk before the next trial shows.

`answers.jsonl` holds two kinds of lines: `listener` (a name and the number it got, which decides the order of
that listener's trials) and `answer`. Nothing is ever changed or deleted. A lock makes reading, checking and
writing one step, so any number of kernels and pages can share the file. A line cut short by a crash is left
there and skipped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

LONGEST_NAME = 80


def clean_name(name: str) -> str:
    """A listener's name as it is stored: any text, composed (NFC), single blanks, no control characters.

    Raises ValueError if nothing is left, or more than 80 characters are.
    """
    text = unicodedata.normalize("NFC", str(name))
    text = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
    if not text:
        raise ValueError("Please enter a name. Any name will do, so long as it stays the same.")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"Please choose a shorter name: at most {LONGEST_NAME} characters.")
    return text


class AnswerStore:
    """Answers of one test in `path`; every method opens, locks and closes the file."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def lines(self) -> list[dict]:
        """Every whole line, in the order written; warns of lines that are damaged within the file."""
        if not self.path.exists():
            return []
        with self._locked("rb") as file:
            return self._parse(file.read())

    def listeners(self) -> dict[str, int]:
        """Name -> number, from 1 in order of arrival."""
        return self._names(self.lines())

    def answers(self, listener: int | None = None) -> list[dict]:
        """The answers, of all or of one listener's number, in the order given."""
        found = [line for line in self.lines() if line["kind"] == "answer"]
        return [line for line in found if listener in (None, line["listener"])]

    def register(self, name: str) -> int:
        """The number of a listener; a new name gets the next one."""
        name = clean_name(name)
        with self._locked("r+b") as file:
            known = self._names(self._parse(file.read()))
            if name not in known:
                known[name] = len(known) + 1
                self._write(file, {"kind": "listener", "listener": known[name], "name": name})
        return known[name]

    def add(self, listener: int, trial: str, answer: dict) -> bool:
        """Write one answer and wait until it is on the disk; False, with nothing written, if there is one.

        Parameters
        ----------
        listener : number from `register`
        trial : the trial's key, unique within a listener
        answer : what else to keep; plain JSON values
        """
        with self._locked("r+b") as file:
            for line in self._parse(file.read()):
                if line["kind"] == "answer" and line["listener"] == listener and line["trial"] == trial:
                    return False
            self._write(file, {"kind": "answer", "listener": listener, "trial": trial, **answer})
        return True

    @staticmethod
    def _names(lines: list[dict]) -> dict[str, int]:
        return {line["name"]: line["listener"] for line in lines if line["kind"] == "listener"}

    @contextlib.contextmanager
    def _locked(self, mode: str) -> Iterator:
        import fcntl

        if mode != "rb":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o644))
        with open(self.path, mode) as file:
            fcntl.flock(file, fcntl.LOCK_SH if mode == "rb" else fcntl.LOCK_EX)
            yield file

    def _parse(self, content: bytes) -> list[dict]:
        whole, _, torn = content.rpartition(b"\n")
        found, damaged = [], 0
        for line in whole.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # cut short by a crash, then closed by the next write
                damaged += 1
        if damaged:
            told = f"{damaged} line(s) of {self.path.name} are damaged and skipped; {len(found)} are whole."
            warnings.warn(told, stacklevel=4)
        return found

    @staticmethod
    def _write(file, line: dict) -> None:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b"", b"\n")  # neither empty nor ending in a whole line
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        text = json.dumps({**line, "time": now}, ensure_ascii=False, allow_nan=False)
        file.write((b"\n" if torn else b"") + text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
