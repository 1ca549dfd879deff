"""Well-known mistakes, planted one at a time: what no check notices would not be noticed if somebody made it. See ``bin/mutants``."""

from mutants.clients import CLIENTS
from mutants.database import DATABASE_BUGS
from mutants.leases import LEASES
from mutants.listener import LISTEN
from mutants.peers import PEERS
from mutants.raft import RAFT
from mutants.runtime import RUNTIME
from mutants.state import STATE
from mutants.storage import STORAGE
from mutants.watching import WATCHING
from mutants.web import WEB

ROOMS = (RAFT, LEASES, STORAGE, STATE, DATABASE_BUGS, RUNTIME, PEERS, LISTEN, WATCHING, WEB, CLIENTS)
CATALOGUE = tuple(mutant for room in ROOMS for mutant in room)
