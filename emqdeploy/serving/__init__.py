"""Classifying a stream of images under a policy: where images come from, what is measured on the way."""
