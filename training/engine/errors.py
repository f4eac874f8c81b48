"""Failures that the engine foresees, each with a sentence for people and a way out."""

from __future__ import annotations


class EngineError(Exception):
    """A run that cannot go on for a reason that a person can act on.

    ``code`` is stable and goes to ``Result.error_code``: bad_job, bad_dataset, bad_weights, bad_tokenizer,
    no_chat_template, unsupported_model, unsafe_weights, no_gpu, out_of_memory, disk_full, wrong_reference, diverged,
    displaced.
    ``message`` is one sentence, ``hint`` says what to do about it.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Interrupted(BaseException):
    """Somebody asked this process to stop. What is on disk is enough to go on later."""
