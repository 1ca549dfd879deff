"""Command lines: ``cli.parse`` says what is asked for, or gives usage and the exit status of the contract, and never anything else."""

import io
import re
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout

from fuzzing import Finding, number, rarely, some
from raftd import cli
from raftd.config import is_name

NAMES = (*cli.FLAGS, "bogus", "H", "port", "", "-h", "help=", "é")
WORDS = ("", "-", "--", "---", "-=", "--=x", "-h", "data", "/tmp/x", "a b", "\udcff", "\n", "=", "-p4001", "x" * 5000, "-\udcff", "٣")
VALUES = ("localhost", "127.0.0.1", "::1", "[::1]", "[::", "0.0.0.0", "::", "fe80::1%eth0", "a..b", "-a", "é", "a_b", "x" * 254, "1.2.3",
          "1.2.3.4.5", "0", "4001", "65535", "65536", "-1", "+1", "01", "1e3", "٤٠٠١", "9" * 5000, "localhost:4001", "a:1,b:2", "a:1,,b:2",
          ",", "http://a:1/", "https://a:1", ":1", "a:", "[::1]:1", "::1:1", "a:1,a:1", "n1", "..", ".", "a/b", "x" * 64, "x" * 65, "50ms",
          "1s", "0s", "0.0001ms", "2h", "1.5s", "1.s", "9" * 400 + "s", "3600s", "3601s", "1KiB", "0B", "32MiB", "33MiB", "64GiB", "1kb",
          "true", "false", "T", "yes", "\udcff", "a\nb", " ", "")


def words(rng):
    return some(rng, 8, word)


def word(rng):
    dashes, name = rng.choice(("-", "-", "--", "---", "")), rng.choice(NAMES)
    match rng.randrange(6):
        case 0:
            return rng.choice(WORDS)
        case 1:
            return rng.choice(VALUES)
        case 2:
            return dashes + name
        case 3:
            return f"{dashes}{name}={number(rng)}"
    return f"{dashes}{name}={rng.choice(VALUES)}"


class Flags:
    """``with Flags() as flags: flags.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "flags", "command lines"
    exercised = ("command lines", "understood", "status 1", "status 2", "help or version")

    def __enter__(self):
        self.counts = Counter()
        return self

    def __exit__(self, *_):
        pass

    def attack(self, rng):
        argv = words(rng)
        if rarely(rng, 0.5):
            argv = [text for text in argv if text.startswith("-") and "=" in text][:2] + ["data"]
        self.counts["command lines"] += 1
        try:
            self._parse(argv)
        except Exception as error:
            raise Finding(f"{error!r}\nraftd {argv}") from error

    def _parse(self, argv):
        try:
            options = cli.parse(argv)
        except cli.UsageError as error:
            self._check_refusal(argv, error)
            return
        if options.help or options.version:
            self.counts["help or version"] += 1
            return
        self.counts["understood"] += 1
        options.settings.check()
        right = (options.path == argv[-1] and 0 <= options.port <= 65535 and (options.name is None or is_name(options.name))
                 and re.fullmatch(r"[\w.:\[\]-]+", options.host, re.ASCII) and re.fullmatch(r"[\w.:-]+", options.bind, re.ASCII)
                 and all(re.fullmatch(r"[\w.:\[\]-]+:[0-9]+", member, re.ASCII) for member in options.join))
        if not right:
            raise Finding(f"understood as {options}")

    def _check_refusal(self, argv, error):
        """``main`` says the same, on stderr, and returns the status."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main(argv)
        if (status, out.getvalue(), err.getvalue()) != (error.status, "", f"{error}\n"):
            raise Finding(f"status {status}, stdout {out.getvalue()!r}, stderr {err.getvalue()!r}")
        complaint = str(error).replace(cli.usage(), "").strip("\n")
        if error.status not in (1, 2) or cli.usage() not in str(error) or not complaint:
            raise Finding(f"exit status {error.status}: {error}")
        if "\n" in complaint and not any("\n" in text for text in argv):
            raise Finding(f"more than one line: {complaint}")
        self.counts[f"status {error.status}"] += 1
