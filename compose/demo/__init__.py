"""The demo: every stream on real input, with faults, checked against a truth computed apart from the pipeline."""
