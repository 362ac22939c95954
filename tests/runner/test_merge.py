"""Merged checkpoints equal the arithmetic in memory, load as models, and say how they were merged; what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from treeward.cli.main import run as command
from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Categorical, Ordinal, Scalar
from treeward.merging import average, balanced_slerp, lerp, linear, slerp
from treeward.merging.checkpoints import Adapted, Checkpoint
from treeward.models import artifact
from treeward.models.ensemble import warm
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.runner import settings
from treeward.runner.merge import MergeRun, merge
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]
Tiny = Callable[..., nn.Module]


def moved(model: nn.Module, seed: int, size: float = 0.01) -> nn.Module:
    """The model with noise added to every parameter, in place."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter.dtype), alpha=size)
    return model


@pytest.fixture
def saved(tiny: Tiny, tiny_tokenizer: Any, tmp_path: Path) -> list[str]:
    """The directories of a start and of three members that moved from it."""
    paths = []
    for number in range(4):
        model = tiny("llama")
        policy = Policy(moved(model, number) if number else model, tiny_tokenizer)
        policy.save(tmp_path / f"model-{number}")
        paths.append(str(tmp_path / f"model-{number}"))
    return paths


def weights(path: str | Path) -> dict[str, Tensor]:
    return dict(Checkpoint(path))


def merged(tmp_path: Path, **fields: Any) -> dict[str, Tensor]:
    return weights(merge(MergeRun(out=str(tmp_path / "merged"), **fields)).path)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Reading and writing


@pytest.mark.parametrize("shard", ["20KB", "1GB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_those_that_transformers_saved(tiny: Tiny, tmp_path: Path, shard: str, dtype: torch.dtype) -> None:
    model: Any = tiny("llama").to(dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size=shard)
    checkpoint = Checkpoint(tmp_path / "m")
    assert (len(checkpoint.files) > 1) == (shard == "20KB")
    state = model.state_dict()
    assert set(checkpoint) <= set(state)
    assert all(torch.equal(checkpoint[name], state[name]) for name in checkpoint)


@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_the_merged_model_loads_with_transformers_and_with_treeward(
    tiny: Tiny, tiny_tokenizer: Any, tmp_path: Path, shard: str
) -> None:
    for number in range(2):
        model: Any = moved(tiny("llama"), number)
        model.save_pretrained(tmp_path / f"m{number}", max_shard_size=shard)
        tiny_tokenizer.save_pretrained(tmp_path / f"m{number}")
    members = (str(tmp_path / "m0"), str(tmp_path / "m1"))
    merge(MergeRun(kind="linear", members=members, out=str(tmp_path / "merged")))
    expected = average([weights(member) for member in members])
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == torch.float32
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in expected.items())
    assert sorted(f.name for f in Path(members[0]).glob("*.safe*")) == sorted(
        f.name for f in (tmp_path / "merged").glob("*.safe*")
    )
    assert Policy.load(tmp_path / "merged").tokenizer.get_vocab() == tiny_tokenizer.get_vocab()


# Kinds


def test_spherical_interpolation_from_disk_is_that_in_memory(saved: list[str], tmp_path: Path) -> None:
    start, *members = map(weights, saved)
    kind: Any
    for kind, function in (("slerp", slerp), ("balanced-slerp", balanced_slerp), ("linear", linear)):
        out = tmp_path / kind
        result = merge(MergeRun(kind=kind, start=saved[0], members=tuple(saved[1:]), out=str(out)))
        expected = function(start, members)
        assert same(weights(out), expected.weights)
        assert result.groups == expected.groups
    assert {group.name for group in result.groups} >= {"model.layers.0", "model.embed_tokens", "model.norm"}


@pytest.mark.parametrize("groups", ["tensor", "all"])
def test_groups_and_weights_are_passed_on(saved: list[str], tmp_path: Path, groups: Any) -> None:
    here = merged(tmp_path, start=saved[0], members=tuple(saved[1:3]), groups=groups, weight=0.25)
    start, a, b = (weights(path) for path in saved[:3])
    assert same(here, slerp(start, [a, b], 0.25, groups).weights)


def test_interpolating_from_the_start_to_a_member(saved: list[str], tmp_path: Path) -> None:
    start, end = weights(saved[0]), weights(saved[1])
    for weight in (0.0, 0.3, 1.0):
        out = tmp_path / str(weight)
        merge(MergeRun(kind="liti", start=saved[0], members=(saved[1],), weight=weight, out=str(out)))
        assert same(weights(out), lerp(start, towards=end, weight=weight))
    assert same(weights(tmp_path / "0.0"), start)
    assert same(weights(tmp_path / "1.0"), end)


def test_an_exponential_moving_average_over_checkpoints(saved: list[str], tmp_path: Path) -> None:
    here = merged(tmp_path, kind="ema", members=tuple(saved), weight=0.3)
    mean: Any = weights(saved[0])
    for path in saved[1:]:
        mean = lerp(mean, towards=weights(path), weight=0.3)
    assert all(torch.allclose(here[name], mean[name], atol=1e-7) for name in mean)


def test_full_weights_are_interpolated_with_a_remark(saved: list[str], tmp_path: Path) -> None:
    config = MergeRun(kind="weight-slerp", members=tuple(saved[1:3]), out=str(tmp_path / "merged"))
    result = merge(config)
    a, b = (weights(path) for path in saved[1:3])
    zero = {name: torch.zeros_like(tensor) for name, tensor in a.items()}
    assert same(weights(result.path), slerp(zero, [a, b]).weights)
    assert "slerp with --start interpolates what training changed" in result.remarks[-1]


@pytest.mark.parametrize("head", [Scalar(), Categorical(5), Ordinal(5)])
def test_averaged_reward_models_score_as_in_memory(head: AnyHead, grow: Build, tmp_path: Path) -> None:
    members = []
    for number in range(2):
        model = RewardModel.from_config(ModelConfig(path="world", init="random", device="cpu"), 0, head)
        moved(model.packed.model, number)
        nn.init.normal_(output_layer(model.packed.model).weight)
        model.save(tmp_path / f"m{number}")
        members.append(model)
    merge(MergeRun(kind="warm", members=(str(tmp_path / "m0"), str(tmp_path / "m1")), out=str(tmp_path / "warm")))
    again = RewardModel.load(str(tmp_path / "warm"), device="cpu", precision="fp32")
    trees: list[TokenTree] = grow(5)
    torch.testing.assert_close(again.score(trees), warm(members).score(trees), atol=1e-5, rtol=1e-5)
    card = (tmp_path / "warm" / "README.md").read_text()
    assert "score" in card.split("```python")[1]
    assert "Kind `warm`, equal weights" in card


def test_task_vectors_of_reward_models(tmp_path: Path) -> None:
    for number in range(3):
        model = RewardModel.from_config(ModelConfig(path="world", init="random", device="cpu"), 0, Scalar())
        nn.init.constant_(output_layer(model.packed.model).weight, 0.1)
        if number:
            moved(model.packed.model, number)
        model.save(tmp_path / f"m{number}")
    start, a, b = (str(tmp_path / f"m{number}") for number in range(3))
    merge(MergeRun(start=start, members=(a, b), out=str(tmp_path / "merged")))
    assert RewardModel.load(str(tmp_path / "merged"), device="cpu").head == Scalar()
    assert (artifact.read(str(tmp_path / "merged")) or {})["head_hash"] != (artifact.read(a) or {})["head_hash"]


# Adapters


@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"])])
@pytest.mark.parametrize("rslora", [True, False])
def test_adapters_are_added_to_their_base_in_float32(
    tiny: Tiny, tiny_tokenizer: Any, tmp_path: Path, family: str, targets: list[str], rslora: bool
) -> None:
    base: Any = tiny(family)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, use_rslora=rslora, fan_in_fan_out=family == "gpt2",
        init_lora_weights=False,
    )  # fmt: skip
    fused = []
    for number in range(2):
        torch.manual_seed(number)
        adapted = peft.get_peft_model(tiny(family), config)
        adapted.save_pretrained(tmp_path / f"adapter-{number}")
        fused.append(adapted.merge_and_unload().state_dict())
    start = Checkpoint(tmp_path / "base")
    read = Adapted(start, tmp_path / "adapter-0")
    assert all(torch.allclose(read[name], fused[0][name], atol=1e-6) for name in start)
    paths = tuple(str(tmp_path / f"adapter-{number}") for number in range(2))
    here = merged(tmp_path, start=str(tmp_path / "base"), members=paths)
    expected = slerp(dict(start), [{name: state[name] for name in start} for state in fused]).weights
    assert all(torch.allclose(here[name], expected[name], atol=1e-6) for name in here)
    with pytest.raises(UserError, match="start is not set: name its base model"):
        merge(MergeRun(kind="linear", members=paths, out=str(tmp_path / "other")))


def test_other_adapters_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    base: Any = tiny("llama")
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(tiny("llama"), config).save_pretrained(tmp_path / "dora")
    with pytest.raises(UserError, match="has use_dora; only plain LoRA is merged"):
        Adapted(Checkpoint(tmp_path / "base"), tmp_path / "dora")
    other: Any = tiny("gpt2")
    other.save_pretrained(tmp_path / "other")
    peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    with pytest.raises(UserError, match=r"which its base .* does not have"):
        Adapted(Checkpoint(tmp_path / "other"), tmp_path / "lora")


# Precision


def test_small_changes_survive_in_float32_and_are_not_written_in_bfloat16(
    tiny: Tiny, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    for number in range(3):
        model = tiny("llama").to(torch.bfloat16).float()
        Policy(moved(model, number, 1e-4) if number else model, tiny_tokenizer).save(tmp_path / f"m{number}")
    start, a, b = (str(tmp_path / f"m{number}") for number in range(3))
    with pytest.raises(UserError, match=r"precision bf16 would round away .* of what merging changed; write fp32"):
        merge(MergeRun(start=start, members=(a, b), precision="bf16", out=str(tmp_path / "half")))
    assert not list(tmp_path.glob("*half*"))
    here = merged(tmp_path, start=start, members=(a, b))
    expected = slerp(weights(start), [weights(a), weights(b)]).weights
    assert same(here, expected)


def test_half_precision_is_written_where_it_keeps_the_change(saved: list[str], tmp_path: Path) -> None:
    for path in saved[1:3]:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(path)
        moved(model, 5, 0.5).save_pretrained(path)  # type: ignore[operator]
    here = merged(tmp_path, kind="linear", start=saved[0], members=tuple(saved[1:3]), precision="bf16")
    assert {tensor.dtype for tensor in here.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


# The record


def test_the_record_names_models_hashes_and_geometry(saved: list[str], tmp_path: Path) -> None:
    result = merge(MergeRun(start=saved[0], members=tuple(saved[1:3]), out=str(tmp_path / "merged")))
    facts = json.loads((result.path / "merge.json").read_text())
    assert facts["start"] == {"path": saved[0], "weights": Checkpoint(saved[0]).hash}
    assert [member["weights"] for member in facts["members"]] == [Checkpoint(path).hash for path in saved[1:3]]
    assert facts["groups"][0]["angles"][0] == pytest.approx(result.groups[0].angles[0])
    own = artifact.read(str(result.path)) or {}
    assert own["start"]["weights"] == Checkpoint(saved[0]).hash
    assert own["weights"] == Checkpoint(result.path).hash
    assert Checkpoint(saved[0]).hash[:16] in (result.path / "README.md").read_text()


def test_the_command_prints_norms_and_angles(saved: list[str], tmp_path: Path, capsys: Any) -> None:
    arguments = ["merge", "--start", saved[0], "--members", f"[{saved[1]}, {saved[2]}]"]
    assert command([*arguments, "--out", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = slerp(weights(saved[0]), [weights(saved[1]), weights(saved[2])])
    layer = next(group for group in result.groups if group.name == "model.layers.0")
    line = next(line for line in lines if line.startswith("model.layers.0")).split()
    assert line[1] == f"{100 * layer.norms[0] / layer.start:.3g},"
    assert line[3] == f"{layer.angles[0]:.1f}"
    assert line[5] == f"{layer.coefficients[0]:.3f},"
    assert command([*arguments, "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"][0]["norms"] == pytest.approx(result.groups[0].norms)


def test_members_that_are_alike_are_reported(saved: list[str], tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(saved[1])
    moved(model, 9, 1e-3).save_pretrained(saved[2])  # type: ignore[operator]
    result = merge(MergeRun(start=saved[0], members=tuple(saved[1:3]), out=str(tmp_path / "merged")))
    assert any("less than 40 degrees apart" in remark for remark in result.remarks)
    clean = merge(MergeRun(start=saved[0], members=(saved[1], saved[3]), out=str(tmp_path / "clean")))
    assert not any("degrees" in remark for remark in clean.remarks)


def test_blocks_that_did_not_move_are_reported(saved: list[str], tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(saved[1])
    start = dict(transformers.AutoModelForCausalLM.from_pretrained(saved[0]).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("model.layers.1."):
                parameter.copy_(start[name])
    model.save_pretrained(saved[1])
    result = merge(MergeRun(start=saved[0], members=tuple(saved[1:3]), out=str(tmp_path / "merged")))
    (remark,) = (remark for remark in result.remarks if "frozen" in remark)
    assert f"{saved[1]!r} moved by less than 1e-05" in remark
    assert "(model.layers.1, ...)" in remark
    clean = merge(MergeRun(start=saved[0], members=tuple(saved[2:4]), out=str(tmp_path / "clean")))
    assert not any("frozen" in remark for remark in clean.remarks)


# What is refused


def edit(path: str, file: str, **changes: Any) -> None:
    place = Path(path) / file
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def start_is_a_member(saved: list[str]) -> str:
    transformers.AutoModelForCausalLM.from_pretrained(saved[0]).save_pretrained(saved[2])
    return f"member '{saved[2]}' is the start: its weights moved by 0 of"


def another_size(saved: list[str]) -> str:
    edit(saved[2], "config.json", num_hidden_layers=7)
    return "differ in config.json: num_hidden_layers is 7 and"


def another_vocabulary(saved: list[str]) -> str:
    file = Path(saved[2]) / "tokenizer.json"
    text = file.read_text().replace('"w10"', '"x"').replace('"w11"', '"w10"').replace('"x"', '"w11"')
    file.write_text(text)
    return "have other vocabularies: the token 'w10' is 11 and 10"


def an_untied_head(saved: list[str]) -> str:
    place = Path(saved[2])
    state = {**weights(place), "extra.weight": torch.zeros(2)}
    save_file(state, place / "model.safetensors", {"format": "pt"})
    return "only one has the tensor 'extra.weight'"


def another_shape(saved: list[str]) -> str:
    state = weights(saved[2])
    state["model.norm.weight"] = torch.zeros(3)
    save_file(state, Path(saved[2]) / "model.safetensors", {"format": "pt"})
    return r"'model.norm.weight' has the shapes \(3,\) and"


def another_start(saved: list[str]) -> str:
    artifact.annotate(Path(saved[2]), {"start": {"path": "runs/other", "weights": "0" * 64}})
    return "was trained from 'runs/other', whose weights have the hash 000000000000, and not from start"


def a_file_cut_short(saved: list[str]) -> str:
    file = Path(saved[2]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return r"model.safetensors' cannot be read \(it has \d+ bytes and should have \d+\)"


def no_weights(saved: list[str]) -> str:
    (Path(saved[2]) / "model.safetensors").unlink()
    return "has no model.safetensors; only safetensors are read"


def no_such_directory(saved: list[str]) -> str:
    saved[2] += "-missing"
    return "members '.*-missing' is not a directory; name a run, or a directory that has config.json"


def another_template(saved: list[str]) -> str:
    artifact.annotate(Path(saved[2]), {"template": "abc"})
    return "have other heads or chat templates"


@pytest.mark.parametrize(
    "fault",
    [start_is_a_member, another_size, another_vocabulary, an_untied_head, another_shape, another_start,
     a_file_cut_short, no_weights, no_such_directory, another_template],
)  # fmt: skip
def test_models_that_do_not_belong_together_are_refused(
    saved: list[str], tmp_path: Path, fault: Callable[[list[str]], str]
) -> None:
    problem = fault(saved)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=problem):
        merge(MergeRun(start=saved[0], members=tuple(saved[1:3]), out=str(tmp_path / "merged")))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"members": ["a"], "start": "s"}, "members has 1 models; slerp needs at least two"),
        ({"kind": "liti", "members": ["a", "b"], "start": "s", "weight": 0.5}, "liti needs exactly one"),
        ({"members": ["a", "b"]}, "start is not set; slerp merges what training changed"),
        ({"kind": "warm", "members": ["a", "b"], "start": "s"}, "start is 's', but warm does not use it"),
        ({"kind": "liti", "members": ["a"], "start": "s"}, "weight is None; liti needs a number from 0 to 1"),
        ({"kind": "ema", "members": ["a", "b"], "weight": 1.5}, "weight is 1.5; ema needs"),
        ({"kind": "warm", "members": ["a", "b"], "weight": 0.5}, "warm weighs all members alike"),
        ({"members": ["a", "b", "c"], "start": "s", "weight": 0.5}, "the second of two members' share"),
        ({"members": ["a", "b"], "start": "s", "kind": "ties"}, "kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        settings.build(MergeRun, fields)


def test_a_directory_that_exists_is_left_alone(saved: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "taken").mkdir()
    arguments = [
        "merge",
        "--start",
        saved[0],
        "--members",
        f"[{saved[1]}, {saved[2]}]",
        "--out",
        str(tmp_path / "taken"),
    ]
    assert command(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert not list((tmp_path / "taken").iterdir())


def test_a_member_that_hardly_moved_stops_the_merge(tiny: Tiny, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """F37: below 1e-5 of the start's norm nothing was trained; a little above it is merged."""
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in tiny("llama").parameters()))
    count = sum(p.numel() for p in tiny("llama").parameters())
    for name, share in (("start", 0.0), ("a", 1e-3), ("little", 2e-6), ("enough", 1e-4)):
        model = moved(tiny("llama"), len(name), share * norm / math.sqrt(count))
        Policy(model, tiny_tokenizer).save(tmp_path / name)
    start, a, little, enough = (str(tmp_path / name) for name in ("start", "a", "little", "enough"))
    with pytest.raises(UserError, match="/little' is the start: its weights moved by"):
        merge(MergeRun(start=start, members=(a, little), out=str(tmp_path / "merged")))
    assert merge(MergeRun(start=start, members=(a, enough), out=str(tmp_path / "merged"))).path.exists()
