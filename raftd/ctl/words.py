"""What may stand on a command line: numbers, durations, endpoints. An error names what is wrong with the word."""

import argparse

from raftd.config import duration


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
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
