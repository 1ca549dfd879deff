"""The key/value state machine: what a command means, and the file that holds the keys and values."""

from raftd.kv.commands import (
    Changes, Conditions, Delete, DeletePrefix, Expire, Fence, Found, Get, History, If, Item, List, Listed, Outcome, Request, Set,
    Touch, Transaction, UnknownCommand,
)
from raftd.kv.database import Position
from raftd.kv.encoding import decode, encode
from raftd.kv.execution import MAX_RESULT_BYTES
from raftd.kv.snapshot import BadSnapshot, Incoming, Snapshot
from raftd.kv.store import KeyValueStore

__all__ = [
    "MAX_RESULT_BYTES",
    "BadSnapshot",
    "Changes",
    "Conditions",
    "Delete",
    "DeletePrefix",
    "Expire",
    "Fence",
    "Found",
    "Get",
    "History",
    "If",
    "Incoming",
    "Item",
    "KeyValueStore",
    "List",
    "Listed",
    "Outcome",
    "Position",
    "Request",
    "Set",
    "Snapshot",
    "Touch",
    "Transaction",
    "UnknownCommand",
    "decode",
    "encode",
]
