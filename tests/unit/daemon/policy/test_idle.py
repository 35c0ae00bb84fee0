"""Idle reclaim: bites while nobody misses them."""

from agentcgroup.daemon.model import AgentActivity
from agentcgroup.daemon.policy.idle import Look, decide

MIB = 1 << 20
S = 1_000_000_000


def look(at_s: int, *, cpu_ms: int = 0, stall_ms: float = 0, file: int = 80, **more: int) -> Look:
    return Look(at_s * S, AgentActivity(cpu_ms * 1000, int(stall_ms * 1000), file * MIB), **more)


def test_a_waiting_runtime_gives_an_eighth() -> None:
    ruling = decide(look(0), look(10, cpu_ms=100))
    assert ruling.bite_bytes == 10 * MIB and ruling.again


def test_a_working_runtime_is_left_alone_and_looked_at_again() -> None:
    ruling = decide(look(0), look(10, cpu_ms=300))
    assert not ruling.bite_bytes and ruling.again


def test_stall_after_a_bite_ends_it() -> None:
    bitten = look(0, asked_bytes=10 * MIB, freed_bytes=10 * MIB)
    assert not decide(bitten, look(2, stall_ms=3)).again
    assert not decide(bitten, look(2, stall_ms=3, cpu_ms=900)).again, "it woke up and had to read it back"
    assert decide(bitten, look(2, stall_ms=1)).bite_bytes


def test_stall_without_a_bite_is_nobodys_fault() -> None:
    assert decide(look(0), look(2, stall_ms=500)).bite_bytes


def test_it_ends_when_little_comes_or_nothing_is_left() -> None:
    assert not decide(look(0, asked_bytes=8 * MIB, freed_bytes=1 * MIB), look(2)).again
    assert not decide(look(0), look(2, file=0)).again
    assert decide(look(0), look(2, file=2)).bite_bytes == MIB
    assert decide(look(0), look(2, file=4000)).bite_bytes == 64 * MIB
