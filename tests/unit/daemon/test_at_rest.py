"""What the daemon does not hold while nothing asks for it: libraries that would be a fifth of its memory."""

import json
import subprocess
import sys

CODE = """
import json, sys
from agentcgroup.daemon import __main__ as daemon
daemon._leave_out_tls()
from agentcgroup.daemon import app
before = sorted(sys.modules)
import ssl
from agentcgroup.daemon.metrics import collector
print(json.dumps([before, "ssl" in sys.modules, "prometheus_client" in sys.modules]))
"""


def test_the_daemon_starts_without_tls_http_and_what_only_a_scrape_or_docker_needs() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded, has_ssl, has_prometheus = json.loads(done.stdout)
    left_out = {"ssl", "_ssl", "_hashlib", "http.client", "email", "prometheus_client", "docker", "requests"}
    assert not left_out & set(loaded)
    assert has_ssl and has_prometheus, "what is left out at the start must be there for whoever needs it"
