"""Memory of running calls over time, where the configuration asks for it."""

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.daemon.config import Config, DaemonConfig, HistoryConfig
from agentcgroup.daemon.controller import sampling
from agentcgroup.daemon.model import CallMemory
from agentcgroup.proto.v1 import agent_pb2, operator_pb2 as pb, types_pb2
from tests.fakes import FakeHost
from tests.integration.harness import MIB, Daemon, until


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=64))
def test_a_halved_curve_keeps_order_and_peak(sizes: list[int]) -> None:
    samples = [(number, size) for number, size in enumerate([*sizes, *sizes])]
    kept = sampling.halved(samples)
    assert len(kept) == len(sizes)
    assert set(kept) <= set(samples) and kept == sorted(kept)
    assert max(size for _, size in kept) == max(sizes)


@pytest.mark.parametrize("samples", [True, False])
async def test_a_running_call_is_looked_at_when_asked_for(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, samples: bool
) -> None:
    monkeypatch.setattr(sampling, "INTERVAL_MS", 1)
    monkeypatch.setattr(sampling, "SAMPLES_KEPT", 8)
    monkeypatch.setattr(FakeHost, "call_memory", lambda host, call_id: CallMemory(current_bytes=5 * MIB))
    config = Config(daemon=DaemonConfig(run_dir=str(run_dir)), history=HistoryConfig(samples=samples))
    daemon = Daemon(run_dir, config)
    await daemon.start()
    try:
        await daemon.open("web")
        agent = daemon.agent("web")
        process = types_pb2.ProcessRef(pid=daemon.process("web"))
        begun = await agent.BeginCall(agent_pb2.BeginCallRequest(intent=types_pb2.Intent(), process=process))
        call = daemon.controller.call(None, begun.call.id)
        await until(lambda: not samples or len(call.memory_samples) >= 6)
        await agent.FinishCall(agent_pb2.FinishCallRequest(call_id=call.id))
        (entry,) = (await daemon.operator.ListHistory(pb.ListHistoryRequest())).entries
        assert {each.memory_bytes for each in entry.memory_samples} == ({5 * MIB} if samples else set())
        assert len(entry.memory_samples) < 8
    finally:
        await daemon.stop()
