"""The settings of the whole process: one rule for threads, and memory that glibc keeps."""

import subprocess
import sys

import pytest
import torch

from treeward.runner.process import TINY, use_threads_for


@pytest.mark.parametrize(
    ("parameters", "device", "expected"),
    [(TINY - 1, "cpu", 1), (TINY, "cpu", 4), (TINY - 1, "meta", 4)],
)
def test_only_a_tiny_model_on_the_cpu_runs_on_one_thread(
    parameters: int, device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert use_threads_for(parameters, torch.device(device)) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_freed_memory_stays_with_the_process() -> None:
    """In a process of its own, because the setting cannot be undone: 64 MiB that were freed are still resident."""
    script = (
        "import resource, torch\n"
        "from treeward.runner.process import keep_freed_memory\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "assert keep_freed_memory()\n"
        "before = resident()\n"
        "tensor = torch.ones(16 * 2**20)\n"
        "del tensor\n"
        "print(resident() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 48 * 2**20
