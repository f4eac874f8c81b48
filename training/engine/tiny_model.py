"""A random chat model of a few hundred kilobytes, for tests and for trying the whole loop in seconds.

It writes word salad, but it behaves: whole words, an end of turn after some twenty words, two samples never alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 512
HIDDEN = 48
PAD, TURN_START, TURN_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORD_LIST = """
a about after again air all always an and animal any apple are around as ask at away back be bear because bed before
below best better big bird blue boat book both box boy bread bring brown but by call came can car cat city clear close
cloud cold come cook could cup cut day deep did do dog door down draw dream drink dry each early earth east eat eye
face fall far farm fast father feel few field find fire first fish five floor flower fly food foot for forest four
free friend from full game garden gave girl give glass go gold good grass great green grow had hair half hand happy
hard has have he head hear heart help her here high hill him his home horse hot hour house how ice idea if in into is
island it jump just keep kind king know land large last late laugh leaf learn leave left let letter light like line
list little live long look love low made make man many map may me mean milk mind moon more morning most mother
mountain mouse move much music must my name near new next night no north not now number ocean of off old on one only
open or orange other our out over page paper park part path people picture place plant play please point
"""
WORDS = WORD_LIST.split()
TURN_WORDS = ("user", "assistant", "system")
PUNCTUATION = (".", ",")

# Column 0 of every embedding is a constant, so that column 0 of the output head acts as a bias on the logits.
CONSTANT = 3.0
WORD_BIAS, PUNCTUATION_BIAS, END_BIAS, OTHER_BIAS = 0.0, 2.2, 2.4, -14.0


def build(directory: Path, seed: int = 0) -> None:
    """Write model and tokenizer to ``directory`` (created). The same seed gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that any text has ids; a known word with its space before it is one token."""
    spaced = [f"Ġ{word}" for word in WORDS]
    entries = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *spaced, *TURN_WORDS]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=TURN_END, pad_token=PAD, model_max_length=CONTEXT
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        fill_weights(model, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


@torch.no_grad()
def fill_weights(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding.normal_()
    embedding[:, 0] = CONSTANT
    head.normal_(std=0.2)
    root_mean_square = ((CONSTANT**2 + HIDDEN - 1) / HIDDEN) ** 0.5
    head[:, 0] = token_biases(tokenizer) * root_mean_square / CONSTANT


def token_biases(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Logit biases, one for each id of the vocabulary."""
    biases = torch.full((len(tokenizer),), OTHER_BIAS)
    biases[tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS])] = WORD_BIAS
    biases[tokenizer.convert_tokens_to_ids(list(PUNCTUATION))] = PUNCTUATION_BIAS
    biases[tokenizer.eos_token_id] = END_BIAS
    return biases


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random chat model to DIR.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.directory, arguments.seed)


if __name__ == "__main__":
    main()
