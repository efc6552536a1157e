"""Audio over the gateway: the WebSocket that takes it in, and what can be asked of a session."""
