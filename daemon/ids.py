"""Ids and tickets that nobody can guess."""

import os


def random_hex(size_bytes: int) -> str:
    """Two hex digits for each of `size_bytes` bytes of the kernel's randomness, as secrets.token_hex gives.

    Without the module secrets, which brings OpenSSL's hashes into memory.
    """
    return os.urandom(size_bytes).hex()
