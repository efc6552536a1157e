"""Audio sessions: chunks of a session folded into segments and one lossless recording."""
