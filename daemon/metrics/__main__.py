"""`python -m agentcgroup.daemon.metrics` prints docs/metrics.md."""

import sys

from agentcgroup.daemon.metrics.reference import page

sys.stdout.write(page())
