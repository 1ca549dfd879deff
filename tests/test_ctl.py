"""``raftctl``: what it prints, in each format, and its exit status, which scripts rely on."""

import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import Cluster, wait_until
from raftd import __version__, ctl
from raftd.client import Client
from raftd.ctl import output
from raftd.errors import CommitTimeout

BIN = Path(__file__).resolve().parent.parent / "bin"
COMMANDS = ("get", "set", "delete", "list", "watch", "txn", "lock", "members", "join", "remove", "promote", "transfer", "status", "health",
            "bench", "completion")


class Said(bytes):
    """What was printed; ``status`` and ``error`` besides."""


@pytest.fixture(scope="module", params=[3, 1], ids=["three", "one"])
def cluster(request, tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("ctl"), request.param) as cluster:
        yield cluster


@pytest.fixture
def raftctl(cluster, monkeypatch, capfdbinary):
    """Runs it, with the last server as the only endpoint; ``raftctl("get", "a")`` is a Said."""
    monkeypatch.setenv("RAFTD_ENDPOINTS", cluster.servers[-1].address)
    cluster.leader()
    with Client(cluster.servers[0].address) as client:
        client.delete_prefix("", all=True)
    capfdbinary.readouterr()

    def run(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = ctl.main(list(words))
        out, error = capfdbinary.readouterr()
        said = Said(out)
        said.status, said.error = status, error.decode()
        return said
    return run


def of_json(said):
    return [json.loads(line) for line in said.decode().splitlines()]


pytestmark = pytest.mark.cluster


# Keys


def test_a_value_comes_back_byte_for_byte(raftctl, tmp_path):
    value = bytes(range(256))
    (tmp_path / "value").write_bytes(value)
    assert raftctl("set", "a", "--file", str(tmp_path / "value")).status == 0
    assert (raftctl("get", "a"), raftctl("get", "a").status) == (value, 0)
    assert raftctl("set", "a", "-", stdin=value * 2).status == 0
    assert raftctl("get", "a", "-o", "plain", "--level", "leader") == value * 2
    assert raftctl("set", "a", "").status == 0
    assert (raftctl("get", "a"), raftctl("get", "a").status) == (b"", 0)


def test_a_key_that_is_not_there_is_1(raftctl):
    for words in (("get", "none"), ("delete", "none"), ("get", "none", "--wait", "100ms")):
        said = raftctl(*words)
        assert (said, said.status, said.error) == (b"", 1, "")


def test_conditions(raftctl):
    [written] = of_json(raftctl("set", "a", "1", "--if-absent", "-o", "json"))
    again = raftctl("set", "a", "2", "--if-absent")
    assert (again.status, again.error) == (1, f"raftctl: the key was last written at {written['index']}\n")
    assert raftctl("set", "a", "2", "--if-index", str(written["index"])).status == 0
    assert raftctl("delete", "a", "--if-index", str(written["index"])).status == 1
    assert raftctl("get", "a") == b"2"


def test_a_fence(raftctl):
    [held] = of_json(raftctl("set", "lock", "me", "--if-absent", "--ttl", "1m", "-o", "json"))
    assert raftctl("set", "data", "1", "--fence", f"lock={held['index']}").status == 0
    assert raftctl("set", "data", "1", "--fence", "lock=1").status == 1
    assert raftctl("delete", "data", "--fence", "lock=1").status == 1
    assert raftctl("txn", '{"then": [{"delete": "data"}]}', "--fence", "lock=1").status == 1


def test_a_list_in_each_format(raftctl):
    for words in (("k/a", "1"), ("k/b", "line\nfeed \x1b[31m"), ("k/c", "x", "--ttl", "60s"), ("z", ""), ("k/a", "2")):
        raftctl("set", *words)
    assert raftctl("list", "k/", "-o", "plain") == b"k/a\nk/b\nk/c\n"
    titles, *rows = raftctl("list", "k/").decode().splitlines()
    assert titles.split() == ["KEY", "INDEX", "VERSION", "EXPIRES", "IN", "VALUE"]
    assert [row.split()[0] for row in rows] == ["k/a", "k/b", "k/c"] and rows[0].split()[2:] == ["2", "2"]
    assert rows[1].endswith(r"line\nfeed \x1b[31m"), "a terminal obeys nothing that is in a value"
    assert 0 < int(re.search(r" (\d+)s ", rows[2])[1]) <= 60
    found = of_json(raftctl("list", "k/", "-o", "json"))
    assert [(item["key"], item["value"], item["version"]) for item in found] == [
        ("k/a", "2", 2), ("k/b", "line\nfeed \x1b[31m", 1), ("k/c", "x", 1)]
    assert "value" not in of_json(raftctl("list", "k/", "-o", "json", "--keys-only"))[0]
    assert raftctl("list", "-o", "plain", "--limit", "2", "--after", "k/a") == b"k/b\nk/c\n"
    assert raftctl("list", "none", "-o", "plain") == b""


def test_a_key_is_on_one_line_and_no_terminal_obeys_it(raftctl):
    raftctl("set", "l/a\nb\x07", "1")
    assert raftctl("list", "l/", "-o", "plain").splitlines() == [rb"l/a\nb\x07"]
    for format in ("table", "plain"):
        [line] = raftctl("watch", "l/", "--since", "0", "--count", "1", "-o", format).splitlines()
        assert line.split(b" ", 1)[1].startswith(rb"put l/a\nb\x07")
    assert of_json(raftctl("list", "l/", "-o", "json"))[0]["key"] == "l/a\nb\x07"


def test_bytes_that_are_no_text(raftctl):
    raftctl("set", "a", "-", stdin=b"\xff\xfe")
    assert of_json(raftctl("get", "a", "-o", "json"))[0]["value_base64"] == "//4="
    assert "(2 bytes)" in raftctl("list").decode()


def test_many_are_deleted_by_their_prefix(raftctl):
    for key in ("k/a", "k/b", "z"):
        raftctl("set", key, "1")
    assert (raftctl("delete", "--prefix", "k/"), raftctl("list", "-o", "plain")) == (b"2\n", b"z\n")
    refused = raftctl("delete", "--prefix", "")
    assert refused.status == 64 and "--all" in refused.error
    assert of_json(raftctl("delete", "--prefix", "", "--all", "-o", "json")) == [{"deleted": 1}]


def test_a_transaction(raftctl):
    then = '{"if": [{"key": "a", "exists": false}], "then": [{"set": "a", "value": "1"}, {"get": "a"}], "else": [{"get": "a"}]}'
    done, again = raftctl("txn", then), raftctl("txn", "-", stdin=then.encode())
    assert (done.status, again.status) == (0, 1)
    assert [of_json(said)[0]["succeeded"] for said in (done, again)] == [True, False]
    assert [result.get("value") for result in of_json(done)[0]["results"] + of_json(again)[0]["results"]] == [None, "1", "1"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"than": []}'])
def test_a_transaction_that_is_none_is_64(raftctl, text):
    said = raftctl("txn", text)
    assert said.status == 64 and said.error.splitlines()[-1].startswith("raftctl: ")


def test_a_watch(raftctl):
    raftctl("set", "w/a", "1"), raftctl("delete", "w/a"), raftctl("set", "w/b", "two\nlines")
    lines = raftctl("watch", "w/", "--since", "0", "--count", "3").decode().splitlines()[-3:]
    assert [line.split(" ", 1)[1] for line in lines] == ["put w/a 1", "delete w/a", r"put w/b two\nlines"]
    found = of_json(raftctl("watch", "w/", "--since", lines[0].split()[0], "--count", "2", "-o", "json"))
    assert [(change["event"], change["key"], change.get("value")) for change in found] == [
        ("delete", "w/a", None), ("put", "w/b", "two\nlines")]


def test_a_get_waits(raftctl, cluster):
    writing = threading.Timer(0.3, lambda: cluster.write("late", b"1"))
    writing.start()
    assert raftctl("get", "late", "--wait", "30s") == b"1"
    writing.join()


# Locks


def test_a_lock_is_held_while_its_command_runs(raftctl):
    show = [sys.executable, "-c", "import os; print(os.environ['RAFTD_FENCE'])"]
    said = raftctl("lock", "job", "--ttl", "5s", "--", *show)
    name, token = said.decode().strip().rsplit("=", 1)
    assert (name, said.status) == ("job", 0) and int(token) > 0
    assert raftctl("get", "job").status == 1, "it was given back"


def test_the_status_is_that_of_the_command(raftctl):
    assert raftctl("lock", "job", "--", "sh", "-c", "exit 7").status == 7
    assert raftctl("lock", "job", "--", "sh", "-c", "kill -9 $$").status == 137
    for command, status, error in (("/no/such/command", 127, "No such file"), ("/", 126, "Permission denied")):
        said = raftctl("lock", "job", "--", command)
        assert said.status == status and said.error.startswith(f"raftctl: {command}: {error}")
    assert raftctl("get", "job").status == 1, "it was given back"


def is_caught(process, number):
    caught = next(line.split()[1] for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return int(caught, 16) >> (number - 1) & 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_end_is_for_the_command_and_then_the_lock_is_given_back(raftctl, cluster, number, status):
    with Client(cluster.servers[0].address) as client:
        held = subprocess.Popen([BIN / "raftctl", "lock", "job", "--", "sh", "-c", "echo $$; exec sleep 60"], stdout=subprocess.PIPE)
        command = int(held.stdout.readline())
        assert client.get("job")
        waits = subprocess.Popen([BIN / "raftctl", "lock", "job", "--", "true"])
        wait_until(lambda: is_caught(waits, number), "the signal is of concern to who waits")
        waits.send_signal(number)
        held.send_signal(number)
        assert (held.wait(20), waits.wait(20)) == (status, status)
        assert not Path(f"/proc/{command}").exists() and client.get("job") is None
    held.stdout.close()


def test_a_command_may_take_its_time_to_end(raftctl, tmp_path):
    command = "cd $0; trap 'touch told; until [ -e may-end ]; do sleep 0.1; done; exit 5' TERM; echo ready; while true; do sleep 0.1; done"
    held = subprocess.Popen([BIN / "raftctl", "lock", "job", "--", "sh", "-c", command, tmp_path], stdout=subprocess.PIPE)
    assert held.stdout.readline() == b"ready\n"
    held.terminate()
    wait_until((tmp_path / "told").exists, "the command is told")
    assert raftctl("get", "job").status == 0, "until it has ended the lock is held"
    (tmp_path / "may-end").touch()
    assert held.wait(20) == 5 and raftctl("get", "job").status == 1
    held.stdout.close()


def test_a_lock_is_not_too_short(raftctl):
    said = raftctl("lock", "job", "--ttl", "1ms", "--", "true")
    assert said.status == 64 and "0.1 s at the least" in said.error


def test_a_lock_that_another_holds(raftctl):
    raftctl("set", "job", "another", "--ttl", "1m")
    began = time.monotonic()
    said = raftctl("lock", "job", "--wait", "300ms", "--", "true")
    assert said.status == 1 and "another holds the lock" in said.error and time.monotonic() - began >= 0.3


def test_a_command_whose_lock_is_lost_is_ended(raftctl, cluster):
    def steal():
        with Client(cluster.servers[0].address) as client:
            wait_until(lambda: client.get("job"), "the lock to be held")
            client.set("job", "stolen")
            client.delete("job")
    stealing = threading.Thread(target=steal)
    stealing.start()
    began = time.monotonic()
    said = raftctl("lock", "job", "--ttl", "1s", "--", "sleep", "30")
    stealing.join()
    assert said.status == 3 and "was lost" in said.error and time.monotonic() - began < 25


# The cluster


def test_members_status_health(raftctl, cluster):
    names = sorted(server.name for server in cluster.servers)
    assert sorted(raftctl("members", "-o", "plain").decode().split()) == names
    assert sorted(member["name"] for member in of_json(raftctl("members", "-o", "json"))[0]) == names
    assert raftctl("members").decode().splitlines()[0].split() == ["NAME", "ADDRESS", "ROLE", "VOTER", "MATCH", "INDEX"]
    roles = wait_until(lambda: (said := dict(map(str.split, raftctl("status", "-o", "plain").decode().splitlines())))
                       and "leader" in said.values() and said, "one leads")
    assert sorted(roles) == names and list(roles.values()).count("leader") == 1
    assert raftctl("status").decode().count("1.0.0") == len(names)
    health = wait_until(lambda: (said := raftctl("health", "-o", "plain")).status == 0 and said, "all are ready")
    assert health.decode().count(" healthy") == len(names)


def test_members_are_as_the_leader_knows_them(cluster, capsys):
    """Whoever is asked first, and the environment names all."""
    endpoints = ",".join(server.address for server in cluster.servers)
    def known():
        assert ctl.main(["members", "-o", "json", "--endpoints", endpoints]) == 0
        [found] = of_json(capsys.readouterr().out.encode())
        return None not in [member["match_index"] for member in found]
    assert any(cluster.leader() and all(known() for _ in range(8)) for _ in range(3)), "but for an election, which does not come each time"


def test_leadership_is_handed_over(raftctl, cluster):
    if len(cluster.servers) == 1:
        said = raftctl("transfer", "none")
        assert said.status == 1 and "no voter is named none" in said.error
        return
    follower = cluster.followers()[0]
    wait_until(lambda: raftctl("transfer", follower.name).decode().strip() == follower.name, "it leads")
    wait_until(lambda: cluster.leader().name == follower.name, "others see it, too")


def test_a_learner_joins_is_promoted_and_removed(tmp_path, monkeypatch, capfd):
    with Cluster(tmp_path, 1) as cluster:
        monkeypatch.setenv("RAFTD_ENDPOINTS", cluster[1].address)
        new = cluster.new()
        new.start(join=cluster[1])
        cluster.wait_voters(2)
        assert ctl.main(["remove", new.name]) == 0
        assert ctl.main(["remove", "none"]) == 1 and capfd.readouterr().out == ""
        assert ctl.main(["promote", "none"]) == 1
        assert ctl.main(["join", new.name, new.address, "--learner"]) == 0
        capfd.readouterr()
        ctl.main(["members"])
        assert "learner" in capfd.readouterr().out
        assert ctl.main(["-o", "json", "promote", new.name]) == 0
        assert json.loads(capfd.readouterr().out) == {"name": new.name, "address": new.address, "voter": True}
        cluster.wait_voters(2)
        new.kill()
        capfd.readouterr()
        assert ctl.main(["health", "--timeout", "3s"]) == 1
        assert ctl.main(["status", "-o", "plain", "--timeout", "3s"]) == 0
        assert f"{new.name} unreachable" in capfd.readouterr().out


# The command line


@pytest.mark.parametrize("words", [
    [], ["nonsense"], ["get"], ["get", "a", "b"], ["set", "a"], ["set", "a", "b", "--file", "c"], ["set", "a", "b", "--ttl", "5"],
    ["set", "a", "b", "--if-absent", "--if-index", "5"], ["delete"], ["delete", "a", "--prefix", "b"], ["list", "--limit", "0"],
    ["get", "a", "-o", "xml"], ["get", "a", "--endpoints", "nonsense"], ["get", "a", "--endpoints", ","], ["lock", "a"],
    ["lock", "--", "true"],
    ["completion", "tcsh"], ["watch", "--count", "x"], ["watch", "--since", "abc"], ["get", "a", "--after", "3"],
    ["delete", "--prefix", ""], ["delete", "a", "--all"], ["delete", "--prefix", "a", "--all"],
    ["-o", "xml", "get", "a"], ["--level", "stale", "get", "a"],
])
def test_a_wrong_command_line_is_64(words, capsys):
    assert ctl.main(words) == 64
    said = capsys.readouterr()
    assert said.out == "" and "usage: raftctl" in said.err and said.err.splitlines()[-1].startswith("raftctl: ")


def test_what_all_commands_take_stands_before_the_command_or_after_it(monkeypatch):
    monkeypatch.setenv("RAFTD_ENDPOINTS", "c:3")
    for command in (["get", "k"], ["bench"], ["lock", "k"]):
        for words, expected in (
                ([*command], (["c:3"], "table", 10.0)),
                (["--endpoints", "a:1", "-o", "json", "--timeout=3s", *command], (["a:1"], "json", 3.0)),
                (["--endpoints=a:1", *command, "-o", "plain"], (["a:1"], "plain", 10.0)),
                (["--endpoints", "a:1", "-ojson", *command, "--endpoints", "b:2", "-o", "plain"], (["b:2"], "plain", 10.0))):
            options = ctl.parse(words)
            assert (options.endpoints, options.output, options.timeout) == expected, words


def test_what_comes_after_two_dashes_is_the_command_of_a_lock():
    for words, name, command in ((["lock", "k", "--ttl", "1s", "--", "get", "-o", "json", "--"], "k", ["get", "-o", "json", "--"]),
                                 (["--endpoints", "lock:1", "-o", "json", "lock", "get", "--", "true"], "get", ["true"])):
        options = ctl.parse(words)
        assert (options.name, options.command) == (name, command)
    options = ctl.parse(["--timeout", "1s", "set", "--ttl", "1s", "--", "lock", "-v"])
    assert (options.key, options.value) == ("lock", "-v")


def test_nobody_there_is_2_and_perhaps_done_is_3(capsys, monkeypatch):
    assert ctl.main(["set", "a", "b", "--endpoints", "localhost:1", "--timeout", "300ms"]) == 2
    assert capsys.readouterr().err.startswith("raftctl: localhost:1: ")
    monkeypatch.setattr(Client, "set", lambda *_, **__: (_ for _ in ()).throw(CommitTimeout()))
    assert ctl.main(["set", "a", "b"]) == 3


def test_what_the_server_does_not_understand_is_64(raftctl):
    assert raftctl("set", "", "b").status == raftctl("set", "a", "b", "--fence", "x").status == 64


@pytest.mark.parametrize("words", [
    ["get", "\udcff"], ["set", "\udcff", "v"], ["list", "\udcff"], ["list", "--after", "\udcff"], ["delete", "--prefix", "\udcff"],
    ["watch", "\udcff"], ["lock", "\udcff", "--", "true"], ["set", "k", "v", "--fence", "\udcff=1"], ["set", "k", "v", "--fence", "ключ=1"],
    ["txn", '{"then": [{"set": "a", "value": 5}]}'], ["txn", '{"then": ["a"]}'], ["txn", '{"then": {"set": "a"}}'], ["txn", '{"then": 5}'],
    ["txn", '{"then": [{"set": "a", "value": "x", "ttl": [1]}]}'], ["txn", '{"then": [{"set": "a", "value": "x", "ttl": 1e999}]}'],
    ["txn", '{"if": [{"key": "a", "value": null}], "then": [{"get": "a"}]}'], ["txn", "[" * 100_000], ["txn", "\udcff"],
    ["get", "a", "--timeout", "99999999999999h"], ["get", "a", "--endpoints", "https://localhost:4001"],
    ["get", "a", "--endpoints", "me@localhost:4001"], ["get", "a", "--endpoints", "[::1"],
])
def test_what_cannot_be_is_said_in_one_line(raftctl, words):
    said = raftctl(*words)
    assert said.status == 64 and said == b"" and said.error.splitlines()[-1].startswith("raftctl: ") and "Traceback" not in said.error


def test_a_value_may_be_any_bytes(raftctl):
    raftctl("set", "bytes", "\udcff\udc80é")
    assert raftctl("get", "bytes") == b"\xff\x80\xc3\xa9"
    assert raftctl("set", "bytes", "x", "--timeout", "1000h").status == 0


@pytest.mark.parametrize("words", ["set k -", "txn -"])
def test_a_standard_input_that_is_closed_or_without_an_end(words):
    for source, says in (("<&-", "standard input is closed"), ("</dev/zero", "larger than")):
        done = subprocess.run(f"{BIN / 'raftctl'} {words} {source}", shell=True, capture_output=True, text=True)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done


def test_a_terminal_that_does_not_know_a_character(raftctl, cluster):
    raftctl("set", "ключ", "1")
    for form in ("table", "json", "plain"):
        done = subprocess.run([BIN / "raftctl", "list", "-o", form], capture_output=True,
                              env={**os.environ, "RAFTD_ENDPOINTS": cluster.servers[0].address, "PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0 and rb"\u043a\u043b\u044e\u0447" in done.stdout and done.stderr == b""
    raftctl("delete", "ключ")


def test_perhaps_done_says_so_and_what_only_reads_is_certainly_not_done(capsys, monkeypatch):
    def fails(*_, **__):
        raise CommitTimeout("no majority answered")
    for name, words, status, more in (("set", ["set", "a", "b"], 3, "; it may have been done"), ("entry", ["get", "a"], 2, ""),
                                      ("members", ["members"], 2, "")):
        monkeypatch.setattr(Client, name, fails)
        assert (ctl.main(words), capsys.readouterr().err) == (status, f"raftctl: no majority answered{more}\n")


def test_a_server_that_says_nothing_keeps_nobody_waiting(tmp_path, monkeypatch, capsys):
    """It was stopped, and the system takes connections for it."""
    monkeypatch.setattr(ctl.servers, "STATUS_SECONDS", 0.5)
    with Cluster(tmp_path, flags=("-election-timeout", "2s")) as cluster:
        monkeypatch.setenv("RAFTD_ENDPOINTS", cluster.leader().address)
        followers = cluster.followers()
        for stopped in followers:
            stopped.pause()
        began = time.monotonic()
        assert ctl.main(["status", "-o", "plain", "--timeout", "60s"]) == 0
        rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert {rows[stopped.name] for stopped in followers} == {"unreachable"}
        assert time.monotonic() - began < 20
        for stopped in followers:
            stopped.resume()


def test_its_version(capsys):
    assert ctl.main(["--version"]) == 0
    assert capsys.readouterr().out == f"raftctl {__version__}\n"


def test_each_command_has_help_with_examples(capsys):
    assert ctl.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert ctl.main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"\n    {command}" in overview and f"raftctl {command}" in text and "examples:" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_all_commands_and_their_options(capsys, shell):
    assert ctl.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS) and "if-absent" in text and "reads-from" in text


COMPLETED = [("--end", "--endpoints"), ("-o js", "-o json"), ("list --output js", "list --output json"),
             ("set a --if-ab", "set a --if-absent"), ("get a --level st", "get a --level stale")]


@pytest.mark.parametrize("shell", [shell for shell in ("bash", "zsh") if shutil.which(shell)])
def test_the_completion_completes_in_a_shell_that_somebody_types_into(shell, tmp_path):
    """A function is in the place of raftctl, and tells what was typed for it."""
    (tmp_path / "script").write_bytes(subprocess.run([BIN / "raftctl", "completion", shell], capture_output=True, check=True).stdout)
    starts = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    begin = {"bash": "", "zsh": "autoload -Uz compinit; compinit -u -D; "}[shell]
    ours, theirs = os.openpty()
    process = subprocess.Popen(starts, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "dumb", "HISTFILE": ""},
                               cwd=tmp_path, start_new_session=True)
    os.close(theirs)
    try:
        said = b""

        def say(text, until):
            nonlocal said
            os.write(ours, text.encode())
            deadline = time.monotonic() + 20
            while until.encode() not in said:
                assert select.select([ours], [], [], max(0, deadline - time.monotonic()))[0], (text, until, said[-500:])
                said += os.read(ours, 4096)
        say(begin + "source ./script; raftctl() { echo \"<$*>\"; }; echo rea''dy\n", "ready")
        for typed, told in [*COMPLETED, ("--endpoints list mem", "--endpoints list members")]:
            say(f"raftctl {typed}\t\n", f"<{told}>")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", [shell for shell in ("fish",) if shutil.which(shell)])
def test_the_completion_of_fish_completes(shell):
    script = subprocess.run([BIN / "raftctl", "completion", shell], capture_output=True, text=True, check=True).stdout
    for typed, told in COMPLETED:
        done = subprocess.run([shell, "-c", f"{script}\ncomplete -C 'raftctl {typed}'"], capture_output=True, text=True, timeout=30)
        assert done.stdout.split() == told.split()[-1:], (typed, done)


def test_the_completion_of_fish_has_short_options_too(capsys):
    assert ctl.main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(" -s o -l output -x -a 'table json plain'") for line in lines) == 1 + len(COMMANDS)


def test_a_wrong_environment_is_named_and_no_matter_to_a_shell_that_starts(capsys, monkeypatch):
    monkeypatch.setenv("RAFTD_ENDPOINTS", "nonsense")
    assert ctl.main(["get", "a"]) == 64
    assert capsys.readouterr().err.splitlines()[-1] == "raftctl: RAFTD_ENDPOINTS: not HOST:PORT: 'nonsense'"
    assert ctl.main(["completion", "bash"]) == 0
    assert ctl.parse(["get", "a", "--endpoints", "a:1"]).endpoints == ["a:1"]


def test_the_completion_of_bash_completes():
    script = subprocess.run([BIN / "raftctl", "completion", "bash"], capture_output=True, text=True, check=True).stdout
    for words, place, expected in (("me", 1, "members"), ("set --if", 2, "--if-absent --if-index"), ("set a --fe", 3, "--fence"),
                                   ("get a --level s", 4, "stale"), ("list -o ''", 3, "table json plain"), ("completion f", 2, "fish"),
                                   ("set a --ttl ''", 4, ""), ("--e", 1, "--endpoints"), ("-o js", 2, "json"),
                                   ("--endpoints a:1 li", 3, "list"), ("-o json get --le", 4, "--level"),
                                   ("--endpoints list me", 3, "members"), ("list list --kee", 3, ""), ("set --ttl --fe", 3, ""),
                                   ("list --output = j", 4, "json"), ("list --output =", 3, "table json plain"),
                                   ("list --output = json --ke", 5, "--keys-only"), ("lock k -- l", 4, ""), ("-o '' l", 3, "list lock")):
        ask = f'{script}\nCOMP_WORDS=(raftctl {words}); COMP_CWORD={place}; _raftctl; echo "${{COMPREPLY[*]}}"'
        said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
        assert said.stdout.split() == expected.split(), (words, said)


def test_a_count_is_drawn_on_a_terminal_only_and_not_before_a_second(capsys, monkeypatch):
    progress = output.Progress("keys")
    progress.show(5)
    progress.clear()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    progress._began -= 2
    progress.show(5000)
    progress.show(5001)
    progress.clear()
    assert capsys.readouterr().err.count("5,000 keys") == 1


def test_a_bar_is_drawn_on_a_terminal_only_and_of_what_takes_longer_than_a_second(capsys, monkeypatch):
    def drawn(seconds):
        with output.Waiting(8):
            threading.Event().wait(seconds)
        return capsys.readouterr().err
    monkeypatch.setattr(output, "SHOWN_AFTER_SECONDS", 0.3)
    assert drawn(0.5) == ""
    monkeypatch.setattr(output, "is_terminal", lambda stream: stream is sys.stderr)
    assert drawn(0) == ""
    lines = drawn(0.8).split("\r\x1b[K")
    assert len(lines) >= 3 and lines[-1] == "", "at last it is gone"
    assert all(line == f"[{'#' * int(line.count('#'))}{'.' * line.count('.')}] {line.split('] ')[1]}" for line in lines[1:-1])
    assert lines[1].endswith("of at most 8 seconds") and len(lines[1].partition("]")[0]) == output.BAR_WIDTH + 1


def test_a_command_that_waits_says_so_and_a_lock_does_not():
    """On a terminal of its own: nobody listens where it asks."""
    for name, words, says in (("get", "a", True), ("lock", "a -- true", False)):
        command = f"{BIN / 'raftctl'} {name} --endpoints localhost:1 --timeout 2s {words}"
        done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=30)
        assert done.returncode in (2, 3), done.stdout
        assert ("of at most 2 seconds" in done.stdout) == says, done.stdout


def test_titles_are_bold_on_a_terminal_only(capsys, monkeypatch):
    output.print_table(["A", "B"], [["x", 1]], rights=("B",))
    assert capsys.readouterr().out == "A  B\nx  1\n"
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    output.print_table(["A"], [["x"]])
    assert capsys.readouterr().out == "\x1b[1mA\x1b[0m\nx\n"


def test_who_reads_no_more_gets_no_traceback(cluster):
    with Client(cluster.servers[0].address) as client:
        client.txn([{"set": f"many/{number}", "value": "x" * 500} for number in range(128)])
    done = subprocess.run(f"{BIN / 'raftctl'} list -o json | head -n 1", shell=True, capture_output=True, text=True,
                          env={**os.environ, "RAFTD_ENDPOINTS": cluster.servers[0].address})
    assert done.stderr == "" and done.stdout.count("\n") == 1
