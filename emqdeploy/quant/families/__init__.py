"""Quantizer families: one module each, found by `emqdeploy.quant.families.base.load_families`."""
