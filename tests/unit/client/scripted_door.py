"""A launcher's door that says what a test tells it to: the real socket type and the real protocol, no daemon behind it."""

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from agentcgroup.proto.launch import MOST_BYTES, SOCKET_NAME, Reply, Request, decode_request, encode_reply

# What a test answers with: a reply, raw bytes, or something to wait for between two answers.
Step = Reply | bytes | Callable[[], object]


@dataclass(frozen=True, slots=True)
class Heard:
    """One request and who sent it, by the kernel's word."""

    request: Request
    pid: int


class ScriptedDoor:
    """Answers every connection with `steps`, then closes it. With no steps it closes without an answer."""

    def __init__(self, directory: Path, steps: Sequence[Step]) -> None:
        self.heard: list[Heard] = []
        self._steps = steps
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(directory / SOCKET_NAME))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # Shutting down wakes accept(), closing would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                packet = connection.recv(MOST_BYTES + 1)
                if not packet:
                    continue
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                self.heard.append(Heard(decode_request(packet), struct.unpack("3i", credentials)[0]))
                for step in self._steps:
                    if isinstance(step, Reply):
                        connection.send(encode_reply(step))
                    elif isinstance(step, bytes):
                        connection.send(step)
                    else:
                        step()
