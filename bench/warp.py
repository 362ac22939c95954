"""The WARP bench: merging two models of SmolLM2-135M's size, a step of the averaged reference, members in parallel.

There is no peer of another project. Merging is compared with reading the start and both models and writing one by the
safetensors library, in memory; members in parallel with the same members one after another, one CPU thread each.
"""

from child import Task, ask
from records import Record, Setting, Speed, record
from show import header, quiet, show, verdict

REQUIRED_MERGE, REQUIRED_PARALLEL, REQUIRED_EMA = 1 / 1.5, 1.6, 0.03
REQUIRED_SHARDS = 2.0


def bench(setting: Setting) -> list[Record]:
    """Measure and print."""
    ask(setting.ours, "warp_ours.py", task(setting, "prepare"))
    header("warp: merge two models of SmolLM2-135M's size by slerp from their start, fp32, one shard each", "merges")
    merging, copying = (ask(setting.ours, "warp_ours.py", task(setting, mode)) for mode in ("merge", "copy"))
    ours, theirs = (Speed(1, each.seconds, each.peak_gb, each.others) for each in (merging, copying))
    show("fp32", "treeward merge, median of 5", ours)
    show("", "read three, write one, median of 5", theirs, ours)
    records = [record("warp", "fp32", peer="safetensors", peer_mode="best", ours=ours, theirs=theirs)]
    verdict(records[0], REQUIRED_MERGE)
    shards = (ours.gb - merging.steps[0]["imports"]) / merging.steps[0]["shard"]
    met = "met" if shards <= REQUIRED_SHARDS else "MISSED"
    print(f"{'':6}memory above the imports: {shards:.2f} shards (required at most {REQUIRED_SHARDS:g}: {met})")
    quiet(ours, theirs)

    average = ask(setting.ours, "warp_ours.py", task(setting, "ema"))
    update, step = average.steps[0]["update"], average.steps[0]["step"]
    met = "met" if update <= REQUIRED_EMA * step else "MISSED"
    print(
        f"\nwarp: step of the averaged reference {update:.3f} s, step of REINFORCE {step:.2f} s (SmolLM2-135M's shape, "
        f"8 prompts x 4 samples of 64 tokens): {update / step:.1%} (required at most {REQUIRED_EMA:.0%}: {met})"
    )

    header("warp: two members of 100 steps on the embedded world, one CPU thread each", "members")
    together, apart = (ask(setting.ours, "warp_ours.py", task(setting, f"members {n}")) for n in (2, 1))
    ours, theirs = (Speed(2, each.seconds, each.peak_gb, each.others) for each in (together, apart))
    show("fp32", "parallel: 2", ours)
    show("", "parallel: 1", theirs, ours)
    records.append(record("warp", "fp32", peer="one after another", peer_mode="default", ours=ours, theirs=theirs))
    verdict(records[1], REQUIRED_PARALLEL)
    return records


def task(setting: Setting, mode: str) -> Task:
    """A task of one measurement."""
    return Task(
        mode=mode, data=str(setting.data), work=str(setting.work), pairs=8, batch_size=4, threads=setting.threads
    )
