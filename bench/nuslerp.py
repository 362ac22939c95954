"""Our slerp of task vectors against mergekit's `nuslerp`, tensor by tensor: `python bench/nuslerp.py`.

mergekit runs in the environment of the peers. Two models beside a small Llama have task vectors that are between 0 and
180 degrees apart, one angle a tensor. Both commands merge them with shares 0.5 and 0.3 for the second, from float32 and
from bfloat16 files. Prints the largest difference of a tensor, relative to the norm of its merged task vector.
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import peer
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.runner.merge import MergeRun, merge

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.1.5"
SHARES = (0.5, 0.3)
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-4}
"""mergekit sums in the files' type unless told `dtype: float32`, as here; both write float32."""
NORM = 0.05
"""Length of a task vector, relative to its tensor."""


def models(work: Path, dtype: torch.dtype) -> None:
    """The start and two members; the angle between their task vectors rises from tensor to tensor."""
    Policy.from_config(ModelConfig(path="world", device="cpu"), seed=0).save(work / "start")
    start = load_file(work / "start/model.safetensors")
    noise = torch.Generator().manual_seed(0)
    members: list[dict[str, Tensor]] = [{}, {}]
    for number, (name, tensor) in enumerate(start.items()):
        angle = math.pi * number / (len(start) - 1)
        first, second = (torch.randn(tensor.shape, generator=noise) for _ in range(2))
        second -= first * (first * second).sum() / first.square().sum()
        first, second = (NORM * tensor.norm() * each / each.norm() for each in (first, second))
        members[0][name] = tensor + first
        members[1][name] = tensor + 2 * (math.cos(angle) * first + math.sin(angle) * second)
    for name, weights in zip(("start", "a", "b"), (start, *members), strict=True):
        (work / name).mkdir(exist_ok=True)
        for file in (work / "start").glob("*.json"):
            if name != "start" and file.name != "treeward.json":
                (work / name / file.name).write_bytes(file.read_bytes())
        cast = {key: tensor.to(dtype) for key, tensor in weights.items()}
        save_file(cast, work / name / "model.safetensors", {"format": "pt"})
    (work / "start/treeward.json").unlink()


def merged_by_mergekit(python: Path, work: Path, share: float) -> dict[str, Tensor]:
    """The weights that mergekit's command writes."""
    entries = [{"model": str(work / name), "parameters": {"weight": weight}}
               for name, weight in (("a", 1 - share), ("b", share))]  # fmt: skip
    recipe = {"merge_method": "nuslerp", "base_model": str(work / "start"), "models": entries, "dtype": "float32"}
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = work / f"mergekit-{share}"
    command = [str(python), "-m", "mergekit.scripts.run_yaml", str(work / "recipe.yaml"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mergekit ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def difference(start: dict[str, Tensor], ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of a tensor, relative to the norm of its merged task vector, and the tensor."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"only one has {sorted(ours.keys() ^ theirs.keys())[0]!r}")
    return max(
        (float((ours[name] - theirs[name]).norm() / (ours[name] - tensor.float()).norm()), name)
        for name, tensor in start.items()
    )


def main() -> int:
    """Merge with both, print the differences; 1 where one is above the limit."""
    python = peer.ready(ROOT, f"mergekit=={VERSION}")
    print(f"slerp of task vectors, groups tensor, against nuslerp of mergekit {VERSION}\n")
    print("| files | share | largest difference | in | |\n|---|---|---|---|---|")
    unequal = False
    for dtype, limit in LIMITS.items():
        with tempfile.TemporaryDirectory(prefix="treeward-nuslerp-") as folder:
            work = Path(folder)
            models(work, dtype)
            start = load_file(work / "start/model.safetensors")
            for share in SHARES:
                out = work / f"ours-{share}"
                members = (str(work / "a"), str(work / "b"))
                merge(MergeRun(start=str(work / "start"), members=members, weight=share, groups="tensor", out=str(out)))
                ours = load_file(out / "model.safetensors")
                value, name = difference(start, ours, merged_by_mergekit(python, work, share))
                word = "equal" if value <= limit else "DIFFERS"
                unequal |= value > limit
                print(f"| {str(dtype).removeprefix('torch.')} | {share} | {value:.1e} | {name} | {word} |", flush=True)
    return int(unequal)


if __name__ == "__main__":
    sys.exit(main())
