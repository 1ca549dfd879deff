"""Each file of transcripts/ says exactly what happens. ``pytest tests/test_transcripts.py --rewrite`` writes down what happens now."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transcripts.commands import COMMANDS, replay

HERE = Path(__file__).parent
FILES = sorted((HERE / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(path, pytestconfig):
    told = path.read_text()
    happens = replay(told)
    if pytestconfig.getoption("--rewrite") and told != happens:
        path.write_text(happens)
        return
    assert told.splitlines() == happens.splitlines()
    assert told == happens, "white space"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_transcript_begins_with_words_for_the_reader(path):
    first = path.read_text().split("\n\n")[0].splitlines()
    assert len(first) > 1 and all(line.startswith("#") for line in first)


def test_every_command_is_used():
    lines = [line for path in FILES for line in path.read_text().splitlines()]
    assert [name for name in COMMANDS if not any(line.split(" ")[0] == name for line in lines)] == []


@pytest.mark.parametrize("line", [
    "elekt s1", "elect s9", "wait soon s1", "arrive nothing", "save s1", "timeout", "send s1 s2 early", "log s1",
])
def test_a_line_that_makes_no_sense_is_named(line):
    with pytest.raises(ValueError, match=line):
        replay(f"cluster s1 s2 s3\n{line}\n")


def test_a_new_transcript_needs_only_comments_and_commands():
    assert replay("# Two.\n\ncluster s1 s2\nheal\n\npropose s1 x=1\nstate s1\n") == (
        "# Two.\n\ncluster s1 s2\nheal\n----\nok\n\n"
        "propose s1 x=1\nstate s1\n----\nNotLeader: raft.Server: Not current leader\n"
        "s1 follows nobody in term 0: started, vote=none log=[]\n")


def run_pytest(directory, *options):
    """The exit status of the tests of the transcripts that are in *directory*."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_transcripts.py::test_transcript", *options]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, timeout=60).returncode


def test_a_wrong_transcript_fails_until_it_is_rewritten(tmp_path):
    for name in ("conftest.py", "test_transcripts.py"):
        shutil.copy(HERE / name, tmp_path)
    shutil.copytree(HERE / "transcripts", tmp_path / "transcripts", ignore=shutil.ignore_patterns(*[path.name for path in FILES[2:]]))
    first, second = (tmp_path / "transcripts" / path.name for path in FILES[:2])
    right, written = first.read_text(), second.stat().st_mtime_ns
    wrong = right.replace("leads in term 1", "leads in term 2")
    first.write_text(wrong)
    assert run_pytest(tmp_path) == 1 and first.read_text() == wrong, "a test changes nothing"
    assert run_pytest(tmp_path, "--rewrite") == 0 and first.read_text() == right
    assert second.stat().st_mtime_ns == written, "what was right is not written again"
