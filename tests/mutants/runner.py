"""Plants each bug in a copy of the tree and runs the checks that should see it. Never touches the tree itself."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mutants.mutant import RuleError

LIMIT_SECONDS = 300.0  # what a check may take without the bug
LEAST_LIMIT_SECONDS, LIMIT_FACTOR = 100.0, 10  # and with it: so many times what it took without, but at the least so long
_directory = partial(TemporaryDirectory, ignore_cleanup_errors=True)  # what was just ended may still be writing
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "data")

# What a check can come to. Only "red" is a test that failed by an assertion or an error of its own.
GREEN, RED, SKIPPED, TIMED_OUT, BROKEN = "green", "red", "skipped", "timed out", "broken"
# What becomes of a mutant. All but the first are a failure: of a check, or of the catalogue.
KILLED, SURVIVED, NO_RULE, NO_CHECK = "killed", "survived", "no rule", "no check"

_PYTEST = ["-m", "pytest", "-q", "-x", "--tb=short", "-rfE", "--color=no", "-p", "no:cacheprovider"]
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - (.*))?$", re.M)  # of pytest's summary
_VIOLATION = re.compile(r"^(seed \d+): (.*)$", re.M)  # of bin/simulate


class Outcome(NamedTuple):
    """Of one run of a check: what it came to, and by which test and line."""

    kind: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant, and why."""

    mutant: object
    kind: str
    detail: str
    seconds: float


class Runner:
    """Judges mutants of the tree at *root*, *jobs* at a time. With *every*, each check of a mutant must see it, else one is enough."""

    def __init__(self, root, jobs, every=False, least_limit_seconds=LEAST_LIMIT_SECONDS):
        self._root, self._jobs, self._every, self._least_limit_seconds = Path(root), jobs, every, least_limit_seconds
        self._running, self._lock = set(), threading.Lock()
        self._clean, self._baseline = None, {}

    def run(self, mutants):
        """A Verdict for each of *mutants*, in order, as they come."""
        checks = list(dict.fromkeys(check for mutant in mutants for check in mutant.checks))
        with _directory(prefix="raftd-mutants-") as scratch, self._pool() as pool:
            self._clean = _copy(self._root, Path(scratch, "clean"))  # so that all is of one moment, whoever works on the tree meanwhile
            tree = _copy(self._clean, Path(scratch, "raftd"))
            outcomes = pool.map(lambda check: self._check(check, tree, LIMIT_SECONDS), checks)
            self._baseline = dict(zip(checks, outcomes, strict=True))
            yield from pool.map(lambda mutant: self._judge(mutant, scratch), mutants)

    @contextmanager
    def _pool(self):
        """Threads, which end, with the processes they wait for, also when the caller is interrupted."""
        pool = ThreadPoolExecutor(self._jobs)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                for process in self._running:
                    _end(process)
            pool.shutdown()

    def _judge(self, mutant, scratch):
        checks = [check for check in mutant.checks if self._baseline[check].kind == GREEN]
        unsound = [check for check in mutant.checks if self._baseline[check].kind not in (GREEN, SKIPPED)]
        if unsound or not checks or (self._every and checks != mutant.checks):
            check = next(iter(unsound), next(check for check in mutant.checks if check not in checks))
            outcome = self._baseline[check]
            return Verdict(mutant, NO_CHECK, f"{check} is {outcome.kind} without the bug: {outcome.detail}", outcome.seconds)
        try:
            texts = mutant.edited(self._clean)
        except RuleError as error:
            return Verdict(mutant, NO_RULE, str(error), 0.0)
        with _directory(dir=scratch) as directory:
            tree = _copy(self._clean, Path(directory, "raftd"))
            for path, text in texts.items():
                (tree / path).write_text(text)
            return self._verdict(mutant, checks, tree)

    def _verdict(self, mutant, checks, tree):
        outcomes = []
        for check in checks:
            limit = max(self._least_limit_seconds, LIMIT_FACTOR * self._baseline[check].seconds)
            outcomes.append(self._check(check, tree, limit))
            if outcomes[-1].kind == RED and not self._every:
                break
        seconds = sum(outcome.seconds for outcome in outcomes)
        red = [outcome for outcome in outcomes if outcome.kind == RED]
        if red and (len(red) == len(outcomes) or not self._every):
            return Verdict(mutant, KILLED, red[-1].detail, seconds)
        other = next((outcome for outcome in outcomes if outcome.kind not in (RED, GREEN)), None)
        if other:
            return Verdict(mutant, other.kind, other.detail, seconds)
        green = [check for check, outcome in zip(checks, outcomes, strict=False) if outcome.kind == GREEN]
        return Verdict(mutant, SURVIVED, ", ".join(green), seconds)

    def _check(self, check, tree, limit_seconds):
        """The Outcome of *check* in *tree*."""
        with _directory(dir=tree.parent) as directory:
            began, output = time.monotonic(), Path(directory, "output")
            words = check.split() if check.startswith("bin/") else [*_PYTEST, f"--basetemp={directory}/t", check]
            status = self._execute([sys.executable, *words], tree, directory, output, limit_seconds)
            seconds, text = time.monotonic() - began, output.read_text(errors="replace")
        if status is None:
            return Outcome(TIMED_OUT, f"{check} had not ended after {limit_seconds:.0f} s", seconds)
        found = _violation(status, text) if check.startswith("bin/") else _failure(status, text)
        return Outcome(*found, seconds)

    def _execute(self, command, tree, directory, output, limit_seconds):
        """The exit status of *command*; None if it had to be ended. All that it has started ends with it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
        environment |= {"COLUMNS": "2000", "TMPDIR": directory}
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                       start_new_session=True)
        with self._lock:
            self._running.add(process)
        try:
            return process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            process.wait()
            return None
        finally:
            with self._lock:
                self._running.discard(process)
            _end_all_of(directory)


def _copy(source, target):
    return Path(shutil.copytree(source, target, ignore=_NOT_COPIED))


def _failure(status, text):
    """(kind, detail) of a run of pytest."""
    match status, _FAILURE.search(text), text.strip().rpartition("\n")[2]:
        case 1, found, _ if "from pytest-timeout" in text or "+++ Timeout +++" in text:
            return TIMED_OUT, found[0] if found else "ended by pytest-timeout"
        case 1, found, _ if found:
            return RED, f"{found[1]}: {found[2] or 'failed'}"
        case 0, _, summary:
            return SKIPPED if " skipped" in summary else GREEN, summary
        case _, _, summary:
            error = re.search(r"^ERROR.*$", text, re.M)
            return BROKEN, f"exit status {status}: {error[0] if error else summary}"


def _violation(status, text):
    """(kind, detail) of a run of bin/simulate."""
    found = _VIOLATION.search(text)
    if status == 1 and found:
        return RED, f"{found[1]}: {found[2]}"
    return (GREEN if status == 0 else BROKEN), f"exit status {status}: {text.strip().rpartition(chr(10))[2]}"


def _end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _end_all_of(directory):
    """End what a check has left behind: servers have sessions of their own, but all that it starts has this TMPDIR."""
    mark = b"\0TMPDIR=" + os.fsencode(directory) + b"\0"
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in b"\0" + path.read_bytes() + b"\0":
                os.kill(int(path.parent.name), signal.SIGKILL)
