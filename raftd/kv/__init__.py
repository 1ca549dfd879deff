"""The key/value state machine: what a command means, and the file that holds the keys and values."""

from raftd.kv.commands import Conditions, Delete, Found, Get, Outcome, Set, UnknownCommand, decode, encode
from raftd.kv.database import Position
from raftd.kv.snapshot import BadSnapshot, Incoming, Snapshot
from raftd.kv.store import KeyValueStore

__all__ = [
    "BadSnapshot",
    "Conditions",
    "Delete",
    "Found",
    "Get",
    "Incoming",
    "KeyValueStore",
    "Outcome",
    "Position",
    "Set",
    "Snapshot",
    "UnknownCommand",
    "decode",
    "encode",
]
