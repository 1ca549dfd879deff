"""The key/value state machine: what a command means, and the file that holds the keys and values."""

from raftd.kv.commands import (
    UNCONDITIONAL, Changes, Conditions, Delete, DeletePrefix, Expire, Fence, Found, Get, HasChanged, History, If, Item, List, Listed,
    Outcome, Request, Set, Touch, Transaction, UnknownCommand,
)
from raftd.kv.database import CHANGE_KINDS, MOST_CHANGES_OF_AN_ENTRY, Position, change_id, index_of
from raftd.kv.encoding import decode, encode
from raftd.kv.execution import LIMITS, MAX_RESULT_BYTES
from raftd.kv.snapshot import BadSnapshot, Incoming, Snapshot
from raftd.kv.store import KeyValueStore

__all__ = [
    "BadSnapshot",
    "CHANGE_KINDS",
    "Changes",
    "Conditions",
    "Delete",
    "DeletePrefix",
    "Expire",
    "Fence",
    "Found",
    "Get",
    "HasChanged",
    "History",
    "If",
    "Incoming",
    "Item",
    "KeyValueStore",
    "List",
    "Listed",
    "LIMITS",
    "MAX_RESULT_BYTES",
    "MOST_CHANGES_OF_AN_ENTRY",
    "Outcome",
    "Position",
    "Request",
    "Set",
    "Snapshot",
    "Touch",
    "Transaction",
    "UNCONDITIONAL",
    "UnknownCommand",
    "change_id",
    "decode",
    "encode",
    "index_of",
]
