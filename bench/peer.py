"""The peers' own environment, `.venv-bench`: TRL and mergekit never enter ours."""

import subprocess
import sys
from pathlib import Path

VERSION = "1.16.0"
TORCH = "2.13.0"


def ready(root: Path, *extra: str) -> Path:
    """The interpreter of an environment with this TRL and torch, made or mended where it is not there.

    `extra` are further requirements with their versions, such as mergekit==0.1.5.
    """
    python = root / ".venv-bench" / "bin" / "python"
    if not python.exists():
        print("making .venv-bench", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(root / ".venv-bench")], check=True)
    wanted = [f"torch=={TORCH}", f"trl=={VERSION}", *extra]
    if any(installed(python, package) != version for package, version in (each.split("==") for each in wanted)):
        pip = [str(python), "-m", "pip", "install", "-q", "-c", "constraints.txt"]
        subprocess.run([*pip, *wanted], cwd=root, check=True)
    return python


def installed(python: Path, package: str) -> str | None:
    """The version of a package in that environment, without a local part such as +cpu; None where there is none."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip().partition("+")[0] if answer.returncode == 0 else None
