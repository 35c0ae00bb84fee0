"""The analyst's data job: median and 99th percentile of peak memory by tool, from a CSV file of measurements.

    python sum_up.py FILE [--stream]

As an agent writes it first, it loads the whole file as lists of texts, some eight times the file's size in memory; with
--stream it keeps one number a row. Both print the same table.
"""

import argparse
import csv
from array import array
from collections.abc import Iterable


def sum_up(columns: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The table's lines, in the order of the tools' names."""
    tool, peak = columns.index("tool"), columns.index("peak_bytes")
    peaks: dict[str, array[int]] = {}
    for row in rows:
        if row[tool] not in peaks:
            peaks[row[tool]] = array("q")
        peaks[row[tool]].append(int(row[peak]))
    lines = []
    for name, values in sorted(peaks.items()):
        ordered = sorted(values)
        median, high = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        lines.append(f"{name} {len(ordered)} {median} {high}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sum up a CSV file of measurements.")
    parser.add_argument("file")
    parser.add_argument(
        "--stream", action="store_true", help="keep one number a row instead of the whole file"
    )
    arguments = parser.parse_args()
    with open(arguments.file, newline="", encoding="ascii") as file:
        reader = csv.reader(file)
        columns = next(reader)
        rows: Iterable[list[str]] = reader if arguments.stream else list(reader)
        print("\n".join(sum_up(columns, rows)))
