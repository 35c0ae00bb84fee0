"""A Prometheus of our own for a test: scrapes one page every other second, answers queries, leaves nothing behind."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Also the time a scrape may take: an emulated machine with busy neighbours needs more than a second now and then.
SCRAPE_INTERVAL_S = 2
START_DEADLINE_S = 60.0


class Prometheus:
    """A running server. `target` is the host:port that it scrapes."""

    def __init__(self, directory: Path, target: str) -> None:
        self.directory = directory
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.log = directory / "prometheus.log"
        self._config = directory / "prometheus.yaml"
        self._config.write_text(
            f"global: {{scrape_interval: {SCRAPE_INTERVAL_S}s, scrape_timeout: {SCRAPE_INTERVAL_S}s}}\n"
            f"scrape_configs: [{{job_name: agentcgroup, static_configs: [{{targets: ['{target}']}}]}}]\n",
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self.directory / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            if self._is_ready():
                return
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def stop(self) -> None:
        """End it, however far it came."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)

    def range(self, expr: str, start_s: float, end_s: float) -> list[list[float]]:
        """The values of every series of `expr` between two moments (Unix seconds), one a second."""
        result = self._get("query_range", query=expr, start=start_s, end=end_s, step=1)["result"]
        return [[float(value) for _, value in series["values"]] for series in result]

    def now(self, expr: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The value of every series of `expr` now, by its labels."""
        result = self._get("query", query=expr)["result"]
        return {tuple(sorted(series["metric"].items())): float(series["value"][1]) for series in result}

    def one(self, expr: str) -> float | None:
        """The value of the only series of `expr` now; None when there is none."""
        values = list(self.now(expr).values())
        assert len(values) <= 1, f"{expr} has {len(values)} series"
        return values[0] if values else None

    def label_values(self, selector: str, label: str) -> set[str]:
        """What a Grafana variable `label_values(selector, label)` offers."""
        return set(self._get(f"label/{label}/values", **{"match[]": selector}))

    def _get(self, endpoint: str, **parameters: str | float) -> Any:
        url = f"{self.url}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.read().decode(errors='replace')}") from error


@contextlib.contextmanager
def running_prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `target` and keeps its data in `directory`."""
    prometheus = Prometheus(directory, target)
    try:
        prometheus.start()
        yield prometheus
    finally:
        prometheus.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
