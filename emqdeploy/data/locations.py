"""Where the files of data sets lie, and downloading those that can be had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emqdeploy.data.repair import import_torchvision
from emqdeploy.errors import EmqError, writable_dir

_DEBIAN_DATASETS = Path("/usr/share/datasets")


def cache_folder() -> Path:
    """Return where data sets lie when no folder is named."""
    try:
        return Path.home() / ".cache" / "emqdeploy"
    except RuntimeError as error:
        raise EmqError("there is no home directory to keep data sets in; give --data-dir or set HOME") from error


def find_or_download(
    name: str,
    data_dir: Path | None,
    files: Sequence[str],
    subfolders: Sequence[str],
    torchvision_name: str,
    debian_package: str | None = None,
) -> Path:
    """Return the first folder that holds all ``files``; torchvision fetches them as a last resort.

    Raises:
        EmqError: They are nowhere; the message lists the places and the ways out.
    """
    cache = cache_folder()
    folders = [data_dir / sub for sub in subfolders] if data_dir else []
    if debian_package:
        folders.append(_DEBIAN_DATASETS / name)
    folders += [cache / sub for sub in subfolders]

    def find() -> Path | None:
        return next((at for at in folders if all((at / file).is_file() for file in files)), None)

    found = find()
    if found is None:
        try:
            _download(torchvision_name, writable_dir(data_dir or cache))
            reason = "it lacked files"
        except Exception as error:  # torch missing, no network, wrong checksum, full disk, ...
            reason = str(error).partition("\n")[0] or type(error).__name__
        found = find()
    if found is None:
        package = f"install the Debian package {debian_package}, or " if debian_package else ""
        raise EmqError(
            f"{name} is neither in {' nor in '.join(str(at) for at in folders)}, and the download "
            f"failed ({reason}); {package}give the folder of its files with --data-dir"
        )
    return found


def _download(torchvision_name: str, folder: Path) -> None:
    """Let torchvision download a data set (it checks the checksums) into ``folder``."""
    getattr(import_torchvision().datasets, torchvision_name)(root=str(folder), download=True)
