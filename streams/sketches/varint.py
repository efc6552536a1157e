"""ClickHouse's VarUInt, the length prefix of every state."""

from functools import lru_cache


@lru_cache(maxsize=4096)
def varint(number: int) -> bytes:
    """A number >= 0 as LEB128: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
