"""Docstrings as the reference shows them: their sections as lists, their code as code. A Sphinx extension.

Our parameters are often prose ("layers : int or sequence of int, 0-based; default ..."), which napoleon would
take for types; here an entry is a name and what follows it.
"""

import re

_SECTIONS = ("Parameters", "Attributes", "Returns", "Raises", "Notes")
_ENTRY = {
    "Parameters": re.compile(r"(\*{0,2}\w[\w*, ]*?)(?: ?: (.*))?"),  # "name : what", or names alone
    "Returns": re.compile(r"(\w+(?:, \w+)*) : (.*)"),
    "Raises": re.compile(r"([A-Z]\w+(?:, [A-Z]\w+)*)  (.*)"),
}
_ENTRY["Attributes"] = _ENTRY["Parameters"]


def as_rest(lines: list[str]) -> list[str]:
    """reStructuredText of a docstring's lines: entries become bullets, indented lines after a colon code."""
    done, section, k = [], "", 0
    while k < len(lines):
        line = lines[k]
        if line in _SECTIONS and k + 1 < len(lines) and set(lines[k + 1]) == {"-"}:
            section, k = line, k + 2
            done += ["", f".. rubric:: {section}", ""]
            continue
        entry = _ENTRY[section].fullmatch(line) if section in _ENTRY else None
        if entry:
            name = ", ".join(f"``{one}``" for one in re.split(r", ", entry[1]))
            colon = "" if section == "Raises" else ":"
            done += [f"- {name}{colon} {_plain(entry[2] or '')}"]
        elif line.strip() and section in _ENTRY and _in_entry(done):
            done[-1] = _stopped(done[-1], line.strip())
            done += [f"  {_plain(line.strip())}"]
        else:
            if section in _ENTRY and line.strip():  # a paragraph after the list
                section = ""
            done += [_code_follows(lines, k) or _plain(line)]
        k += 1
    return done


def _in_entry(done: list[str]) -> bool:
    return bool(done) and done[-1].startswith(("- ", "  "))


def _stopped(before: str, line: str) -> str:
    """The line before one that goes on with an entry: where that begins a sentence, with its full stop."""
    begins = line[:1].isupper() or re.fullmatch(r"- ``\w+``: \w+", before)
    return before + "." if begins and re.search(r"[\w`)]$", before) else before


def _plain(line: str) -> str:
    """Outside backticks the signs of reST are only signs."""
    pieces = line.split("`")
    pieces[::2] = [re.sub(r"(?<!\S)(\*\w+\*)|([*|\\]|(?<=\w)_(?!\w))", _sign, piece) for piece in pieces[::2]]
    return "`".join(pieces)


def _sign(match: re.Match) -> str:
    return match[1] or "\\" + match[2]  # *this* stays emphasis


def _code_follows(lines: list[str], k: int) -> str:
    """The line with two colons, if it ends in one and indented code stands below it, after an empty line."""
    line = lines[k].rstrip()
    after = next((later for later in lines[k + 1 :] if later.strip()), "")
    opens = k + 1 < len(lines) and not lines[k + 1].strip() and after.startswith(_indent(line) + "    ")
    return f"{_plain(line)}:" if line.endswith(":") and opens else ""


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _read(app, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rest(lines)


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", _read)
    return {"parallel_read_safe": True}
