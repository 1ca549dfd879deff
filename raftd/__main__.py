"""``python -m raftd``: the same as the ``raftd`` command."""

import sys

from raftd.cli import main

sys.exit(main())
