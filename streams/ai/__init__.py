"""AI tasks: questions that a model answers, recorded at once, ended once, told as they are written."""
