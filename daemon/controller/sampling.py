"""Memory of running calls over time, for recordings: taken once a second, where `history.samples` asks for it.

A call's curve is bounded: when it is full, each two neighbours become one, the larger, and it goes on half as often.
"""

from typing import Final

from agentcgroup.daemon.controller.outer_limits import OuterLimits
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import ToolCall

INTERVAL_MS: Final = 1000
SAMPLES_KEPT: Final = 128


class Sampling(OuterLimits):
    def _begin_samples(self, call: ToolCall) -> None:
        if self.config.history.samples and call.is_live:
            self._sample_in(call, INTERVAL_MS)

    def _sample_in(self, call: ToolCall, interval_ms: int) -> None:
        self._arm(Timer.SAMPLE, call.id, interval_ms, lambda: self._sample(call, interval_ms))

    def _sample(self, call: ToolCall, interval_ms: int) -> None:
        current_bytes = self._host.call_memory(call.id).current_bytes
        if current_bytes is None or call.started_at_ns is None or not call.is_live:
            return
        offset_ms = (self._clock.now_ns() - call.started_at_ns) // 1_000_000
        call.memory_samples.append((offset_ms, current_bytes))
        if len(call.memory_samples) == SAMPLES_KEPT:
            call.memory_samples = halved(call.memory_samples)
            interval_ms *= 2
        self._sample_in(call, interval_ms)

    def _call_gone(self, call: ToolCall) -> None:
        super()._call_gone(call)
        self._disarm(Timer.SAMPLE, call.id)


def halved(samples: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of each two neighbours the larger one, with its moment."""
    pairs = zip(samples[::2], samples[1::2], strict=True)
    return [max(pair, key=lambda sample: sample[1]) for pair in pairs]
