"""Every tunable of a node: its unit, default, and check."""

import re
from dataclasses import dataclass, fields

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

MAX_KEY_BYTES = 4096
TRACE = 5  # a level of logging below DEBUG: every RPC


def duration(text):
    """Seconds for a duration such as ``50ms``, ``1s``, ``1.5s``, ``2m``, ``1h``; raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text, re.ASCII)
    if not match:
        raise ValueError(f"not a duration: {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def is_name(text):
    """True if a node may be called so: 1 to 64 letters, digits, ``.``, ``_`` or ``-``, but neither ``.`` nor ``..``."""
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text)) and text not in (".", "..")


@dataclass(frozen=True)
class Settings:
    """The tunables of a node; ``check`` raises ValueError, naming the one that is out of range.

    heartbeat_seconds          how often a leader tells an idle follower that it lives
    election_timeout_seconds   a follower waits this long, up to twice as long (drawn anew each time), before it stands for
                               election; a leader that hears no majority for this long steps down
    rpc_timeout_seconds        connecting to a peer, and the answer to a small request, take at most this long: half an election
                               timeout, so that one that is lost can be sent again before it counts
    slowest_link_bytes_per_second  a larger request may take as much longer as its size takes on such a link
    max_append_bytes           commands in one AppendEntries request (at least one entry is always sent)
    max_waiting_writes, max_waiting_bytes  proposals not yet applied; more are refused with ``overloaded``
    compact_entries, compact_bytes  the log is compacted when it has grown by one of these since the last time
    keep_entries, keep_bytes   the tail that compaction leaves for slow followers: the smaller of the two
    snapshot_chunk_bytes       data in one InstallSnapshot request
    max_value_bytes            the largest value of a key
    write_timeout_seconds      how long a write waits for its commit when the request does not say
    client_threads             requests of clients that can wait at the same time, in Flask; as many transactions that read, in the lane
    max_connections            open connections, all kinds together but for those who watch
    max_watchers               who watches changes at the same time
    """

    heartbeat_seconds: float = 0.1
    election_timeout_seconds: float = 0.5
    rpc_timeout_seconds: float = 0.25
    slowest_link_bytes_per_second: int = 128 * 1024
    max_append_bytes: int = 1 << 20
    max_waiting_writes: int = 4096
    max_waiting_bytes: int = 64 << 20
    compact_entries: int = 10_000
    compact_bytes: int = 16 << 20
    keep_entries: int = 5_000
    keep_bytes: int = 16 << 20
    snapshot_chunk_bytes: int = 1 << 20
    max_value_bytes: int = 1 << 20
    write_timeout_seconds: float = 5.0
    client_threads: int = 64
    max_connections: int = 4096
    max_watchers: int = 2048

    def check(self):
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive")
        if self.heartbeat_seconds * 2 > self.election_timeout_seconds:
            raise ValueError("the heartbeat must be at most half of the election timeout")
        if self.rpc_timeout_seconds >= self.election_timeout_seconds:
            raise ValueError("an RPC must time out before an election does")
        return self
