"""The answers of a listening test: one append-only file, each line on the disk before the next trial shows.

`answers.jsonl` holds two kinds of lines: `listener` (a name and the number it got, which decides the order of
that listener's trials) and `answer`. Nothing is ever changed or deleted. A lock makes reading, checking and
writing one step, so any number of kernels and pages can share the file. A line that is damaged, or is neither
kind, is left there and skipped, with a warning; it may have dealt a number, so no newcomer gets that one.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LONGEST_NAME = 80


def clean_name(name: str) -> str:
    """A listener's name as it is stored: any text, composed (NFC), single blanks, no control characters.

    Raises ValueError if nothing is left, or more than 80 characters are.
    """
    text = unicodedata.normalize("NFC", str(name)[:1000])
    text = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
    if not text:
        raise ValueError("Please enter a name. Any name will do, so long as it stays the same.")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"Please choose a shorter name: at most {LONGEST_NAME} characters.")
    return text


def records(lines: Iterable[Any]) -> tuple[list[dict], int]:
    """Known records among JSON values, each once and the first of its kind, and the number of unknown ones.

    A listener twice is one record, and so are two answers to a trial; a second name for a number is unknown.
    """
    found: dict[tuple, dict] = {}
    names: dict[tuple, str] = {}
    unknown = 0
    for line in lines:
        told = line if isinstance(line, dict) else {}
        kind, number, made = (told.get(key) for key in ("kind", "listener", "simulated"))
        text = told.get("name" if kind == "listener" else "trial")
        known = kind in ("listener", "answer") and made in (None, False, True)
        known &= type(number) is int and number > 0 and isinstance(text, str) and text.strip() != ""
        if known and kind == "listener":
            known = names.setdefault((number, bool(made)), text) == text
        if known:
            found.setdefault((kind, number, bool(made), text), line)
        unknown += not known
    return list(found.values()), unknown


class AnswerStore:
    """Answers of one test in `path`; every method opens, locks and closes the file."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._told = 0  # how many skipped lines were warned of

    def lines(self) -> list[dict]:
        """The `records` of the file, in the order written; warns once of the lines that are skipped."""
        if not self.path.exists():
            return []
        with self._locked("rb") as file:
            return self._parse(file.read())[0]

    def listeners(self) -> dict[str, int]:
        """Name -> number, from 1 in order of arrival."""
        return _number_by_name(self.lines())

    def answers(self, listener: int | None = None) -> list[dict]:
        """The answers, of all or of one listener's number, in the order given."""
        mine = lambda line: line["kind"] == "answer" and listener in (None, line["listener"])
        return list(filter(mine, self.lines()))

    def register(self, name: str) -> int:
        """The number of a listener; a new name gets the next one that no line, lost or not, can have dealt.

        Numbers are dealt without gaps, so the largest is at most the known listeners and all skipped lines.
        """
        name = clean_name(name)
        with self._locked("a+b") as file:
            found, skipped = self._parse(file.read())
            known = _number_by_name(found)
            if name not in known:
                known[name] = max([len(known) + skipped, *(line["listener"] for line in found)]) + 1
                self._write(file, {"kind": "listener", "listener": known[name], "name": name})
        return known[name]

    def add(self, listener: int, trial: str, answer: dict) -> bool:
        """Write one answer and wait until it is on the disk; False, with nothing written, if there is one.

        `listener` is the number from `register`, `trial` the trial's key, unique within a listener; `answer`
        is what else to keep, plain JSON values.
        """
        with self._locked("a+b") as file:
            found = self._parse(file.read())[0]
            if any((line["listener"], line.get("trial")) == (listener, trial) for line in found):
                return False
            self._write(file, {"kind": "answer", "listener": listener, "trial": trial, **answer})
        return True

    @contextlib.contextmanager
    def _locked(self, mode: str) -> Iterator:
        import fcntl

        if mode != "rb":
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, mode) as file:
            fcntl.flock(file, fcntl.LOCK_SH if mode == "rb" else fcntl.LOCK_EX)
            file.seek(0)
            yield file

    def _parse(self, content: bytes) -> tuple[list[dict], int]:
        values, damaged = [], 0
        for line in content.removesuffix(b"\n").split(b"\n") if content else ():
            try:
                values.append(json.loads(line.decode()))
            except (ValueError, RecursionError):  # cut short by a crash, say
                damaged += 1
        found, unknown = records(values)
        if (skipped := damaged + unknown) > self._told:
            told = f"{skipped} line(s) of {self.path.name} are damaged or unknown and skipped"
            warnings.warn(f"{told}; {len(found)} are whole.", stacklevel=4)
            self._told = skipped
        return found, skipped

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


def _number_by_name(lines: Iterable[dict]) -> dict[str, int]:
    """Name -> number of the listeners among records; the first, should a name have several."""
    known = [(line["name"], line["listener"]) for line in lines if line["kind"] == "listener"]
    return dict([*known, *reversed(known)])
