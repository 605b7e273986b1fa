"""Small pictures in SVG whose text stays as large as the page's at every width.

    from llm_recipes.evaluation.report.pictures import Axis, axis_of, chart, whisker

Heights are pixels, widths are shares of what the page has: a picture is as wide as its place, its
lines stretch, its text and marks don't. Colours come from the page's style (c0 to c6, and the
page's own for text), and each has a dash and a mark of its own, for print and for every eye.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llm_recipes.evaluation.report.values import clean, figure

STYLES = 7
HEIGHT = 240
MOST_POINTS = 240  # of a curve
MARKS = (
    '<circle r="4"/>',
    '<path d="M-4-4h8v8h-8z"/>',
    '<path d="M0-5.5L5 4H-5z"/>',
    '<path d="M0-5.5L5.5 0 0 5.5-5.5 0z"/>',
    '<path d="M0 5.5L5-4H-5z"/>',
    '<path d="M-4-4L4 4M4-4L-4 4" fill="none" stroke-width="2.5"/>',
    '<path d="M-5 0H5M0-5V5" fill="none" stroke-width="2.5"/>',
)
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "9 3 2 3 2 3")
CHARACTER, LINE = 7.0, 15.0  # pixels of a label, about
NARROW = 290.0  # pixels of a picture on a phone


@dataclass(frozen=True)
class Axis:
    """A range with the places of its labels."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where the value lies: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    @property
    def labels(self) -> list[str]:
        """The ticks' texts, all with as many decimals."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        most = max(abs(self.low), abs(self.high))
        if most >= 1e6 or step < 1e-6:
            digits = max(3, math.ceil(math.log10(most / step)) + 1)
            return [f"{tick:.{digits}g}".replace("-", "−") for tick in self.ticks]
        return [figure(tick, max(0, -math.floor(math.log10(step) + 1e-9))) for tick in self.ticks]


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), or marks at them. style: colour, dash and mark."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int
    is_line: bool = True
    has_marks: bool = False


@dataclass(frozen=True)
class Dot:
    """A labelled point. low, high: its interval."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    style: int = 0


def axis_of(values: Sequence[float], count: int = 4, with_zero: bool = False) -> Axis:
    """An axis for values, with about so many round steps."""
    low, high = min(values), max(values)
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    # so narrow that a tick more could be the same number
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        spare = abs(high) * 0.1 or 1.0
        low, high = low - spare, high + spare
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def whisker(
    value: float | None, low: float | None, high: float | None, axis: Axis, zero: bool
) -> Markup:
    """A dot with its interval, for a table's cell: the numbers are beside it."""
    parts = [
        Markup('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="24"/>').format(_at(axis, tick))
        for tick in axis.ticks
    ]
    if zero:
        place = _at(axis, 0.0)
        parts.append(Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="24"/>').format(place))
    if low is not None and high is not None:
        ends = _at(axis, low), _at(axis, high)
        parts.append(Markup('<line class="bar" x1="{}" x2="{}" y1="12" y2="12"/>').format(*ends))
        parts += [
            Markup('<line class="bar" x1="{0}" x2="{0}" y1="8" y2="16"/>').format(end)
            for end in ends
        ]
    if value is not None:
        parts.append(Markup('<circle class="dot" cx="{}" cy="12" r="4"/>').format(_at(axis, value)))
    drawn = Markup("").join(parts)
    return Markup('<svg class="whisker" height="24" aria-hidden="true">{}</svg>').format(drawn)


def whisker_axis(axis: Axis) -> Markup:
    """The labels below a column of whiskers; every second one if they would touch."""
    labels = axis.labels
    room = 200.0 / max(1, len(labels) - 1)
    every = math.ceil(max(map(len, labels)) * CHARACTER / room)
    drawn = Markup("").join(
        Markup('<text x="{}" y="13" text-anchor="middle">{}</text>').format(_at(axis, tick), text)
        for tick, text in list(zip(axis.ticks, labels, strict=True))[::every]
    )
    return Markup('<svg class="whisker" height="18" aria-hidden="true">{}</svg>').format(drawn)


def chart(curves: Sequence[Curve], x_title: str, y_title: str, alt: str) -> Markup:
    """Curves over one pair of axes."""
    points = [point for curve in curves for point in curve.points]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    low = 0.0 if 0 < low <= 0.05 * high else low
    across = axis_of([low, high], 5)
    if low < high:
        across = Axis(low, high, tuple(tick for tick in across.ticks if low <= tick <= high))
    up = axis_of([y for _, y in points])
    drawn = [_frame(across, up, x_title, y_title)]
    for curve in curves:
        if curve.is_line and len(curve.points) > 1:
            drawn.append(_line(thinned(curve.points), curve.style, across, up))
        if curve.has_marks or len(curve.points) == 1 or not curve.is_line:
            drawn += [_mark(x, y, curve.style, across, up) for x, y in thinned(curve.points, 60)]
    return _plot(drawn, alt)


def scatter(dots: Sequence[Dot], x_title: str, y_title: str, alt: str) -> Markup:
    """Labelled points with their intervals."""
    across = axis_of([dot.x for dot in dots], with_zero=True)
    ends = [y for dot in dots for y in (dot.y, dot.low, dot.high) if y is not None]
    up = axis_of(ends)
    drawn = [_frame(across, up, x_title, y_title)]
    for dot in dots:
        if dot.low is not None and dot.high is not None:
            line = '<line class="c{0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}" stroke-width="1.5"/>'
            place = _at(across, dot.x)
            drawn.append(
                Markup(line).format(dot.style % STYLES, place, _y(up, dot.low), _y(up, dot.high))
            )
        drawn.append(_mark(dot.x, dot.y, dot.style, across, up))
    drawn += _labels(dots, across, up)
    return _plot(drawn, alt)


def legend(curves: Sequence[Curve]) -> Markup:
    """What the curves are, each with a sample of its line."""
    rows = []
    for curve in curves:
        sample = Markup("")
        if curve.is_line:
            line = '<line x1="0" x2="34" y1="7" y2="7" stroke-width="2" stroke-dasharray="{}"/>'
            sample = Markup(line).format(DASHES[curve.style % STYLES])
        if curve.has_marks or not curve.is_line:
            mark = Markup(MARKS[curve.style % STYLES])
            sample += Markup('<svg x="17" y="7" overflow="visible">{}</svg>').format(mark)
        svg = '<svg class="c{}" width="34" height="14" aria-hidden="true">{}</svg>'
        shown = Markup(svg).format(curve.style % STYLES, sample)
        rows.append(Markup("<li>{} <bdi>{}</bdi></li>").format(shown, clean(curve.name)))
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(rows))


def thinned(
    points: Sequence[tuple[float, float]], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours, with both ends as they are."""
    if len(points) <= most:
        return list(points)
    inner, groups = points[1:-1], most - 2
    found = [points[0]]
    for n in range(groups):
        part = inner[n * len(inner) // groups : (n + 1) * len(inner) // groups]
        found.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return [*found, points[-1]]


def _plot(drawn: Sequence[Markup], alt: str) -> Markup:
    text = '<div class="plot"><svg height="{}" role="img" aria-label="{}">{}</svg></div>'
    return Markup(text).format(HEIGHT, clean(alt), Markup("").join(drawn))


def _frame(across: Axis, up: Axis, x_title: str, y_title: str) -> Markup:
    parts = []
    for tick, text in zip(up.ticks, up.labels, strict=True):
        place = _y(up, tick)
        line = '<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>'
        parts.append(Markup(line).format(place))
        label = '<text x="-8" y="{}" dy="4" text-anchor="end">{}</text>'
        parts.append(Markup(label).format(place, text))
    for tick, text in zip(across.ticks, across.labels, strict=True):
        line = '<line class="tick" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
        parts.append(Markup(line).format(_at(across, tick), HEIGHT, HEIGHT + 5))
        label = '<text x="{}" y="{}" text-anchor="middle">{}</text>'
        parts.append(Markup(label).format(_at(across, tick), HEIGHT + 19, text))
    parts.append(Markup('<line class="tick" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(HEIGHT))
    titles = '<text x="50%" y="{}" text-anchor="middle">{}</text><text x="-44" y="-12">{}</text>'
    parts.append(Markup(titles).format(HEIGHT + 38, x_title, y_title))
    return Markup("").join(parts)


def _line(points: Sequence[tuple[float, float]], style: int, across: Axis, up: Axis) -> Markup:
    # An SVG in the SVG that stretches, with a pen that doesn't.
    path = " ".join(f"{1000 * across.share(x):.1f},{_y(up, y)}" for x, y in points)
    text = (
        '<svg class="c{}" width="100%" height="{}" viewBox="0 0 1000 {}"'
        ' preserveAspectRatio="none" overflow="visible"><polyline fill="none" points="{}"'
        ' stroke-dasharray="{}" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>'
    )
    return Markup(text).format(style % STYLES, HEIGHT, HEIGHT, path, DASHES[style % STYLES])


def _mark(x: float, y: float, style: int, across: Axis, up: Axis) -> Markup:
    text = '<svg class="c{}" x="{}" y="{}" overflow="visible">{}</svg>'
    mark = Markup(MARKS[style % STYLES])
    return Markup(text).format(style % STYLES, _at(across, x), _y(up, y), mark)


def _labels(dots: Sequence[Dot], across: Axis, up: Axis) -> list[Markup]:
    """Labels beside their points, where they cover nothing, on a phone's width."""
    boxes = [
        (across.share(dot.x) * NARROW - 5, float(_y(up, dot.y)) - 5, 10.0, 10.0) for dot in dots
    ]
    found = []
    for dot in dots:
        x, y, width = across.share(dot.x) * NARROW, float(_y(up, dot.y)), len(dot.label) * CHARACTER
        places = [
            (8.0, 4.0, "start", 8.0),
            (-8.0, 4.0, "end", -8.0 - width),
            (0.0, -10.0, "middle", -width / 2),
            (0.0, 19.0, "middle", -width / 2),
            (8.0, -10.0, "start", 8.0),
            (8.0, 19.0, "start", 8.0),
            (-8.0, -10.0, "end", -8.0 - width),
            (-8.0, 19.0, "end", -8.0 - width),
        ]
        boxed = [(place, (x + place[3], y + place[1] - 11, width, LINE)) for place in places]
        free = [
            entry
            for entry in boxed
            if not any(_overlap(entry[1], box) for box in boxes)
            and entry[1][0] > -20
            and entry[1][0] + width < NARROW + 20
        ]
        (dx, dy, anchor, _), box = (free or boxed)[0]
        boxes.append(box)
        text = '<text x="{}" y="{}" dx="{:g}" dy="{:g}" text-anchor="{}">{}</text>'
        label = clean(dot.label)
        found.append(Markup(text).format(_at(across, dot.x), _y(up, dot.y), dx, dy, anchor, label))
    return found


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return (
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    )


def _at(axis: Axis, value: float) -> str:
    return f"{100 * axis.share(value):.2f}%"


def _y(axis: Axis, value: float) -> str:
    return f"{HEIGHT * (1 - axis.share(value)):.1f}"
