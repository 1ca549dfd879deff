"""The commands in bin/ that need more than Python find it themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(__file__).resolve().parent.parent / "bin"


@pytest.mark.parametrize("command", ["chaos", "crashes", "fuzz", "mutants", "simulate"])
def test_a_command_that_is_started_with_a_bare_python(command):
    """Without its packages, as that of the system."""
    done = subprocess.run([sys.executable, "-S", BIN / command, "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: bin/{command} [-h]")
