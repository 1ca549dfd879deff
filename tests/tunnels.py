"""A network whose packets all pass through this process, which delays, loses, doubles, reorders or damages them. Needs root.

The kernel of the machine need not know how to do that. Each host has a TUN device in place of a cable; what it sends is read here, and
written to the device of whom it is for when the ``policy`` says so.
"""

import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import threading
import time

from cluster import Network, inside

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MOST_BYTES = 1 << 16
_TCP = 6


class TunnelNetwork(Network):
    """``policy(source, target, packet)`` gives the (seconds, packet) pairs in which *packet* (IPv4) arrives: none if it is lost.

    *source* and *target* are addresses. A policy of None delivers everything at once.
    """

    def __init__(self):
        self.policy, self._devices = None, {}  # address -> file descriptor
        self._stopping = threading.Event()
        self._router = threading.Thread(target=self._route, name="router", daemon=True)
        super().__init__()

    def __enter__(self):
        self._router.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._router.join()
        for device in self._devices.values():
            os.close(device)
        super().__exit__()

    def _make_hub(self):
        self._plug_in(self.hub, self.HUB_ADDRESS)

    def _connect(self, host, number):
        self._plug_in(host.namespace, host.address)

    def _plug_in(self, namespace, address):
        with inside(namespace):
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI))
        self._in(namespace, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            self._in(namespace, "ip", "link", "set", interface, "up")
        self._devices[address] = device

    def _route(self):
        waiting, numbers = [], itertools.count()  # a heap of (when, number, target, packet)
        while not self._stopping.is_set():
            devices = dict(self._devices)
            timeout = min(0.05, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.05
            readable, _, _ = select.select(list(devices.values()), [], [], timeout)
            now = time.monotonic()
            for device in readable:
                for packet in _read_all(device):
                    source, target = (socket.inet_ntoa(packet[at:at + 4]) for at in (12, 16))
                    if packet[0] >> 4 == 4 and target in devices:
                        for seconds, changed in self.policy(source, target, packet) if self.policy else [(0.0, packet)]:
                            heapq.heappush(waiting, (now + seconds, next(numbers), target, changed))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(waiting)
                _write(devices[target], packet)


def _read_all(device):
    for _ in range(64):
        try:
            yield os.read(device, _MOST_BYTES)
        except BlockingIOError:
            return


def _write(device, packet):
    try:
        os.write(device, packet)
    except OSError:  # its queue is full, or it is gone: the packet is lost
        pass


def bad_weather(seed, loss=0.1, doubled=0.2, most_seconds=0.1):
    """A policy: packets are lost, doubled, late, and so overtake each other."""
    rng = random.Random(seed)

    def policy(source, target, packet):
        if rng.random() < loss:
            return []
        copies = 2 if rng.random() < doubled else 1
        return [(rng.uniform(0, most_seconds), packet) for _ in range(copies)]
    return policy


def bit_errors(seed, share, spared):
    """A policy: that share of the packets with data has a flipped bit that TCP's checksum does not notice; not from or to *spared*."""
    rng = random.Random(seed)

    def policy(source, target, packet):
        if spared in (source, target) or rng.random() >= share:
            return [(0.0, packet)]
        policy.flipped += 1
        return [(0.0, _with_flipped_bit(packet, rng))]
    policy.flipped = 0
    return policy


def _with_flipped_bit(packet, rng):
    head = (packet[0] & 15) * 4
    data = head + (packet[head + 12] >> 4) * 4
    if packet[9] != _TCP or data >= len(packet):
        return packet
    changed, at = bytearray(packet), rng.randrange(data, len(packet))
    changed[at] ^= 1 << rng.randrange(8)
    changed[head + 16:head + 18] = b"\0\0"
    pseudo_header = changed[12:20] + struct.pack(">HH", _TCP, len(changed) - head)
    changed[head + 16:head + 18] = struct.pack(">H", _checksum(pseudo_header + changed[head:]))
    return bytes(changed)


def _checksum(data):
    """That of RFC 1071."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", bytes(data) + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
