"""Maps that two objects share, on this kernel."""

import os

import pytest

from agentcgroup.bpf import abi, features
from agentcgroup.bpf.programs import Programs, object_path
from agentcgroup.bpf.shared_maps import SharedMaps

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="loading programs needs root"),
    pytest.mark.skipif(
        not features.tracing().is_available, reason=f"no tracing programs here: {features.tracing().detail}"
    ),
]


def load(shared: SharedMaps) -> Programs:
    return Programs(object_path("lifecycle"), shared=shared, optional=("fentry/", "fexit/"))


def test_a_shared_map_outlives_the_object_it_was_made_with() -> None:
    shared = SharedMaps("accounts")
    with load(shared) as first, load(shared) as second:
        first.hash_map("accounts", abi.Account).put(7, abi.Account(forks=3))
        found = second.hash_map("accounts", abi.Account).get(7)
        assert found is not None and found.forks == 3
    with load(shared) as third:
        found = third.hash_map("accounts", abi.Account).get(7)
        assert found is not None and found.forks == 3
    shared.close()


def test_other_maps_stay_with_their_object() -> None:
    shared = SharedMaps("accounts")
    with load(shared) as first, load(shared) as second:
        first.array_map("losses", abi.Losses)[0] = abi.Losses(homes=1)
        assert second.array_map("losses", abi.Losses)[0].homes == 0
    shared.close()


def test_a_closed_share_is_made_anew() -> None:
    shared = SharedMaps("accounts")
    with load(shared) as first:
        first.hash_map("accounts", abi.Account).put(7, abi.Account(forks=3))
    shared.close()
    with load(shared) as second:
        assert second.hash_map("accounts", abi.Account).get(7) is None
    shared.close()
