"""A multi-bit network from a trained float model and a few hundred images, without training."""
