"""Seeds that are the same in every process, on every machine, and after a resume."""

import hashlib


def seed_for(*parts: str | int) -> int:
    """Return a 63-bit seed that depends on the parts and their order alone.

    The seed is the first 8 bytes of SHA-256 over the parts, each written with its type and length,
    so that ("a", "bc") and ("ab", "c"), or 1 and "1", differ. Python's `hash` is salted per
    process and does not serve.
    """
    text = "".join(f"{type(p).__name__}{len(str(p))}:{p}" for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
