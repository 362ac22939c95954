"""The frontier of several runs: read from files alone, at one budget, and refused where runs cannot be compared."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from treeward.cli.main import run
from treeward.report import figures
from treeward.report.figures import PLACES, WIDTH, offsets, overlap, text_box
from treeward.report.frontier import Runs, family_of, setting_of, settings_of, write_frontier
from treeward.stats import diversity
from treeward.stats.frontier import Front


def interval(value: float, half: float = 0.05, n: int = 3) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n, "constant": False}


def facts(before: float, after: float) -> dict[str, Any]:
    return {"before": interval(before), "after": interval(after), "higher_is_better": True,
            "difference": {"value": after - before, "low": 0, "high": 1, "p": 0.1, "test": "t",
                           "minimum_detectable": 0.1}}  # fmt: skip


def a_run(path: Path, score: float, kl: float, *, seed: int = 0, beta: float = 0.1, **over: Any) -> Path:
    """A run directory with three prompts of two samples each, or `prompts` of them; all samples have the same
    score, plus a tenth of the number of the prompt."""
    path.mkdir(parents=True)
    receipt = {
        "schema": 1, "command": "dpo", "verdict": over.get("verdict", "improved"), "metric": "score",
        "scorer": over.get("scorer", "gold"),
        **facts(0.0, score), "metrics": {"kl": facts(0.0, kl), "judge:length": facts(5, 6), "entropy": facts(2, 1.5)},
        "diversity": {"budget": 24, "n": 3, "perplexity": facts(9.0, 7.0)},
        "best_of_n": {"curve": [{"n": n, "kl_bound": b, "score": interval(s)} for n, b, s in
                                ((1, 0, 0), (2, 0.19, 0.1), (4, 0.64, 0.2), (8, 1.2, 0.3))]},
    }  # fmt: skip
    loss, divergence = {"kind": "sigmoid", "beta": beta}, {"kind": over.get("divergence", "js")}
    config = {"command": "dpo", "seed": seed, "out": str(path), "loss": loss, "divergence": divergence,
              "lr": over.get("lr", 1e-5), "model": {"path": over.get("start", "s")},
              "evaluation": {"samples": 2, "max_new_tokens": over.get("longest", 64), "temperature": 1.0}}  # fmt: skip
    length = over.get("length", 4)
    samples = [
        {"group": f"p{n}", "sample": k, "prompt": over.get("prompt", "why"), "ids_before": [n, k, 1, 2],
         "prompt_ids": over.get("prompt_ids", [5, 6]),
         "ids_after": list(range(n, n + length)), "score_before": n / 10, "score_after": n / 10 + score + n % 2 / 10}
        for n in range(over.get("prompts", 3)) for k in range(2)
    ]  # fmt: skip
    (path / "receipt.json").write_text(json.dumps(receipt))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return path


def row_of(page: str, run: str) -> str:
    """The table's row of a run."""
    rest = page[page.index(f"{run}</b>") :]
    return rest[: rest.index("</tr>")]


def test_numbers_of_neighbours_stand_apart() -> None:
    where = [(100.0 + 2 * n, 50.0 - n) for n in range(12)]
    boxes = []
    for number, ((x, y), (dx, dy)) in enumerate(zip(where, offsets(where), strict=True), 1):
        boxes.append(text_box(x + dx, y + dy, math.copysign(WIDTH * len(str(number)), dx)))
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert offsets([(0.0, 0.0), (500.0, 0.0)]) == [PLACES[0]] * 2


def test_table_figure_and_png(tmp_path: Path) -> None:
    poor = {"beta": 0.3, "divergence": "reverse-kl"}
    runs = [
        a_run(tmp_path / "good", 1.0, 0.5, prompts=12), a_run(tmp_path / "poor", 0.5, 0.6, prompts=12, **poor)
    ]  # fmt: skip
    out = write_frontier(runs, tmp_path / "pages" / "frontier.html")
    page = out.read_text()
    assert page.count("<svg") == 1
    assert "best of n samples of the start" in page
    assert "n=4" in page
    assert "n=8" not in page
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for words in ("dpo sigmoid js", "dpo sigmoid,", "judge length", "pooled entropy", "distinct-3",
                  "how surprising the start finds them", "first 96 sampled tokens of every model"):  # fmt: skip
        assert words in page
    assert row_of(page, "2 poor").count("good") == 1
    assert page.index(" start</b>") < page.index("1 good</b>") < page.index("2 poor</b>")


def test_diversity_is_computed_again_at_the_smallest_budget(tmp_path: Path) -> None:
    runs = Runs.read([a_run(tmp_path / "a", 1, 1, length=9), a_run(tmp_path / "b", 1, 1, length=3)])
    rows = runs.rows()
    assert [pool.tokens for pool in runs.pools] == [24, 54, 18]
    cut = diversity.cut(runs.pools[1], 18).responses
    bigrams = [pair for ids in cut for pair in itertools.pairwise(ids)]
    distinct = rows[1].figures["distinct_2"]
    assert distinct is not None
    assert distinct["value"] == pytest.approx(len(set(bigrams)) / len(bigrams))
    assert rows[1].figures["token_entropy"] is not None


def test_seeds_of_one_setting_are_joined_and_others_are_not(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / f"s{n}", 1.0 + n, 0.5, seed=n) for n in range(2)]
    page = write_frontier([*runs, a_run(tmp_path / "other", 3, 1, beta=0.5)], tmp_path / "f.html").read_text()
    between = page[page.index("Between seeds") :]
    assert "dpo sigmoid js, beta 0.1" in between
    assert "beta 0.5" not in between
    assert "<b>1.5</b> <small>[-4.9, 7.9]</small>" in between
    single = write_frontier([runs[0]], tmp_path / "g.html").read_text()
    assert "Between seeds" not in single


def test_settings_that_differ_in_the_rate_are_told_apart(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / f"{lr}-{n}", 1.0, 0.5, seed=n, lr=lr) for lr in (1e-4, 1e-5) for n in range(2)]
    between = (page := write_frontier(runs, tmp_path / "f.html").read_text())[page.index("Between seeds") :]
    assert between.index("beta 0.1, lr 0.0001") < between.index("beta 0.1, lr 1e-05")


def test_settings_with_eight_seeds_are_compared_and_drawn(tmp_path: Path) -> None:
    """On the page: the figures of the paths, and one claim for the end and for each KL."""
    runs = []
    for lr, gain in ((1e-4, 1.0), (1e-5, 2.0)):
        for seed in range(8):
            run = a_run(tmp_path / f"{lr}-{seed}", gain + seed / 10 + seed % 3 / 100, 5.0, seed=seed, lr=lr)
            rows = [
                {"step": n, "validation/kl": float(n), "validation/score": gain * n + seed / 7} for n in range(1, 6)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"step": 0}, *rows]))
            runs.append(run)
    page = write_frontier(runs, tmp_path / "f.html").read_text()
    table = page[page.index("Settings, paired by seed") :]
    verdicts = re.findall(r"<td>([^<]*)</td></tr>", table)
    assert verdicts == ["dpo sigmoid js, beta 0.1, lr 1e-05 is above"] * 3 + ["not reached"]
    assert "interval unreliable" not in page[page.index("Between seeds") :]
    assert page.count("<svg") == 3
    fewer = write_frontier([*runs[:3], *runs[8:11]], tmp_path / "g.html").read_text()
    assert fewer.count("no claim from 3 seeds") == 3
    assert "Settings, paired" not in write_frontier(runs[:3], tmp_path / "h.html").read_text()


def with_front(run: Path, slope: float, seed: int) -> Path:
    """A front of four shares: at KL 0, 1, 2, 3 the score of a prompt is slope * KL, and a little by prompt and seed.

    Its two samples have 5 slope * KL less and more.
    """
    rows = [
        {"name": str(share), "share": share, "part": part, "group": f"p{n}", "kl": kl,
         "score": slope * kl + n / 10 + 0.01 * ((seed * 7 + n * 3 + round(9 * slope)) % 5) * kl + spread * slope * kl}
        for part in ("validation", "test") for share, kl in ((0.0, 0.0), (0.3, 1.0), (0.6, 2.0), (1.0, 3.0))
        for n in range(6) for spread in (-5.0, 5.0)
    ]  # fmt: skip
    rows += [{**row, "name": "member-1", "share": None, "score": 99.0} for row in rows[-6:]]
    rows = [row if row["part"] == "test" else {**row, "score": -99.0} for row in rows]
    (run / "front.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_fronts_are_drawn_and_the_area_between_them_is_given(tmp_path: Path) -> None:
    runs = [
        with_front(a_run(tmp_path / f"{lr}-{seed}", 1.0, 3.0, seed=seed, lr=lr), slope, seed)
        for lr, slope in ((1e-4, 1.0), (1e-5, 1.2))
        for seed in range(8)
    ]
    page = write_frontier(runs, tmp_path / "f.html").read_text()
    table = page[page.index("<h2>Fronts</h2>") :]
    names = re.findall(r"<td>([^<]*)</td>", table)
    assert names[:2] == ["dpo sigmoid js, beta 0.1, lr 0.0001", "dpo sigmoid js, beta 0.1, lr 1e-05"]
    assert names[-1] == "dpo sigmoid js, beta 0.1, lr 1e-05 dominates"
    gap, area = (float(text) for text in re.findall(r"<b>([\d.]+)</b>", table)[:2])
    assert gap == pytest.approx(0.2 * 1.5, abs=0.01)  # slopes 1 and 1.2, over KL from 0 to 3
    assert area == pytest.approx(3 * gap, rel=0.01)
    single = write_frontier([runs[0], runs[8]], tmp_path / "single.html").read_text()
    assert re.findall(r"<td>([^<]*)</td>", single[single.index("<h2>Fronts</h2>") :])[:2] == ["0.0001-0", "1e-05-0"]

    same = [with_front(run, 1.0, seed) for seed, run in enumerate(runs[:2] + runs[8:10])]
    page = write_frontier(same, tmp_path / "g.html").read_text()
    assert re.findall(r"<td>([^<]*)</td></tr>", page[page.index("<h2>Fronts</h2>") :]) == ["not distinguishable"]
    for path in same[2:]:
        rows = [json.loads(line) for line in (path / "front.jsonl").read_text().splitlines()]
        (path / "front.jsonl").write_text("\n".join(json.dumps(row) for row in rows if row["share"] != 0))
    assert "<h2>Fronts</h2>" not in write_frontier(same, tmp_path / "i.html").read_text()
    (runs[8] / "front.jsonl").unlink()
    (runs[9] / "front.jsonl").unlink()
    assert "<h2>Fronts</h2>" not in write_frontier(same, tmp_path / "h.html").read_text()


def test_long_names_of_fronts_leave_the_figure_its_width() -> None:
    values = np.arange(6.0).reshape(1, 3, 2)
    figure = figures.fronts([Front("warp leave-one-out, reference.rate 0.05, " * 5, values, values)] * 2)
    figure.canvas.draw()
    assert figure.axes[0].get_position().width > 0.8


def test_settings_with_one_name_are_told_apart_by_what_differs() -> None:
    base = {"command": "reinforce", "lr": 1e-4, "kl": {"kind": "in-reward", "beta": 0.05}, "seed": 0}
    configs = [
        {**base, "baseline": {"kind": "moving-average"}, "reward": ["/a/b/rm-scalar"]},
        {**base, "baseline": {"kind": "moving-average"}, "reward": ["/a/b/rm-cat#cvar:0.25"], "out": "x"},
        {**base, "baseline": {"kind": "leave-one-out"}, "reward": ["/a/b/rm-scalar"], "seed": 1},
        {**base, "baseline": {"kind": "leave-one-out"}, "reward": ["/a/b/rm-scalar"], "seed": 2},
    ]
    assert settings_of(configs) == [
        "reinforce moving-average, beta 0.05, lr 0.0001, reward b/rm-scalar",
        "reinforce moving-average, beta 0.05, lr 0.0001, reward b/rm-cat#cvar:0.25",
        "reinforce leave-one-out, beta 0.05, lr 0.0001",
        "reinforce leave-one-out, beta 0.05, lr 0.0001",
    ]


def test_a_broken_run_stands_last_and_beats_nothing(tmp_path: Path) -> None:
    broken = a_run(tmp_path / "wrong", 9.0, 0.1, verdict="broken")
    seeds = [a_run(tmp_path / f"s{n}", 1.0, 0.5, seed=n) for n in range(2)]
    page = write_frontier([broken, *seeds], tmp_path / "f.html").read_text()
    assert page.index("1 s0</b>") < page.index("2 s1</b>") < page.index(" wrong</b>")
    assert page.count('<tr class="front">') == 3
    assert "wrong" not in page[: page.index(" wrong</b>")]
    assert row_of(page, " wrong").endswith("<td>–</td>")
    assert '<span class="verdict broken">broken</span>' in row_of(page, " wrong")
    assert "<td>2</td></tr>" in page[page.index("Between seeds") :]


def test_an_unknown_bound_is_unknown(tmp_path: Path) -> None:
    path = a_run(tmp_path / "one", 5.0, 0.5)
    receipt = json.loads((path / "receipt.json").read_text())
    receipt["after"] |= {"low": None, "high": None}
    receipt["metrics"]["kl"]["after"] |= {"low": None, "high": None}
    (path / "receipt.json").write_text(json.dumps(receipt))
    point = Runs.read([path]).rows()[1].point
    assert math.isnan(point.score.low)
    assert math.isnan(point.kl.high)
    page = write_frontier([path, a_run(tmp_path / "low", 0.5, 0.6)], tmp_path / "f.html").read_text()
    assert row_of(page, "2 low").endswith("<td>–</td>")


def test_a_run_called_start_does_not_take_the_starts_place(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "start", 1.0, 0.5), a_run(tmp_path / "other", 0.5, 0.6)]
    page = write_frontier(runs, tmp_path / "f.html").read_text()
    assert row_of(page, " start").endswith("<td>–</td>")
    assert f"1 {tmp_path / 'start'}</b>" in page


def test_families_are_named_by_loss_and_divergence() -> None:
    loss = {"kind": "sigmoid", "beta": 0.1}
    alpha = {"command": "dpo", "loss": loss, "divergence": {"kind": "alpha", "alpha": 0.3}}
    assert family_of(alpha) == "dpo sigmoid alpha 0.3"
    assert setting_of(alpha) == "dpo sigmoid alpha 0.3, beta 0.1"
    assert family_of({"command": "dpo", "loss": loss, "divergence": {"kind": "reverse-kl"}}) == "dpo sigmoid"
    assert family_of({"command": "sft"}) == "sft"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"scorer": "length"}, "one evaluation.scorer"),
        ({"prompt": "who"}, "other prompts"),
        ({"prompt_ids": [1, 5, 6]}, r"tokens \[1, 5, 6\]"),
        ({"start": "t"}, "began"),
        ({"longest": 9}, "sampled with samples 2, max_new_tokens 9"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(over: dict[str, Any], words: str, tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a", 1, 1), a_run(tmp_path / "b", 1, 1, **over)]
    with pytest.raises(ValueError, match=words):
        write_frontier(runs, tmp_path / "f.html")
    assert not (tmp_path / "f.html").exists()


def test_the_command_takes_runs_or_their_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [a_run(tmp_path / "runs" / name, 1, kl) for name, kl in (("a", 1), ("b", 2))]
    out = tmp_path / "f.html"
    assert run(["report", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert run(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "g.html")]) == 0
    assert (tmp_path / "g.html").read_text().count("<tr") == out.read_text().count("<tr")
    assert run(["report", str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert run(["report", *map(str, runs)]) == 2
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "h.html")]) == 2
    assert run(["report", str(runs[0]), "--out", str(tmp_path / "h.pdf")]) == 2
