"""How what was found is printed: for people (columns), for scripts (one fact a line, or JSON), always the same for the same.

Must not know: where it comes from.
"""

import base64
import json
import sys
import threading
import time

FORMATS = ("table", "json", "plain")
SHOWN_AFTER_SECONDS, DRAWN_EACH_SECONDS, BAR_WIDTH = 1.0, 0.2, 30
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"


def is_terminal(stream):
    return stream.isatty()


def write_bytes(data):
    """*data* as it is; a line feed after it only for a person to see where it ends."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    if is_terminal(sys.stdout) and not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def print_json(value):
    print(json.dumps(value, ensure_ascii=False))


def value_members(value):
    """As in the HTTP interface: text if it is UTF-8."""
    if value is None:
        return {}
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def cell(value):
    """On one line, and no byte in it that a terminal would obey."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return f"({len(value)} bytes)"
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_table(titles, rows, rights=()):
    """Columns as wide as they must be. *rights*: the titles of those that stand to the right."""
    rows = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    bold, reset = (_BOLD, _RESET) if is_terminal(sys.stdout) else ("", "")
    for number, row in enumerate([titles, *rows]):
        cells = zip(titles, row, widths, strict=True)
        line = "  ".join([text.rjust(width) if title in rights else text.ljust(width) for title, text, width in cells]).rstrip()
        print(f"{bold}{line}{reset}" if number == 0 else line)


class Waiting:
    """While this is entered: on one line of stderr, if that is a terminal, how much has passed of the time that something may take.

    Nothing of it is seen of what takes less than a second, or afterwards.
    """

    def __init__(self, most_seconds):
        self._most_seconds, self._over, self._thread = most_seconds, threading.Event(), None

    def __enter__(self):
        if is_terminal(sys.stderr):
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()

    def __exit__(self, *_):
        self._over.set()
        if self._thread:
            self._thread.join()

    def _draw(self):
        began, pause = time.monotonic(), SHOWN_AFTER_SECONDS
        while not self._over.wait(pause):
            seconds, pause = time.monotonic() - began, DRAWN_EACH_SECONDS
            done = min(BAR_WIDTH, int(BAR_WIDTH * seconds / self._most_seconds))
            bar = "#" * done + "." * (BAR_WIDTH - done)
            print(f"\r\x1b[K[{bar}] {seconds:.0f} of at most {self._most_seconds:.0f} seconds", end="", file=sys.stderr, flush=True)
        if pause == DRAWN_EACH_SECONDS:
            _clear_line()


class Progress:
    """A count on one line of stderr, if that is a terminal, of what takes longer than a second."""

    def __init__(self, what):
        self._what, self._began, self._next, self._drawn = what, time.monotonic(), SHOWN_AFTER_SECONDS, False

    def show(self, count):
        seconds = time.monotonic() - self._began
        if seconds >= self._next and is_terminal(sys.stderr):
            self._next, self._drawn = seconds + DRAWN_EACH_SECONDS, True
            print(f"\r\x1b[K{count:,} {self._what}, {count / seconds:,.0f} per second", end="", file=sys.stderr, flush=True)

    def clear(self):
        if self._drawn:
            _clear_line()


def _clear_line():
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
