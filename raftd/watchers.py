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
from collections import deque
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
REST = 4  # so many times as long as it took to tell all, it rests
RETRY_SECONDS = 1.0  # when the state cannot be read


class Watcher:
    """One who watches a Stream on *connection*."""

    def __init__(self, connection, stream, head):
        self.connection, self.stream = connection, stream
        self.position = stream.position
        self.pending = memoryview(head + beginning(self.position))
        self.moved = time.monotonic()  # when bytes were last taken, or all had been
        self.ends = False  # nothing comes after what is pending


class Parked:
    """A request that is answered, by *resume*, when *key* has changed after *index*, or *deadline* has come."""

    def __init__(self, key, index, deadline, resume):
        self.key, self.index, self.deadline, self.resume = key, index, deadline, resume


class Watchers:
    """All who watch on a node with that *state*, a ``KeyValueStore``, from ``start`` to ``stop``."""

    def __init__(self, state, most):
        self._state, self._most = state, most
        self._epoll = select.epoll()
        self._sleeper, self._waker = socket.socketpair()
        self._sleeper.setblocking(False)
        self._waker.setblocking(False)
        self._epoll.register(self._sleeper, select.EPOLLIN)
        self._awake, self._stopping = False, False
        self._incoming = deque()  # Watchers and Parkeds of other threads
        self._watching = {}  # descriptor -> Watcher
        self._parked, self._deadlines, self._numbers = {}, [], count()  # key -> its Parkeds; all of them, by deadline
        self._told = 0  # the id up to which all who are up to date have been told
        self._is_behind = False  # somebody is not, who could be told more now
        self._rest_until, self._next_look = 0.0, math.inf  # at who is too slow, or hears nothing
        self._thread = threading.Thread(target=self._run, name="watchers")
        state.subscribe(self._applied)

    @property
    def are_full(self):
        return len(self._watching) + len(self._incoming) >= self._most

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
        self._incoming.append(Watcher(connection, stream, head))
        self._wake_up()

    def park(self, key, index, seconds, resume):
        """Call *resume*, in any thread, when *key* has changed after *index*, after so many *seconds* at the latest."""
        self._incoming.append(Parked(key, index, time.monotonic() + seconds, resume))
        self._wake_up()

    def _applied(self):
        if self._watching or self._parked:
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
                self._step()
        except Exception:  # nobody would be told anything any more, and nobody would know
            log.exception("who watches cannot be told any more")
        finally:
            self._stopping = True
            for watcher in [*self._watching.values(), *[new for new in self._incoming if isinstance(new, Watcher)]]:
                watcher.connection.close()
            waiting = [parked for others in self._parked.values() for parked in others]
            for parked in [*waiting, *[new for new in self._incoming if isinstance(new, Parked)]]:
                parked.resume()

    def _step(self):
        for descriptor, happened in self._epoll.poll(self._seconds_to_wait()):
            if descriptor == self._sleeper.fileno():
                self._sleeper.recv(4096)
            elif watcher := self._watching.get(descriptor):
                self._serve(watcher, happened)
        self._awake = False
        while self._incoming:
            self._begin(self._incoming.popleft())
        now = time.monotonic()
        if now >= self._rest_until and self._has_more():
            self._tell()
            self._rest_until = (ended := time.monotonic()) + REST * (ended - now)
        if now >= self._next_look:
            self._look_at_all(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            self._release(heapq.heappop(self._deadlines)[2])

    def _seconds_to_wait(self):
        """Until something is due; -1 for ever."""
        due = [self._next_look, *(deadline for deadline, *_ in self._deadlines[:1]), *([self._rest_until] if self._has_more() else [])]
        return -1 if min(due) == math.inf else max(0, min(due) - time.monotonic())

    def _has_more(self):
        """True if somebody may not have been told everything."""
        return bool(self._watching or self._parked) and (self._told < change_id(self._state.position.index) or self._is_behind)

    def _begin(self, new):
        if not self._watching and not self._parked:
            self._told, self._is_behind = change_id(self._state.position.index), False
        if isinstance(new, Parked):
            self._parked.setdefault(new.key, []).append(new)
            heapq.heappush(self._deadlines, (new.deadline, next(self._numbers), new))
            if self._state.read(HasChanged(new.key, new.index)):
                self._release(new)
            return
        self._watching[new.connection.fileno()] = new
        self._epoll.register(new.connection, select.EPOLLIN)
        self._next_look = min(self._next_look, time.monotonic() + 1.0)
        self._send(new)

    def _release(self, parked):
        waiting = self._parked.get(parked.key, [])
        if parked in waiting:
            waiting.remove(parked)
            if not waiting:
                del self._parked[parked.key]
            parked.resume()

    # What has changed

    def _tell(self):
        """Everybody the next changes."""
        try:
            before, changes = self._told, self._next_changes()
        except RaftdError as error:
            if not isinstance(error, Stopping):
                log.warning("who watches is told nothing until the state can be read error=%s", error)
            self._rest_until = time.monotonic() + RETRY_SECONDS
            return
        texts = {}  # (prefix, keys_only) -> what those are told
        for watcher in list(self._watching.values()):
            if watcher.position == before and not watcher.pending and not watcher.ends:
                stream = watcher.stream
                wanted = stream.prefix, stream.keys_only
                if wanted not in texts:
                    texts[wanted] = events(changes, *wanted)
                watcher.position = self._told
                self._say(watcher, texts[wanted])
        last = {change.key: change.id for change in changes}
        for key in last.keys() & self._parked.keys():
            for parked in list(self._parked[key]):
                if last[key] > change_id(parked.index):  # it may know of what is only now applied here
                    self._release(parked)
        self._tell_those_behind()

    def _next_changes(self):
        """Those after ``_told``, which moves on."""
        position = self._state.position.index
        try:
            changes = self._state.read(Changes(self._told, CHANGES_AT_ONCE, BYTES_AT_ONCE)).changes
        except HistoryGone:  # another state was installed: each will find that it can go on, or not
            self._told, self._is_behind = change_id(position), True
            return []
        self._told = changes[-1].id if changes else max(self._told, change_id(position))
        return changes

    def _tell_those_behind(self):
        self._is_behind = False
        for watcher in list(self._watching.values()):
            if watcher.position >= self._told or watcher.ends:
                continue
            if not watcher.pending:
                self._catch_up(watcher)
            self._is_behind = self._is_behind or self._could_be_told(watcher)

    def _could_be_told(self, watcher):
        return watcher.position < self._told and not watcher.pending and not watcher.ends

    def _catch_up(self, watcher):
        stream = watcher.stream
        try:
            changes = self._state.read(Changes(watcher.position, CHANGES_AT_ONCE, BYTES_AT_ONCE)).changes
        except HistoryGone as error:
            self._drop(watcher, "gone", str(error))
            return
        watcher.position = changes[-1].id if changes else self._told
        self._say(watcher, events([change for change in changes if change.id <= self._told], stream.prefix, stream.keys_only))
        watcher.position = min(watcher.position, self._told)

    # Connections

    def _say(self, watcher, data):
        if data:
            watcher.pending = memoryview(data)
            self._send(watcher)

    def _send(self, watcher):
        """As much of what is pending as the system takes."""
        try:
            while watcher.pending:
                watcher.pending = watcher.pending[watcher.connection.send(watcher.pending):]
                watcher.moved = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self._forget(watcher)
            return
        if watcher.ends and not watcher.pending:
            self._forget(watcher)
            return
        self._is_behind = self._is_behind or self._could_be_told(watcher)
        self._epoll.modify(watcher.connection, select.EPOLLIN | (select.EPOLLOUT if watcher.pending else 0))

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
        watcher.ends, watcher.moved = True, time.monotonic()
        watcher.pending = memoryview(bytes(watcher.pending) + farewell(event, reason, watcher.position))
        self._send(watcher)

    def _forget(self, watcher):
        if self._watching.pop(watcher.connection.fileno(), None):
            self._epoll.unregister(watcher.connection)
            watcher.connection.close()

    def _look_at_all(self, now):
        """Once a second: at who is too slow, and who has heard nothing for long."""
        pending = sum(len(watcher.pending) for watcher in self._watching.values())
        for watcher in sorted(self._watching.values(), key=lambda watcher: watcher.moved):
            if watcher.ends:
                if now - watcher.moved > FAREWELL_SECONDS:
                    self._forget(watcher)
            elif watcher.pending and (now - watcher.moved > STALL_SECONDS or pending > MAX_PENDING_BYTES):
                pending -= len(watcher.pending)
                self._drop(watcher, "dropped", "too slow: nothing was taken for a while, and there is more to tell")
            elif not watcher.pending and now - watcher.moved > KEEP_ALIVE_SECONDS:
                self._say(watcher, keep_alive(self._state.position.index))
        self._next_look = now + 1.0 if self._watching else math.inf
