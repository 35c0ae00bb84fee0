"""What the documentation points to is there: files, headings, and the commands that it tells to run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.client.cli.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page for folder in (".", "bpf", "dashboards", "docs") for page in (ROOT / folder).glob("*.md")
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The anchors of `page`'s headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


@each_page
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(to), f"{target}: no such heading"


def commands(text: str) -> Iterator[str]:
    """The lines of `text`'s code blocks that run `agentcg`, without `sudo` and comments."""
    blocks = [*re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    blocks += re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("sudo ")
            if line.startswith("agentcg ") and not line.startswith("agentcg run"):
                yield line


@each_page
def test_every_command_line_is_one_that_agentcg_takes(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        # Brackets and dots are how a page writes what may be left out and what goes on.
        words = shlex.split(re.sub(r"\[|\]\.*|\.\.\.", "", line), comments=True)[1:]
        try:
            # What stands behind -- is somebody else's command line.
            build_parser().parse_args(words[: words.index("--")] if "--" in words else words)
        except SystemExit:
            pytest.fail(line)


def test_there_are_pages_and_commands() -> None:
    assert sum(len(list(commands(page.read_text(encoding="utf-8")))) for page in PAGES) > 15
