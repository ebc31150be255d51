"""Charts as SVG text without any library: they open anywhere and are small enough to keep."""

import html
import math
from collections.abc import Sequence

# Colour-blind safe (Okabe, Ito 2008); the first is adaptd's.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
ROW, LEFT, WIDTH = 26, 190, 620
STYLE = "font-family:sans-serif;font-size:12px;fill:#222"


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(words)}</text>'


def page(width: float, height: float, parts: list[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" style="{STYLE}"><title>{html.escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], 24.0
    for k, name in enumerate(names):
        parts.append(f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="4" fill="{COLOURS[k % len(COLOURS)]}"/>')
        parts.append(text(x + 8, y, name))
        x += 30 + 7 * len(name)
    return parts


def dots(title: str, cells: dict[str, dict[str, float]], systems: Sequence[str], marked: int) -> str:
    """One line a stream: how far each system is behind the best one there, in shares of what is left.

    cells: stream -> system -> loss (1 - accuracy, or an error). The axis is loss over the least loss, on a
    logarithmic scale from 1 to 4. The first `marked` systems have a colour; the others are grey.
    """
    top, worst = 62, 4.0

    def place(ratio: float) -> float:
        return LEFT + WIDTH * math.log(min(ratio, worst)) / math.log(worst)

    height = top + ROW * len(cells) + 40
    parts = [text(16, 22, title, more='font-weight="bold"'), *legend(systems[:marked], 44)]
    for ratio in (1, 1.25, 1.5, 2, 3, 4):
        x = place(ratio)
        parts.append(f'<path d="M{x:.1f} {top}V{height - 34}" stroke="#ddd"/>')
        parts.append(text(x, height - 18, f"{ratio:g}" + ("+" if ratio == worst else ""), "middle"))
    parts.append(text(LEFT + WIDTH, height - 4, "loss over the least loss on that stream", "end"))
    for line, (stream, of) in enumerate(cells.items()):
        y = top + ROW * (line + 0.5)
        parts.append(text(LEFT - 12, y + 4, stream, "end"))
        least = max(min((loss for loss in of.values() if math.isfinite(loss)), default=math.nan), 1e-12)
        # The marked ones last, the first of them on top.
        for k in reversed(range(len(systems))):
            loss = of.get(systems[k], math.nan)
            if math.isfinite(loss):
                colour, radius = (COLOURS[k % len(COLOURS)], 5) if k < marked else ("#bbb", 3)
                words = f"<title>{html.escape(systems[k])}: {loss:.4g}</title>"
                x = place(max(1.0, loss / least))
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">{words}</circle>'
                )
    return page(LEFT + WIDTH + 30, height, parts, title)


def curves(title: str, panels: dict[str, dict[str, Sequence[float]]], axis: str) -> str:
    """Panels side by side: panel -> system -> values over rows."""
    side, gap, top, height = 260, 56, 70, 200
    names = list(dict.fromkeys(name for of in panels.values() for name in of))
    parts = [text(16, 22, title, more='font-weight="bold"'), *legend(names, 46)]
    for column, (panel, of) in enumerate(panels.items()):
        left = 60 + column * (side + gap)
        every = [value for values in of.values() for value in values]
        low, high = min(every), max(every)
        length = max(len(values) for values in of.values())
        parts.append(
            f'<rect x="{left}" y="{top}" width="{side}" height="{height}" fill="none" stroke="#ccc"/>'
        )
        for share in (0.0, 0.5, 1.0):
            y = top + height * (1 - share)
            parts.append(text(left - 6, y + 4, f"{low + share * (high - low):.2f}", "end"))
            parts.append(text(left + side * share, top + height + 16, f"{length * share:,.0f}", "middle"))
        parts.append(text(left + side / 2, top + height + 34, f"{panel}: {axis}", "middle"))
        for name, values in of.items():
            step = max(1, len(values) // 130)
            share = [(value - low) / (high - low or 1) for value in values]
            points = " ".join(
                f"{left + side * i / length:.1f},{top + height * (1 - share[i]):.1f}"
                for i in range(0, len(values), step)
            )
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return page(60 + len(panels) * (side + gap), top + height + 50, parts, title)
