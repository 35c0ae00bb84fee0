"""The real projects the agents work on, and the tools they install: exact versions, with the hashes they must have."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Pin:
    """One file of the Python package registry. `sha256` is that of the file."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A line of a requirements file that pip takes in its hash-checking mode."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


# Source distributions; each project's become the history of a git repository, oldest first.
LIBRARY: Final = (
    Pin("lz4", "4.0.2", "083b7172c2938412ae37c3a090250bfdd9e4a6e855442594f86c3608ed12729b"),
    Pin("lz4", "4.3.3", "01fe674ef2889dbb9899d8a67361e0c4a2c833af5aeb37dd505727cf5d2a131e"),
    Pin("lz4", "4.4.4", "070fd0627ec4393011251a094e08ed9fdcc78cb4e7ab28f507638eee4e39abda"),
    Pin("lz4", "4.4.5", "5f0b9e53c1e82e88c10d7c180069363980136b9d7a8306c4dca4f760d60c39f0"),
)
PACKAGE: Final = (
    Pin("humanize", "4.13.0", "78f79e68f76f0b04d711c4e55d32bebef5be387148862cb1ef83d2b58e7935a0"),
    Pin("humanize", "4.14.0", "2fa092705ea640d605c435b1ca82b2866a1b601cdf96f076d70b79a855eba90d"),
    Pin("humanize", "4.15.0", "1dd098483eb1c7ee8e32eb2e99ad1910baefa4b75c3aff3a82f4d78688993b10"),
    Pin("humanize", "4.16.0", "7dc2244a2f84a4bfb1d36c37bac80cd78e35cdc5c119206d87b018e1445f3a3f"),
    Pin("humanize", "4.17.0", "1d6a36c453dbfbb3f0b34601d2e0b4ce5d48d780305cd45714843f0068fde6ac"),
)

# Pure Python wheels: what the package's tests need.
WHEELS: Final = (
    Pin("freezegun", "1.5.5", "cd557f4a75cf074e84bc374249b9dd491eaeacd61376b9eb3c423282211619d2"),
    Pin("iniconfig", "2.3.1", "9121e2c1fdb355232495be3194c8dfe87ccc2d5dee45947b78e68f499790d7a7"),
    Pin("packaging", "26.3", "d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c"),
    Pin("pluggy", "1.7.0", "7dd7b0d8832ba3cb632c306926ded123429211b83641b35dc5c41ad2d34f9bec"),
    Pin("pygments", "2.21.0", "2363c69b61c4a97c838da3b130dcd6468f4848992b21a82f2a63ec34377137d9"),
    Pin("pytest", "9.2.0", "07acdcf88ec174f907dc01af70bf52d49b014bbab03faeeade31c96b18c2e588"),
    Pin("python-dateutil", "4.0.0", "a5e246f79eb80475e691bf93862cead98decd8a498cf53ba0516fcdc0f50dc1c"),
    Pin("tzdata", "2026.6", "0a10eec6e13ef16b627fabed9a5f2ba61a62b1c67f327305f4e7e412a70b4aec"),
)
