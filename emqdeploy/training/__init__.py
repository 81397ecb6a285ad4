"""Model, data and recipe in, one multi-bit checkpoint out."""

from __future__ import annotations

import sys

from emqdeploy.errors import EmqError

if sys.version_info < (3, 11):
    here = ".".join(map(str, sys.version_info[:2]))
    raise EmqError(
        f"training and quantizing need Python 3.11 or newer, this is {here}; run them on a workstation, and what"
        " they made on the device"
    )
