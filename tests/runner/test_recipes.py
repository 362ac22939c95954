"""Every recipe on a small stand-in with the columns and splits of its own data: each part is filled."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from treeward.cli.inspect import configured as inspection
from treeward.cli.main import run
from treeward.cli.parse import parse
from treeward.data import embedded, world
from treeward.data.formats import Purpose
from treeward.data.inspect import read_contents
from treeward.data.prepare import prepare
from treeward.data.prompts import openings, prepare_prompts, prompt_range
from treeward.data.store import Prepared
from treeward.methods import METHODS, find
from treeward.methods import dpo as dpo_method
from treeward.methods import reward as reward_method
from treeward.methods.dpo import DPORun
from treeward.methods.method import RunConfig
from treeward.methods.reinforce import ReinforceRun
from treeward.methods.reward import RewardRun
from treeward.runner.pairs import PairsRun
from treeward.runner.settings import build, merge, override, recipe, recipes
from treeward.runner.warp import WarpRun

Row = dict[str, Any]
TURNS = "{% for m in messages %}w5 {{ m['content'] }} <eos> {% endfor %}{% if add_generation_prompt %}w6 {% endif %}"
WORLD = ("--model.path", "world")
RUNS = {name: find(name).Config for name in METHODS}
PARTS = ("train", "validation", "test")


def words(number: int) -> str:
    """Three words of the tiny tokenizer, different for each number."""
    return " ".join(f"w{3 + number // 61**place % 61}" for place in range(3))


def dialogue(number: int) -> Row:
    """hh-rlhf."""
    prompt = f"\n\nHuman: {words(number)}\n\nAssistant:"
    return {"chosen": f"{prompt} {words(number + 1)}", "rejected": f"{prompt} {words(number + 2)}"}


def helpsteer(number: int) -> Row:
    """HelpSteer2_binarized."""
    question = {"role": "user", "content": words(number)}
    sides = {
        side: [question, {"role": "assistant", "content": words(number + place)}]
        for place, side in enumerate(("chosen", "rejected"), 1)
    }
    return {"prompt": words(number), **sides, "chosen_rating": 3.4, "rejected_rating": 2.0 + number % 2}


def review(number: int) -> Row:
    """imdb: the labels lie in two blocks."""
    return {
        "text": f"{words(number)} {words(number + 1)} {words(number + 2)} {words(number + 3)}",
        "label": number // 600,
    }


def sentence(number: int) -> Row:
    """Labelled sentences that name their own split."""
    return {"text": words(number), "label": number % 2, "split": PARTS[number % 3]}


def made_pair(number: int) -> Row:
    """What `treeward pairs` writes."""
    return {"prompt": words(number), "chosen": words(number + 1), "rejected": words(number + 2), "chosen_rating": 1.5,
            "rejected_rating": -0.5, "split": PARTS[number % 3]}  # fmt: skip


def as_folder(path: Path, row: Callable[[int], Row]) -> str:
    """1,200 training rows and 300 test rows, a file each."""
    path.mkdir()
    for name, numbers in (("train", range(1200)), ("test", range(1200, 1500))):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in numbers))
    return str(path)


def as_splits(path: Path, row: Callable[[int], Row]) -> str:
    """Two splits with names of their own."""
    names = {"average_rating_split": range(1200), "helpfulness_split": range(1200, 1500)}
    parts = {name: datasets.Dataset.from_list([row(n) for n in numbers]) for name, numbers in names.items()}
    datasets.DatasetDict(parts).save_to_disk(str(path))
    return str(path)


def as_file(path: Path, row: Callable[[int], Row]) -> str:
    """One file."""
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(1200)))
    return str(path)


STAND_INS: dict[str, tuple[Callable[[Path, Callable[[int], Row]], str], Callable[[int], Row]]] = {
    "hh": (as_folder, dialogue), "helpsteer2": (as_splits, helpsteer), "imdb": (as_folder, review),
    "imdb-dpo": (as_file, made_pair), "sentences": (as_file, sentence),
}  # fmt: skip


def configured(name: str, source: str | None, *overrides: tuple[str, str]) -> Any:
    """The recipe on this source; a limit becomes 1,000 rows."""
    values = recipe(name)
    cls = {**RUNS, "pairs": PairsRun, "warp": WarpRun}[values.pop("command")]
    if source is not None:
        values = merge(values, override("data.source", source))
    if "limit" in values["data"]:
        values = merge(values, override("data.limit", "1000"))
    for key, text in overrides:
        values = merge(values, override(key, text))
    return build(cls, values)


def purpose_of(config: RunConfig) -> Purpose:
    if isinstance(config, RewardRun):
        return reward_method.required_data(reward_method.loss_for(config.head, config.loss))
    return dpo_method.required_data(config.loss) if isinstance(config, DPORun) else "sft"


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Any:
    """The tiny tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TURNS
    return tokenizer


def counts(prepared: Prepared) -> tuple[int, ...]:
    return tuple(len(prepared.parts[part]) for part in ("train", "validation", "test"))


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_fills_training_and_held_out_from_data_like_its_own(name: str, tmp_path: Path, tokenizer: Any) -> None:
    source = None
    if not name.startswith(("world", "arithmetic")):
        write, row = STAND_INS["imdb-dpo" if name.startswith("imdb-dpo") else name.partition("-")[0]]
        source = write(tmp_path / "data", row)
    if name == "helpsteer2-inspect":
        groups = read_contents(inspection(parse([name, "--data.source", str(source)], ())).data).part_groups
        assert (groups["train"].total(), groups["test"].total()) == (960, 240)
        return
    config = configured(name, source)
    if isinstance(config, PairsRun):
        prompts = openings(config.data, tokenizer, prompt_range(config.prompt_tokens)).prompts
        assert min([prompt.split for prompt in prompts].count(part) for part in PARTS) >= 30
    else:
        if source is None:
            tokenizer = embedded.MODELS[str(embedded.model_of(config.data.source))].tokenizer()
        if isinstance(config, ReinforceRun):
            prepared = prepare_prompts(config.data, tokenizer, prompt_range(config.prompt_tokens))
            assert not any(tree.branches for tree in prepared.train)
        else:
            prepared = prepare(config.data, tokenizer, purpose_of(config))
        assert len(prepared.train) >= 200
        assert len({tree.group for tree in prepared.held_out}) >= 30


def test_shares_are_those_of_the_split_that_is_read(tmp_path: Path, tokenizer: Any) -> None:
    for name, expected in (("hh-dpo-gpt2", (700, 100, 200)), ("helpsteer2-reward", (960, 0, 240))):
        write, row = STAND_INS[name.partition("-")[0]]
        config = configured(name, write(tmp_path / name, row))
        assert counts(prepare(config.data, tokenizer, purpose_of(config))) == expected


@pytest.mark.parametrize("overrides", [(), (("data.split", "null"),)], ids=["train", "null"])
def test_hh_dpo_gpt2_reads_a_single_file(overrides: Any, tmp_path: Path, tokenizer: Any) -> None:
    config = configured("hh-dpo-gpt2", as_file(tmp_path / "rows", dialogue), *overrides)
    assert counts(prepare(config.data, tokenizer, "pairs")) == (700, 100, 200)


def test_another_source_without_that_split_names_the_fix(tmp_path: Path, tokenizer: Any) -> None:
    source = as_file(tmp_path / "rows", helpsteer)
    with pytest.raises(ValueError, match=r"it has train: name one of them, .* --data\.split null"):
        prepare(configured("helpsteer2-reward", source).data, tokenizer, "pairs")
    config = configured("helpsteer2-reward", source, ("data.split", "null"))
    assert counts(prepare(config.data, tokenizer, "pairs")) == (960, 0, 240)
    with pytest.raises(ValueError, match=r"'world', which has no splits; add --data\.split null"):
        prepare(configured("hh-dpo-gpt2", "world").data, tokenizer, "pairs")


def test_rows_that_name_their_own_split_and_nothing_held_out_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = world.pairs(0, 1500)
    source = as_folder(tmp_path / "data", rows.__getitem__)
    assert run(["dpo", *WORLD, "--data.source", source, "--data.limit", "1000", "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "names the split of 1000 of 1000 rows" in message
    assert "--data.splits ignore" in message
    assert "data.test" not in message
