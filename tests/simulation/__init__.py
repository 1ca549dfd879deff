"""Clusters of the production core, log, configuration and state machine under a simulated clock, network and disk.

One seed decides all that happens, so that a failure can be looked at again. ``faults`` says what may go wrong, ``server`` is one
server with its disk, ``clients`` are the programs that use it, ``judge`` says after every step what no run may contradict, and
``cluster`` is the course of events. Nothing here knows of threads, sockets or files.
"""

from simulation.cluster import Cluster, run, run_until
from simulation.faults import Faults
from simulation.judge import EXERCISED

__all__ = ["EXERCISED", "Cluster", "Faults", "run", "run_until"]
