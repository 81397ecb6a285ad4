"""Widths per layer after training: how sensitive each layer is, which mix that suggests, and its re-estimation."""
