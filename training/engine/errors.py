"""Failures that the engine foresees, each with a sentence for people and a way out."""

from __future__ import annotations


class EngineError(Exception):
    """A run that cannot go on for a reason that a person can act on.

    ``code`` is stable and goes to ``Result.error_code``:

    * of jobs and data: bad_job, bad_dataset
    * of models: bad_weights, bad_tokenizer, no_chat_template, unsupported_model, unsafe_weights
    * of the machine: no_gpu, out_of_memory, disk_full
    * of training: wrong_reference, diverged, displaced; killed, of one of several processes
    * of a sampling server: server_unreachable, server_timeout, server_refused, server_answer, server_failed,
      unknown_model, server_adapter, prompt_too_long

    ``message`` is one sentence, ``hint`` says what to do about it.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Interrupted(BaseException):
    """Somebody asked this process to stop. What is on disk is enough to go on later."""
