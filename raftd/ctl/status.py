"""The exit statuses of ``raftctl``: 0 done; 1 there is no such key, or a condition does not hold; 2 certainly not done; 3 perhaps done;
64 the command line cannot be understood; 130 ended by Ctrl-C."""

DONE, NO, NOT_DONE, PERHAPS, USAGE, INTERRUPTED = 0, 1, 2, 3, 64, 130
