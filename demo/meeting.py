"""How the agents of the story wait for each other: an empty file a point, in a directory all of them may write to.

Real agents do not do this. Here it makes happen every time what happens now and then on a busy host: that one wants memory
while another holds it.
"""

import time
from pathlib import Path
from typing import Final

from demo.story import Point

# A guest without hardware support is some ten times slower than the machine it runs on.
PATIENCE_S: Final = 500.0
_LOOK_EVERY_S: Final = 0.1


class NobodyCame(Exception):
    """A point was not reached in time, or never will be; the message says which."""


class Meeting:
    """The points reached so far, in `directory`."""

    def __init__(self, directory: Path, patience_s: float = PATIENCE_S) -> None:
        self._directory = directory
        self._patience_s = patience_s

    def reach(self, point: Point) -> None:
        """Tells the others that this point is reached."""
        (self._directory / point).touch()

    def leave(self, agent: str) -> None:
        """Tells the others that `agent` will reach no further point."""
        (self._directory / f"left-{agent}").touch()

    def wait(self, point: Point) -> None:
        """Comes back when `point` is reached. Raises NobodyCame."""
        deadline = time.monotonic() + self._patience_s
        while not (self._directory / point).exists():
            # In this order, else a point reached just before leaving could be missed.
            if (self._directory / f"left-{point.agent}").exists() and not (self._directory / point).exists():
                raise NobodyCame(f"{point.agent} has ended without reaching {point}")
            if time.monotonic() > deadline:
                raise NobodyCame(f"{point.agent} did not reach {point} within {self._patience_s:.0f} s")
            time.sleep(_LOOK_EVERY_S)
