"""How a run can end: the exit statuses of ``vm/run`` and the error that stands for a failed set-up."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of ``vm/run`` itself; any other status is the command's own (128+N for signal N)."""

    INTERRUPTED = 130
    PANIC = 240
    TIMEOUT = 241
    GUEST_LOST = 242
    SETUP_FAILED = 243


class SetupError(Exception):
    """The guest cannot be prepared on this host; the message names the cause and the next step."""
