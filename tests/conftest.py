"""What tests on a real machine share: an operator of the daemon that their module starts, each in its own way."""

from collections.abc import Iterator

import pytest

from agentcgroup.client import OperatorClient
from tests.running import RunningDaemon


@pytest.fixture
def operator(daemon: RunningDaemon) -> Iterator[OperatorClient]:
    with daemon.operator() as client:
        yield client
