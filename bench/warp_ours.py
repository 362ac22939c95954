"""The measurements of the WARP bench, one task a process.

Modes: prepare (the models for the others), merge, copy (what merging reads and writes, without merging), ema, and
`members N` (two members of WARP, N at a time).
"""

import shutil
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from child import Answer, Stopwatch, Task, peak_gb, reply
from treeward.losses.advantages import LeaveOneOut
from treeward.losses.policy_gradient import InReward
from treeward.methods.reinforce import PolicyGradientObjective
from treeward.methods.sft import SFT, SFTRun
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reference import EMAReference
from treeward.models.sampler import DecodeSampler, Noise
from treeward.runner import run as runner
from treeward.runner import settings
from treeward.runner.launch import LocalProcess
from treeward.runner.merge import MergeRun, merge
from treeward.runner.warp import WarpRun, members_of, train_members
from treeward.training.loop import Loop
from treeward.trees.tokens import TokenTree

MODELS = ("start", "a", "b")
REPEATS = 5
MOVED = 1e-3


def measure(task: Task) -> Answer:
    """What the mode says."""
    torch.set_num_threads(task.threads)
    work = Path(task.work)
    if task.mode == "prepare":
        prepare(Path(task.data), work)
        return Answer(steps=[])
    if task.mode == "merge":
        return timed_merges(work)
    if task.mode == "copy":
        return timed_copies(work)
    if task.mode == "ema":
        return averaged_reference(work, task)
    return members(work, parallel=int(task.mode.split()[1]))


def prepare(data: Path, work: Path) -> None:
    """A start of SmolLM2-135M's shape with random weights, two models beside it, and a small start that was trained."""
    smol = data / "model_configs/smollm2-135m"
    policy = Policy.from_config(
        ModelConfig(
            path=str(smol),
            init="random",
            tokenizer=str(data / "tokenizers/smollm2-135m-instruct-rebuilt"),
            device="cpu",
        ),
        seed=0,
    )
    noise = torch.Generator().manual_seed(0)
    for name in MODELS:
        policy.save(work / name)
        (work / name / "treeward.json").unlink()
        for parameter in policy.packed.parameters():
            parameter.data += MOVED * torch.randn(parameter.shape, generator=noise)
    fields = {**settings.recipe("world-sft"), "steps": 60, "require": "any", "out": str(work / "small")}
    del fields["command"]
    runner.run(settings.build(SFTRun, fields), SFT)


def timed_merges(work: Path) -> Answer:
    """Merging as the command does it, which sets one thread for the arithmetic."""
    torch.set_num_threads(1)
    imports = peak_gb()
    config = MergeRun(
        kind="slerp", start=str(work / "start"), members=(str(work / "a"), str(work / "b")), out=str(work / "merged")
    )
    watches = []
    for _ in range(REPEATS):
        shutil.rmtree(work / "merged", ignore_errors=True)
        with Stopwatch() as watch:
            merge(config)
        watches.append(watch)
    shard = (work / "start/model.safetensors").stat().st_size / 1e9
    return middle(watches, imports=imports, shard=shard)


def timed_copies(work: Path) -> Answer:
    """Read all three models into memory, and write one."""
    watches = []
    for _ in range(REPEATS):
        with Stopwatch() as watch:
            models = [
                {name: tensor.clone() for name, tensor in load_file(work / name / "model.safetensors").items()}
                for name in MODELS
            ]
            save_file(models[0], work / "copy.safetensors")
        del models
        (work / "copy.safetensors").unlink()
        watches.append(watch)
    return middle(watches)


def middle(watches: list[Stopwatch], **facts: float) -> Answer:
    """The median time."""
    seconds = median(watch.seconds for watch in watches)
    return Answer(seconds=seconds, others=median(watch.others for watch in watches), steps=[facts])


def averaged_reference(work: Path, task: Task) -> Answer:
    """A step of REINFORCE after the first, and the update of its reference apart."""
    policy = Policy.load(str(work / "start"), precision="fp32", device="cpu")
    reference = EMAReference(policy, rate=0.01)
    objective = PolicyGradientObjective(reference, LeaveOneOut(), kl=InReward(beta=0.1), unfinished="keep")
    loop = Loop(policy, objective, lr=1e-6)
    noise = torch.Generator().manual_seed(0)
    sampler = DecodeSampler.of(policy, 64)
    for step in range(2):
        prompts = [
            TokenTree(tuple(torch.randint(1000, 40_000, (32,), generator=noise).tolist()), (), f"{step} {n}")
            for n in range(task.pairs)
        ]
        with Stopwatch() as whole:
            rollout = sampler(prompts, task.batch_size, Noise(0, step=step))
            scores = [float(sum(branch) % 7) for tree in rollout.trees for branch in tree.branches]
            loop.step(rollout.with_scores(scores))
    updates = []
    for _ in range(REPEATS):
        with Stopwatch() as watch:
            reference.update()
        updates.append(watch.seconds)
    return Answer(steps=[{"step": whole.seconds, "update": median(updates)}])


def members(work: Path, parallel: int) -> Answer:
    """Two members of one iteration, from the start of their processes to the end."""
    out = work / f"members-{parallel}"
    fields = {
        **settings.recipe("world-warp"), "model": {"path": str(work / "small" / "model")}, "iterations": 1,
        "members": 2, "steps": 100, "parallel": parallel, "threads": 1, "require": "any", "out": str(out),
    }  # fmt: skip
    del fields["command"]
    config = settings.build(WarpRun, fields)
    directory = out / "iteration-1"
    directory.mkdir(parents=True)
    both = members_of(config, str(work / "small" / "model"), 1, directory)
    with Stopwatch() as watch:
        train_members(both, parallel, config.threads, LocalProcess)
    return Answer(seconds=watch.seconds, steps=[])


if __name__ == "__main__":
    reply(measure)
