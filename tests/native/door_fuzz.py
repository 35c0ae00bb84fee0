"""Throws at the door's thread whatever a sandboxed process may, and holds it to its contract: door_fuzz.py LIBRARY SEED.

Run by test_door_thread.py in a process of its own, with a library that the sanitizers watch.
"""

import array
import asyncio
import contextlib
import os
import random
import socket
import sys
import tempfile
import time
from pathlib import Path

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.membership import cgroup2_mount, cgroup_of
from agentcgroup.daemon.door.native import MOST_OFFERS, Began, Knock, NativeDoor, load
from agentcgroup.daemon.ports import Leaf
from agentcgroup.proto.launch import MOST_BYTES, Request, encode_request, split_request

ROUNDS = 1500
# On a loaded machine the door's thread has to wait for its turn.
SETTLE_DEADLINE_S = 30.0
REQUEST = encode_request(Request(intent={"memory": "2G", "pids": "7"}))
REPLY = b"agentcgroup-launch/1\0status=granted\0"
Client = tuple[socket.socket, bytes, int]


class House:
    """One listener, its clients, and what was told of them."""

    def __init__(self, door: NativeDoor, directory: Path, name: str) -> None:
        path = str(directory / name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(path)
        listener.listen(4096)
        here = cgroup_of(os.getpid())
        with Cgroup.open(f"{cgroup2_mount()}{here}") as cgroup:
            leaf = Leaf(cgroup.id, here)
        self.path, self.door = path, door
        self.procs = directory / f"{name}.procs"
        self.procs.touch()
        self.knocks: list[Knock] = []
        self.silent: list[socket.socket] = []
        self.began: list[Began] = []
        self.broken = 0
        self.unheard = 0
        self.number = door.listen(listener, leaf, self)

    def offer(self) -> int:
        procs = os.open(self.procs, os.O_WRONLY | os.O_APPEND)
        return self.door.offer(self.number, REQUEST, procs, 0, REPLY)

    def on_knock(self, knock: Knock) -> None:
        self.knocks.append(knock)

    def on_silent(self, connection: socket.socket) -> None:
        self.silent.append(connection)

    def on_began(self, began: Began) -> None:
        os.close(began.pidfd)
        self.began.append(began)

    def on_broken(self, offer: int, error: OSError) -> None:
        self.broken += 1

    def on_unheard(self) -> None:
        self.unheard += 1

    def on_short(self, error: OSError) -> None:
        raise AssertionError(f"no descriptor should be short here: {error}")


def packet(chance: random.Random) -> bytes:
    """A request that fits, or nearly, or not at all."""
    arguments = b"".join(
        b"arg=" + chance.randbytes(chance.choice([0, 1, 9, 300])).replace(b"\0", b"x") + b"\0"
        for _ in range(chance.randrange(4))
    )
    fitting = REQUEST + arguments
    match chance.randrange(8):
        case 0:
            return chance.randbytes(chance.randrange(1, 2000))
        case 1:
            return fitting[: chance.randrange(1, len(fitting))]
        case 2:
            at = chance.randrange(len(fitting))
            return fitting[:at] + chance.randbytes(1) + fitting[at + 1 :]
        case 3:
            return fitting + chance.choice(
                [b"\0", b"arg", b"arg=", b"args=1\0", b"memory=1G\0", b"\xff" * 20000]
            )
        case _:
            return fitting


def fits(sent: bytes) -> bool:
    if len(sent) > MOST_BYTES or not sent.endswith(b"\0"):
        return False
    split = split_request(sent)
    return split is not None and split[0] == REQUEST


def connect(house: House, chance: random.Random) -> Client | None:
    """One client's doings; None when it leaves nothing to be told of but perhaps silence."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(house.path)
    kind = chance.randrange(10)
    if kind == 0:
        client.close()
        return None
    if kind == 1:
        return client, b"", 0
    sent = packet(chance)
    count = chance.choice([0, 0, 0, 1, 3])
    fds = array.array("i", [0] * count)
    client.sendmsg([sent], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if count else [])
    if kind == 2:
        with contextlib.suppress(BrokenPipeError):  # it was served already
            client.send(b"and another packet that nobody reads")
    return client, sent, count


class Late:
    """The packet of one who was taken for silent: it came when the thread's patience was over."""

    def __init__(self, connection: socket.socket) -> None:
        # Flags of recv_fds are lost in Python 3.11.
        connection.setblocking(False)
        try:
            self.packet, self.fds, _, _ = socket.recv_fds(connection, 1 << 15, 8)
        except (BlockingIOError, ConnectionResetError):
            self.packet, self.fds = b"", []


def has_packet(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except (BlockingIOError, ConnectionResetError):
        return False


async def settle(house: House, packets: int) -> None:
    """Until every packet has come, and then nothing more for longer than the thread is patient."""
    told = -1
    end = time.monotonic() + SETTLE_DEADLINE_S
    while told != len(house.knocks) + len(house.silent) + len(house.began) or (
        len(house.knocks) + len(house.began) + sum(map(has_packet, house.silent)) < packets
        and time.monotonic() < end
    ):
        told = len(house.knocks) + len(house.silent) + len(house.began)
        await asyncio.sleep(0.3)


async def main(library: Path, seed: int) -> None:
    chance = random.Random(seed)
    door = NativeDoor(load(library))
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as directory:
        house = House(door, Path(directory), "a")
        other = House(door, Path(directory), "b")
        standing: set[int] = set()
        withdrawn: set[int] = set()
        clients: list[Client] = []
        for _ in range(ROUNDS):
            match chance.randrange(6):
                case 0:
                    door.pump()
                    if len(standing - withdrawn) - len(house.began) < MOST_OFFERS:
                        standing.add(house.offer())
                case 1:
                    one = chance.choice(sorted(standing)) if standing else 0
                    if door.withdraw(house.number, one):
                        withdrawn.add(one)
                case _:
                    made = connect(house, chance)
                    if made is not None:
                        clients.append(made)
            if chance.randrange(20) == 0:
                await asyncio.sleep(0.002)
        await settle(house, sum(bool(sent) for _, sent, _ in clients))

        taken = {began.offer for began in house.began}
        assert len(taken) == len(house.began), "an offer was taken twice"
        assert taken <= standing and not taken & withdrawn, "an offer was taken that did not stand"
        assert all(fits(began.packet) and began.pid == os.getpid() for began in house.began)
        assert house.procs.read_text() == str(os.getpid()) * len(taken), (
            "a pid was written too often, or not"
        )
        assert not other.knocks and not other.began and not house.broken
        answered = sum(answer_to(client) == REPLY for client, _, _ in clients)
        assert answered == len(taken), f"{answered} answers, {len(taken)} taken"
        # Whoever was not served is Python's, with all that came.
        said = sorted(sent[: MOST_BYTES + 1] for _, sent, _ in clients if sent)
        late = [Late(connection) for connection in house.silent]
        came_late = [each.packet[: MOST_BYTES + 1] for each in late if each.packet]
        heard = [knock.packet for knock in house.knocks] + [began.packet for began in house.began]
        assert sorted(heard + came_late) == said
        assert all(knock.is_cut == (len(knock.packet) > MOST_BYTES) for knock in house.knocks)
        passed = sum(len(knock.fds) for knock in house.knocks) + sum(len(each.fds) for each in late)
        assert passed == sum(count for _, _, count in clients)
        assert len(taken) > 20 and len(house.knocks) > 200 and len(house.silent) > 20, "the chances are bad"

        for knock in house.knocks:
            knock.connection.close()
            for fd in knock.fds:
                os.close(fd)
        for fd in (fd for each in late for fd in each.fds):
            os.close(fd)
        for connection in (*house.silent, *other.silent):
            connection.close()
        for client, _, _ in clients:
            client.close()
        # Closing is not confused by who is still being served.
        served = [made for _ in range(50) if (made := connect(house, chance)) is not None]
        door.unlisten(house.number)
        door.unlisten(other.number)
        for client, _, _ in served:
            client.close()
        end = time.monotonic() + SETTLE_DEADLINE_S
        while True:
            await asyncio.sleep(0.2)
            for knock in house.knocks:
                for fd in knock.fds:
                    if knock.connection.fileno() >= 0:
                        os.close(fd)
                knock.connection.close()
            for connection in house.silent:
                connection.close()
            left = len(os.listdir("/proc/self/fd"))
            if left == before or time.monotonic() > end:
                break
        assert left == before, f"{left - before} descriptors leaked"
    door.close()


def answer_to(client: socket.socket) -> bytes:
    """What the client hears, b"" when nothing. One whose second packet was never read hears of that first."""
    for _ in range(2):
        with contextlib.suppress(ConnectionResetError):
            try:
                return client.recv(1 << 15, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return b""
    return b""


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
