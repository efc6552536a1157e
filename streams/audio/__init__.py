"""Audio: sessions of chunks folded into segments and recordings in the object store."""
