"""Bars on a logarithmic scale, as SVG that is legible on light and dark pages alike."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _LEFT, _RIGHT = 800, 330, 90
_TOP, _ROW, _BOTTOM = 8, 17, 24
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.label { text-anchor: end }
.tick { fill: #59636e; text-anchor: middle }
line { stroke: #d1d9e0 }
rect { fill: #8c959f }
rect.ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.tick { fill: #9198a1 }
line { stroke: #3d444d }
rect { fill: #656c76 }
rect.ours { fill: #4493f8 }
}
"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One figure; ours stand out."""

    label: str
    value: float
    said: str
    ours: bool


def bars(title: str, each: Sequence[Bar]) -> str:
    """Draw figures below each other, from the power of ten below the least to the one above the greatest."""
    low = floor(log10(min(bar.value for bar in each)) - 0.1)
    high = max(low + 1, ceil(log10(max(bar.value for bar in each))))
    bottom = _TOP + _ROW * len(each)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    for power in range(low, high + 1):
        x = _x(10.0**power, low, high)
        lines.append(f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}"/>')
        lines.append(f'<text class="tick" x="{x}" y="{bottom + 16}">{10.0**power:,g}</text>')
    for place, bar in enumerate(each):
        y, x = _TOP + _ROW * place, _x(bar.value, low, high)
        kind = ' class="ours"' if bar.ours else ""
        lines.append(f'<text class="label" x="{_LEFT - 8}" y="{y + 13}">{escape(bar.label)}</text>')
        lines.append(f'<rect{kind} x="{_LEFT}" y="{y + 3}" width="{round(x - _LEFT, 1)}" height="{_ROW - 5}"/>')
        lines.append(f'<text x="{x + 5}" y="{y + 13}">{escape(bar.said)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _x(value: float, low: int, high: int) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (log10(value) - low) / (high - low), 1)
