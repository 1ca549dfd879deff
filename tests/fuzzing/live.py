"""A raftd process and raw sockets: what ``surface`` shows without threads, here with all of them, and with what the system knows of it."""

import json
import re
import shutil
import socket
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import cluster
from fuzzing import Finding, answers, frames, rarely
from fuzzing.conversations import Conversation, conversation
from fuzzing.surface import shown
from raftd import wire
from raftd.errors import Refusal
from raftd.kv import Expire, Request, decode
from raftd.raft.messages import COMMAND, RequestVote

PATIENCE_SECONDS = 20.0  # until an answer must be there; the longest that a request may want to wait is refused or rare
WARM_UP = 300  # cases until memory and threads are what they stay
MOST_GROWTH_BYTES = 64 << 20
FAULTS = (*cluster.FAULTS_OF_OURS, "uncaptured", "Exception", "could not be answered")


class Live:
    """``with Live() as live: live.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "live", "requests"
    exercised = ("requests", "done", "refused", "handed to peers")

    def __enter__(self):
        self.counts, self._directory, self._cases, self._warm = Counter(), Path(tempfile.mkdtemp(prefix="raftd-live-")), 0, None
        self.server = cluster.Server("n1", 0, self._directory / "data", self._directory / "log")
        try:
            self._start()
        except BaseException:
            self.server.end()
            shutil.rmtree(self._directory)
            raise
        return self

    def _start(self):
        """On any free port: others may look for one at the same time. That a disk takes its time is no finding."""
        self.server.start(flags=["-election-timeout", "20s"])
        self.server.address = re.search(r"Listening at: http://(\S+)", self.server.log())[1]
        cluster.wait_until(lambda: self.server.leads, "it leads")
        self._client, self._unknown, self._known_again = cluster.Client(self.server.address), 0, 0
        self._identity = self._asked("/raft/identity")

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.check_the_process()
                if (status := self.server.terminate()) != 0:
                    raise Finding(f"exit status {status}")
        finally:
            self._client.close()
            self.server.end()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _asked(self, path):
        answer = self._client.call("GET", path, timeout=PATIENCE_SECONDS)
        if answer.status != 200:
            raise Finding(f"GET {path}: {answer}; running: {self.server.running}; {self.server.log()[-2000:]}")
        return json.loads(answer.body)

    def attack(self, rng):
        said = self._of_a_stranger(rng) if rarely(rng, 0.1) else self._here(rng, conversation(rng))
        before, heard = self._state(), b""
        try:
            heard = self._heard(said)
            self._check(answers.answers_in(heard, said.sent), heard, before, said)
        except Finding as finding:
            raise Finding(f"{finding}\nsaid, then {said.end}: {shown(said.pieces)}\nheard: {shown(heard)}") from None
        self._cases += 1
        if self._cases == WARM_UP:
            self._warm = self.server.used()
        elif self._cases % 1000 == 0:
            self.check_the_process()

    def _here(self, rng, said):
        """*said* for this very server; who waits for an entry far away has his way seldom, since that takes five seconds each."""
        names = {b"Raft-Cluster: c1": b"Raft-Cluster: " + self._identity["cluster"].encode(),
                 b"Raft-To-Id: id1": b"Raft-To-Id: " + self._identity["id"].encode()}
        if not rarely(rng, 0.01):
            names[b"min_index"] = b"min-index"
        pieces = said.pieces
        for old, new in names.items():
            pieces = [piece.replace(old, new) for piece in pieces]
        return Conversation(pieces, "close" if said.end == "close" and rarely(rng, 0.02) else "end")

    def _of_a_stranger(self, rng):
        """Frames on a connection that he got by a lie: that he is of a configuration which has not arrived here.

        Votes are refused to him all the same. What a leader says would not be: one that was removed just now may be unknown (thesis 4.2.2).
        """
        fields = {"Raft-Cluster": self._identity["cluster"], "Raft-From": "n2", "Raft-To": "n1", "Raft-To-Id": self._identity["id"],
                  "Raft-Configuration": "1000000000000", "Raft-Lane": "small", "Upgrade": wire.PROTOCOL}
        head = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        status = self._asked("/status")
        raft = SimpleNamespace(term=status["term"], commit_index=status["commit_index"], configurations=SimpleNamespace(latest_index=0),
                               log=SimpleNamespace(last_index=status["last_log_index"], last_term=status["term"], snapshot_index=0,
                                                   term_at=lambda index: status["term"]))
        sent = []
        for _ in range(rng.randint(1, 5)):
            data = frames.frame(rng, raft, "n2")
            try:  # the first frame in it: more may follow, which does not make that one less true
                header, payload = data[:wire.HEADER.size], data[wire.HEADER.size:]
                message, _ = wire.decode(header, payload[:wire.payload_length(header)])
                data = wire.encode(message, 0) if isinstance(message, RequestVote) else b"x" + data  # more would be believed
            except (wire.WireError, wire.struct.error, Refusal):
                pass
            sent.append(data)
        return Conversation([f"GET /raft/ HTTP/1.1\r\n{head}\r\n".encode(), *sent], "frames")

    def _heard(self, said):
        """What the server says until it has nothing more to say."""
        host, port = self.server.address.split(":")
        heard = b""
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as client:
            try:
                for number, piece in enumerate(said.pieces):
                    client.sendall(piece)
                    if number == 0 and said.end == "frames":
                        heard += client.recv(1 << 16)
                if said.end == "close":
                    return b""
                client.shutdown(socket.SHUT_WR)
                while data := client.recv(1 << 16):
                    heard += data
            except TimeoutError:
                raise Finding(f"no end after {PATIENCE_SECONDS:g} s, heard {heard}") from None
            except OSError:  # it has closed the connection, and what was on its way is lost
                return b""
        return heard

    def _state(self):
        status = self._asked("/status")
        return {name: status[name] for name in ("role", "term", "voted_for", "last_log_index", "snapshot_index", "name", "cluster")} | {
            "members": [(member["name"], member["address"], member["voter"]) for member in status["members"]]}

    def _check(self, said_back, heard, before, said):
        done = sum(answer.status < 400 or answer.code in ("not_found", "precondition_failed", "commit_timeout") for answer in said_back)
        self.counts["requests"] += max(1, len(said_back))
        self.counts["handed to peers"] += b"HTTP/1.1 101" in heard
        self.counts["done"] += done
        self.counts["refused"] += len(said_back) - done
        after = self._state()
        written = after["last_log_index"] - before["last_log_index"]
        if self._cases >= self._known_again:
            self._unknown = 0
        if said.end == "close" or not heard:  # nobody knows what was done, or will be in a moment
            self._unknown, self._known_again = self._unknown + said.sent.count(b"HTTP/1."), self._cases + 50
            return
        if written > done + self._unknown:
            written -= self._expiries_after(before["last_log_index"])
        if not 0 <= written <= done + self._unknown or {**after, "last_log_index": 0} != {**before, "last_log_index": 0}:
            raise Finding(f"{done} requests were done, and the server went from {before} to {after}")

    def _expiries_after(self, index):
        """How many entries of the log after *index* the server has proposed by itself, since the time of some key is over."""
        with tempfile.TemporaryDirectory(prefix="raftd-live-log-") as copy:
            for file in self.server.path.glob("raft.db*"):
                shutil.copy(file, copy)
            with closing(sqlite3.connect(f"{copy}/raft.db")) as connection:
                rows = connection.execute("SELECT command FROM log WHERE kind = ? AND log_index > ?", (COMMAND, index)).fetchall()
        return sum(isinstance(command := decode(data), Request) and isinstance(command.command, Expire) for (data,) in rows)

    # The process

    def check_the_process(self):
        """It lives, has said nothing of a fault, and needs no more than it did."""
        if not self.server.running:
            raise Finding(f"the process has ended: {self.server.process.returncode}\n{self.server.log()[-3000:]}")
        faults = [line for line in self.server.log().splitlines() if any(fault in line for fault in FAULTS)]
        if faults:
            raise Finding("in the log: " + "\n".join(faults[:20]))
        if self._warm is None:
            return

        def is_as_before():
            memory, threads, descriptors = (now - then for now, then in zip(self.server.used(), self._warm, strict=True))
            return memory < MOST_GROWTH_BYTES and threads <= 2 and descriptors <= 20
        try:
            cluster.wait_until(is_as_before, "")
        except AssertionError:
            raise Finding(f"{self._warm} after {WARM_UP} cases, and {self.server.used()} after {self._cases}") from None
