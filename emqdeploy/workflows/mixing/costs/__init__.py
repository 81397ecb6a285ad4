"""Cost models, a file each: what a budget can be about."""
