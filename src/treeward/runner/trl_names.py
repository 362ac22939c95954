"""The options of TRL and transformers' Trainer by their names, and what they are called here.

Unknown options are answered from this table, and the table of docs/from-trl.md is made of it:
`python -m treeward.runner.trl_names` prints it.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """TRL's names of an option, our option ("KEY" or "KEY VALUE") or options, and a remark for the docs.

    Without an option of ours the remark says what happens instead.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    remark: str = ""


NAMES = (
    Name(("model_name_or_path",), ("model.path",), "a directory, a run directory or a hub id"),
    Name(("dataset_name", "dataset_path"), ("data.source",), "a file, a directory or a hub id"),
    Name(("dataset_train_split",), ("data.split",), "rows of one split, parted anew; by default every split is read"),
    Name(
        ("dataset_test_split", "eval_dataset"), ("data.test", "data.validation"),
        "shares of the groups that are held out; a `split` column in the data goes first",
    ),
    Name(("dataset_text_field",), ("data.columns {text: NAME}",)),
    Name(("output_dir",), ("out",), "it must not exist"),
    Name(("run_name",), ("name",)),
    Name(("beta",), ("loss.beta",), "the same; of ORPO it is `--loss.weight`"),
    Name(
        ("loss_type",), ("loss.kind",),
        "equal to 1e-5 where both define the same; names and differences in [preference losses](preference-losses.md)",
    ),
    Name(("loss_weights",), ("loss.kind sum", "loss.terms")),
    Name(("f_divergence_type",), ("divergence.kind",)),
    Name(("f_alpha_divergence_coef",), ("divergence.alpha",), "alpha is the paper's: 1 less TRL's"),
    Name(
        ("label_smoothing",), ("loss.flip",),
        "conservative DPO; TRL takes it for some losses and ignores it for others",
    ),
    Name(("simpo_gamma",), ("loss.gamma",), "with `--loss.kind simpo`"),
    Name(("desirable_weight",), ("loss.desirable",), "with `--loss.kind kto`"),
    Name(("undesirable_weight",), ("loss.undesirable",), "with `--loss.kind kto`"),
    Name(
        ("max_length",), ("data.max_prompt", "data.max_response"),
        "two budgets: a long prompt can never leave a response without tokens; prompts are cut on the left, responses "
        "on the right without an invented end token, and every cut is counted",
    ),
    Name(("max_prompt_length",), ("data.max_prompt",)),
    Name(
        ("max_completion_length", "max_new_tokens"), ("evaluation.max_new_tokens", "max_new_tokens"),
        "of samples; `--data.max-response` cuts given responses",
    ),
    Name(("num_generations",), ("samples", "evaluation.samples"), "samples a prompt, of `pairs` and of evaluation"),
    Name(("temperature",), ("evaluation.temperature", "temperature")),
    Name(
        ("per_device_train_batch_size", "gradient_accumulation_steps"), ("batch_size",),
        "pairs a step; how they are cut into passes is `--token-budget` and changes no result",
    ),
    Name(
        ("learning_rate",), ("lr",),
        "the first step's rate is above 0; a rate far outside the method's range needs `--skip-check F42`",
    ),
    Name(("num_train_epochs",), ("epochs",)),
    Name(("max_steps",), ("steps",)),
    Name(("warmup_ratio", "warmup_steps"), ("warmup",), "a share of the steps"),
    Name(("lr_scheduler_type",), ("schedule",)),
    Name(
        ("precompute_ref_log_probs",), ("reference.store",),
        "always, once, before the first step, and kept for other runs in a store whose keys hash weights and ids",
    ),
    Name(("ref_model", "ref_model_name_or_path"), ("reference.path",),
         "by default the policy as loaded; with new LoRA adapters they are switched off, trained ones are part of "
         "a copy"),
    Name(("sync_ref_model",), ("reference.kind ema",), "each step; the average is saved with the state"),
    Name(("ref_model_mixup_alpha",), ("reference.rate",)),
    Name(("disable_dropout",), ("model.dropout",),
         "dropout is off unless `--model.dropout 0.1` asks for it; without it training runs in eval mode, so that "
         "router jitter and LayerDrop are off too"),
    Name(
        ("bf16",), ("model.precision bf16",), "products in bf16, weights in fp32; `auto` looks at the hardware"
    ),
    Name(("dtype", "torch_dtype"), ("model.precision",), "the weights that train are fp32"),
    Name(("padding_free", "packing"), (), "always on, with the prompt shared, verified before the first step"),
    Name(("center_rewards_coefficient",), ("loss.centre",)),
    Name(
        ("eval_steps", "eval_strategy"), ("evaluate_every",), "in steps; by default each epoch"
    ),
    Name(
        ("load_best_model_at_end",), (),
        "always on: the weights of the best validation measurement are kept",
    ),
    Name(
        ("metric_for_best_model",), ("evaluation.metric",),
        "metrics carry their direction; an unknown name is an error",
    ),
    Name(("save_steps",), ("save_every",), "the last checkpoint is kept"),
    Name(("resume_from_checkpoint",), ("resume",), "or `treeward resume RUN`: bit for bit on the CPU at equal threads "
         "and versions"),
    Name(("logging_steps", "report_to"), (), "every step is a line of the run's metrics.jsonl"),
    Name(("use_peft", "peft_config"), ("model.lora {r: 16, alpha: 32}",),
         "`model/` merged, `adapter/` in PEFT's layout; the reward head always trains"),
    Name(("lora_r",), ("model.lora.r",)),
    Name(("lora_alpha",), ("model.lora.alpha",)),
    Name(("lora_target_modules",), ("model.lora.targets",)),
)  # fmt: skip


def suggestion(name: str, keys: Collection[str] | None = None) -> str | None:
    """What to say of an option that TRL knows by this name; None where it does not.

    `keys` are the dotted keys that the command takes; options of ours that it does not take are left out.
    """
    plain = name.rsplit(".", 1)[-1].replace("-", "_")
    row = next((row for row in NAMES if plain in row.theirs), None)
    if row is None:
        return None
    if not row.ours:
        return f"TRL's {plain} has no option here: {row.remark}"
    ours = [option for option in row.ours if keys is None or option.split()[0] in keys]
    return f"TRL's {plain} is {' and '.join(map(_flag, ours))} here" if ours else None


def table() -> str:
    """The table of docs/from-trl.md, in Markdown."""
    lines = ["| TRL | Treeward | remark |", "|---|---|---|"]
    for row in NAMES:
        theirs = ", ".join(f"`{name}`" for name in row.theirs)
        ours = ", ".join(f"`{_flag(option)}`" for option in row.ours) or "–"
        lines.append(f"| {theirs} | {ours} | {row.remark} |")
    return "\n".join(lines)


def _flag(option: str) -> str:
    key, _, value = option.partition(" ")
    quoted = f"'{value}'" if " " in value else value
    return f"--{key.replace('_', '-')} {quoted}".rstrip()


if __name__ == "__main__":
    print(table())
