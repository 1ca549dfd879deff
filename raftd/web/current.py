"""Which node the current request is for. Must not know what is asked of it."""

from typing import Any, NamedTuple

from flask import current_app


class Mounted(NamedTuple):
    """What an app keeps in ``app.extensions["raftd"]``."""

    node: Any
    version: str


def current_node():
    """The node that the app of this request answers for."""
    return current_app.extensions["raftd"].node


def current_version():
    """The version of the program, as ``/status`` shows it."""
    return current_app.extensions["raftd"].version
