"""Writes the file of measurements that the analyst works on: what tool calls on a busy host might have cost.

    python measurements.py FILE [--rows N]

The same N gives the same bytes everywhere.
"""

import argparse
import csv
import random
from pathlib import Path

COLUMNS = ("started_at", "session", "tool", "command", "duration_ms", "peak_bytes", "cpu_ms", "exit_status")
TOOLS = ("git", "pytest", "make", "pip", "rg", "sed", "python", "npm")
FIRST_START = 1_700_000_000
SEED = 20_251_121


def write(path: Path, rows: int) -> None:
    """Writes `rows` measurements as CSV; heavy-tailed, as real ones are."""
    chance = random.Random(SEED)
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number in range(rows):
            tool = chance.choice(TOOLS)
            writer.writerow((
                FIRST_START + number * 3, f"agent-{chance.randrange(40):02}", tool,
                f"{tool} step-{number:07d} --seed {chance.randrange(10**9)}", int(chance.lognormvariate(6, 1.5)),
                int(chance.lognormvariate(17, 1.4)), int(chance.lognormvariate(5, 1.5)), int(chance.random() < 0.1),
            ))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a CSV file of measurements.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=620_000)
    arguments = parser.parse_args()
    write(arguments.file, arguments.rows)
