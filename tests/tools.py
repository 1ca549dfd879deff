"""What a command of bin/ needs that works with the machinery of the tests: a Python that has what they need, else that of .venv."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
VENV = TOP / ".venv"
NEEDED = ("flask", "waitress", "requests", "pytest", "pytest_timeout", "hypothesis")


def ensure():
    """Returns if this Python has them. Else the command starts again with that of .venv, which is made first if it is not there."""
    if sys.version_info >= (3, 11) and all(map(find_spec, NEEDED)):
        return
    if Path(sys.prefix).resolve() == VENV.resolve():
        sys.exit(f"{sys.argv[0]}: .venv has not what the tests need; remove it and try again")
    if subprocess.call([TOP / "bin/venv", "test"]):
        sys.exit(2)
    os.execv(VENV / "bin/python", [str(VENV / "bin/python"), *sys.argv])
