"""What the build gate takes for a fault in the verifier's figures."""

from bench.bpf_stats import VERIFIED_MAX, Figures, Measured, faults


def figures(name: str, verified: int) -> Figures:
    return Figures("lifecycle", name, "tp_btf/x", 100, 400, verified, 10, 5)


def test_a_program_may_reach_its_bound_and_not_pass_it() -> None:
    measured = [
        Measured("lifecycle", [figures("on_exec", VERIFIED_MAX), figures("on_exit", VERIFIED_MAX + 1)], [])
    ]
    (fault,) = faults(measured, has_sched_ext=True)
    assert fault.startswith(f"lifecycle/on_exit: {VERIFIED_MAX + 1} instructions")


def test_an_object_that_does_not_load_is_a_fault_but_for_a_scheduler_that_the_kernel_cannot_have() -> None:
    measured = [Measured("memory", [], [], "no"), Measured("scheduler", [], [], "no sched_ext")]
    assert faults(measured, has_sched_ext=False) == ["memory does not load: no"]
    assert len(faults(measured, has_sched_ext=True)) == 2


def test_a_program_that_a_kernel_does_not_take_is_none() -> None:
    assert (
        faults([Measured("lifecycle", [], ["on_throttle_end: no such function"])], has_sched_ext=True) == []
    )
