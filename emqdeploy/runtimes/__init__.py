"""Artefacts in, outputs out: adapters that switch precision on the device, and what measures them."""
