"""The commands and queries of the key/value state machine, and what comes of them.

Must not know: bytes in the log (``encoding``), SQLite, Raft, HTTP.
"""

from typing import Any, Literal, NamedTuple

from raftd.errors import StartupError


class UnknownCommand(StartupError):
    """The log holds a command that this raftd does not know; to skip it would make this node differ from the others."""


class Conditions(NamedTuple):
    """What must hold for a write to happen; each is None (nothing asked), ``"*"`` (any version), or the indexes of versions.

    if_match       the key exists, in one of these versions
    if_none_match  the key does not exist in any of these versions
    """

    if_match: tuple[int, ...] | Literal["*"] | None = None
    if_none_match: tuple[int, ...] | Literal["*"] | None = None

    def hold(self, modified_index):
        """True if a key last written at *modified_index* (0: there is no such key) may be written."""
        return (self.if_match is None or _matches(self.if_match, modified_index)) and not (
            self.if_none_match is not None and _matches(self.if_none_match, modified_index)
        )


def _matches(versions, modified_index):
    return modified_index > 0 and (versions == "*" or modified_index in versions)


UNCONDITIONAL = Conditions()


# Commands


class Set(NamedTuple):
    """Give *key* this value; it expires after *ttl* milliseconds, 0: never, whatever was said of it before."""

    key: str
    value: bytes
    conditions: Conditions = UNCONDITIONAL
    ttl: int = 0


class Delete(NamedTuple):
    """Remove *key*."""

    key: str
    conditions: Conditions = UNCONDITIONAL


class Touch(NamedTuple):
    """Let *key*, as it is, expire after *ttl* milliseconds from now. Not a change: nobody who watches hears of it."""

    key: str
    ttl: int
    conditions: Conditions = UNCONDITIONAL


class DeletePrefix(NamedTuple):
    """Remove every key that begins with *prefix*."""

    prefix: str


class If(NamedTuple):
    """A condition of a transaction on *key*: that its ``index`` (0: no such key), that it ``exists``, or its ``value`` is *wanted*."""

    key: str
    what: Literal["index", "exists", "value"]
    wanted: int | bool | bytes


class Transaction(NamedTuple):
    """If all of *conditions* hold do all of *then*, else all of *otherwise*: each a Set or Delete without conditions, or a Get."""

    conditions: tuple[If, ...]
    then: tuple
    otherwise: tuple = ()

    @property
    def reads(self):
        """Whether there is a Get among the operations: then its outcome may be much larger than it is."""
        return any([type(part) is Get for part in self.then + self.otherwise])


class Expire(NamedTuple):
    """Remove what has expired at the time of this entry, at most so many keys; see ``execution``."""


class Fence(NamedTuple):
    """A write happens only while *key* exists and was created by the entry *token*."""

    key: str
    token: int


class Request(NamedTuple):
    """A command, and what came with it.

    time    what the clock of the leader said, in milliseconds; 0 if the command does not need it. See ``raftd.kv.clock``
    key     the idempotency key: of all requests with one key the first happens, the others get its outcome. "" if it has none
    fence   None if it has none
    """

    command: Any
    time: int = 0
    key: str = ""
    fence: Fence | None = None


# What comes of them


class Outcome(NamedTuple):
    """What came of a command.

    kind    ``written``, ``deleted``, ``touched``, ``missing`` (nothing to delete or to touch), ``refused`` (a condition does not
            hold), ``transacted``, ``deleted-prefix``, ``expired``, ``too-large`` (what a transaction would answer), ``fenced``
            (the fence does not hold), ``reused`` (the idempotency key is that of another request)
    index   of the command's entry. But of ``touched`` and ``refused`` the index that last wrote the key, of ``fenced`` that which
            created the key of the fence, 0 if there is no such key; of ``too-large`` the most bytes that it may answer
    detail  of ``transacted``: (whether the conditions held, a result for each operation: of a Set True, of a Delete whether there
            was such a key, of a Get a Found); of ``deleted-prefix`` and ``expired``: the number of keys
    replayed  this is the outcome of an earlier request with the same idempotency key
    """

    kind: str
    index: int
    detail: Any = None
    replayed: bool = False


class Get(NamedTuple):
    """The query for the value of *key*. In the log only as a part of a transaction."""

    key: str


class Found(NamedTuple):
    """The answer to Get.

    value           None if there is no such key
    modified_index  the index that last wrote the key, 0 if there is no such key
    applied_index   the index of the state this answer reflects
    created_index   the index that wrote it first, since when it has been there
    version         how often it was written since then
    expires_in      seconds, None if it does not expire; in the outcome of a transaction as of its entry
    """

    value: bytes | None
    modified_index: int
    applied_index: int
    created_index: int = 0
    version: int = 0
    expires_in: float | None = None


class List(NamedTuple):
    """The query for the keys that begin with *prefix*, come after *after*, and their values unless *keys_only*; at most *limit*."""

    prefix: str
    after: str = ""
    limit: int = 100
    keys_only: bool = False


class Item(NamedTuple):
    """A key in the answer to List; the value is None if it was not asked for. As to the rest see Found."""

    key: str
    value: bytes | None
    modified_index: int
    created_index: int
    version: int
    expires_in: float | None


class Listed(NamedTuple):
    """The answer to List: *items* in the order of their keys, in bytes of UTF-8; *next* is the ``after`` of the next page, or None."""

    items: list[Item]
    next: str | None
    applied_index: int


class Changes(NamedTuple):
    """The query for what has happened after the change *after* (``database.change_id``): at most *limit* changes, and values of about
    *most_bytes*."""

    after: int
    limit: int = 1000
    most_bytes: int = 8 << 20


class HasChanged(NamedTuple):
    """The query for whether something has happened to *key* after the entry *index*; True, too, if that is not known any more, or too
    long ago to be looked for. After 0: whether it is there."""

    key: str
    index: int


class History(NamedTuple):
    """The answer to Changes: ``database.Change`` in their order, of which none is missing."""

    changes: list
    applied_index: int
