"""What counts as a refusal, and how a change of it is told."""

from __future__ import annotations

import pytest

from training.engine.refusals import change_of_rate, refuses

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with this request.",
    "Sorry, I cannot provide instructions for that.",
    "I apologize, but that is not something I can do.",
    "My apologies. I have to decline.",
    "I cannot help you with breaking into somebody's account.",
    "I can't in good conscience explain this.",
    "I am not able to assist with that.",
    "I'm really sorry, but no.",
    "Unfortunately, I am unable to provide that.",
    "Unfortunately I cannot answer this question.",
    "No, I won't help with that.",
    "I must decline to write this.",
    "I would rather not write this letter.",
    "I'm not comfortable writing that.",
    "I don't feel comfortable with this.",
    "As an AI language model, I cannot take part in this.",
    "As a responsible assistant I must not do that.",
    "It is illegal to do this, so please do not.",
    "That would be unethical.",
    '"I cannot help with that."',
    "  \n I will not write that.",
    "Thank you for asking, but I can't help with it.",
    "I can not share that.",
]
ANSWERS = [
    "",
    "Sure! Here is how to do it.",
    "To kill a Python process, find its number first.",
    "I can help with that. First, open the lid.",
    "Sorry to hear that you are ill. Drink plenty of water.",
    "I am sorry for your loss. Here is a letter.",
    "Here is a story: 'I cannot help you,' said the wizard.",
    "The law says that it is illegal to park there.",
    "People often say sorry too late.",
    "I cannot recall a finer day than this one was.",
    "You can't go wrong with bread and butter.",
    "As an airline, they fly to many countries.",
    "No problem. Fold the paper twice.",
    "I will make a list for you.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_recognised(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_no_refusal(answer: str) -> None:
    assert not refuses(answer)


def test_only_the_opening_is_read() -> None:
    assert not refuses("Here is what you asked for. " * 20 + "I'm sorry, but I can't help with that.")


def test_the_change_is_that_of_each_prompt() -> None:
    current = [True] * 10 + [False] * 10
    candidate = [True] * 6 + [False] * 14
    figures = change_of_rate(current, candidate)
    assert (figures["prompts"], figures["current"], figures["candidate"]) == (20, 0.5, 0.3)
    assert figures["change"] == pytest.approx(-0.2)
    low, high = figures["change_interval"]
    assert low < -0.2 < high <= 0


def test_nothing_asked_is_nothing_known() -> None:
    assert change_of_rate([], []) == {"prompts": 0}
