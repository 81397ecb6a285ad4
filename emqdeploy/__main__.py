"""Entry point of ``python -m emqdeploy``."""

from __future__ import annotations

from emqdeploy.cli import main

if __name__ == "__main__":
    main()
