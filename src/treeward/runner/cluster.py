"""Members of `treeward warp` on a Ray cluster, which needs the extra `treeward[ray]`.

Every node must have Treeward installed and see the run directory and the data under the same paths, as on a shared file
system: a member reads its start from there and writes its run there.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from treeward.errors import UserError


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
    environ = {**os.environ, "TREEWARD_PARENT": str(os.getpid())}
    if threads is not None:
        environ["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "treeward", *arguments]
    with open(output, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environ, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:  # how Ray cancels a task
        process.send_signal(signal.SIGINT)
        return process.wait()
