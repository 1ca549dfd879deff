"""Is a history of one key/value cluster linearizable? And do its indexes say the truth?

A history is a list of ``Operation``: what each client asked, when, and what it was told. ``violations`` judges it twice over, by two
methods that know nothing of each other:

the search  looks, for each key alone, for an order of its operations that a single register could have executed, in which no operation
            comes before another one that had ended when it began (Wing and Gong 1993; Lowe 2017 for what is remembered of dead ends)
the indexes the log index in each answer already is such an order, if the server is right: so each answer is compared with what the
            indexes say must have stood there, stale reads too

An operation whose outcome is unknown may take effect at any time after it began, or never. One search may have dozens of those, which would
make 2^dozens subsets to try. It stays small because every value is written at most once: a write of unknown outcome that was read has a
latest time, that of its first reader; one that was never read is needed only where a later operation found a key that nobody is known to
have written, and then any will do; nothing may overwrite a value that an operation still has to see.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass
from operator import attrgetter, le
from typing import NamedTuple

OK, FAIL, UNKNOWN = "ok", "fail", "unknown"
PUT, DELETE, GET = "put", "delete", "get"
MOST_STEPS = 2_000_000  # of one search; it says so if that is not enough, and that is no "linearizable"
SHOWN = 12  # operations in the text of a violation


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, as its client saw it.

    value      what was put or read, None where a get found no such key; two puts never have the same
    outcome    OK; FAIL, certainly not done; UNKNOWN, may take effect at any time, or never (``returned`` is infinite then)
    found      of a delete: whether there was such a key
    refused    the condition did not hold, and nothing was written (412)
    if_match   the version (ETag) that the write asked for; if_absent: it asked that there be no such key
    index      X-Raft-Index: where the write stands in the log; of a get, the last entry that its answer reflects
    etag       index of the entry that wrote what was read, written, or found by a refused write; None where there is no such key
    stale      of a get, that it was one of level=stale; min_index is what it asked for
    node       who answered, and which of its incarnations
    """

    kind: str
    key: str
    value: bytes | None
    invoked: float
    returned: float
    outcome: str = OK
    found: bool = True
    refused: bool = False
    if_match: int | None = None
    if_absent: bool = False
    index: int | None = None
    etag: int | None = None
    stale: bool = False
    min_index: int = 0
    node: str = ""
    client: str = ""

    def __str__(self):
        value = "" if self.kind == DELETE else " none" if self.value is None else f" {self.value[:24].decode(errors='replace')}"
        what = [f"{self.client} {self.kind}{value}".strip()]
        what += [f"if_match={self.if_match}"] if self.if_match is not None else []
        what += ["if_absent"] if self.if_absent else []
        what += ["stale"] if self.stale else []
        outcome = "refused" if self.refused else self.outcome if self.found or self.outcome != OK else "not found"
        where = f"index={self.index} etag={self.etag} {self.node}".rstrip()
        return f"{self.invoked:.4f}..{self.returned:.4f} {' '.join(what)}: {outcome} {where}"

    @property
    def is_effective(self):
        """A write that has certainly changed the key, or set it to what it was."""
        return self.kind != GET and self.outcome == OK and not self.refused and self.found


class Violation(NamedTuple):
    """``rule`` is one of a few words, ``text`` is for a person."""

    rule: str
    key: str
    text: str

    def __str__(self):
        return f"{self.rule}, key {self.key}: {self.text}"


def violations(history):
    """Every Violation in *history*, the clearest first. At its beginning there is no key."""
    keys, found = defaultdict(list), _global_order(history) + _stale_order(history)
    for operation in history:
        keys[operation.key].append(operation)
    for key, operations in keys.items():
        complaints = _check_key(key, operations)
        found += complaints
        if not complaints and (text := search(operations)):
            found.append(Violation("not linearizable", key, text))
    return found


def remains(operations, final):
    """The values that one key may have later on: *final*, or what a write of unknown outcome may still make of it.

    *operations* are all on that key; *final* is what a read found after the last of them.
    """
    seen = {operation.value for operation in operations if operation.kind == GET and operation.outcome == OK}
    late = {operation.value for operation in operations if operation.outcome == UNKNOWN
            and operation.kind != GET and not (operation.kind == PUT and operation.value in seen)}
    return {final} | late


# What the indexes say


def _preceded(answered):
    """(operation, that with the highest index of those which had ended when it began) for each of *answered*, but the first ones."""
    ended, highest, by_end = 0, None, sorted(answered, key=attrgetter("returned"))
    for operation in sorted(answered, key=attrgetter("invoked")):
        while by_end[ended].returned < operation.invoked:
            if highest is None or by_end[ended].index > highest.index:
                highest = by_end[ended]
            ended += 1
        if highest is not None:
            yield operation, highest


def _global_order(history):
    """The log has one order: whoever asks later stands later in it, or reads a later state, whatever the key."""
    answered = [operation for operation in history if operation.outcome == OK and operation.index is not None]
    found = [Violation("order of the log", later.key, f"{later}\n  began after the end of  {earlier}")
             for later, earlier in _preceded(answered)
             if not later.stale and (later.index < earlier.index or later.kind != GET and later.index == earlier.index)]
    taken = {}
    for operation in answered:
        if operation.kind != GET and taken.setdefault(operation.index, operation) is not operation:
            found.append(Violation("order of the log", operation.key, f"one index for two writes: {operation}\n  {taken[operation.index]}"))
    return found


def _stale_order(history):
    """What one incarnation of a node shows never goes back, and is as new as was asked for."""
    nodes = defaultdict(list)
    for operation in history:
        if operation.kind == GET and operation.outcome == OK and operation.index is not None:
            nodes[operation.node].append(operation)
    found = [Violation("stale read", read.key, f"older than min_index={read.min_index}: {read}")
             for reads in nodes.values() for read in reads if read.index < read.min_index]
    return found + [Violation("stale read", later.key, f"the node went back: {later}\n  began after  {earlier}")
                    for reads in nodes.values() for later, earlier in _preceded(reads) if later.index < earlier.index]


def _check_key(key, operations):
    """What can be said of one key without a search."""
    def complain(rule, text, *shown):
        found.append(Violation(rule, key, "\n  ".join([text, *map(str, shown)])))
    found, writes = [], {}
    for operation in operations:
        if operation.kind == PUT and not operation.refused and writes.setdefault(operation.value, operation) is not operation:
            raise ValueError(f"the value {operation.value} is put twice")
    versions = {}  # ETag -> value
    etags = {}  # value -> ETag
    for operation in operations:
        if operation.outcome != OK or operation.refused or operation.kind == DELETE or operation.value is None:
            continue
        if operation.kind == GET:
            write = writes.get(operation.value)
            if write is None:
                complain("never written", str(operation))
            elif write.outcome == FAIL:
                complain("aborted read", "read, and its write was refused:", operation, write)
            elif operation.returned < write.invoked:
                complain("from the future", "read before it was written:", operation, write)
        if operation.etag is None and operation.index is not None:
            complain("order of the log", "a value without an ETag", operation)
        if operation.etag is not None:
            if versions.setdefault(operation.etag, operation.value) != operation.value:
                complain("order of the log", f"one ETag for two values, the other is {versions[operation.etag]}", operation)
            if etags.setdefault(operation.value, operation.etag) != operation.etag:
                complain("order of the log", f"one value with two ETags, so put twice; the other is {etags[operation.value]}", operation)
    found += [Violation("condition", key, str(operation)) for operation in operations if not _condition_is_right(operation)]
    return found or _check_positions(key, operations, etags)


def _condition_is_right(operation):
    """A refused write names a version other than the one asked for."""
    if operation.outcome != OK or not operation.refused:
        return True
    if operation.if_absent:
        return operation.etag is not None
    return operation.if_match is not None and operation.etag != operation.if_match


def _check_positions(key, operations, etags):
    """Between the version that an answer shows and the entry that it reflects nothing else may stand in the log."""
    found = []
    changes = {index: None for index in etags.values()}  # index -> the delete, None for a put
    changes |= {operation.index: operation for operation in operations
                if operation.kind == DELETE and operation.is_effective and operation.index is not None}
    order = sorted(changes)
    late = [operation for operation in operations if operation.outcome == UNKNOWN]
    unseen_delete = min((operation.invoked for operation in late if operation.kind == DELETE), default=math.inf)
    unseen_put = min((operation.invoked for operation in late if operation.kind == PUT and operation.value not in etags), default=math.inf)
    for operation in operations:
        if operation.outcome != OK or operation.index is None:
            continue
        before = operation.index if operation.kind == GET else operation.index - 1  # the last entry that it has seen
        position = bisect_right(order, before)
        last = order[position - 1] if position else 0
        version = operation.etag if operation.kind == GET or operation.refused else operation.if_match
        if version is not None:
            wrong = last > version or version > before
        elif operation.kind == GET or operation.refused or operation.if_absent or operation.kind == DELETE and not operation.found:
            wrong = last and changes[last] is None and unseen_delete > operation.returned  # there was no such key
        else:  # of unconditional writes, only a delete that found something has seen anything
            wrong = operation.kind == DELETE and (not last or changes[last]) and unseen_put > operation.returned
        if wrong:
            found.append(Violation("position", key, f"the last write before it stands at {last}: {operation}"))
    return found


# The search

ABSENT, UNNAMED = "absent", "unnamed"  # states of a key beside its values; unnamed: by a write of unknown outcome that nobody has read


class _Step(NamedTuple):
    """An operation of the search: it needs a state, and may change it.

    needs   None: any; ABSENT; "present": any but ABSENT; a value; an int, the ETag of a version whose value nobody has read
    makes   None: nothing; ABSENT; a value
    rank    its place among those whose index is known, None if it is not
    """

    began: float
    ended: float
    needs: object
    makes: object
    rank: int | None
    operation: Operation


class _Late:
    """Writes of unknown outcome that nobody has seen, by what they need. Those of one kind differ in nothing but when they began."""

    def __init__(self):
        self.puts, self.new_puts, self.deletes = [], [], []  # when each began, in order; new: only where the key is absent
        self.puts_on, self.deletes_on = defaultdict(list), defaultdict(list)  # the same, for a version

    def add(self, operation):
        if operation.if_match is not None:
            insort((self.puts_on if operation.kind == PUT else self.deletes_on)[operation.if_match], operation.invoked)
        elif operation.if_absent:
            insort(self.new_puts if operation.kind == PUT else [], operation.invoked)
        else:
            insort(self.puts if operation.kind == PUT else self.deletes, operation.invoked)


class _State(NamedTuple):
    """Where a search stands.

    low, mask   all steps below ``low`` are done, and those of the bits of ``mask`` from there on
    current     the value of the key, ABSENT, or UNNAMED; etag: of an UNNAMED one, once an operation has said it
    rank        how many of the ranked steps are done
    floor       the highest ETag that an UNNAMED version had
    puts, new_puts, deletes   how many of the late writes are used up
    """

    low: int = 0
    mask: int = 0
    current: object = ABSENT
    etag: int | None = None
    rank: int = 0
    floor: int = 0
    puts: int = 0
    new_puts: int = 0
    deletes: int = 0


class _Seen:
    """The states that were met. One that has used up more late writes than another, and is like it otherwise, leads to nothing new."""

    def __init__(self):
        self._used, self.count = defaultdict(list), 0

    def is_new(self, state):
        known, used = self._used[state[:6]], state[6:]
        if any(all(map(le, other, used)) for other in known):
            return False
        known.append(used)
        self.count += 1
        return True


def search(operations, most_steps=MOST_STEPS):
    """None if *operations*, all on one key, are linearizable; else a text that says how far an order goes at most."""
    return _Search(operations).run(most_steps)


class _Search:
    def __init__(self, operations):
        self._late = _Late()
        self._values = {}  # ETag -> value
        for operation in operations:
            if operation.outcome == OK and operation.kind != DELETE and not operation.refused and operation.etag is not None:
                self._values[operation.etag] = operation.value
        self._etags = {value: etag for etag, value in self._values.items()}
        self._steps = self._narrowed(self._steps_of(operations))
        self._orphans = (self._late.puts_on.keys() | self._late.deletes_on.keys()) - self._values.keys()  # versions that nobody has read
        self._rank_indexes = [self._index_of(step.operation) for step in sorted(
            (step for step in self._steps if step.rank is not None), key=attrgetter("rank"))]
        self._seers = defaultdict(list)  # value -> positions of the steps that need it
        for position, step in enumerate(self._steps):
            if isinstance(step.needs, bytes):
                self._seers[step.needs].append(position)

    # What there is to put in order

    def _steps_of(self, operations):
        first_seen = {}
        for operation in operations:
            if operation.outcome == OK and (value := self._value_seen(operation)) is not None:
                first_seen[value] = min(first_seen.get(value, math.inf), operation.returned)
        steps = []
        for operation in operations:
            if operation.outcome == FAIL or operation.kind == GET and (operation.outcome == UNKNOWN or operation.stale):
                continue
            ended = operation.returned
            if operation.kind == PUT and not operation.refused:
                ended = min(ended, first_seen.get(operation.value, math.inf))
            if operation.outcome == UNKNOWN and ended == math.inf:
                self._late.add(operation)
            else:
                steps.append(_Step(operation.invoked, ended, self._needs(operation), self._makes(operation), None, operation))
        return steps

    def _value_seen(self, operation):
        """Of which value *operation* proves that it was written."""
        if operation.kind == GET:
            return operation.value
        version = operation.etag if operation.refused else operation.if_match
        return self._values.get(version)

    def _needs(self, operation):
        if operation.kind == GET:
            return ABSENT if operation.value is None else operation.value
        version = operation.etag if operation.refused else operation.if_match
        if version is not None:
            return self._values.get(version, version)
        if operation.refused or operation.if_absent or not operation.found:
            return ABSENT
        return "present" if operation.kind == DELETE and operation.outcome == OK else None

    @staticmethod
    def _makes(operation):
        if operation.kind == GET or operation.refused or not operation.found:
            return None
        return operation.value if operation.kind == PUT else ABSENT

    def _index_of(self, operation):
        if operation.kind == PUT:
            return self._etags.get(operation.value)
        return operation.index if operation.outcome == OK else None

    def _narrowed(self, steps):
        """*steps* by when they can begin, ranked, with the times between which they must come made as narrow as their order says."""
        ranked = sorted((step for step in steps if step.makes is not None and self._index_of(step.operation) is not None),
                        key=lambda step: self._index_of(step.operation))
        rest = [step for step in steps if step.makes is None or self._index_of(step.operation) is None]
        latest = -math.inf
        for rank, step in enumerate(ranked):
            latest = max(latest, step.began)
            ranked[rank] = step._replace(began=latest, rank=rank)
        earliest = math.inf
        for rank in reversed(range(len(ranked))):
            earliest = min(earliest, ranked[rank].ended)
            ranked[rank] = ranked[rank]._replace(ended=earliest)
        began = {step.makes: step.began for step in [*rest, *ranked] if isinstance(step.makes, bytes)}
        steps = [step._replace(began=max(step.began, began.get(step.needs, -math.inf))) if isinstance(step.needs, bytes) else step
                 for step in [*ranked, *rest]]
        return sorted(steps, key=attrgetter("began", "ended"))

    # The search itself

    def run(self, most_steps):
        return self._conflict() or self._search(most_steps)

    def _conflict(self):
        """Two values each of which must have been there while the other was, or None (the zones of Gibbons and Korach 1997).

        The search would find that, too, but only after it has tried all that comes before.
        """
        steps_on = defaultdict(list)
        for step in self._steps:
            for value in {step.makes, step.needs}:
                if isinstance(value, bytes):
                    steps_on[value].append(step)
        zones = []  # (from, to, value): it was there from the first end of an operation on it, or before, to the last beginning of one
        for value, steps in steps_on.items():
            low, high = min(step.ended for step in steps), max(step.began for step in steps)
            if low < high:
                zones.append((low, high, value))
        zones.sort(key=lambda zone: zone[:2])
        for (_, high, one), (low, _, other) in zip(zones, zones[1:], strict=False):
            if low < high:
                return self._tell_conflict(steps_on[one], steps_on[other])
        lows = [zone[0] for zone in zones]
        for step in self._steps:
            position = bisect_left(lows, step.began) - 1
            if position >= 0 and step.ended < zones[position][1] and zones[position][2] not in (step.makes, step.needs):
                return self._tell_conflict(steps_on[zones[position][2]], [step])
        return None

    @staticmethod
    def _tell_conflict(*groups):
        return "\n  and ".join("\n  ".join(str(step.operation) for step in {min(group, key=attrgetter("ended")): 0,
                                                                          max(group, key=attrgetter("began")): 0})
                              for group in groups) + "\n  exclude each other"

    def _search(self, most_steps):
        best, best_done = _State(), -1
        stack, seen = [best], _Seen()
        while stack:
            state, open_steps, horizon = self._settled(stack.pop())
            done = state.low + state.mask.bit_count()
            if done > best_done:
                best, best_done = state, done
            if state.low == len(self._steps):
                return None
            for following in self._following(state, open_steps, horizon):
                if seen.is_new(following):
                    if seen.count > most_steps:
                        return f"undecided after {most_steps} steps; {self._tell(best, best_done)}"
                    stack.append(following)
        return self._tell(best, best_done)

    def _settled(self, state):
        """*state* with all done that can be and changes nothing; the steps that may come next; and until when one must."""
        while True:
            open_steps, horizon = self._open(state)
            same = [position for position in open_steps if self._steps[position].makes is None and self._holds(position, state)]
            if not same:
                return state, open_steps, horizon
            for position in same:
                state = self._done(state, position)

    def _open(self, state):
        steps, position, horizon, open_steps = self._steps, state.low, math.inf, []
        while position < len(steps) and steps[position].began <= horizon:
            if not state.mask >> (position - state.low) & 1:
                open_steps.append(position)
                horizon = min(horizon, steps[position].ended)
            position += 1
        return [position for position in open_steps if steps[position].began <= horizon], horizon

    @staticmethod
    def _done(state, position):
        low, mask = state.low, state.mask | 1 << (position - state.low)
        while mask & 1:
            low, mask = low + 1, mask >> 1
        return state._replace(low=low, mask=mask)

    def _holds(self, position, state):
        needs, current = self._steps[position].needs, state.current
        if needs is None:
            return True
        if needs == "present":
            return current is not ABSENT
        if isinstance(needs, int):
            return current is UNNAMED and state.etag == needs
        return current == needs

    def _may_leave(self, state, but=None):
        """False while another step than *but* still has to see the current value, which never returns."""
        return all(position == but for position in self._still_to_see(state))

    def _still_to_see(self, state):
        seers = self._seers.get(state.current, ()) if isinstance(state.current, bytes) else ()
        for position in seers[bisect_left(seers, state.low):]:
            if not state.mask >> (position - state.low) & 1:
                yield position

    def _following(self, state, open_steps, horizon):
        """The states that come next, the most promising last."""
        wanted = set()
        writes = []
        for position in open_steps:
            step = self._steps[position]
            if step.rank is not None and step.rank != state.rank:
                continue
            if isinstance(step.needs, int) and state.current is UNNAMED and state.etag is None:
                if state.floor < step.needs and self._fits(step.needs, state):
                    yield state._replace(etag=step.needs, floor=step.needs)
            if self._holds(position, state):
                if step.makes is not None and self._may_leave(state, position):
                    writes.append(position)
            elif step.needs in (ABSENT, "present") or isinstance(step.needs, int):
                wanted.add(UNNAMED if step.needs != ABSENT else ABSENT)
        if wanted and self._may_leave(state):
            yield from self._late_ones(state, wanted, horizon)
        for position in sorted(writes, key=lambda position: self._steps[position].ended, reverse=True):
            step = self._steps[position]
            done = self._done(state, position)
            yield done._replace(current=step.makes, etag=None, rank=done.rank + (step.rank is not None))

    def _fits(self, etag, state):
        """True if a version of that ETag can stand between the ranked steps that are done and the others."""
        return (not state.rank or self._rank_indexes[state.rank - 1] < etag) and (
            state.rank == len(self._rank_indexes) or etag < self._rank_indexes[state.rank])

    def _late_ones(self, state, wanted, horizon):
        """States that a write of unknown outcome makes which nobody has seen."""
        late, etag = self._late, self._etags.get(state.current, state.etag) if state.current is not ABSENT else None
        unnamed = state._replace(current=UNNAMED, etag=None)
        if state.current is UNNAMED and etag is None:
            for orphan in self._orphans:
                if state.floor < orphan and self._fits(orphan, state):
                    yield state._replace(etag=orphan, floor=orphan)
        if UNNAMED in wanted or self._orphans:
            if state.puts < bisect_right(late.puts, horizon):
                yield unnamed._replace(puts=state.puts + 1)
            if state.current is ABSENT and state.new_puts < bisect_right(late.new_puts, horizon):
                yield unnamed._replace(new_puts=state.new_puts + 1)
            if etag is not None and bisect_right(late.puts_on.get(etag, ()), horizon):
                yield unnamed
        if state.current is not ABSENT and (ABSENT in wanted or state.new_puts < bisect_right(late.new_puts, horizon)):
            absent = state._replace(current=ABSENT, etag=None)
            if state.deletes < bisect_right(late.deletes, horizon):
                yield absent._replace(deletes=state.deletes + 1)
            if etag is not None and bisect_right(late.deletes_on.get(etag, ()), horizon):
                yield absent

    def _tell(self, state, done):
        state, open_steps, _ = self._settled(state)
        current = state.current if not isinstance(state.current, bytes) else state.current[:24].decode(errors="replace")
        parts = {f"{done} of {len(self._steps)} operations can be put in order; the last ones are": range(state.low)[-SHOWN:],
                 f"then the key is {current}, and none of these can come next:": open_steps[:SHOWN],
                 "since these still have to see it as it is:": list(self._still_to_see(state))[:SHOWN]}
        return "\n  ".join(line for title, positions in parts.items() if positions or title[0].isdigit()
                           for line in (title, *(str(self._steps[position].operation) for position in positions)))
