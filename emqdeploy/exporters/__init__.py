"""A checkpoint in, artefacts for runtimes out; needs no torch."""
