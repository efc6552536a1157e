"""One module a command; `compose.cli` binds them."""
