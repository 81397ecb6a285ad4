"""Says what a device has; sent to its Python over standard input, needs Python 3.6 and nothing else."""

import sys

sys.path[:] = [entry for entry in sys.path if entry]  # before all else: without the directory that the shell starts in

import importlib.util  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402

MODULES = ("numpy", "msgspec", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch")


def main():  # type: ignore[no-untyped-def]
    """Prints one JSON object; makes the directory that the job will run in."""
    folder = tempfile.mkdtemp(prefix="emqdeploy-")
    print(
        json.dumps(
            {
                "python": list(sys.version_info[:3]),
                "executable": sys.executable,
                "machine": platform.machine(),
                "modules": [name for name in MODULES if importlib.util.find_spec(name) is not None],
                "folder": folder,
                "free_bytes": shutil.disk_usage(folder).free,
            }
        )
    )


if __name__ == "__main__":
    main()
