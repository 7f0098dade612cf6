"""Draw the pictures that explain, `figures/diagrams/*.svg`: `python -m workshop.suite.diagrams`.

They hold no numbers of any run. What they say is what the code does: the delay pattern
(`mechsteer.model.model`), the sites (`mechsteer.model.sites`), guidance, and the way from clips to listeners.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from mechsteer import paths
from mechsteer.show import plots

from .drawing import ACCENT, FAINT, INK, LINE, PAPER, WIDTH, Card

__all__ = ["DRAWN", "delay_pattern", "guidance", "main", "redraw", "residual_stream", "where_things_sit"]

GREY, MEANS, LOGISTIC = plots.GREY, plots.METHOD_COLOURS["diff_of_means"], plots.METHOD_COLOURS["logistic"]
CODEBOOKS, FRAMES, FRAME, STEP = 4, 6, 2, 4  # of the delay pattern's example: sizes, and what is marked in it


def delay_pattern() -> str:
    """Where the token of a codebook and frame stands, and what one residual vector has seen."""
    told = (
        f"A staff with a line for each of {CODEBOOKS} codebooks and a column for each step. Step 0 holds"
        " the special token. Codebook k of frame t stands at step t + k + 1, so the tokens of frame "
        f"{FRAME}, marked, lie on a diagonal, from step {FRAME + 1} to step {FRAME + CODEBOOKS}. The "
        f"residual vector at step {STEP} has seen all columns up to its own: codebook k up to frame "
        f"{STEP} - k - 1. It predicts the next column: codebook k of frame {STEP} - k."
    )
    card = Card(456, "Codebook k of frame t stands at step t + k + 1", told)
    column, row = lambda step: 158 + 58 * step, lambda book: 136 + 48 * book
    top, bottom, last = row(0) - 26, row(CODEBOOKS - 1) + 26, FRAMES + CODEBOOKS
    card.box(column(0) - 26, top, 58 * STEP + 52, bottom - top, fill="#E9EDF1", line="none")
    card.box(column(STEP + 1) - 25, top, 50, bottom - top, line=INK, dash="5 4")
    for first, end, said, tint in ((1, FRAMES, "a clip's mean is over these steps", INK),
                                   (FRAMES + 1, last - 1, "only when it writes", GREY)):  # fmt: skip
        card.line([(column(first) - 18, 78), (column(end) + 18, 78)], tint, 2)
        card.text((column(first) + column(end)) / 2, 71, said, anchor="middle", fill=tint)
    card.text(24, 100, "step")
    for step in range(last):
        tint = INK if step <= FRAMES else GREY
        card.text(column(step), 101, str(step), anchor="middle", bold=step == STEP, fill=tint)
    for book in range(CODEBOOKS):
        card.text(24, row(book) + 5, f"codebook {book}")
        card.line([(column(0) - 18, row(book)), (column(last - 1) + 18, row(book))], LINE, 1.5)
    stands = [(column(FRAME + k + 1), row(k)) for k in range(CODEBOOKS)]
    card.line(stands, ACCENT, 9)
    for book in range(CODEBOOKS):
        for step in range(last):
            frame, x, y = step - book - 1, column(step), row(book)
            if 0 <= frame < FRAMES:
                tint = INK if step <= FRAMES else GREY
                card.disc(x, y, 17, ACCENT if frame == FRAME else PAPER, tint)
                card.text(x, y + 5.5, str(frame), size=16, anchor="middle", bold=frame == FRAME, fill=tint)
            else:
                card.box(x - 6, y - 6, 12, 12, fill=LINE, line=GREY, round=2)
    high, left, right = bottom + 34, column(2) - 8, column(STEP + 1) + 26
    card.arrow([(column(3) - 10, bottom), (column(3) - 10, high)])
    card.arrow([(column(STEP + 1), high), (column(STEP + 1), bottom)])
    card.box(left, high, right - left, 36, line=INK)
    card.text((left + right) / 2, high + 23, f"residual vector at step {STEP}", anchor="middle", bold=True)
    card.lines(24, high + 15, f"It has seen codebook 0 up to\nframe {STEP - 1}, 1 up to frame {STEP - 2}, …")
    card.lines(right + 14, high + 15, f"It predicts codebook 0 of\nframe {STEP}, 1 of frame {STEP - 1}, …")
    card.text(
        24,
        high + 70,
        "At step s: seen is codebook k up to frame s − k − 1; predicted, codebook k of frame s − k.",
    )
    card.disc(34, high + 92, 9)
    card.text(34, high + 96.5, "t", size=14, anchor="middle")
    card.text(50, high + 97, "a token, with its frame")
    card.disc(244, high + 92, 9, ACCENT)
    card.text(260, high + 97, f"a token of frame {FRAME}")
    card.box(428, high + 86, 12, 12, fill=LINE, line=GREY, round=2)
    card.text(448, high + 97, "the special token: no code here")
    return card.svg()


def residual_stream() -> str:
    """The stack of blocks, and one block with its sites."""
    told = (
        "Above: one token of each codebook goes in; their embeddings are added up, which is the site "
        "input; then come the blocks, layer 0 to the last, a norm, and logits for each codebook. Below:"
        " one block. The stream runs through it. Self-attention, which looks back at earlier steps, "
        "reads a normalised copy of it; its heads, side by side, are the site heads, and after the "
        "output projection what is added to the stream is the site attn. Cross-attention reads the text"
        " of the prompt, and adds the site cross. The feed-forward part sees its own step only, and "
        "adds the site mlp. What leaves the block is the site resid."
    )
    card = Card(492, "One stream, to which every part adds", told)
    mid = 92
    for k in range(4):
        card.disc(36, mid - 25 + 16 * k, 6.5)
    card.arrow([(50, mid), (76, mid)])
    card.box(78, mid - 28, 92, 56)
    card.lines(124, mid - 5, "embed and\nadd up", anchor="middle")
    card.line([(170, mid), (550, mid)], INK, 6)
    card.pill(214, mid, "input")
    blocks = [(256, "layer 0"), (340, "layer 1"), (460, "last")]
    for x, name in blocks:
        card.box(x, mid - 28, 70, 56, fill=FAINT, line=INK)
        card.text(x + 35, mid + 5, name, anchor="middle")
    card.box(417, mid - 12, 36, 24, line="none")
    card.text(435, mid + 4, "…", size=20, anchor="middle")
    card.box(550, mid - 28, 58, 56)
    card.text(579, mid + 5, "norm", anchor="middle")
    card.arrow([(608, mid), (638, mid)])
    for k in range(4):
        for j in range(4):
            high = (5, 11, 3, 7)[(j + k) % 4]
            card.box(644 + 12 * j, mid - 18 + 16 * k - high, 9, high, fill=INK, line="none", round=1)
    card.text(20, mid + 48, "a token of each codebook")
    card.text(WIDTH - 20, mid + 48, "logits of each codebook", anchor="end")

    top, stream, y = 186, 222, 306
    card.line([(340, mid + 28), (16, top)], LINE, 1.5, "4 4")
    card.line([(410, mid + 28), (WIDTH - 16, top)], LINE, 1.5, "4 4")
    card.box(16, top, WIDTH - 32, 284, fill=FAINT, line=INK, round=10)
    card.arrow([(28, stream), (694, stream)], INK, 6)
    parts = [
        ("self-attention", 36, 124, 62),
        ("cross-attention", 338, 124, 358),
        ("feed-forward", 478, 112, 496),
    ]
    for name, x, wide, down in parts:
        card.arrow([(down, stream), (down, y)])
        card.box(x, y, wide, 56)
        card.text(x + wide / 2, y + (22 if x == 36 else 33), name, anchor="middle")
    for k in range(4):
        card.box(46 + 27 * k, y + 32, 22, 14, fill=ACCENT, line=INK, round=2, width=1)
    card.arrow([(160, y + 28), (244, y + 28)])
    card.box(244, y, 80, 56)
    card.lines(284, y + 23, "output\nprojection", anchor="middle")
    card.pill(196, y + 28, "heads")
    for x, name in ((284, "attn"), (434, "cross"), (566, "mlp")):
        card.arrow([(x, y), (x, stream + 12)])
        card.pill(x, 270, name)
        card.disc(x, stream, 12)
        card.line([(x - 6, stream), (x + 6, stream)])
        card.line([(x, stream - 6), (x, stream + 6)])
    card.pill(632, stream, "resid")
    card.lines(648, stream + 36, "the block's\noutput, on to\nthe next layer", anchor="middle")
    card.lines(36, y + 80, "looks back\nat earlier steps")
    card.lines(478, y + 80, "sees its own\nstep only")
    card.arrow([(400, y + 96), (400, y + 56)])
    card.box(338, y + 96, 124, 34, fill=INK, line=INK)
    card.text(400, y + 118, "the prompt’s text", anchor="middle", fill=PAPER)
    card.text(
        36, y + 150, "Each part reads a normalised copy of the stream. Text enters by cross-attention only."
    )
    return card.svg()


def guidance() -> str:
    """Classifier-free guidance, and what a push to one half of it does."""
    told = (
        "An arrow leads from the unconditional logits u to the conditional logits c. What is played "
        "from lies on the same line, g times as far from u: u + g (c - u). Below, three pushes by the "
        "same amount Delta, if both halves answer alike: added to both halves it moves what is played "
        "by Delta; to the conditional half alone by g times Delta; to the unconditional half alone by "
        "(1 - g) times Delta, backwards."
    )
    card = Card(556, "Guidance lengthens what the prompt changes, and what we push", told)
    u, c, far = (100, 170), (250, 142), (550, 86)
    card.arrow([(260, 140.1), (540, 87.9)], GREY, 3, "7 5")
    card.arrow([(110, 168.1), (240, 143.9)], INK, 3)
    for (x, y), dx, lines in ((u, 0, "**u**without the prompt:\nunconditional logits"),
                              (c, 24, "**c**with the prompt:\nconditional logits"),
                              (far, 36, "**u + g (c − u)**what is played from")):  # fmt: skip
        name, rest = lines.removeprefix("**").split("**")
        card.disc(x, y, 7, INK)
        card.text(x + dx, y + 30, name, size=17, anchor="middle", bold=True)
        card.lines(x + dx, y + 50, rest, step=19, anchor="middle")
    card.text(163, 140, "c − u", anchor="middle")
    card.text(372, 96, "g times as far from u", anchor="middle")

    top, high, base = 258, 224, 412
    pushes = [("both halves", '"both"', 1, 1, "Δ"), ("conditional half", '"cond"', 0, 1, "g Δ"),
              ("unconditional half", '"uncond"', 1, 0, "(1 − g) Δ")]  # fmt: skip
    for k, (where, branch, of_u, of_c, moves) in enumerate(pushes):
        x, by = 20 + 230 * k, 26
        card.box(x, top, 220, high, fill=FAINT)
        card.text(
            x + 110, top + 26, f"push the {where}" if k else "push both halves", anchor="middle", bold=True
        )
        card.text(x + 110, top + 47, f"`branch={branch}`", anchor="middle")
        at = {"u": (x + 28, of_u), "c": (x + 66, of_c), "played": (x + 142, of_u + 3 * (of_c - of_u))}
        card.line([(x + 16, base), (x + 158, base)], GREY, 1.5, "4 4")
        card.line([(px, base - by * n) for px, n in at.values()], INK, 2.5)
        for name, (px, n) in at.items():
            card.disc(px, base, 4, GREY, GREY)
            if n:
                card.arrow([(px, base), (px, base - by * n)], MEANS, 3)
                card.disc(px, base - by * n, 4, INK)
            card.text(px, base + (22 if n >= 0 else -12), name, anchor="middle", bold=name != "played")
        card.text(x + 151, base - by * at["played"][1] / 2 + 5, moves, bold=True)
    card.text(24, 512, "Green: how far the logits move. Δ is what the push does to the logits of one half.")
    card.text(24, 534, "Drawn for g = 3, and for halves that answer a push alike.")
    return card.svg()


CLOUD = [(-31, 9), (-20, -16), (-16, 21), (-9, 2), (-2, -25), (3, 14), (9, -8), (14, 27), (19, 4), (26, -17),
         (33, 12), (-27, -5), (5, -1), (-4, 34)]  # fmt: skip


def _stack(card: Card, x: float, y: float) -> tuple[float, float]:
    """A model as five layers from the top down, one of them marked; returns the middle of that one."""
    card.line([(x + 45, y - 8), (x + 45, y + 144)], INK, 4)
    for k in range(5):
        card.box(x, y + 28 * k, 90, 20, fill=ACCENT if k == 2 else PAPER, line=INK)
    return x + 45, y + 66


def _wave(card: Card, x: float, y: float, fill: str) -> None:
    """A clip: bars of sound around `y`, 40 wide; hollow if `fill` is the paper's."""
    for k, high in enumerate((8, 18, 12, 24, 16, 22, 10)):
        card.box(x + 6 * k, y - high / 2, 4, high, fill=fill, line=INK, round=2, width=1)


def where_things_sit() -> str:
    """From labelled clips to a listening test."""
    told = (
        "Five panels. 1, read: labelled clips go through the model, and one site and layer gives a "
        "vector for each clip. 2, find a direction: the vectors lie in two clouds, guitar and others; "
        "the direction is a unit vector between their means, whose distance is the class gap; a probe's"
        " direction and a random one, the control, point elsewhere. 3, add: strength times the "
        "direction is added at the same site and layer, at every step, while the model writes. 4, "
        "judge: whether it is heard, and the price, beside the unsteered twin and a random push as "
        "long; the bars are a sketch. 5, ask people: a blind test."
    )
    card = Card(560, "From labelled clips to listeners", told)
    top, high = 56, 300
    for x, wide, name in ((16, 190, "1  Read"), (216, 288, "2  Find a direction"), (514, 190, "3  Add it")):
        card.box(x, top, wide, high, fill=FAINT)
        card.text(x + 14, top + 28, name, size=16, bold=True)
    for x, fill in ((58, INK), (124, PAPER)):
        _wave(card, x, top + 56, fill)
    at = _stack(card, 66, top + 90)
    card.arrow([(at[0] + 45, at[1]), (212, at[1])], INK, 2)
    card.pill(180, at[1], "h")
    card.lines(
        30, top + 250, "A probe reads here: one\nsite, one layer, the mean\nover a clip’s steps", step=19
    )

    others, guitar = (296, top + 168), (420, top + 108)
    for dx, dy in CLOUD:
        card.disc(others[0] + dx, others[1] + 0.8 * dy, 4, PAPER)
        card.disc(guitar[0] - dy, guitar[1] - 0.7 * dx, 4, INK)
    ux, uy = 0.9, -0.4355  # from mean to mean, of length 1
    for colour, (x, y) in ((GREY, (-8, 62)), (LOGISTIC, (62, -2)), (MEANS, (62 * ux, 62 * uy))):
        card.arrow([others, (others[0] + x, others[1] + y)], colour, 4)
    card.disc(*others, 7, PAPER, INK, 3)
    card.disc(*guitar, 7, PAPER, INK, 3)
    lift = lambda p, d: (p[0] - d * 0.4355, p[1] - d * 0.9)
    ends = [lift(others, 46), lift(guitar, 46)]
    card.line(ends, INK, 2)
    for p in (others, guitar):
        card.line([lift(p, 12), lift(p, 52)], INK, 1, "3 3")
    card.text(ends[0][0] + 40, ends[0][1] - 36, "class gap", anchor="end", bold=True)
    card.text(guitar[0] + 28, guitar[1] + 48, "guitar", anchor="middle")
    card.text(others[0] - 48, others[1] + 46, "others", anchor="middle")
    card.text(365, others[1] + 5, "a probe's", fill=LOGISTIC, bold=True)
    card.text(others[0] + 2, others[1] + 66, "random: the control", bold=True, fill=GREY)
    card.lines(230, top + 269, "Green: from mean to mean. As a\ndirection it has length 1.", step=19)

    at = _stack(card, 584, top + 90)
    card.arrow([(508, at[1]), (582, at[1])], MEANS, 5)
    card.text(546, at[1] - 12, "+ s d", anchor="middle", bold=True)
    card.text(629, top + 66, "while it writes", anchor="middle")
    card.lines(528, top + 250, "Strength s, direction d:\nthe same site and layer,\nat every step", step=19)

    top, high = 368, 176
    for x, wide, name in ((16, 430, "4  Judge it, with its price"), (456, 248, "5  Ask people, blind")):
        card.box(x, top, wide, high, fill=FAINT)
        card.text(x + 14, top + 28, name, size=16, bold=True)
    card.text(212, top + 56, "judges hear it")
    card.text(338, top + 56, "price")
    sketch = [("unsteered twin", 3, 1, GREY), ("pushed at random", 6, 34, GREY), ("steered", 84, 40, MEANS)]
    for k, (name, heard, paid, tint) in enumerate(sketch):
        y = top + 70 + 26 * k
        card.text(30, y + 13, name)
        card.box(212, y, heard, 16, fill=tint, line="none", round=1)
        card.box(338, y, paid, 16, fill=tint, line="none", round=1)
    card.text(30, top + 162, "Same seed, same prompt. The bars are a sketch.")
    for k, name in enumerate("AB"):
        x = 486 + 104 * k
        card.disc(x + 20, top + 66, 20, PAPER)
        card.line([(x + 15, top + 57), (x + 28, top + 66), (x + 15, top + 75), (x + 15, top + 57)], INK, 2)
        card.text(x + 50, top + 72, name, size=17, bold=True)
    card.lines(
        470,
        top + 112,
        "Which has more guitar?\nEqual loudness, order hidden,\nrules stated beforehand",
        step=21,
    )
    return card.svg()


DRAWN: dict[str, Callable[[], str]] = {
    drawn.__name__: drawn for drawn in (delay_pattern, residual_stream, guidance, where_things_sit)
}


def redraw(name: str, folder: Path) -> str:
    """Write one picture below `folder`; says if it is `same`, `redrawn` or `new`."""
    file, text = folder / "diagrams" / f"{name}.svg", DRAWN[name]()
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    if before == text:
        return "same"
    file.parent.mkdir(parents=True, exist_ok=True)
    paths.replace(file, text)
    return "new" if before is None else "redrawn"


def main(folder: Path | None = None) -> int:
    """Write all of them below `folder` (default: among the shipped figures), and say what became of each."""
    folder = folder or paths.figures(paths.shipped_figures())
    for name in DRAWN:
        print(f"{'diagrams/' + name:30s} picture {redraw(name, folder)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
