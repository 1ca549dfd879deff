"""Power cuts: every state of the disk that one may leave, at any point of what the server asks of the file system.

The production server runs under a recorder of its system calls (``calls``), driven through elections, appends, conflicts, snapshots and
restarts (``driver``), and tells what it promises (``subject``). For each point between two calls the states that a disk may be in after
a power cut there are made (``filesystem``), opened as the server would (``reopen``), and compared with what was promised until then
(``knowledge``). One of these states is where the next life of the server begins.
"""
