"""Where the paper (and the thesis) says what a server must do, and that each of these places is held by a test.

The tests are in test_paper_*.py, one for each claim: the docstring is the claim in our words, and ends its sentence with the
places it is from, in parentheses, with semicolons between them. To find those of section 5.4.2: ``grep '5\\.4\\.2' tests/test_paper_*.py``.
"""

import ast
import re
from pathlib import Path

PLACES = {
    "Figure 2, persistent state": "term, vote and log survive, and are on disk before an answer that depends on them",
    "Figure 2, volatile state": "commit_index and last_applied begin at 0 and only rise",
    "Figure 2, state on leaders": "next_index and match_index begin anew with each leadership",
    "Figure 2, AppendEntries, 1": "an older term is refused",
    "Figure 2, AppendEntries, 2": "so are entries that do not follow on",
    "Figure 2, AppendEntries, 3": "only a conflict removes entries",
    "Figure 2, AppendEntries, 4": "what is not there yet is appended",
    "Figure 2, AppendEntries, 5": "leader_commit counts up to the last new entry",
    "Figure 2, RequestVote, 1": "an older term gets no vote",
    "Figure 2, RequestVote, 2": "one vote in a term, for a log at least as up-to-date",
    "Figure 2, all servers, 1": "what is committed is applied, in order",
    "Figure 2, all servers, 2": "a larger term makes a follower",
    "Figure 2, followers, 1": "leaders and candidates are answered",
    "Figure 2, followers, 2": "an election timeout, unless the current leader is heard or a vote is granted",
    "Figure 2, candidates, 1": "an election: term, own vote, timer, requests",
    "Figure 2, candidates, 2": "a majority of votes elects",
    "Figure 2, candidates, 3": "the leader of the term ends it",
    "Figure 2, candidates, 4": "so does a timeout, with another election",
    "Figure 2, leaders, 1": "heartbeats, at once and while idle",
    "Figure 2, leaders, 2": "commands are appended",
    "Figure 2, leaders, 3": "each follower gets the log from its next_index on, which moves with its answers",
    "Figure 2, leaders, 4": "what a majority has is committed, if it is of this term",
    "Figure 3": "a leader only appends; the rest is of whole clusters, and asserted at every step by the simulation",
    "section 5.1": "roles, terms, who refuses whom, requests that are repeated",
    "section 5.2": "elections",
    "section 5.3": "replication, and the consistency check",
    "Figure 7": "logs that followers may have",
    "section 5.4": "what is committed stays",
    "section 5.4.1": "who may be elected",
    "section 5.4.2": "entries of earlier terms",
    "section 5.5": "peers that do not answer, requests that come twice",
    "section 5.6": "times in proportion",
    "section 6": "the newest configuration in the log; newcomers; removed servers",
    "section 7": "compaction and snapshots",
    "Figure 13, 1": "an older term is refused",
    "Figure 13, 3": "chunks go where they belong",
    "Figure 13, 4": "each is answered",
    "Figure 13, 6": "entries after the snapshot are kept if the log has its last one",
    "Figure 13, 7": "else the whole log goes",
    "Figure 13, 8": "the configuration is that of the snapshot",
    "section 8": "who serves clients; the no-op; reads",
    "thesis 3.8": "restarts",
    "thesis 3.10": "leadership is handed over",
    "thesis 4.1": "one server at a time",
    "thesis 4.2.1": "learners",
    "thesis 4.2.2": "a leader that is removed",
    "thesis 4.2.3": "servers that are removed, and others that come back",
    "thesis 4.4": "the first servers of a cluster",
    "thesis 5": "snapshots that are sent, and what is kept for slow followers",
    "thesis 5.2": "a state machine on disk",
    "thesis 6.2": "leaders without a majority; who knows the leader",
    "thesis 6.4": "reads without a write",
    "thesis 6.4.1": "leases, for reads that ask for it",
    "thesis 9.6": "pre-votes",
    "thesis 10.2.1": "a leader's disk works while its followers do",
}

NOT_IN_THE_CORE = {
    "Figure 13, 2 and 5": "files of snapshots are the state machine's: test_kv_store.py, test_node.py",
    "section 6, joint consensus; thesis 4.3": "not done: one server at a time is enough, and simpler",
    "section 8, serial numbers; thesis 6.3": "the state machine's, by Idempotency-Key: test_kv_execution.py, and the simulation",
    "thesis 4.2.1, rounds": "how a newcomer is found to have caught up: test_membership.py, whose tests name it",
    "thesis 5.1, 5.3, 5.4": "not done: the state machine on disk is its own snapshot, and each server compacts by itself",
    "thesis 6.4, waiting for last_applied": "the node's: test_node.py, and the simulation",
    "thesis 10.2.2, pipelines": "not done: one request at a time, and all that has piled up in the next",
}


def claims():
    """(where it is, docstring) of each test of test_paper_*.py."""
    for path in sorted(Path(__file__).parent.glob("test_paper_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.name}::{node.name}", ast.get_docstring(node) or ""


def places(docstring):
    """The places that *docstring* names."""
    groups = re.findall(r"\(((?:Figure|section|thesis) [^)]*)\)", docstring)
    return [place for group in groups for place in re.split(r";\s+", group)]


def test_every_claim_names_its_places():
    assert not [test for test, docstring in claims() if not places(docstring) or not set(places(docstring)) <= set(PLACES)]


def test_every_place_has_a_test():
    named = {place for _, docstring in claims() for place in places(docstring)}
    assert [place for place in PLACES if place not in named] == []
