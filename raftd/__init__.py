"""raftd: a replicated key/value server; Raft keeps its copies the same."""

__version__ = "1.0.0.dev0"
