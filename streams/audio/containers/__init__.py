"""Audio containers written and read block by block: memory is bounded by a block, whatever the recording's length."""
