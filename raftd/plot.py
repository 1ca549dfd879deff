"""Latency over time as an SVG, by hand. Must not know where the figures come from."""

import math
from bisect import bisect_right
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 400, 70, 20, 50, 45
INTERVALS = 120  # at most
_STEPS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
COLOURS = {"p50": "#1f77b4", "p99": "#ff7f0e", "max": "#d62728"}


def interval_seconds(seconds):
    """The length of an interval for a plot that lasts so long: a round one."""
    return next((step for step in _STEPS_SECONDS if seconds / step <= INTERVALS), seconds / INTERVALS)


def over_time(samples, seconds, step):
    """[(start, p50, p99, max)] of each interval of *step* seconds in which something was answered.

    *samples* are (time of the answer, latency) in seconds; times count from 0, the start of what is plotted, which lasts *seconds*.
    """
    intervals = {}
    for answered, latency in samples:
        intervals.setdefault(int(min(max(answered, 0.0), seconds) / step), []).append(latency)
    rows = []
    for number, latencies in sorted(intervals.items()):
        latencies.sort()
        half, most = (latencies[math.ceil(len(latencies) * share / 100) - 1] for share in (50, 99))
        rows.append((number * step, half, most, latencies[-1]))
    return rows


def latency_svg(samples, failed_at, seconds, title, events=()):
    """The text of an SVG: p50, p99 and the most of each interval, the failures as marks below, *events* as lines.

    *samples*, *failed_at* and *events*, which are (time, text), count their times from 0. Latency has a logarithmic scale.
    """
    step = interval_seconds(seconds)
    rows = over_time(samples, seconds, step)
    scale = _Scale(seconds, [row[1] for row in rows] or [0.001], [row[3] for row in rows] or [0.001])
    parts = [*_frame(scale, seconds, f"{title}; intervals of {step:g} s"), *_events(scale, events)]
    for column, (name, colour) in reversed(list(enumerate(COLOURS.items(), start=1))):  # the median lies on top
        points = [(row[0] + step / 2, row[column]) for row in rows]
        parts += [*_lines(scale, points, step, colour), *_legend(column, name, colour)]
    parts += _failures(scale, failed_at, step)
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n')


class _Scale:
    """Seconds to places in the picture; its latencies end at powers of ten."""

    def __init__(self, seconds, lowest, highest):
        self.seconds = seconds
        self.low = math.floor(math.log10(max(min(lowest), 1e-6)))
        self.high = max(math.ceil(math.log10(max(max(highest), 1e-6))), self.low + 1)

    def x(self, when):
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(when / self.seconds, 0.0), 1.0)

    def y(self, latency):
        share = (math.log10(max(latency, 1e-6)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _frame(scale, seconds, title):
    yield _text(LEFT, 18, title)
    for power in range(scale.low, scale.high + 1):
        yield _line(LEFT, scale.y(10 ** power), WIDTH - RIGHT, scale.y(10 ** power), "#dddddd")
        yield _text(LEFT - 6, scale.y(10 ** power) + 4, f"{10 ** (power + 3):g} ms", "end")
    mark = _round_up(seconds / 10)
    for number in range(int(seconds / mark) + 1):
        yield _line(scale.x(number * mark), HEIGHT - BOTTOM, scale.x(number * mark), HEIGHT - BOTTOM + 5, "black")
        yield _text(scale.x(number * mark), HEIGHT - BOTTOM + 18, f"{number * mark:g} s", "middle")
    yield _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "black")
    yield _line(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "black")


def _round_up(seconds):
    """1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(seconds))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= seconds * 0.999)


def _lines(scale, points, step, colour):
    """Neighbours are joined; where nothing was answered there is a gap, and a point alone is a dot."""
    pieces = []
    for when, latency in points:
        if not pieces or when - pieces[-1][-1][0] > 1.5 * step:
            pieces.append([])
        pieces[-1].append((when, latency))
    for piece in pieces:
        places = " ".join(f"{scale.x(when):.1f},{scale.y(latency):.1f}" for when, latency in piece)
        if len(piece) == 1:
            place = places.split(",")
            yield f'<circle cx="{place[0]}" cy="{place[1]}" r="2" fill="{colour}"/>'
        else:
            yield f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _legend(column, name, colour):
    x = LEFT + 80 * (column - 1)
    yield _line(x, 34, x + 20, 34, colour)
    yield _text(x + 26, 38, name)


def _failures(scale, failed_at, step):
    """A mark for each interval with failures, and how many they are when one points at it."""
    starts = [number * step for number in range(math.ceil(scale.seconds / step) + 1)]
    counts = {}
    for when in failed_at:
        start = starts[max(bisect_right(starts, when) - 1, 0)]
        counts[start] = counts.get(start, 0) + 1
    for start, count in sorted(counts.items()):
        yield (f'<rect x="{scale.x(start):.1f}" y="{HEIGHT - BOTTOM + 24}" width="{max(scale.x(start + step) - scale.x(start), 2):.1f}" '
               f'height="6" fill="#d62728"><title>{count} failed</title></rect>')
    if counts:
        yield _text(LEFT - 6, HEIGHT - BOTTOM + 31, "failed", "end")


def _events(scale, events):
    for number, (when, text) in enumerate(events):
        yield f'<g stroke-dasharray="3 3">{_line(scale.x(when), TOP, scale.x(when), HEIGHT - BOTTOM, "#777777")}</g>'
        yield _text(scale.x(when) + 3, TOP + 12 + 12 * (number % 4), text, size=10)


def _line(x1, y1, x2, y2, colour):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x, y, text, anchor="start", size=12):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
