"""A copy of a state on its way to another server, without the servers."""


def transfer(source, target, chunk_bytes=1000, damage=lambda data: data):
    """Send a snapshot of *source* to *target*, which installs it; returns the snapshot."""
    snapshot = source.snapshot()
    incoming = target.receive(snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
    while not incoming.complete:
        incoming.write(incoming.next_offset, damage(snapshot.read(incoming.next_offset, chunk_bytes)))
    snapshot.close()
    target.install(incoming)
    return snapshot
