"""Devices by name; a new one is one new module here."""

from emqdeploy.measuring.devices.base import DEVICES, Device, find_device

__all__ = ["DEVICES", "Device", "find_device"]
