"""A replicated key/value server on the Raft consensus algorithm, and its parts for programs of your own.

``Node`` runs one server of a cluster for any storage, transport and state machine that have the methods it names; those of the
server are ``raftd.storage.Storage``, ``raftd.transport.Transport`` and ``raftd.kv.KeyValueStore``.
"""

__version__ = "1.0.0.dev0"

from raftd.config import Settings
from raftd.errors import RaftdError
from raftd.node import Applied, Node

__all__ = ["Applied", "Node", "RaftdError", "Settings", "__version__"]
