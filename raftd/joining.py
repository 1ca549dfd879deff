"""How a starting node finds its cluster, becomes a member of it, and tells it a new address: HTTP requests to the members it knows."""

import logging
import threading
import time
from concurrent.futures import Future

import requests
from urllib3.exceptions import NewConnectionError

from raftd.errors import StartupError

log = logging.getLogger(__name__)

NO_MEMBER = "this node is no member of its cluster any more; to take it in again, start it with -join"
PATIENCE_SECONDS = 5.0  # nobody answers, or no leader is known: members that start at the same time need a moment
ANSWER_SECONDS = 1.0  # what one request may take; then the leader says that it is still at work
WITHDRAW_SECONDS = 1.5  # who is told to stop must be gone soon
PAUSE_SECONDS = 0.2
MOST_PAUSE_SECONDS = 10.0
_NO_ANSWER = (requests.RequestException, ValueError, KeyError, TypeError)


def find_cluster(addresses, stopping):
    """(id of the cluster, address that answered) of the first of *addresses* that knows. Raises StartupError when none answers."""
    deadline, problems = time.monotonic() + PATIENCE_SECONDS, {}
    while True:
        for address in _until(stopping, addresses):
            try:
                return _status(address)["cluster"], address
            except _NO_ANSWER as error:
                problems[address] = _reason(error)
        if time.monotonic() >= deadline or stopping.wait(PAUSE_SECONDS):
            raise StartupError("nobody to join: " + "; ".join(f"{address}: {problem}" for address, problem in problems.items()))


def voters_at(addresses, cluster, stopping):
    """The names of the voters that the first of *addresses* to answer knows, or None if none answers.

    Raises StartupError when it belongs to another cluster than *cluster*.
    """
    for address in _until(stopping, addresses):
        try:
            status = _status(address)
            voters = [member["name"] for member in status["members"] if member["voter"]]
        except _NO_ANSWER as error:
            log.debug("no answer address=%s error=%s", address, _reason(error))
            continue
        _check_cluster(status, cluster, address)
        return voters
    return None


def _check_cluster(status, cluster, address):
    if status["cluster"] != cluster:
        raise StartupError(f"the data path belongs to another cluster than {address}; use an empty data path to join that one")


def _until(stopping, tries):
    return (one for one in tries if not stopping.is_set())


def _request(method, url, seconds, body=None):
    """The answer, if it comes in *seconds*. Raises RequestException or ValueError.

    Nothing bounds how long the system's resolver takes, or an answer that comes byte by byte: a daemon waits for them, and no end of
    the process waits for it. What the environment says of proxies is not for servers of one cluster.
    """
    outcome = Future()

    def ask():
        try:
            with requests.Session() as session:
                session.trust_env = False
                outcome.set_result(session.request(method, url, json=body, timeout=(ANSWER_SECONDS, seconds)))
        except Exception as error:
            outcome.set_exception(error)
    try:
        threading.Thread(target=ask, name="asking", daemon=True).start()
    except RuntimeError as error:
        raise requests.ConnectionError(str(error)) from error
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        raise requests.Timeout() from error


def _status(address):
    answer = _request("GET", f"http://{address}/status", ANSWER_SECONDS)
    answer.raise_for_status()
    return answer.json()


class Joiner:
    """Asks *addresses*, and whomever they name as leader, to take the server *name* at *address*, with the files *id*, in.

    *stopping* is an Event that ends it early. ``may_be_in`` is False as long as certainly no leader has begun to take it in.
    """

    def __init__(self, name, id, address, addresses, stopping):
        self._name, self._id, self._body = name, id, {"name": name, "connectionString": f"http://{address}"}
        self._addresses, self._stopping = list(addresses), stopping
        self._problem = "nobody answered"
        self.may_be_in = False

    def join(self):
        """Become a member. Raises StartupError when the cluster refuses, or cannot be reached."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._stopping.is_set():
            for address in _until(self._stopping, self._addresses):
                outcome = self._ask(address)
                if outcome == "joined":
                    return
                if outcome == "working":  # the leader has taken this node in as a learner, and it catches up
                    deadline = time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() >= deadline:
                raise StartupError(f"could not join the cluster: {self._problem}")
            self._stopping.wait(PAUSE_SECONDS)
        raise StartupError("stopped before it had joined the cluster")

    def announce(self, cluster):
        """Tell *cluster* the address of this member, however long that takes; not if it has removed this member meanwhile."""
        pause, warned = PAUSE_SECONDS, False
        while not self._stopping.wait(pause):
            try:
                if self._was_removed_from(cluster):
                    log.warning(NO_MEMBER)
                    return
                self.join()
                log.info("told the cluster the new address address=%s", self._body["connectionString"])
                return
            except StartupError as error:
                if not warned and not self._stopping.is_set():
                    log.warning("the cluster does not know the new address yet, and is asked again reason=%s", error)
                warned, pause = True, min(2 * pause, MOST_PAUSE_SECONDS)

    def _was_removed_from(self, cluster):
        """True if the leader says so; others may not know yet that this node is a member, or that it is not."""
        for address in _until(self._stopping, self._addresses):
            try:
                status = _status(_status(address)["leader"]["address"])
                _check_cluster(status, cluster, address)
                if status["role"] == "leader":
                    return self._name not in [member["name"] for member in status["members"]]
            except _NO_ANSWER as error:
                log.debug("no answer address=%s error=%s", address, _reason(error))
        return False

    def _ask(self, address):
        """One round with the server at *address*; a follower names the leader, which is asked at once."""
        for _ in _until(self._stopping, range(3)):
            try:
                answer = _request("POST", f"http://{address}/join?timeout={ANSWER_SECONDS:g}s", 3 * ANSWER_SECONDS, self._body)
            except (requests.RequestException, ValueError) as error:
                self._problem = f"{address}: {_reason(error)}"
                self.may_be_in = self.may_be_in or not _was_not_sent(error)
                return "failed"
            if answer.ok:
                return "joined"
            code, leader = answer.headers.get("X-Raft-Error"), answer.headers.get("X-Raft-Leader", "")
            self._problem = f"{address}: {answer.text.strip()}"
            self.may_be_in = self.may_be_in or answer.headers.get("X-Raft-Retry") == "maybe"
            if code == "commit_timeout":
                return "working"
            if code == "bad_request":
                raise StartupError(f"could not join the cluster: {self._problem}")
            leader = leader.removeprefix("http://")
            if code != "not_leader" or not leader or leader == address:
                if code == "not_leader" and not leader:
                    self._problem = f"{address}: no leader is known"
                return "failed"
            log.info("Attempting to join leader: %s", leader)
            address = leader
        return "failed"

    def withdraw(self):
        """The join has failed: ask the cluster, which may have begun to take this node in, to forget it. True if it has.

        It forgets these files: their name may be that of another member, which is why the join was refused in the end.
        """
        deadline = time.monotonic() + WITHDRAW_SECONDS
        for address in self._addresses:
            try:
                found = _request("GET", f"http://{address}/leader", _until_deadline(deadline)).json()["address"]
                url = f"http://{found}/members/{self._name}?id={self._id}&timeout={ANSWER_SECONDS:g}s"
                answer = _request("DELETE", url, _until_deadline(deadline))
                if answer.ok or answer.headers.get("X-Raft-Error") == "not_found":
                    return True
            except _NO_ANSWER as error:
                log.debug("nobody to take the join back address=%s error=%s", address, _reason(error))
        return False


def _until_deadline(deadline):
    """The time a request may take. Raises Timeout when there is none left."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise requests.Timeout()
    return min(remaining, ANSWER_SECONDS)


def _was_not_sent(error):
    """True if no connection was made, so that nobody has read the request."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectionError) and isinstance(cause, NewConnectionError)


def _reason(error):
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    if isinstance(error, requests.Timeout):
        return "does not answer in time"
    return " ".join(str(error).split()) or type(error).__name__
