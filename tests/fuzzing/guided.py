"""One target under atheris: python guided.py TARGET [options of libFuzzer]. Started by ``bin/fuzz --guided``."""

import logging
import sys
from pathlib import Path

import atheris

TOP = Path(__file__).resolve().parent.parent.parent


def main():
    sys.path[:0] = [str(TOP), str(TOP / "tests")]
    with atheris.instrument_imports(include=["raftd", "waitress", "werkzeug.routing", "werkzeug.http"]):
        from fuzzing import Bytes, campaign
    logging.getLogger().addHandler(logging.NullHandler())
    name = sys.argv.pop(1)
    target = campaign.TARGETS[name]().__enter__()
    atheris.Setup(sys.argv, lambda data: target.attack(Bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
