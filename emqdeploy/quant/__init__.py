"""Training side of the numeric contract: fake quantizers, bias correction, bit state, insertion into any module."""
