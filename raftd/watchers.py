"""Those who wait for changes, on connections that no thread waits for: streams of events, and reads that wait for a key to change.

Must not know: what a request asks for (``web``), who leads. One thread tells all of them; it reads what has changed once for all who
are up to date, and lets others have the processor most of the time, however many watch.
"""

import heapq
import logging
import math
import select
import socket
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from itertools import count

from raftd.errors import HistoryGone, RaftdError, Stopping
from raftd.kv import Changes, HasChanged, change_id
from raftd.web.watch import KEEP_ALIVE_SECONDS, beginning, events, farewell, keep_alive

log = logging.getLogger(__name__)

CHANGES_AT_ONCE, BYTES_AT_ONCE = 1000, 256 * 1024  # that are read together, and in the buffer of one who watches
SEND_BUFFER_BYTES = 256 * 1024  # of the system, for one connection
MAX_PENDING_BYTES = 128 << 20  # in the buffers of all who watch; the slowest are dropped
STALL_SECONDS = 10.0  # without a byte taken, and one who watches is too slow
FAREWELL_SECONDS = 10.0  # without a byte taken, and one who is dropped does not hear that it is
AT_WORK_SECONDS = 0.05  # of telling, before it rests
REST, MOST_REST_SECONDS = 4, 0.2  # so many times as long as it was at work, it rests, or so long
LATE_CHANGES = 20_000  # have not been told to somebody who has kept up so far: no time to rest, or they will be history no more
RETRY_SECONDS = 1.0  # when the state cannot be read
_NOTHING = memoryview(b"")


class Watcher:
    """One who watches a Stream on *connection*. ``position``: the id up to which it was told, when it was last not up to date."""

    def __init__(self, connection, stream, head):
        self.connection, self.stream = connection, stream
        self.position = stream.position
        self.has_kept_up = False  # it was up to date, once
        self.pending = memoryview(head + beginning(self.position))  # may be of the same bytes as that of others
        self.is_blocked = False  # until the system takes more of that
        self.last_words = None  # that come after what is pending, and then nothing
        self.moved = time.monotonic()  # when bytes were last taken, or all had been

    @property
    def can_be_told(self):
        return not self.pending and self.last_words is None


class UpToDate:
    """Watchers that have been told everything, by their prefixes: a change is the work of those who are told of it, not of all."""

    def __init__(self):
        self._watching = {}  # prefix -> {Watcher: None}
        self._lengths, self._rising = Counter(), []  # of these prefixes

    def __contains__(self, watcher):
        return watcher in self._watching.get(watcher.stream.prefix, ())

    def add(self, watcher):
        prefix = watcher.stream.prefix
        if prefix not in self._watching:
            self._watching[prefix] = {}
            self._count(len(prefix), 1)
        self._watching[prefix][watcher] = None

    def remove(self, watcher):
        prefix = watcher.stream.prefix
        del self._watching[prefix][watcher]
        if not self._watching[prefix]:
            del self._watching[prefix]
            self._count(len(prefix), -1)

    def _count(self, length, more):
        self._lengths[length] += more
        if not self._lengths[length]:
            del self._lengths[length]
        if len(self._rising) != len(self._lengths):
            self._rising = sorted(self._lengths)

    def of(self, changes):
        """[(prefix, its Watchers, those of *changes* that are of keys with that prefix)], of prefixes that are watched."""
        found = {}
        for change in changes:
            key = change.key
            for length in self._rising:
                if length > len(key):
                    break
                if (prefix := key[:length]) in self._watching:
                    found.setdefault(prefix, []).append(change)
        return [(prefix, list(self._watching[prefix]), some) for prefix, some in found.items()]

    def all(self):
        return [watcher for group in self._watching.values() for watcher in group]


class Parked:
    """A request that is answered, by *resume*, when *key* has changed after *index*, or *deadline* has come, or the client has gone.

    ``resume`` is None once that is so.
    """

    def __init__(self, key, index, deadline, connection, resume):
        self.key, self.index, self.deadline, self.connection, self.resume = key, index, deadline, connection, resume
        self.descriptor = connection.fileno()


class Watchers:
    """All who watch on a node with that *state*, a ``KeyValueStore``, from ``start`` to ``stop``."""

    def __init__(self, state, most):
        self._state, self._most = state, most
        self._epoll = select.epoll()
        self._sleeper, self._waker = socket.socketpair()
        self._sleeper.setblocking(False)
        self._waker.setblocking(False)
        self._epoll.register(self._sleeper, select.EPOLLIN)
        self._awake = self._stopping = self._ended = False
        self._incoming = deque()  # Watchers and Parkeds of other threads
        self._watching = {}  # descriptor -> Watcher; of those who can be told something, each is in one of the next three
        self._up_to_date = UpToDate()
        self._behind, self._ahead = {}, {}  # Watcher -> None; who was told something last comes last
        self._parked, self._waiting = {}, {}  # key -> its Parkeds; descriptor -> Parked
        self._deadlines, self._numbers = [], count()  # of the Parkeds, a heap
        self._told = 0  # the id up to which all who are up to date have been told
        self._rest_until, self._next_look = 0.0, math.inf  # at who is too slow, or hears nothing
        self._is_resting = False  # it will find what has changed
        self._thread = threading.Thread(target=self._run, name="watchers")
        state.subscribe(self._applied, lambda: bool(self._watching or self._waiting))

    @property
    def are_full(self):
        return len(self._watching) + len(self._waiting) + len(self._incoming) >= self._most

    def start(self):
        """Returns self."""
        self._thread.start()
        return self

    def stop(self):
        """End all streams; let those who wait for a key be answered."""
        self._stopping = True
        self._wake_up()
        self._thread.join()
        for part in (self._epoll, self._sleeper, self._waker):
            part.close()

    # In any thread

    def take(self, connection, head, stream):
        """Tell *stream* on *connection*, a socket that is this one's from now on, after *head*."""
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._add(Watcher(connection, stream, head))

    def park(self, key, index, seconds, connection, resume):
        """Call *resume*, in any thread, when *key* has changed after *index*, or the client of *connection*, a socket, has gone; after so
        many *seconds* at the latest."""
        self._add(Parked(key, index, time.monotonic() + seconds, connection, resume))

    def _add(self, new):
        self._incoming.append(new)
        self._wake_up()
        if self._ended:
            self._let_go()

    def _applied(self):
        if (self._watching or self._waiting) and not self._is_resting:
            self._wake_up()

    def _wake_up(self):
        if not self._awake:
            self._awake = True
            with suppress(OSError):  # full: it is awake already; closed: it has ended
                self._waker.send(b"\0")

    # In the thread of this

    def _run(self):
        try:
            while not self._stopping:
                try:
                    self._step()
                except Exception:  # nobody would be told anything any more, and nobody would know
                    log.exception("all who watch are sent away")
                    self._let_go()
        finally:
            self._ended = True
            self._let_go()

    def _let_go(self):
        """End all streams, and let all who wait be answered."""
        while self._incoming:
            with suppress(IndexError):  # another thread has taken it
                new = self._incoming.popleft()
                new.resume() if isinstance(new, Parked) else new.connection.close()
        for watcher in list(self._watching.values()):
            self._forget(watcher)
        for parked in list(self._waiting.values()):
            self._release(parked)

    def _step(self):
        self._is_resting = time.monotonic() < self._rest_until
        ready = dict(self._epoll.poll(self._seconds_to_wait()))
        if ready.pop(self._sleeper.fileno(), None):
            self._sleeper.recv(4096)
        self._awake = self._is_resting = False  # before anything that may fail
        for descriptor, happened in ready.items():
            if watcher := self._watching.get(descriptor):
                self._serve(watcher, happened)
            elif parked := self._waiting.get(descriptor):
                self._release(parked)
        while self._incoming:
            self._begin(self._incoming.popleft())
        now = time.monotonic()
        if now >= self._rest_until and self._has_more():
            self._tell()
            ended = time.monotonic()
            self._rest_until = max(self._rest_until, ended + (0 if self._is_late() else min(REST * (ended - now), MOST_REST_SECONDS)))
        if now >= self._next_look:
            self._look_at_all(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            self._release(heapq.heappop(self._deadlines)[2])
        if len(self._deadlines) > 2 * len(self._waiting) + 100:  # most are of those who have been answered
            self._deadlines = [entry for entry in self._deadlines if entry[2].resume]
            heapq.heapify(self._deadlines)

    def _seconds_to_wait(self):
        """Until something is due; -1 for ever."""
        due = [self._next_look, *(deadline for deadline, *_ in self._deadlines[:1])]
        if self._is_resting or self._has_more():
            due.append(self._rest_until)
        return -1 if min(due) == math.inf else max(0, min(due) - time.monotonic())

    def _has_more(self):
        """True if somebody may not have been told everything."""
        return bool(self._watching or self._waiting) and (self._told < change_id(self._state.position.index) or bool(self._behind))

    def _is_late(self):
        """Who asks for what is long past has to wait for it, and makes nobody hurry."""
        slowest = min([watcher.position for watcher in self._behind if watcher.has_kept_up], default=self._told)
        return self._state.changes_after(slowest) > LATE_CHANGES

    def _begin(self, new):
        if not self._watching and not self._waiting:
            self._told = change_id(self._state.position.index)
        if isinstance(new, Parked):
            self._wait(new)
            return
        try:
            self._epoll.register(new.connection, select.EPOLLIN)
        except OSError as error:
            log.warning("somebody cannot watch error=%s", error)
            new.connection.close()
            return
        self._watching[new.connection.fileno()] = new
        self._next_look = min(self._next_look, time.monotonic() + 1.0)
        self._send(new)

    def _wait(self, parked):
        self._parked.setdefault(parked.key, []).append(parked)
        self._waiting[parked.descriptor] = parked
        heapq.heappush(self._deadlines, (parked.deadline, next(self._numbers), parked))
        try:
            self._epoll.register(parked.connection, select.EPOLLRDHUP)
            changed = self._state.read(HasChanged(parked.key, parked.index))
        except (RaftdError, OSError, ValueError):  # who answers it will find that, too, and say so
            changed = True
        if changed:
            self._release(parked)

    def _release(self, parked):
        if parked.resume is None:
            return
        resume, parked.resume = parked.resume, None
        self._parked[parked.key].remove(parked)
        if not self._parked[parked.key]:
            del self._parked[parked.key]
        if self._waiting.get(parked.descriptor) is parked:  # if its connection was closed, another may have that number now
            del self._waiting[parked.descriptor]
        with suppress(OSError, ValueError):  # it was never registered, or is closed
            self._epoll.unregister(parked.connection)
        resume()

    # What has changed

    def _tell(self):
        """Everybody the next changes; those who are behind, as many as there is time for."""
        try:
            self._tell_those_up_to_date()
            self._tell_those_behind(time.monotonic() + AT_WORK_SECONDS)
        except RaftdError as error:
            if not isinstance(error, Stopping):
                log.warning("who watches is told nothing until the state can be read error=%s", error)
            self._rest_until = time.monotonic() + RETRY_SECONDS

    def _tell_those_up_to_date(self):
        before, position = self._told, self._state.position.index
        try:
            changes, applied_index = self._state.read(Changes(before, CHANGES_AT_ONCE, BYTES_AT_ONCE))
        except HistoryGone:  # each will find that it can go on, or is told that it cannot
            self._told = change_id(position)
            for watcher in self._up_to_date.all():
                self._fall_behind(watcher, before)
            self._place_those_ahead()
            for parked in list(self._waiting.values()):
                self._release(parked)
            return
        self._told = changes[-1].id if changes else max(before, change_id(applied_index))
        texts, until = {}, time.monotonic() + AT_WORK_SECONDS  # (prefix, keys_only) -> what those are told
        for prefix, concerned, some in self._up_to_date.of(changes):
            for watcher in concerned:
                wanted = prefix, watcher.stream.keys_only
                if wanted not in texts:
                    if texts and time.monotonic() >= until:
                        self._fall_behind(watcher, before)
                        continue
                    texts[wanted] = events(some, *wanted)
                self._say(watcher, texts[wanted])
        self._place_those_ahead()
        last = {change.key: change.id for change in changes}
        for key in last.keys() & self._parked.keys():
            for parked in list(self._parked[key]):
                if last[key] > change_id(parked.index):  # it may know of what is only now applied here
                    self._release(parked)

    def _tell_those_behind(self, until):
        """In turn: who was told something waits until all others were."""
        known = {}
        for watcher in list(self._behind):
            if known and time.monotonic() >= until:
                return
            self._catch_up(watcher, known)

    def _catch_up(self, watcher, known):
        """*known*: what others at the same position were told: (position, prefix, keys_only) -> (position, text), or HistoryGone."""
        wanted = watcher.position, watcher.stream.prefix, watcher.stream.keys_only
        if wanted not in known:
            known[wanted] = self._what_comes_after(*wanted)
        if isinstance(known[wanted], HistoryGone):
            self._drop(watcher, "gone", str(known[wanted]))
            return
        watcher.position, text = known[wanted]
        self._say(watcher, text)

    def _what_comes_after(self, position, prefix, keys_only):
        try:
            changes = self._state.read(Changes(position, CHANGES_AT_ONCE, BYTES_AT_ONCE)).changes
        except HistoryGone as error:
            return error
        changes = [change for change in changes if change.id <= self._told]
        return changes[-1].id if changes else self._told, events(changes, prefix, keys_only)

    def _place_those_ahead(self):
        for watcher in list(self._ahead):
            self._place(watcher)

    def _place(self, watcher):
        """Have it where it is found when there is more to tell: nowhere, while it is not to be told more."""
        if watcher in self._up_to_date:
            if watcher.can_be_told:
                return
            self._fall_behind(watcher, self._told)
        self._behind.pop(watcher, None)
        self._ahead.pop(watcher, None)
        if not watcher.can_be_told:
            return
        if watcher.position < self._told:
            self._behind[watcher] = None
            return
        watcher.has_kept_up = True
        if watcher.position == self._told:
            self._up_to_date.add(watcher)
        else:
            self._ahead[watcher] = None

    def _fall_behind(self, watcher, position):
        """Of those up to date, one that has only been told up to *position*."""
        self._up_to_date.remove(watcher)
        watcher.position = position
        self._behind[watcher] = None

    # Connections

    def _say(self, watcher, data):
        watcher.pending = memoryview(data)
        self._send(watcher)

    def _send(self, watcher):
        """As much of what is pending as the system takes."""
        try:
            while watcher.pending:
                watcher.pending = watcher.pending[watcher.connection.send(watcher.pending):]
                watcher.moved = time.monotonic()
            watcher.pending = _NOTHING  # an empty part of what was told would hold all of it
        except BlockingIOError:
            pass
        except OSError:
            self._forget(watcher)
            return
        if watcher.last_words and not watcher.pending:
            watcher.pending, watcher.last_words = memoryview(watcher.last_words), b""
            self._send(watcher)
            return
        if watcher.last_words == b"" and not watcher.pending:
            self._forget(watcher)
            return
        self._place(watcher)
        if watcher.is_blocked != bool(watcher.pending):
            watcher.is_blocked = bool(watcher.pending)
            self._epoll.modify(watcher.connection, select.EPOLLIN | (select.EPOLLOUT if watcher.is_blocked else 0))

    def _serve(self, watcher, happened):
        if happened & (select.EPOLLHUP | select.EPOLLERR):
            self._forget(watcher)
            return
        if happened & select.EPOLLIN:
            try:
                if not watcher.connection.recv(4096):  # what it says is of no interest, but that it says no more
                    self._forget(watcher)
                    return
            except BlockingIOError:
                pass
            except OSError:
                self._forget(watcher)
                return
        if happened & select.EPOLLOUT:
            self._send(watcher)

    def _drop(self, watcher, event, reason):
        """It has one more event to hear."""
        log.info("who watches is dropped reason=%s", reason)
        watcher.last_words, watcher.moved = farewell(event, reason, watcher.position), time.monotonic()
        self._send(watcher)

    def _forget(self, watcher):
        if self._watching.pop(watcher.connection.fileno(), None):
            watcher.last_words = b""
            self._place(watcher)
            with suppress(OSError, ValueError):
                self._epoll.unregister(watcher.connection)
            watcher.connection.close()

    def _look_at_all(self, now):
        """Once a second: at who is too slow, and who has heard nothing for long."""
        held, size = set(), 0  # what is pending for some, by identity; how much that is
        for watcher in sorted(self._watching.values(), key=lambda watcher: -watcher.moved):
            if watcher.last_words is not None:
                if now - watcher.moved > FAREWELL_SECONDS:
                    self._forget(watcher)
                continue
            if watcher.pending and id(watcher.pending.obj) not in held:
                held.add(id(watcher.pending.obj))
                size += len(watcher.pending.obj)
            if watcher.pending and (now - watcher.moved > STALL_SECONDS or size > MAX_PENDING_BYTES):
                self._drop(watcher, "dropped", "too slow: nothing was taken for a while, and there is more to tell")
            elif not watcher.pending and now - watcher.moved > KEEP_ALIVE_SECONDS:
                self._say(watcher, keep_alive(self._told if watcher in self._up_to_date else watcher.position))
        self._next_look = now + 1.0 if self._watching else math.inf
