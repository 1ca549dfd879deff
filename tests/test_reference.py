"""Each line of curl in raftd/REFERENCE.rst works as it stands there, and answers what stands below it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import Cluster
from raftd import errors

REFERENCE = Path(__file__).resolve().parent.parent / "raftd" / "REFERENCE.rst"


def examples():
    """(line of a shell, what it answers) in their order."""
    found = []
    for block in re.findall(r"(?:^    .*\n|^\n)+", REFERENCE.read_text(), re.M):
        for part in re.split(r"^    \$ ", block, flags=re.M)[1:]:
            line, _, answer = part.partition("\n")
            found.append((line, re.sub(r"^    ", "", answer, flags=re.M).strip("\n")))
    return found


def matches(expected, answer):
    return re.fullmatch(".*?".join(re.escape(part) for part in expected.split("...")), answer.strip("\n"), re.S)


@pytest.mark.cluster
@pytest.mark.skipif(not shutil.which("curl"), reason="the lines of the reference need curl")
def test_each_line_answers_what_stands_below_it(tmp_path):
    lines = examples()
    assert len(lines) > 30
    with Cluster(tmp_path, 1) as cluster:
        for line, expected in lines:
            line = line.replace("curl ", "curl -sS ", 1).replace("localhost:4001", cluster[1].address)
            answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
            assert answer.returncode in (0, 28), (line, answer.stderr)  # 28: --max-time ends a stream
            assert matches(expected.replace("localhost:4001", cluster[1].address), answer.stdout), (line, answer.stdout, expected)


def test_every_error_is_in_the_table():
    text = REFERENCE.read_text()
    for error in vars(errors).values():
        if not isinstance(error, type) or not issubclass(error, errors.RaftdError) or error is errors.RaftdError:
            continue
        retry = error.retry
        assert re.search(rf"^``{error.code}`` +{error.status}.*{retry} ", text, re.M), error


def test_an_answer_that_differs_is_found():
    assert matches('{"a": ..., "b": 1}', '{"a": 7, "b": 1}\n') and not matches('{"a": ..., "b": 1}', '{"a": 7, "b": 2}')
