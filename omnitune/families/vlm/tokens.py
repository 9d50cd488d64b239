"""Tokens that a run adds to a model: in its tokenizer, its embeddings and its head."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError

OPTION = "model.options.add_tokens"
CHUNK = 4096
"""Rows of which a mean is taken at once."""


def check_spelling(tokens: Sequence[str]) -> None:
    """Raise UserError for tokens that are empty or stated twice."""
    lines = []
    if empty := [i for i, token in enumerate(tokens) if not token.strip()]:
        lines.append(f"add_tokens.{empty[0]}: {tokens[empty[0]]!r} is empty; remove it")
    if doubled := sorted({token for token in tokens if tokens.count(token) > 1}):
        lines.append(f"add_tokens: {_listed(doubled)} more than once; state each one time")
    if lines:
        raise UserError("\n".join(lines))


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Put tokens behind those that a tokenizer has. Raises UserError for some that it has already.

    They are ordinary tokens, so that answers show them, and found in a text as they are spelled.
    """
    from transformers import AddedToken

    if there := sorted({*tokens} & tokenizer.get_vocab().keys()):
        raise UserError(f"{OPTION}: the tokenizer has {_listed(there)} already; remove them from the option")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def _listed(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - 5} more" if tokens[5:] else ""
    return ", ".join(map(repr, tokens[:5])) + more


def token_parameters(model: Any) -> list[str]:
    """The embeddings of tokens and the head, as `named_parameters` calls them; tied ones are one."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    wanted = {id(param) for part in parts for param in part.parameters()}
    return [name for name, param in model.named_parameters() if id(param) in wanted]


def make_room(model: Any, tokenizer: Any, new: Sequence[str]) -> None:
    """Give every token of a tokenizer a row in the embeddings and the head; those of `new` are the mean.

    With the mean of the old rows a new token has the mean of their logits, which is never the largest: what
    the model answers stays nearly what it was. Nothing is drawn, so that all ranks and every later start have
    the same rows. Spare rows at the end of a vocabulary were never trained, and are set to the mean too.
    """
    params = dict(model.named_parameters())
    before = {name: len(params[name]) for name in token_parameters(model)}
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    num_rows = min(len(part.weight) for part in parts)  # mllama's embeddings have more than its head
    lacking = max(tokenizer.get_vocab().values()) + 1 - num_rows
    if lacking > 0:
        _grow(model, lacking)
    if not new or model.get_input_embeddings().weight.is_meta:
        return
    ids = set(tokenizer.convert_tokens_to_ids(list(new)))
    with torch.no_grad():
        for name, old in before.items():
            rows = params[name]
            untaught = sorted(ids | set(range(old, len(rows))))  # mllama's head has none for its picture
            rows[untaught] = _mean(rows[: untaught[0]]).to(rows.dtype)


def _grow(model: Any, number: int) -> None:
    """Append rows of zeros. Parameters stay the same objects, so that what is tied stays tied."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    params = {id(param): param for part in (embeddings, head) for param in part.parameters()}
    for param in params.values():
        param.data = torch.cat([param.data, param.data.new_zeros(number, *param.shape[1:])])
    embeddings.num_embeddings += number
    head.out_features += number
    model.config.get_text_config().vocab_size += number


def _mean(rows: Tensor) -> Tensor:
    """The mean of rows in double precision, in which no order of adding shows."""
    total = torch.stack([chunk.double().sum(0) for chunk in torch.split(rows, CHUNK)]).sum(0)
    return total / len(rows)


def is_tied(model: Any) -> bool:
    """Whether embeddings and head are one parameter."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def tied_names(model: nn.Module) -> dict[str, str]:
    """Further name of a tied parameter -> the name that it is listed under."""
    listed = {id(param): name for name, param in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: listed[id(param)] for name, param in everything if name != listed[id(param)]}


def added_tokens(folder: Path) -> dict[str, int] | None:
    """Token -> its id of all that stand behind the vocabulary of a folder's tokenizer; None without one."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    return {one["content"]: one["id"] for one in json.loads(file.read_text())["added_tokens"]}


def check_tokens(folder: Path, tokenizer: Any, needed: Sequence[str] = ()) -> list[str]:
    """Hold the tokenizer of a folder against the run's; returns which of `needed` it lacks.

    Raises UserError where rows of its embeddings would stand for other tokens than they were trained as.
    """
    theirs = added_tokens(folder)
    if theirs is None:
        return list(needed)
    ours: Mapping[str, int] = tokenizer.get_vocab()
    if strange := [token for token in theirs if token not in ours]:
        raise UserError(
            f"init_from: the tokenizer of {folder} has {_listed(strange)}, which this run's lacks; state "
            f"{OPTION}: [{', '.join(strange[:5])}{', ...' * (len(strange) > 5)}]"
        )
    if moved := [token for token, number in theirs.items() if ours[token] != number]:
        raise UserError(
            f"init_from: the tokenizer of {folder} has {moved[0]!r} at {theirs[moved[0]]}, here it is at "
            f"{ours[moved[0]]} ({len(moved)} such); state {OPTION} in the order of that run"
        )
    return [token for token in needed if token not in theirs]
