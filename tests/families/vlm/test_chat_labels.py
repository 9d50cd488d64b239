"""Where the assistant speaks, by chat templates that do it in ways of their own."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_items import (
    PICTURE,
    TEXT,
    TURNS,
    WHERE,
    answer,
    chat,
    encoded,
    picture,
    processors,
    spoken,
    talk,
    user,
)

from omnitune.data.conversations.conversation import Conversation, Message
from omnitune.data.conversations.options import ChatOptions
from omnitune.errors import UserError
from omnitune.families.vlm.encoder import ConversationEncoder
from omnitune.testing.tiny_vlm import chat_template

HEAD = """\
{%- macro said(m) -%}
{%- if m.content is string -%}{{ m.content }}
{%- else -%}{%- for p in m.content -%}{{ p.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
"""
TURN = "<|im_start|>{{ m.role }}\n{{ said(m) }}<|im_end|>\n"
TAGGED = (
    "{% if m.role == 'assistant' %}{% generation %}{{ said(m) }}{% endgeneration %}"
    "{% else %}{{ said(m) }}{% endif %}"
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
YES = "yes|<|im_end|>|two| boats|<|im_end|>"


@pytest.fixture(scope="module")
def processor(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    return processors(tiny_vlm)


def every(turn: str, ask: str = ASK) -> str:
    return HEAD + "{% for m in messages %}" + turn + "{% endfor %}" + ask


def learned(processor: Any, template: str | None, conversation: Conversation = TEXT, **options: Any) -> str:
    own = processor("qwen2_vl")
    return spoken(
        own,
        encoded(ConversationEncoder(own, "qwen2_vl", ChatOptions(**options), template), conversation).tokens,
    )


def refusal(processor: Any, template: str | None, conversation: Conversation = TEXT, **options: Any) -> str:
    """What is told of an item, behind its place, where `T` is what the template is called."""
    with pytest.raises(UserError) as told:
        ConversationEncoder(processor("qwen2_vl"), "qwen2_vl", ChatOptions(**options), template).encode(
            conversation
        )
    place, _, text = str(told.value).partition(f"{WHERE}: ")
    assert not place
    return text.replace("the chat template of qwen2_vl", "T")


def test_what_stands_behind_the_end_token_is_not_learned(processor: Any) -> None:
    assert learned(processor, every(TURN)) == YES


def test_answers_without_an_end_token_learn_that_of_the_tokenizer(
    processor: Any,
) -> None:
    template = every(
        "{{ m.role | upper }}: {{ said(m) }}\n", "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    assert learned(processor, template) == " yes|\n| |two| boats|\n|<|im_end|>"
    tagged = template.replace("{{ said(m) }}", TAGGED)
    assert learned(processor, tagged) == " yes|two| boats|<|im_end|>"


LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
    "{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As llava-hf/llava-1.5-7b-hf has it."""


def test_the_published_template_of_llava_teaches_to_stop(processor: Any) -> None:
    own = processor("llava")
    made = encoded(ConversationEncoder(own, "llava", ChatOptions(), LLAVA), TURNS)
    assert spoken(own, made.tokens).endswith("| apple| |</s>")
    assert made.tokens["input_ids"][-1] == made.tokens["labels"][-1] == own.tokenizer.eos_token_id
    assert made.remarks["shape.ended"] == 1
    assert encoded(chat(own, "llava"), TURNS).remarks["shape.ended"] == 0


def test_an_end_token_that_tags_leave_out_is_learned(processor: Any) -> None:
    assert learned(processor, every(TURN.replace("{{ said(m) }}", TAGGED))) == YES


def test_answers_stop_where_templates_end_them(processor: Any) -> None:
    own = processor("qwen2_vl")
    ends = copy.deepcopy(own)
    ends.tokenizer.eos_token = "<|endoftext|>"
    through = ConversationEncoder(ends, "qwen2_vl", ChatOptions(), every(TURN)).stops
    assert through == sorted(own.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))


THOUGHT = "<think>\nears\n</think>\n\n"


def test_thoughts_that_are_left_out_are_counted(processor: Any) -> None:
    template = chat_template("chatml_thinking", generation_tags=False)
    said = [answer(f"{THOUGHT}a dog"), answer("<think>\n\n</think>\n\nnone"), answer(f"{THOUGHT}one")]
    item = talk(*(message for one in said for message in (user("What?"), one)))
    for text, number in ((template, 1), (every(TURN), 0)):
        made = encoded(ConversationEncoder(processor("qwen2_vl"), "qwen2_vl", ChatOptions(), text), item)
        assert made.remarks["shape.thoughts"] == number


def test_an_ordinary_token_that_was_added_ends_no_answer(processor: Any) -> None:
    own = copy.deepcopy(processor("qwen2_vl"))
    own.tokenizer.add_tokens(["<loc_3>"])
    template = every(
        "{{ m.role | upper }}: {{ said(m) }}\n", "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    item = talk(user("Where?"), answer("<loc_3>"))
    made = encoded(ConversationEncoder(own, "qwen2_vl", ChatOptions(), template), item)
    assert spoken(own, made.tokens).endswith("<loc_3>|\n|<|im_end|>")


def test_default_system_message_is_not_learned(processor: Any) -> None:
    default = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    assert learned(processor, default + every(TURN)) == YES


def test_template_that_wants_a_user_first_is_followed(processor: Any) -> None:
    wants = "{% if not messages or messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}"
    assert learned(processor, wants + every(TURN)) == YES


def test_thoughts_that_past_turns_lose_do_not_move_the_answer(processor: Any) -> None:
    stripped = (
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
        "{{ said(m).split('</think>')[-1] }}{% else %}{{ said(m) }}{% endif %}<|im_end|>\n"
    )
    thoughts = talk(
        user("Hello?"), answer("<think>a</think>yes"), user("How many?"), answer("<think>b</think>two boats")
    )
    text = learned(processor, every(stripped), thoughts).replace("|", "")
    assert text == "yes<im_end><think>b</think>two boats<im_end>"


def test_end_token_that_only_the_last_turn_has_is_learned_there(processor: Any) -> None:
    closed = (
        "<|im_start|>{{ m.role }}\n{{ said(m) }}{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}\n"
    )
    assert learned(processor, every(closed)) == "yes|two| boats|<|im_end|>"


def test_token_over_the_border_of_an_answer_is_learned(processor: Any) -> None:
    """The tokenizer merges the space that the template writes with the word behind it."""
    template = every(
        "{{ m.role }}: {{ said(m) }}<|im_end|>", "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learned(processor, template) == " yes|<|im_end|>|two| boats|<|im_end|>"


def test_heads_that_are_no_generation_prompt_are_refused(processor: Any) -> None:
    assert refusal(processor, every(TURN, "")) == (
        "T writes '<|im_start|>assistant\\n' before an answer but has no add_generation_prompt, so where the "
        "assistant takes over is not known; give a chat template with {% generation %} tags around what the "
        "assistant says"
    )


def test_template_without_prefixes_is_refused(processor: Any) -> None:
    counted = every("<|{{ messages | length }}|>" + TURN)
    assert refusal(processor, counted) == (
        "T renders message 2 in another way alone than in the whole conversation, so what is to be learned "
        "is not known; give a chat template with {% generation %} tags around what the assistant says"
    )


def test_tags_say_what_is_learned(processor: Any) -> None:
    tagged = (
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ said(m) }}<|im_end|>\n"
        "{% endgeneration %}{% else %}{{ said(m) }}<|im_end|>\n{% endif %}"
    )
    assert learned(processor, every(tagged)) == "yes|<|im_end|>|\n|two| boats|<|im_end|>|\n"
    assert learned(processor, every(tagged), mask_history=True) == "two| boats|<|im_end|>|\n"


def test_message_that_is_not_to_train_is_left_out(processor: Any) -> None:
    first = replace(TEXT, messages=(TEXT.messages[0], answer("yes", train=False), *TEXT.messages[2:]))
    assert learned(processor, None, first) == "two| boats|<|im_end|>"
    last = replace(TEXT, messages=(*TEXT.messages[:3], answer("two boats", train=False)))
    assert learned(processor, None, last) == "yes|<|im_end|>"
    kept = replace(TEXT, messages=(TEXT.messages[0], answer("yes", train=True), *TEXT.messages[2:]))
    assert learned(processor, None, kept, mask_history=True) == YES


def test_history_is_masked(processor: Any) -> None:
    assert learned(processor, None, mask_history=True) == "two| boats|<|im_end|>"


def test_prompt_is_learned_but_not_what_stands_for_pictures(processor: Any) -> None:
    own = processor("qwen2_vl")
    row = encoded(chat(own, "qwen2_vl", train_on_prompt=True), PICTURE)
    text = own.tokenizer.decode(row.tokens["labels"][row.tokens["labels"] != -100])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "What is in this picture?<|im_end|>\n<|im_start|>assistant\nrocket<|im_end|>\n"
    )
    silent = talk(*PICTURE.messages, user("And?"), answer("no", train=False))
    assert "|no|" not in learned(processor, None, silent, train_on_prompt=True)


def test_item_with_nothing_to_learn_is_refused(processor: Any) -> None:
    silent = talk(TEXT.messages[0], answer("yes", train=False))
    assert refusal(processor, None, silent) == (
        "holds nothing to learn: no text of an answer is left after `train`, mask_history and "
        "the chat template; remove the item or let one answer train"
    )


def test_prompt_and_history_options_exclude_each_other() -> None:
    with pytest.raises(UserError) as told:
        ChatOptions(train_on_prompt=True, mask_history=True)
    assert str(told.value) == (
        "train_on_prompt learns all text and mask_history the last answer alone; remove one of them"
    )


# Roles and tools

TOOL: dict[str, object] = {
    "type": "function",
    "function": {"name": "count", "description": "Count things", "parameters": {}},
}
CALL = {"name": "count", "arguments": {"what": "boats"}}
TOOLS = talk(
    user("How many boats?"),
    Message("assistant", (), tool_calls=(CALL,)),
    Message("tool", ("2",)),
    answer("two boats"),
    tools=(TOOL,),
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    + every(
        "<|im_start|>{{ m.role }}\n{{ said(m) }}{% for c in m.tool_calls or [] %}"
        "<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    )
)


def test_tool_calls_are_learned_and_what_tools_say_is_not(processor: Any) -> None:
    text = learned(processor, WITH_TOOLS, TOOLS).replace("|", "")
    assert text == '<call>{"name": "count", "arguments": {"what": "boats"}}</call><im_end>two boats<im_end>'


def test_template_that_knows_no_tools_is_refused(processor: Any) -> None:
    assert refusal(processor, every(TURN), TOOLS) == (
        "T knows no tools, but the item states 1; remove them, or give a chat template that writes them"
    )
    assert refusal(processor, every(TURN), replace(TOOLS, tools=())) == (
        "T leaves out the tool calls of message 2; state them as "
        "text, or give a chat template that writes them"
    )


SYSTEM = talk(Message("system", ("Be brief.",)), *TEXT.messages)


def test_system_message_is_passed_on(processor: Any) -> None:
    own = processor("qwen2_vl")
    row = encoded(chat(own, "qwen2_vl"), SYSTEM)
    assert own.tokenizer.decode(row.tokens["input_ids"]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n"
    )
    assert spoken(own, row.tokens) == YES


def test_template_without_system_messages_is_refused(processor: Any) -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    assert refusal(processor, refuses + every(TURN), SYSTEM) == (
        "no system message can be shown: T refuses it: System role "
        "not supported; move its text to the first user message, or give a chat template that takes it"
    )
    drops = every("{% if m.role != 'system' %}" + TURN + "{% endif %}")
    assert refusal(processor, drops, SYSTEM) == (
        "T leaves out messages of the system; move its text to the "
        "first user message, or give a chat template that takes it"
    )


def test_template_that_reads_strings_alone_gets_strings(processor: Any) -> None:
    strings = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
    assert learned(processor, strings) == YES


def test_template_that_reads_parts_alone_gets_parts(processor: Any) -> None:
    parts = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p['text'] }}{% endfor %}"
        "<|im_end|>\n{% endfor %}" + ASK
    )
    assert learned(processor, parts) == YES


def test_template_that_leaves_out_pictures_is_refused(processor: Any) -> None:
    shown = talk(user(picture(), "What?"), answer("rocket"))
    assert refusal(processor, every(TURN), shown).startswith(
        "the processor of qwen2_vl refuses it: The total number of <|image_pad|> tokens in the "
        "prompts should be the same as the number of images passed."
    )


def test_processor_without_a_template_is_refused(processor: Any) -> None:
    with pytest.raises(UserError) as told:
        ConversationEncoder(processor("paligemma"), "paligemma", ChatOptions())
    assert (
        str(told.value)
        == "the processor of paligemma has no chat template; give one in model.options.chat_template"
    )


def test_labels_are_held_against_the_processors_own_mask(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = processor("qwen2_vl")
    apply = own.apply_chat_template

    def one_less(*args: Any, **settings: Any) -> Any:
        found = apply(*args, **settings)
        found["assistant_masks"][0][-2] = 0
        return found

    monkeypatch.setattr(own, "apply_chat_template", one_less)
    with pytest.raises(UserError) as told:
        chat(own, "qwen2_vl").encode(TURNS)
    assert str(told.value).startswith(
        f"{WHERE}: the chat template of qwen2_vl has generation tags by which the processor marks 5 of"
    )


@pytest.mark.parametrize(
    "code",
    [
        "{{ 1 // 0 }}", "{{ range(10**9) }}", "{{ none.x.y }}", "{{ messages[0]['x']['y'] }}", "{% if %}",
        "{{ 'a' + 1 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ raise_exception('no') }}",
        "{{ 'a'.join(1) }}", "{{ ''.__class__.__mro__ }}", "{{ '%d' % 'a' }}",
        "{{ messages | tojson | int | sum }}",
    ],
)  # fmt: skip
def test_whatever_a_template_raises_is_told(processor: Any, code: str) -> None:
    assert "T" in refusal(processor, code + every(TURN))
