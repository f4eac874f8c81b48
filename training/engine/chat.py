"""From a chat to token ids, the same way for sampling and for training."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from training.jobspec import Completion, Message, TripleLine

# Templates of some models write today's date. Then the same messages would be other tokens on another day: nothing
# computed of them would be found again, and a run that goes on after midnight would train on others. So it is one date
# for ever, which Llama's templates fall back to by themselves. Templates are given plain data alone, hence the way.
DATE = datetime.datetime(2024, 7, 26)


class AlwaysThatDay(datetime.datetime):
    """The clock of ``strftime_now`` in templates."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> AlwaysThatDay:
        return cls(DATE.year, DATE.month, DATE.day, tzinfo=tz)


chat_template_utils.datetime = AlwaysThatDay  # type: ignore[attr-defined]


class PromptError(ValueError):
    """The chat template does not accept these messages."""


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Token ids of the prompt up to and with the header of the assistant's turn.

    Raises ``PromptError`` when the template refuses the messages, such as two turns of one role in a row.
    """
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except (TemplateError, KeyError, TypeError) as error:
        raise PromptError(f"The chat template of this model does not accept the prompt: {error}.") from error
    return list(ids)


def accepted_token_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]]) -> dict[int, list[int]]:
    """By the number of the prompt; without those that the chat template does not accept."""
    found = {}
    for number, messages in enumerate(prompts):
        with contextlib.suppress(PromptError):
            found[number] = prompt_token_ids(tokenizer, messages)
    return found


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """What people read of a response. A NUL, which no database holds, becomes the replacement character."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True)
    return text.replace("\x00", "\ufffd")


def is_of_this_tokenizer(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> bool:
    """Whether the sampled ids mean the text here. Those of a policy with another vocabulary mean something else."""
    ids = completion.token_ids
    if not ids or max(ids) >= len(tokenizer) or min(ids) < 0:
        return False
    return response_text(tokenizer, completion.token_ids) == completion.text


def prompt_token_ids_as_sampled(tokenizer: PreTrainedTokenizerBase, line: TripleLine) -> list[int]:
    """The ids that both responses were sampled from, where they are this tokenizer's; else none.

    The chat template may have been another one then.
    """
    ids = line.prompt_token_ids
    if not ids or max(ids) >= len(tokenizer) or min(ids) < 0:
        return []
    if not all(is_of_this_tokenizer(tokenizer, item) for item in (line.chosen, line.rejected)):
        return []
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return list(ids) if line.messages[-1]["content"].strip() in text else []


def completion_token_ids(tokenizer: PreTrainedTokenizerBase, completion: Completion, turn_end: int) -> list[int]:
    """The ids as sampled, where they are this tokenizer's; else those of the text, and ``turn_end``.

    Decoding and encoding again does not give back what was sampled in general. A response that was cut at its greatest
    length has no end of turn.
    """
    if is_of_this_tokenizer(tokenizer, completion):
        return list(completion.token_ids)
    ids: list[int] = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
    return ids if completion.finish_reason == "length" else [*ids, turn_end]


def turn_end_id(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> int:
    """The id that ends a response of the model and that the chat template writes behind one; else the end of text.

    They differ where a model ends a turn with one token and a text with another, as Gemma does.
    """
    question: list[Message] = [{"role": "user", "content": "a"}]
    answer: Message = {"role": "assistant", "content": "b"}
    try:
        whole = tokenizer.apply_chat_template([*question, answer], tokenize=True, return_dict=False)
        prompt = prompt_token_ids(tokenizer, question)
    except (PromptError, TemplateError, KeyError, TypeError):
        return int(tokenizer.eos_token_id)
    said = list(whole)[len(prompt) :] if list(whole)[: len(prompt)] == prompt else []
    ends = stop_token_ids(tokenizer, generation_config)
    return next((number for number in said if number in ends), int(tokenizer.eos_token_id))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> list[int]:
    """Every id that ends a response. Models name the end of text in one place and the end of a turn in another."""
    configured = generation_config.eos_token_id if generation_config is not None else None
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({int(token) for token in listed} | {int(tokenizer.eos_token_id)})


def context_length(config: PretrainedConfig) -> int:
    """Tokens the model can read at once."""
    return int(config.get_text_config().max_position_embeddings)
