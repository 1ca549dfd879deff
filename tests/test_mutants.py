"""Planted bugs: that the checks bite is shown by ``bin/mutants``, of which the quick part runs here; and that it cannot flatter itself."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cluster import wait_until
from mutants import CATALOGUE, ROOMS, command
from mutants.mutant import Edit, Mutant, RuleError
from mutants.runner import Runner

TOP = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, TOP / "bin/mutants"]

# The catalogue


def test_there_are_many_bugs_and_some_of_each_room_for_every_day():
    assert len(CATALOGUE) >= 40
    assert [name for name, count in Counter(mutant.name for mutant in CATALOGUE).items() if count > 1] == []
    assert sum(mutant.quick for mutant in CATALOGUE) >= 15
    assert all(any(mutant.quick for mutant in room) for room in ROOMS)


@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda mutant: mutant.name)
def test_a_bug_can_be_planted(mutant):
    """Whoever changes a line that a rule looks for changes the rule as well; and a check that is renamed is renamed there."""
    texts = mutant.edited(TOP)
    assert texts
    for path, text in texts.items():
        assert text != (TOP / path).read_text()
        compile(text, path, "exec")
    assert mutant.checks and all(is_there(check) for check in mutant.checks)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", mutant.name) and mutant.wrong.endswith(".") and mutant.source


def is_there(check):
    path, _, test = check.partition("::")
    if not test:
        return check.startswith("bin/simulate ")
    return f"\ndef {test.partition('[')[0]}(" in (TOP / path).read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bugs_for_every_day_are_noticed():
    done = subprocess.run([*COMMAND, "--quick"], capture_output=True, text=True)
    count = sum(mutant.quick for mutant in CATALOGUE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{count} planted bugs: {count} killed, \d+ s$", done.stdout, re.M), done.stdout


# The runner, on a small tree of its own

SOURCE = """
def add(one, other):
    return one + other


def count(numbers):
    return len(numbers)
"""
TESTS = """
import subprocess, sys, time
import pytest
from raftd.numbers import add, count

def test_add():
    assert add(2, 3) == 5

def test_add_nothing():
    assert add(2, 0) == 2

def test_count():
    assert count([]) == 0

def test_other():
    assert add([], []) == []

@pytest.fixture
def counted():
    return count([1]) + 0

def test_fixture(counted):
    assert counted

@pytest.mark.timeout(1)
def test_with_a_timeout():
    while add(1, 1) != 2:
        time.sleep(0.1)

@pytest.mark.timeout(0)
def test_that_never_ends():
    if add(1, 1) != 2:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        with open(PIDS, "w") as file:
            file.write(f"{child.pid}\\\\n")
        time.sleep(600)

def test_red():
    assert add(1, 1) == 3

@pytest.mark.skipif(True, reason="not here")
def test_skipped():
    assert add(1, 1) == 2
""".replace("\\\\", "\\")
SIMULATE = """
import sys
from raftd.numbers import add, count
if add(1, 1) != 2:
    sys.exit("seed 7: AssertionError('one and one')")
sys.exit(int(count([1]) != 1))
"""
RIGHT = "return one + other"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    top = tmp_path_factory.mktemp("top") / "tree"
    files = {
        "raftd/__init__.py": "", "raftd/numbers.py": SOURCE, "tests/test_numbers.py": TESTS.replace("PIDS", repr(str(pids_of(top)))),
        "bin/simulate": "import os.path; sys_path = __import__('sys').path; sys_path.insert(0, os.path.dirname(os.path.dirname(__file__)))"
                        + SIMULATE,
        "setup.cfg": "[tool:pytest]\npythonpath = .\n", ".venv/large": "not copied",
    }
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def pids_of(tree):
    """Where a test that hangs notes what it has started."""
    return tree.parent / "pids"


def bug(new, *checks, old=RIGHT, path="numbers.py"):
    return Mutant("bug", "It is wrong.", "here", [Edit(path, old, new)],
                  [check if check.startswith("bin/") else f"tests/test_numbers.py::{check}" for check in checks])


VERDICTS = [
    (bug("return one - other", "test_add"), "killed", r"test_add: assert -1 == 5"),
    (bug("return one - other", "test_add_nothing", "test_add"), "killed", r"test_add: assert -1 == 5"),
    (bug("return other / 0", "test_add"), "killed", r"test_add: ZeroDivisionError: division by zero"),
    (bug("return None", "test_fixture", old="return len(numbers)"), "killed", r"test_fixture: TypeError"),
    (bug("return 3", "bin/simulate --seeds 5"), "killed", r"seed 7: AssertionError\('one and one'\)"),
    (bug("return one - other", "test_add_nothing"), "survived", r"tests/test_numbers.py::test_add_nothing"),
    (bug("return one - other", "test_add_nothing", "test_count"), "survived", r"test_add_nothing, .*test_count"),
    (bug("return one - other", "test_with_a_timeout"), "timed out", r"test_with_a_timeout.*Timeout"),
    (bug("return (", "test_add"), "broken", r"exit status 4: ERROR.*test_numbers.py"),
    (bug("return 5", "bin/simulate --seeds 5", old="return len(numbers)"), "broken", r"exit status 1"),
    (bug("import os; os._exit(1)", "test_add"), "broken", r"exit status 1"),
    (bug("return 0", "test_add", old="return a + b"), "no rule", r"raftd/numbers.py has 0 times, not once: return a \+ b"),
    (bug("give", "test_add", old="return"), "no rule", r"has 2 times, not once: return"),
    (bug(RIGHT, "test_add"), "no rule", r"raftd/numbers.py stays as it is"),
    (bug("", "test_add", path="letters.py"), "no rule", r"there is no raftd/letters.py"),
    (bug("return one - other", "test_add", "test_nothing"), "no check", r"test_nothing is broken without the bug: .*not found"),
    (bug("return one - other", "test_add", "test_red"), "no check", r"test_red is red without the bug: .*assert 2 == 3"),
    (bug("return one - other", "test_skipped"), "no check", r"test_skipped is skipped without the bug: .*skipped"),
    (bug("return one - other", "test_skipped", "test_add"), "killed", r"test_add: assert -1 == 5"),
    (bug("return one - other", "test_skipped", "test_add_nothing"), "survived", r"^tests/test_numbers.py::test_add_nothing$"),
    (bug("return one - other", "bin/nothing"), "no check", r"bin/nothing is broken without the bug"),
]


def test_verdicts(tree):
    found = Runner(tree, 2).run([mutant for mutant, _, _ in VERDICTS])
    for one, (_, kind, detail) in zip(found, VERDICTS, strict=True):
        assert one.kind == kind and re.search(detail, one.detail), one


def test_every_check_must_see_it_if_that_is_asked_for(tree):
    bugs = [bug("return 0", "test_add", "test_add_nothing"), bug("return one - other", "test_add", "test_add_nothing"),
            bug("return one - other", "test_add", "test_with_a_timeout"), bug("return one - other", "test_add", "test_skipped")]
    assert [found.kind for found in Runner(tree, 2).run(bugs)] == ["killed", "killed", "killed", "killed"]
    assert [found.kind for found in Runner(tree, 2, every=True).run(bugs)] == ["killed", "survived", "timed out", "no check"]


def test_a_check_that_does_not_end_is_ended_with_all_that_it_has_started(tree):
    found, = Runner(tree, 1, least_limit_seconds=1).run([bug("return one - other", "test_that_never_ends")])
    assert found.kind == "timed out" and "had not ended after" in found.detail, found
    wait_until(lambda: has_ended(pids_of(tree)), "its server has ended")


def has_ended(pids):
    try:
        return "\nState:\tZ" in Path(f"/proc/{int(pids.read_text())}/status").read_text()
    except FileNotFoundError:
        return True


def test_who_is_interrupted_leaves_nothing_behind(tree, tmp_path):
    """Neither processes nor copies."""
    pids_of(tree).unlink(missing_ok=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = ("from signal import *; from mutants.mutant import *; from mutants.runner import Runner\n"
            "signal(SIGINT, default_int_handler)  # what a shell starts in the background ignores it\n"
            f"list(Runner({str(tree)!r}, 1).run([Mutant('bug', '', '', [Edit('numbers.py', {RIGHT!r}, 'return 0')],\n"
            "                                  ['tests/test_numbers.py::test_that_never_ends'])]))")
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TOP / "tests"), "TMPDIR": str(scratch)},
                               stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: pids_of(tree).exists() and pids_of(tree).read_text().endswith("\n"), "it hangs")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    finally:
        process.kill()
    wait_until(lambda: has_ended(pids_of(tree)), "its server has ended")
    assert list(scratch.iterdir()) == []


def test_the_tree_itself_is_never_touched(tree):
    def contents():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tree.rglob("*") if path.is_file()}
    before = contents()
    assert [found.kind for found in Runner(tree, 2).run([bug("return one - other", "test_add")] * 2)] == ["killed", "killed"]
    assert contents() == before


def test_who_works_on_the_tree_meanwhile_changes_nothing(tree, tmp_path):
    mine = shutil.copytree(tree, tmp_path / "mine")
    verdicts = Runner(mine, 1).run([bug("return one - other", "test_add")] * 3)
    assert next(verdicts).kind == "killed"
    shutil.rmtree(mine)
    assert [found.kind for found in verdicts] == ["killed", "killed"]


def test_edits_are_applied_one_after_the_other(tree):
    edits = [Edit("numbers.py", "one + other", "first"), Edit("numbers.py", "first", "second")]
    text, = Mutant("bug", "It is wrong.", "here", edits, []).edited(tree).values()
    assert text == SOURCE.replace("one + other", "second")
    with pytest.raises(RuleError):
        Mutant("bug", "It is wrong.", "here", [*edits, edits[0]], []).edited(tree)


# The command


def test_a_list_says_what_the_bugs_are(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for mutant in CATALOGUE:
        assert f"{mutant.name}" in listed and mutant.wrong in listed and all(check in listed for check in mutant.checks)
    assert command.main(["--list", "--quick"]) == 0
    assert len(re.findall(r"^\S", capsys.readouterr().out, re.M)) == sum(mutant.quick for mutant in CATALOGUE)


@pytest.mark.parametrize("arguments", [["no-such-bug"], ["--jobs", "0"], ["--jobs", "x"], ["--nothing"]])
def test_a_wrong_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and "bin/mutants: error: " in capsys.readouterr().err


def test_a_bug_that_is_not_noticed_fails_the_command(tree, monkeypatch, capsys):
    noticed, missed = bug("return one - other", "test_add"), bug("return one - other", "test_add_nothing")
    monkeypatch.setattr(command, "TOP", tree)
    monkeypatch.setattr(command, "CATALOGUE", [noticed])
    assert command.main([]) == 0
    assert re.search(r"^killed +bug +\d+\.\d s  tests/test_numbers.py::test_add: assert -1 == 5\n1 planted bugs: 1 killed, \d+ s$",
                     capsys.readouterr().out, re.M)
    monkeypatch.setattr(command, "CATALOGUE", [noticed, missed])
    assert command.main([]) == 1
    assert re.search(r"^2 planted bugs: 1 killed, 1 survived, \d+ s$", capsys.readouterr().out, re.M)
