"""What a server has said about itself up to some moment, and so what must be found on its disk if the power is cut then."""

from copy import copy
from typing import NamedTuple

from raftd.kv import Position
from raftd.kv import Set, decode
from raftd.raft.configuration import Configuration
from raftd.raft.core import Base
from raftd.raft.messages import (
    CONFIGURATION, AppendEntries, AppendEntriesReply, HardState, InstallSnapshot, RequestVote, RequestVoteReply,
)

EVENTS = ("first starts", "appends", "truncations", "votes", "compactions", "applies", "checkpoints", "copies", "installs",
          "restarts", "reopened logs", "stops")


class PromiseBroken(AssertionError):
    """The server has not kept, or could not keep, what it has said; the text says what."""


def _must(holds, text):
    if not holds:
        raise PromiseBroken(text)


class Log(NamedTuple):
    """What raft.db holds: the term and vote, the beginning of the log, {index: Entry}."""

    hard_state: HardState
    base: Base
    entries: dict

    @classmethod
    def of(cls, saved):
        return cls(saved.hard_state, saved.base, {entry.index: entry for entry in saved.entries})

    def with_save(self, unsaved):
        base = unsaved.base or self.base
        kept = {index: entry for index, entry in self.entries.items() if index < unsaved.log_from}
        entries = {index: entry for index, entry in kept.items() if index > base.index} | {entry.index: entry for entry in unsaved.entries}
        return Log(unsaved.hard_state or self.hard_state, base, entries)

    def compacted(self, base):
        """The same log as it is when it begins at *base*."""
        return self._replace(base=base, entries={index: entry for index, entry in self.entries.items() if index > base.index})

    @property
    def last_index(self):
        return max(self.entries, default=self.base.index)

    @property
    def members(self):
        """By the latest configuration, committed or not."""
        found = [entry for entry in self.entries.values() if entry.kind == CONFIGURATION]
        return (Configuration.decode(found[-1].command) if found else self.base.configuration).members

    def term_at(self, index):
        """None for an entry that is not there, or compacted."""
        if index == self.base.index:
            return self.base.term
        return self.entries[index].term if index in self.entries else None


class State(NamedTuple):
    """What state.db holds: where it stands, {key: (value, modified_index)}."""

    position: Position
    rows: dict

    def with_batch(self, batch, position):
        rows = dict(self.rows)
        for index, data in batch:
            perform(rows, index, decode(data))
        return State(position, rows)


def perform(rows, index, command):
    """What the command, the entry at *index*, does to {key: (value, modified_index)}."""
    _, modified_index = rows.get(command.key, (None, 0))
    if not command.conditions.hold(modified_index):
        return
    if isinstance(command, Set):
        rows[command.key] = (command.value, index)
    else:
        rows.pop(command.key, None)


NEW_STATE = State(Position(0, 0, b"", 0), {})


class Knowledge:
    """Takes what the server tells, message by message.

    logs       what raft.db may hold: the last one saved and, while a save is under way or its outcome unknown, what it would make
    states     what state.db may hold: from the last one surely on disk to the last that was begun
    snapshots  {index: State}, of those that others send
    history    every State that there was
    """

    def __init__(self, snapshots):
        self.snapshots = snapshots
        self.identity = None
        self.kept = False
        self.logs, self.states, self.history = [], [NEW_STATE], [NEW_STATE]
        self.durable_index = 0
        self.term, self.votes, self.matched, self.acknowledged = 0, {}, (0, 0), {}
        self.highest_term = 0
        self.followed = {}  # {index: Entry} that the others have from it: as it leads, these are committed
        self.at_work = ()  # what the server is doing, of EVENTS
        self._log_work, self._state_work, self._restarting = (), (), "first starts"

    def copy(self):
        other = copy(self)
        other.logs, other.states, other.history = self.logs[:], self.states[:], self.history[:]
        other.votes, other.acknowledged = dict(self.votes), dict(self.acknowledged)
        return other

    def cut(self):
        """The process is gone. What it was at may or may not have happened."""
        self._log_work, self._state_work, self._restarting = (), (), "restarts" if self.identity else "first starts"
        self.at_work = (self._restarting,)

    # Messages

    def take(self, message):
        """Raises PromiseBroken when something is promised that was not saved."""
        kind, *arguments = message
        handler = getattr(self, f"_{kind.replace(' ', '_')}", None)
        if handler:
            handler(*arguments)
        restarting = (self._restarting,) if self._restarting else ()
        self.at_work = tuple(dict.fromkeys((*restarting, *self._log_work, *self._state_work)))

    def _creating(self, identity, configuration):
        self.identity = identity
        self.logs = [Log(HardState(0, None), Base(0, 0, configuration), {})]

    def _kept(self, identity):
        _must(identity == self.identity._asdict(), f"it says that it is {identity}, and is {self.identity}")
        self.kept, self._restarting = True, None

    def _opening(self):
        if not self._restarting:
            self._log_work = ("reopened logs",)

    def _loaded(self, saved):
        log = Log.of(saved)
        _must(log in self.logs, f"{_brief(log)} was loaded, and should be one of {'; '.join(map(_brief, self.logs))}")
        self.logs, self._log_work = [log], ()

    def _saving(self, unsaved):
        log = self.logs[-1]
        self.logs = [log, log.with_save(unsaved)]
        if unsaved.hard_state:
            self.highest_term = max(self.highest_term, unsaved.hard_state.term)
        self._log_work = tuple(_work_of(log, unsaved)) or ("appends",)
        if self.matched[0] >= unsaved.log_from:
            index = unsaved.log_from - 1
            self.matched = (index, log.term_at(index) or 0)

    def _saved(self):
        self.logs, self._log_work = self.logs[-1:], ()

    def _opening_state(self):
        self._state_work = () if self._restarting else ("restarts",)

    def _opened_state(self, position, durable_index):
        self.states = [state for state in self.states if state.position == position]
        _must(self.states, f"the state stands at {position}")
        self.durable_index, self._state_work = durable_index, ()

    def _applying(self, batch, position):
        self._begin(self.states[-1].with_batch(batch, position))
        self._state_work = ("applies",)

    def _begin(self, state):
        self.states.append(state)
        self.history.append(state)

    def _applied(self):
        self._state_work = ()

    def _checkpointing(self):
        self._state_work = ("checkpoints",)

    def _durable(self, index):
        self._on_disk(index)
        self._state_work = ()

    def _on_disk(self, index):
        self.durable_index = max(self.durable_index, index)
        self.states = [state for state in self.states if state.position.index >= self.durable_index]

    def _installing(self, index):
        snapshot = self.snapshots[index]
        self._begin(State(snapshot.position._replace(installed_index=index), snapshot.rows))
        self._state_work = ("installs",)

    def _installed(self, position):
        _must(self.states[-1].position == position, f"the state was installed at {self.states[-1].position}, and stands at {position}")
        self._state_work = ()

    def _copying(self):
        self._state_work = (*self._state_work, "copies")

    def _copied(self):
        self._state_work = tuple(work for work in self._state_work if work != "copies")

    def _stopping(self):
        self._restarting = "stops"

    # Promises

    def _answered(self, request, reply):
        if reply is None:
            return
        self.term = max(self.term, reply.term)
        match request, reply:
            case RequestVote(pre_vote=False), RequestVoteReply(vote_granted=True):
                self._vote(reply.term, request.candidate_id)
            case AppendEntries(), AppendEntriesReply(success=True, match_index=index):
                self._match(index)
            case InstallSnapshot(), _ if reply.installed:
                self._match(request.last_included_index)

    def _match(self, index):
        """All up to *index* is on its disk: in the log or, if it was installed, in the state."""
        log = self.logs[0]
        if index > max(self.matched[0], log.base.index, self.durable_index):
            term = log.term_at(index)
            _must(term is not None, f"entry {index} was promised and not saved")
            self.matched = (index, term)

    def _voting(self, request):
        """Its own vote, too, is a promise once it asks others for theirs."""
        self.term = max(self.term, request.term)
        self._vote(request.term, request.candidate_id)

    def _vote(self, term, candidate):
        _must(self.votes.setdefault(term, candidate) == candidate, f"two votes in term {term}: for {self.votes[term]} and for {candidate}")

    def _followed(self, entries):
        self.followed = self.followed | {entry.index: entry for entry in entries}

    def _acknowledged(self, index, command):
        self.acknowledged[index] = command

    # What must be there

    def problems(self, found, damaged=False):
        """Why *found*, a ``reopen.Found``, breaks a promise, a line each. *damaged*: the state may be older than it was for sure on the
        disk, as long as the log leads on from it, and the log may begin earlier."""
        if found.refused:
            return [f"refused: {found.refused}"]
        if found.log is None:
            return ["there is no server any more"] if self.kept else []
        problems = [*self._problems_of_log(found, damaged), *self._problems_of_state(found, self.history if damaged else self.states)]
        if self.kept and found.identity != self.identity:
            problems.append(f"it is {found.identity}, and was {self.identity}")
        return problems

    def _problems_of_log(self, found, damaged):
        log = found.log
        if not any(log == other or damaged and log.compacted(other.base) == other for other in self.logs):
            yield f"raft.db holds {_brief(log)}, and should be one of {'; '.join(map(_brief, self.logs))}"
        term, voted_for = log.hard_state
        if term < self.term:
            yield f"term {self.term} was promised and is {term}"
        if self.votes.get(term, voted_for) != voted_for:
            yield f"{self.votes[term]} was given the vote of term {term}, and has {voted_for} now"
        index, matched_term = self.matched
        if index > max(log.base.index, found.applied) and log.term_at(index) != matched_term:
            yield f"entry {index} of term {matched_term} was promised"
        for index, command in self.acknowledged.items():
            on_disks = log.entries, self.followed  # a leader that is alone has it itself; else the others may be the majority that has
            if index > max(log.base.index, found.applied) and not any(
                    index in entries and entries[index].command == command for entries in on_disks):
                yield f"entry {index} was acknowledged"

    def _problems_of_state(self, found, states):
        index = found.position.index
        if State(found.position, found.rows) not in states:
            yield f"state.db stands at {index}, and that is none of the states at {[state.position.index for state in states]}"
        if found.log.base.index > max(index, found.applied):
            yield f"the state stands at {index}, before the log, which begins after {found.log.base.index}"


def _work_of(log, unsaved):
    if unsaved.entries:
        yield "truncations" if unsaved.log_from <= log.last_index else "appends"
    elif not unsaved.base and unsaved.log_from <= log.last_index:
        yield "truncations"
    if unsaved.hard_state and unsaved.hard_state.voted_for:
        yield "votes"
    if unsaved.base:
        yield "compactions"


def _brief(log):
    return f"{log.hard_state} base {log.base.index} {[f'{entry.index}/{entry.term}' for entry in log.entries.values()]}"
