"""Measuring a network on the device it runs on: latency, switching, accuracy, memory, energy, and what disturbed it.

`emqdeploy.measuring.bench.bench` takes `BenchSettings` and returns one result, described in
`emqdeploy.measuring.result`. Scenarios, devices and energy sources plug in by name. Nothing here needs torch.
"""
