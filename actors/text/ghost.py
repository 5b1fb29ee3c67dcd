"""The ghost's vocabulary: bytes, a few pieces of characters, two specials. Any text goes in and comes out the same."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pawl.actors.text.byte_table import byte_alphabet
from pawl.actors.text.vocabulary import Vocabulary
from pawl.gpu.ghost.language import END_TOKEN, PIECES, SPECIALS

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def ghost_vocabulary() -> Vocabulary:
    """Made in memory, in the order of `pawl.gpu.ghost.language`."""
    alphabet = byte_alphabet()
    tokens = [alphabet[byte] for byte in range(256)]
    tokens += ["".join(alphabet[byte] for byte in piece) for piece in PIECES]
    # A piece is joined from all but its last byte and that byte; shorter pieces come before those they begin.
    merges = [(token[:-1], token[-1]) for token in tokens[256:]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    _, end = SPECIALS
    return Vocabulary(tokenizer, eos_ids=(END_TOKEN,), eos_token=end, chat_templates={"default": CHAT_TEMPLATE})
