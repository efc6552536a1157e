"""How it is put together: settings, command line, workers and the local stack. The only package that reads the environment."""
