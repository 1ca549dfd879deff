"""Who may import whom: the arrows of the architecture point down only, and the algorithm is pure. Read with ``ast``."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "raftd"

# A room and the rooms it may import from, besides itself. A room is a module of raftd, or a package in it.
MAY_IMPORT = {
    "__init__": {"errors", "config", "node"},
    "__main__": {"cli"},
    "errors": set(),
    "config": {"errors"},
    "raft": {"errors"},
    "sqlitefile": {"errors"},
    "promised": {"errors", "sqlitefile"},
    "storage": {"errors", "raft", "sqlitefile", "promised"},
    "kv": {"errors", "sqlitefile"},
    "wire": {"errors", "raft"},
    "transport": {"errors", "wire", "config"},
    "membership": {"errors", "raft"},
    "turns": {"errors"},
    "node": {"errors", "raft", "config", "membership", "turns"},
    "web": {"errors", "kv", "config"},
    "lane": {"errors", "config", "kv", "web"},
    "sockets": set(),
    "watchers": {"errors", "kv", "web"},
    "listener": {"errors", "lane", "sockets", "watchers", "web"},
    "joining": {"errors"},
    "expiry": {"errors", "kv"},
    "server": {"__init__", "errors", "config", "raft", "sqlitefile", "storage", "promised", "kv", "wire", "transport", "node",
               "web", "listener", "joining", "expiry"},
    "cli": {"config", "server", "errors", "__init__"},
    "client": {"errors"},
    "bench": set(),
    "plot": set(),
    "ctl": {"__init__", "bench", "plot", "client", "config", "errors"},
}
RAFT = {"messages": set(), "log": {"messages"}, "configuration": {"messages"}, "roles": {"messages"},
        "core": {"messages", "log", "configuration", "roles"}, "__init__": set()}
IMPURE = {"threading", "time", "socket", "logging", "sqlite3", "os", "io", "pathlib", "select", "subprocess", "asyncio",
          "datetime", "secrets", "uuid", "random", "http", "urllib", "flask", "requests", "waitress"}
FOREIGN_TO_NODE = {"sqlite3", "flask", "http", "waitress", "requests", "urllib", "socket"}


def files(*rooms):
    """Every source file, or those of *rooms*."""
    found = [path for path in sorted(ROOT.rglob("*.py")) if not rooms or room_of(path) in rooms]
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Full dotted names of all that is imported anywhere in *path*."""
    package = ("raftd", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{name.name}" for name in node.names)


def rooms_used(path):
    """The rooms of raftd that *path* imports from; ``from raftd import __version__`` is "__init__"."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "raftd":
            known = len(parts) > 1 and ((ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").exists())
            yield parts[1] if known else "__init__"


@pytest.mark.parametrize("path", files())
def test_imports_point_down(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"a new room: say in this table what it may import: {room}"
    assert set(rooms_used(path)) <= MAY_IMPORT[room] | {room}


def test_the_table_has_no_circles():
    done = set()
    while len(done) < len(MAY_IMPORT):
        free = {room for room in MAY_IMPORT if room not in done and MAY_IMPORT[room] <= done}
        assert free, f"a circle among {set(MAY_IMPORT) - done}"
        done |= free


@pytest.mark.parametrize("path", files("raft"))
def test_inside_the_algorithm_imports_point_down(path):
    used = {name.split(".")[2] for name in imports(path) if name.startswith("raftd.raft.")}
    assert used <= RAFT[path.stem]


@pytest.mark.parametrize("path", files("raft"))
def test_the_algorithm_is_pure(path):
    """No thread, clock, socket, file, logger or randomness of its own."""
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not {function.id for function in calls if isinstance(function, ast.Name)} & {"open", "print", "input", "exec", "eval"}


@pytest.mark.parametrize("path", files("node", "membership"))
def test_the_runtime_knows_neither_sqlite_nor_http(path):
    assert not {name.split(".")[0] for name in imports(path)} & FOREIGN_TO_NODE


@pytest.mark.parametrize("path", files("raft", "node", "membership", "transport", "storage", "wire", "kv"))
def test_only_the_monotonic_clock_counts(path):
    """A wall clock that jumps must have no effect at all (faults 32 to 34)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert not (isinstance(node.value, ast.Name) and node.value.id in ("time", "datetime") and node.attr in
                        ("time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime")), f"line {node.lineno}"
    assert not {"time.time", "time.time_ns", "datetime.datetime", "datetime.date"} & set(imports(path))


@pytest.mark.parametrize("path", files())
def test_no_exception_is_swallowed(path):
    """Neither a bare ``except:`` nor an ``except Exception: pass``: translate at the border, or let it be seen."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}"
            wide = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            assert not (wide and all(isinstance(statement, ast.Pass) for statement in node.body)), f"line {node.lineno}"
