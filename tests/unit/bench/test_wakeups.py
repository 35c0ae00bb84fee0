"""Wake-up latencies from the text of a trace."""

from bench.wakeups import latencies_us

TRACE = """\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
              sh-190     [000] dNh2.    27.015721: sched_waking: comm=wake pid=191 prio=120 target_cpu=000
              sh-190     [000] d..2.    27.016033: sched_switch: prev_comm=sh prev_pid=190 ==> next_comm=wake next_pid=191
              sh-190     [000] d..2.    27.018000: sched_switch: prev_comm=sh prev_pid=190 ==> next_comm=wake next_pid=191
          sh-:: 183-183  [000] d.h2.    27.999990: sched_waking: comm=wake pid=191 prio=120 target_cpu=000
              sh-183     [000] d.h2.    28.000005: sched_waking: comm=wake pid=191 prio=120 target_cpu=000
              sh-183     [000] d..2.    28.000090: sched_switch: prev_comm=sh prev_pid=183 ==> next_comm=wake next_pid=191
              sh-183     [000] d.h2.    28.500000: sched_waking: comm=wake pid=191 prio=120 target_cpu=000
"""


def test_a_latency_lasts_from_the_first_waking_to_the_next_switch() -> None:
    assert latencies_us(TRACE) == [312, 100]


def test_an_empty_trace_has_none() -> None:
    assert latencies_us("# tracer: nop\n") == []
