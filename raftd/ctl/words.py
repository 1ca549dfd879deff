"""What may stand on a command line: numbers, durations, endpoints. An error names what is wrong with the word."""

import argparse

from raftd.config import duration


MOST_SECONDS = 100 * 365.25 * 24 * 3600


def at_least(lowest):
    def whole_number(text):
        if not text.isascii() or not text.isdigit() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"not a whole number of at least {lowest}: {text!r}")
        return int(text)
    return whole_number


def number(text, lowest, highest, what):
    try:
        found = float(text)
    except ValueError:
        found = None
    if found is None or not lowest <= found <= highest:  # not a number is not between them
        raise argparse.ArgumentTypeError(f"not {what}: {text!r}")
    return found


def seconds(text):
    try:
        found = duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; such as 500ms, 10s, 1.5m, 2h") from None
    if found > MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"longer than a hundred years: {text!r}")
    return found
