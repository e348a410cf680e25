"""Paths that move: a panel as an SVG animation, one step of the method at a time, no scripts."""

import zlib

import numpy as np
from markupsafe import Markup, escape

from kobai.plots.style import HUES
from kobai.results import Panel

_WIDTH, _HEIGHT, _MARGIN = 560.0, 420.0, 34.0


def animation(panel: Panel, *, seconds: float = 8.0) -> Markup:
    """A panel's labelled curves as dots that run along their trails, over its other curves.

    All curves share one clock: their points are steps, and a shorter curve waits at its end.

    Args:
        panel: Curves without a label are the ground, those with one move.
        seconds: Length of a round.

    Returns:
        An SVG element; it is still where the reader asked for reduced motion.

    Raises:
        ValueError: If no curve has a label and finite points.
    """
    ground = [s for s in panel.series if not s.label]
    moving = [s for s in panel.series if s.label and np.isfinite(s.x).any()]
    if not moving:
        raise ValueError("nothing moves: the panel has no curve with a label")
    every = ground or moving
    x = np.concatenate([s.x[np.isfinite(s.x)] for s in every])
    y = np.concatenate([s.y[np.isfinite(s.y)] for s in every])

    def place(s_x: np.ndarray, s_y: np.ndarray) -> np.ndarray:
        across = (s_x - x.min()) / np.ptp(x) * (_WIDTH - 2 * _MARGIN) + _MARGIN
        down = _HEIGHT - _MARGIN - (s_y - y.min()) / np.ptp(y) * (_HEIGHT - 2 * _MARGIN)
        return np.stack([across, down], 1)

    # Several animations share a document, and its names.
    frame = f"frame-{zlib.crc32(repr([(s.label, s.x.tolist()) for s in moving]).encode()):x}"
    parts = [
        f'<svg class="motion" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{escape(panel.title)}, step by step">',
        f'<clipPath id="{frame}"><rect width="{_WIDTH:g}" height="{_HEIGHT:g}"/></clipPath>',
        '<g fill="none" stroke="currentColor" stroke-width="0.8" opacity="0.28">',
    ]
    parts += [f'<path d="{_pieces(place(s.x, s.y))}"/>' for s in ground]
    parts.append('</g><g clip-path="url(#' + frame + ')">')
    steps = max(len(s.x) for s in moving)
    for number, series in enumerate(moving):
        color = HUES[number % len(HUES)]
        points = place(series.x, series.y)
        points = points[np.isfinite(points).all(1)]
        held = np.concatenate([points, np.repeat(points[-1:], steps - len(points), axis=0)])
        parts.append(
            f'<path d="{_pieces(points)}" fill="none" stroke="{color}" stroke-width="1" '
            'opacity="0.35"/>'
        )
        moves = "".join(
            f'<animate attributeName="{name}" dur="{seconds:g}s" repeatCount="indefinite" '
            f'values="{";".join(f"{v:.1f}" for v in held[:, axis])}"/>'
            for axis, name in enumerate(("cx", "cy"))
        )
        parts.append(
            f'<circle r="5" cx="{points[-1, 0]:.1f}" cy="{points[-1, 1]:.1f}" fill="{color}" '
            f'stroke="#fff" stroke-width="1">{moves}</circle>'
        )
        parts.append(
            f'<text x="{_WIDTH - _MARGIN:g}" y="{18 + 17 * number:g}" text-anchor="end" '
            f'font-size="13" fill="{color}" font-weight="600">{escape(series.label)}</text>'
        )
    return Markup("".join([*parts, "</g></svg>"]))


def _pieces(points: np.ndarray) -> str:
    """Polylines between the gaps."""
    words, begun = [], False
    for across, down in points:
        if not (np.isfinite(across) and np.isfinite(down)):
            begun = False
            continue
        words.append(f"{'L' if begun else 'M'}{across:.1f} {down:.1f}")
        begun = True
    return "".join(words)
