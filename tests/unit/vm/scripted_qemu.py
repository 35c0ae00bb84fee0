"""Stands in QEMU's place in tests of what the host does: takes its command line, then plays a guest by a script.

The script is Python in $SCRIPT, run with ``console`` and ``channel`` (connected sockets), ``say(kind, body)`` and
``hear()``, which returns the next frame from the host.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator

from vm.channel import Decoder, Frame, Kind, encode

words = " ".join(sys.argv)


def inherited(name: str) -> socket.socket:
    found = re.search(rf"id={name},fd=(\d+)", words)
    assert found
    return socket.socket(fileno=int(found[1]))


console, channel = inherited("console"), inherited("channel")


def heard() -> Iterator[Frame]:
    decoder = Decoder()
    while data := channel.recv(65536):
        yield from decoder.feed(data)


frames = heard()
exec(
    os.environ["SCRIPT"],
    {
        "console": console,
        "hear": lambda: next(frames),
        "say": lambda kind, body=b"": channel.sendall(encode(Kind[kind], body)),
        "wait": lambda: time.sleep(60),
        "sys": sys,
        "os": os,
    },
)
