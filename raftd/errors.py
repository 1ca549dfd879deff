"""Every error raftd gives to a caller, in one tree.

Each class carries its name on the wire (``code``), its HTTP status, and whether the same request may be sent again (``retry``):

``safe``   certainly not applied; send it again, to the leader
``maybe``  may have been applied, or may still be; only a request that may happen twice should be sent again
``no``     the same request would fail again
"""


class RaftdError(Exception):
    """Anything raftd refuses or fails to do. ``str(error)`` is one line for a person."""

    code, status, retry = "internal", 500, "maybe"
    index = 0  # for a client: as of which entry of the log it was answered, if the answer says so

    def __init__(self, detail: str = "", leader: str | None = None) -> None:
        super().__init__(detail or (type(self).__doc__ or "").split("\n")[0].rstrip("."))
        self.leader = leader  # "http://HOST:PORT" of the leader, where that helps the caller


class NotLeader(RaftdError):
    """Only the leader can do this; ``leader`` names it if it is known."""

    code, status, retry = "not_leader", 400, "safe"

    def __init__(self, detail: str = "raft.Server: Not current leader", leader: str | None = None) -> None:
        super().__init__(detail, leader)


class NoLeader(RaftdError):
    """No leader is known at the moment."""

    code, status, retry = "no_leader", 503, "safe"


class NoQuorum(RaftdError):
    """No majority of the voters can be reached."""

    code, status, retry = "no_quorum", 503, "safe"


class CommitTimeout(RaftdError):
    """No majority answered in time; the entry may still commit later."""

    code, status, retry = "commit_timeout", 504, "maybe"


class LeadershipLost(RaftdError):
    """The leader stepped down with the command in its log; another leader decides what becomes of it."""

    code, status, retry = "leadership_lost", 503, "maybe"


class Discarded(RaftdError):
    """Another entry was committed in place of this one: certainly not applied."""

    code, status, retry = "discarded", 503, "safe"


class BadRequest(RaftdError):
    """The request cannot be understood."""

    code, status, retry = "bad_request", 400, "no"


class PreconditionFailed(RaftdError):
    """A condition of the request does not hold; ``etag`` is the current one, None when there is no such key."""

    code, status, retry = "precondition_failed", 412, "no"

    def __init__(self, detail: str = "", etag: str | None = None) -> None:
        super().__init__(detail)
        self.etag = etag


class IdempotencyMismatch(RaftdError):
    """The idempotency key is that of another request."""

    code, status, retry = "idempotency_mismatch", 422, "no"


class HistoryGone(RaftdError):
    """The changes that were asked for are not kept any more; ``oldest`` is the index after which all are."""

    code, status, retry = "history_gone", 410, "no"

    def __init__(self, oldest: int) -> None:
        super().__init__(f"the changes up to {oldest} are kept no longer; read the keys again, and watch from there on")
        self.oldest = oldest


class TooLarge(RaftdError):
    """The request is larger than a limit, which the text names."""

    code, status, retry = "too_large", 413, "no"


class NotFound(RaftdError):
    """There is no such thing here."""

    code, status, retry = "not_found", 404, "no"


class MethodNotAllowed(RaftdError):
    """The path exists, but not with this method."""

    code, status, retry = "method_not_allowed", 405, "no"


class Overloaded(RaftdError):
    """More writes are waiting than the bound allows."""

    code, status, retry = "overloaded", 503, "safe"


class StorageFailed(RaftdError):
    """The disk refused a write, or has no room; this node is silent until its files can be written again."""

    code, status, retry = "storage_failed", 500, "maybe"

    def __init__(self, detail: str = "", full: bool = False) -> None:
        super().__init__(detail)
        if full:
            self.status = 507


class Stopping(RaftdError):
    """This node is shutting down."""

    code, status, retry = "stopping", 503, "safe"


class PeerUnreachable(Exception):
    """A peer gave no reply: down, cut off, too slow, or it refuses. Whether it acted on the request is not known."""


class Refusal(Exception):
    """A server will not talk to this peer; the text says why."""


REPLACE_NODE = "remove this node from the cluster and join it again with an empty data path"


class StartupError(Exception):
    """The process cannot start, or cannot go on; the text is one line that says what and what to do."""


class DamagedFiles(StartupError):
    """A file under PATH is damaged, foreign, or of an unknown format."""
