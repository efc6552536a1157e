"""The bare loop with a set of the ids seen: dedup and count without any durability."""

from __future__ import annotations

from bare_count import main

if __name__ == "__main__":
    main(dedup=True)
