"""Property tests try the same examples each time, so that `make test` says the same of the same tree.

To search for new ones: make test-here ARGS="tests/unit --hypothesis-profile default".
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
