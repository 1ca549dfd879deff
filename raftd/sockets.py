"""What waitress waits for, by epoll: a wait costs as much as has happened, not as much as there are connections.

waitress asks every connection before every wait what it waits for. Here a connection is asked again when something has happened
to it: in the thread that waits, or in another one, which says so (``changed``).
"""

import select
from collections import deque

from waitress import wasyncore

_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT  # of the values that poll has, too


class Sockets(dict):
    """The descriptors of a server and who serves each: waitress's map. ``loop`` waits for them, in one thread."""

    def __init__(self):
        super().__init__()
        self._epoll = select.epoll()
        self._waits_for = {}  # descriptor -> events; one for which nothing is awaited is not there, like one that epoll has not
        self._watched = {}  # descriptor -> what to call when there is something to be read from it, once
        self._changed = deque()
        self.before_wait = self.after_wait = lambda: None  # are called then

    def __setitem__(self, descriptor, dispatcher):
        super().__setitem__(descriptor, dispatcher)
        self.changed(dispatcher)

    def __delitem__(self, descriptor):
        super().__delitem__(descriptor)
        if self._waits_for.pop(descriptor, None):
            self._epoll.unregister(descriptor)

    def changed(self, dispatcher):
        """What *dispatcher* waits for may be something else now. In any thread; another than that of the loop must wake it then.

        Who was only read from says so itself, if it does.
        """
        self._changed.append(dispatcher)

    def goes_on(self, dispatcher):
        """``changed``, for one that may be read from again; costs nothing if it always could. In the thread of the loop."""
        if dispatcher._fileno not in self._waits_for:
            self._changed.append(dispatcher)

    def watch(self, open_socket, readable):
        """Call *readable*, once, in the thread of the loop, when there is something to be read, or when the loop ends. In any thread.

        For a socket that nobody serves. Raises OSError, and ValueError when the loop has ended.
        """
        descriptor = open_socket.fileno()
        self._watched[descriptor] = readable
        try:
            try:
                self._epoll.modify(descriptor, _READ | select.EPOLLONESHOT)
            except FileNotFoundError:  # it is the first time
                self._epoll.register(descriptor, _READ | select.EPOLLONESHOT)
        except (OSError, ValueError):
            if self._watched.pop(descriptor, None) is not None:  # else the end of the loop has called it already
                raise

    def loop(self, timeout, **_):
        """Serve, until nobody is left. Waits at most *timeout* seconds at a time."""
        try:
            while self:
                self._serve(timeout)
                self.before_wait()
        finally:
            self._epoll.close()
            while self._watched:
                self._watched.popitem()[1]()

    def _serve(self, timeout):
        while self._changed:
            self._ask(self._changed.popleft())
        happened = self._epoll.poll(timeout)
        self.after_wait()
        for descriptor, events in happened:
            dispatcher = self.get(descriptor)
            if dispatcher is not None:
                wasyncore.readwrite(dispatcher, events)
                if events != _READ:
                    self.changed(dispatcher)
            elif readable := self._watched.pop(descriptor, None):  # else it was closed meanwhile
                readable()

    def _ask(self, dispatcher):
        descriptor = dispatcher._fileno
        if self.get(descriptor) is not dispatcher:  # closed meanwhile
            return
        events = (_READ if dispatcher.readable() else 0) | (_WRITE if dispatcher.writable() and not dispatcher.accepting else 0)
        before = self._waits_for.pop(descriptor, 0)
        if events:
            self._waits_for[descriptor] = events
        if events and not before:
            self._epoll.register(descriptor, events)
        elif events and events != before:
            self._epoll.modify(descriptor, events)
        elif before and not events:
            self._epoll.unregister(descriptor)
