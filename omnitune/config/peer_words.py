"""Suggest the option that was meant by an unknown key: of the same section, or as other trainers call it."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

OURS = {
    "model.path": "pretrained_model_name_or_path model_name_or_path base_model model_path model_name",
    "model.dtype": "mixed_precision precision torch_dtype weight_dtype bf16 fp16 train_dtype",
    "data.sources": "dataset datasets train_data_dir instance_data_dir data_root data_dir dataset_path "
    "dataset_config folder_path image_folder video_folder train_data concepts",
    "data.buckets.area": "resolution resolutions image_size max_pixels height width",
    "data.buckets.frames": "num_frames max_num_frames target_frames frame_buckets num_train_frames",
    "data.batch_size": "train_batch_size per_device_train_batch_size micro_batch batchsize",
    "data.cache": "cache_latents cache_dir cache_latents_to_disk cache_text_embeddings vae_cache precompute",
    "data.num_workers": "dataloader_num_workers max_data_loader_n_workers workers",
    "data.max_length": "cutoff_len max_seq_length model_max_length",
    "schedule.steps": "max_train_steps max_steps train_steps num_train_steps total_steps iterations steps",
    "schedule.warmup": "lr_warmup_steps warmup_steps num_warmup_steps warmup_ratio lr_warmup",
    "schedule.decay": "lr_scheduler lr_scheduler_type lr_schedule",
    "optimizer.lr": "learning_rate lr unet_lr transformer_lr text_encoder_lr",
    "optimizer.name": "optimizer_type",
    "optimizer.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optimizer.eps": "adam_epsilon epsilon adam_eps",
    "optimizer.weight_decay": "adam_weight_decay wd",
    "optimizer.max_grad_norm": "gradient_clipping clip_grad_norm grad_clip gradient_clip_val",
    "objective.min_snr_gamma": "snr_gamma min_snr",
    "objective.timesteps": "weighting_scheme timestep_sampling timestep_type timestep_sample_method "
    "flow_weighting_scheme timestep_distribution",
    "objective.shift": "discrete_flow_shift timestep_shift flow_shift",
    "objective.loss_type": "loss loss_fn loss_function",
    "checkpoint.every": "save_every save_steps checkpointing_steps save_every_n_steps save_every_n_epochs",
    "checkpoint.keep": "checkpoints_total_limit save_total_limit max_step_saves_to_keep",
    "validation.every": "sample_every validation_steps eval_steps sample_every_n_steps validation_epochs",
    "validation.prompts": "sample_prompts validation_prompt validation_prompts prompts",
    "memory.checkpointing": "gradient_checkpointing activation_checkpointing enable_gradient_checkpointing",
    "name": "output_dir output_name run_name project experiment",
    "init_from": "network_weights lora_path lora_weights",
}
"""Option -> what else it is called, by people and by seven other trainers."""

OTHERWISE = {
    "use_ema ema_decay": "write ema: {decay: 0.999}",
    "gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps": (
        "data.batch_size is what the optimizer sees in all; parallel.micro_batch_size cuts it to what fits"
    ),
    "network_dim network_rank lora_rank lora_r rank lora_dim": "write trainable: {lora: {rank: 16}}",
    "network_alpha lora_alpha alpha": "write trainable: {lora: {alpha: 16}}",
    "network_module network finetuning_type training_type train_type peft_type lora adapter": (
        "write trainable: full, or trainable: {lora: {rank: 16}}"
    ),
    "target_modules lora_target_modules": "write trainable: [{params: PATTERN, lora: {rank: 16}}]",
    "dora use_dora rslora use_rslora lokr loha lycoris": (
        "of adapters there is plain LoRA alone; write trainable: {lora: {rank: 16}}"
    ),
    "wandb wandb_project report_to log_with tensorboard logging_dir tracker tracker_name": (
        "metrics.jsonl and report.html are always written; a tracker is a callback: docs/guides/callbacks.md"
    ),
    "epochs num_epochs num_train_epochs max_train_epochs": (
        "length is schedule.steps; `omnitune check` says how many epochs they are"
    ),
    "num_repeats dataset_repeats": "write data: {sources: [{path: FOLDER, repeats: 10}]}",
    "trigger_word trigger_words activation_text class_tokens instance_prompt": (
        "write data: {sources: [{path: FOLDER, trigger: WORD}]}"
    ),
    "caption_dropout_rate caption_dropout caption_dropout_probability uncond_fraction cfg_dropout "
    "training_cfg_rate": "write conditions: [{name: caption_dropout, probability: 0.1}]",
    "resume resume_from_checkpoint auto_resume": "the same command resumes the run, bit for bit",
    "num_processes num_gpus nproc gpus nproc_per_node": "processes are started with --nproc",
    "caption_extension caption_ext": "captions are found by themselves, docs/data.md says where",
    "shuffle": "the order is drawn anew each epoch, from seed",
}  # fmt: skip
"""What others call it -> what to do here instead, where no single option is the same."""


Node = Mapping[str, Any]


def suggestion(name: str, place: Sequence[Any], schema: Node) -> str:
    """Say what stands behind `NAME is not an option` of the section of a run that stands at `place`."""
    word = name.lower().replace("-", "_")
    if ours := next((ours for ours, theirs in OURS.items() if word in theirs.split()), None):
        return f"; here it is {ours}"
    if way := next((way for theirs, way in OTHERWISE.items() if word in theirs.split()), None):
        return f"; {way}"
    homes: dict[str, list[str | None]] = {}
    for home, kind in _homes(schema, schema, ""):
        homes.setdefault(home, []).append(kind)
    elsewhere = {home: home.rpartition(".")[2] for home in homes if not home.startswith("phases.")}

    def told(home: str) -> str:
        (kind, *others) = homes[home]
        return home if others or kind is None else f"{home} of {kind}"

    if exact := [told(home) for home, key in elsewhere.items() if key == name]:
        return f" here; there is {' and '.join(exact[:3])}"
    own = {key for node in _at(place, schema) for key in node.get("properties", ())}
    if near := get_close_matches(name, own, 1):
        return f"; did you mean {near[0]}?"
    if near := get_close_matches(name, elsewhere.values(), 1):
        return f"; did you mean {next(told(home) for home, key in elsewhere.items() if key == near[0])}?"
    return "; `omnitune init` and docs/config.md list the options"


def _members(node: Node, schema: Node) -> Iterator[Node]:
    """Find what a node of a JSON schema refers to: each member of a union, at any depth."""
    if "$ref" in node:
        yield from _members(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    elif unions := [one for key in ("anyOf", "oneOf", "allOf") for one in node.get(key, ())]:
        for one in unions:
            yield from _members(one, schema)
    else:
        yield node


def _at(place: Sequence[Any], schema: Node) -> list[Node]:
    """The nodes that may be meant by a location of pydantic, which also names members of unions."""
    nodes = list(_members(schema, schema))
    for part in place:
        below = [node["properties"][part] for node in nodes if part in node.get("properties", ())]
        if isinstance(part, int):
            below = [node["items"] for node in nodes if "items" in node]
        if below:
            nodes = [member for node in below for member in _members(node, schema)]
        else:
            nodes = [node for node in nodes if part in (_kind(node), node.get("title"))] or nodes
    return nodes


def _kind(node: Node) -> str | None:
    """The name of a member that is chosen by name."""
    found: str | None = node.get("properties", {}).get("name", {}).get("const")
    return found


def _homes(node: Node, schema: Node, dotted: str) -> Iterator[tuple[str, str | None]]:
    """Pairs of where an option stands, and of which kind: `objective.shift`, `flow_matching`."""
    for member in _members(node, schema):
        for key, child in member.get("properties", {}).items():
            place = f"{dotted}.{key}" if dotted else key
            yield place, _kind(member)
            yield from _homes(child, schema, place)
        if "items" in member:
            yield from _homes(member["items"], schema, dotted)
