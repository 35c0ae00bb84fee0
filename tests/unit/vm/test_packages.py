"""What is read out of this host's apt and tools."""

import pytest

from vm.outcome import SetupError
from vm.packages import Release, Source, choose_sources, parse_os_release, select_transport_settings
from vm.tools import major_version, qemu_is_usable

TARGETS = """\
https://apt.example.org|trixie|main|Example
http://mirror.example/debian-security/|trixie-security|main|Debian
http://mirror.example/debian/|trixie|main|Debian
http://mirror.example/debian/|trixie|contrib|Debian
http://mirror.example/debian/|trixie-updates|main|Debian
http://mirror.example/debian/|forky|main|Debian
cdrom://disc/|trixie|main|Debian
"""


def test_only_debians_own_suites_of_the_release_are_taken_main_archive_first() -> None:
    assert choose_sources(TARGETS, "trixie") == [
        Source("http://mirror.example/debian", "trixie"),
        Source("http://mirror.example/debian-security", "trixie-security"),
        Source("http://mirror.example/debian", "trixie-updates"),
    ]


def test_before_the_first_update_the_path_tells_who_publishes_a_suite() -> None:
    targets = "https://apt.example.org|trixie|main|\nhttp://mirror.example/debian|trixie|main|\n"
    assert choose_sources(targets, "trixie") == [Source("http://mirror.example/debian", "trixie")]


def test_a_host_without_a_main_archive_is_told_what_to_do() -> None:
    with pytest.raises(SetupError, match=r"no Debian source for bookworm main\. Next step"):
        choose_sources(TARGETS, "bookworm")


def test_os_release_gives_id_and_codename_with_or_without_quotes() -> None:
    assert parse_os_release('NAME="x=y"\nID=debian\nVERSION_CODENAME="trixie"\n') == Release(
        "debian", "trixie"
    )
    assert parse_os_release("# nothing\n\n") == Release("", "")


def test_only_settings_that_reach_the_mirror_are_handed_on() -> None:
    dump = [
        'Acquire "";',
        'Acquire::http "";',
        'Acquire::http::Proxy "http://proxy:3128";',
        'Acquire::https::CaInfo "/etc/ssl/ca.pem";',
        'Acquire::Check-Date "false";',
        'Acquire::Retries "3";',
        'Acquire::Languages "none";',
        'APT::Install-Recommends "false";',
        'Dir::Cache "var/cache/apt";',
    ]
    assert select_transport_settings(dump) == [dump[2], dump[3], dump[4], dump[5]]


@pytest.mark.parametrize(
    ("version", "major"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", 10),
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", 7),
        ("1:10.0.2+ds-2+deb13u1~bpo12+1", 10),
        ("1:7.2+dfsg-7+deb12u18+b3", 7),
        ("11.1.0", 11),
        ("unknown", None),
        ("", None),
    ],
)
def test_the_major_version_is_found_in_program_and_package_versions(version: str, major: int | None) -> None:
    assert major_version(version) == major


def test_a_qemu_that_corrupts_memory_and_none_at_all_are_not_usable() -> None:
    assert not qemu_is_usable("QEMU emulator version 7.2.22")
    assert not qemu_is_usable(None)
    assert qemu_is_usable("QEMU emulator version 10.0.2")
