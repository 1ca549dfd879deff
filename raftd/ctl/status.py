"""The exit statuses of ``raftctl``: 0 done; 1 there is no such key, or a condition does not hold; 2 certainly not done; 3 perhaps done;
64 the command line, or what it asks for, cannot be understood; 130 ended by Ctrl-C. Of a command that runs under a lock: its own, 126 or
127 if it cannot be run or is not there, 128 and the number of the signal that has ended it."""

DONE, NO, NOT_DONE, PERHAPS, USAGE, CANNOT_RUN, NO_COMMAND, ENDED_BY_SIGNAL, INTERRUPTED = 0, 1, 2, 3, 64, 126, 127, 128, 130
