"""A measurement in a process of its own: the parent asks, the child answers. Standard library only, for both venvs.

The child's whole peak is counted, from its first import to its last step.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a child does: `mode` is its own word; `work` holds what the sides share, and the answer."""

    mode: str
    data: str
    work: str
    pairs: int
    batch_size: int
    threads: int
    precision: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was measured: seconds of training and processors that others held meanwhile, seconds of what was done once
    before it, and each step's metrics."""

    seconds: float = 0.0
    others: float = 0.0
    before: float = 0.0
    steps: list[dict[str, float]]
    peak_gb: float = 0.0


class Stopwatch:
    """`with Stopwatch() as watch:` leaves `watch.seconds` and `watch.others`: how many processors other processes, or
    other guests of the host, held meanwhile (Linux only, else 0). Above a tenth, a time is not to be trusted."""

    def __enter__(self) -> "Stopwatch":
        self.seconds = self.others = 0.0
        self._start = time.perf_counter(), busy()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        start, held = self._start
        self.seconds = time.perf_counter() - start
        self.others = max(0.0, busy() - held) / self.seconds


def busy() -> float:
    """Processor seconds spent so far on this machine by all but this process."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, *rest = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    own = os.times()
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def ask(python: Path, script: str, task: Task) -> Answer:
    """Run `bench/<script>` on a task in a fresh process.

    Raises:
        RuntimeError: the child failed; the end of what it printed is in the message.
    """
    answer = Path(task.work) / "answer.json"
    answer.unlink(missing_ok=True)
    print(f"... {Path(script).stem} {task.mode} {task.precision}, {task.pairs} pairs", file=sys.stderr, flush=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.run(
        [str(python), str(HERE / script), json.dumps(asdict(task))],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if child.returncode or not answer.exists():
        end = "\n".join(child.stdout.splitlines()[-25:])
        raise RuntimeError(f"bench/{script} {task.mode} ended with status {child.returncode}:\n{end}")
    return Answer(**json.loads(answer.read_text()))


def reply(measure: Callable[[Task], Answer]) -> None:
    """The child's main: read the task, measure, write the answer with this process's peak memory."""
    task = Task(**json.loads(sys.argv[1]))
    found = asdict(measure(task)) | {"peak_gb": peak_gb()}
    (Path(task.work) / "answer.json").write_text(json.dumps(found))


def peak_gb() -> float:
    """Peak resident memory of this process, in 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
