"""Commands of this program in processes of their own: on this machine, or on a Ray cluster (the extra `treeward[ray]`).

Every node of a cluster must have Treeward installed and see the run directory and the data under the same paths, as on
a shared file system: a member of `treeward warp` reads its start from there and writes its run there.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from treeward.errors import UserError

PARENT = "TREEWARD_PARENT"
"""Environment variable of a started process: the process that it ends with; `treeward.__main__` reads it."""


class Running(Protocol):
    """A command that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        ...

    def interrupt(self) -> None:
        """Let it save its state and end."""
        ...


Launch: TypeAlias = Callable[[Sequence[str], Path, int | None], Running]
"""Starts a command: its arguments, the file that gets what it prints, and its CPU threads."""


def started(arguments: Sequence[str], output: Path, threads: int | None) -> subprocess.Popen[bytes]:
    """A process that runs a command. It ends if this process dies, and a Ctrl-C in the terminal does not reach it."""
    environ = {**os.environ, PARENT: str(os.getpid())}
    if threads is not None:
        environ["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "treeward", *arguments]
    with output.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environ, start_new_session=True)


class LocalProcess:
    """A command on this machine."""

    def __init__(self, arguments: Sequence[str], output: Path, threads: int | None) -> None:
        self.process = started(arguments, output, threads)

    def poll(self) -> int | None:
        return self.process.poll()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


class RayCluster:
    """Starts commands of this program on the nodes of a cluster.

    Args:
        address: `auto` for the cluster that this machine belongs to, or its address, such as ray://HOST:10001.

    Raises:
        UserError: ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise UserError(
                f"cluster is {address!r}, but ray is not installed: pip install 'treeward[ray]', or leave cluster out"
            ) from None
        self.ray = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError as problem:
                reason = str(problem).partition("\n")[0]
                raise UserError(f"cluster is {address!r}, but no Ray cluster is there ({reason})") from None
        self.gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))

    def __call__(self, arguments: Sequence[str], output: Path, threads: int | None) -> "RayTask":
        """Start a command; `threads` are also the CPUs that it asks for, and it has a GPU where the cluster has any."""
        options = {"num_cpus": threads or 1, "num_gpus": self.gpus, "max_retries": 0}
        remote = self.ray.remote(run_here).options(**options)
        return RayTask(self.ray, remote.remote(list(arguments), str(output.resolve()), threads, os.getcwd()))


class RayTask:
    """A command on some node."""

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray, self.task = ray, task

    def poll(self) -> int | None:
        """Its exit code, -1 if its node or worker died, or None while it runs."""
        if not self.ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            return int(self.ray.get(self.task))
        except self.ray.exceptions.RayError:
            return -1

    def interrupt(self) -> None:
        """Let it save its state and end."""
        self.ray.cancel(self.task)


def run_here(arguments: Sequence[str], output: str, threads: int | None, directory: str) -> int:
    """Run a command of this program on this node; returns its exit code.

    Raises:
        FileNotFoundError: the node does not see the run directory.
    """
    os.chdir(directory)
    process = started(arguments, Path(output), threads)
    try:
        return process.wait()
    except KeyboardInterrupt:  # how Ray cancels a task
        process.send_signal(signal.SIGINT)
        return process.wait()
