"""The vocabulary of one model: text to token ids and back, special tokens, ends, chat templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from pawl.actors.text.byte_table import ByteTable, build_byte_table
from pawl.actors.text.conversion import UnsupportedVocabulary, tokenizer_from_gguf
from pawl.actors.text.growth import MOST_GROWTH, growth
from pawl.gpu.weights.strangers import content_of, one_line, read_object, reading

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")
"""Names of tokens that end a turn. A model's files may name one end token only; a chat template that writes another of
these shows that the model ends its turns with it."""

ANY_TOKENIZER = "PreTrainedTokenizerFast"
"""The class in transformers that reads whatever the tokenizers library does."""
SHORT_TEXT = 1000
"""Characters. The quickest way to encode keeps the interpreter to itself, so it is for texts of at most these."""
ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
"""What is told of an added token."""
WORD_BYTES = 4096
"""Of a word that is one unknown token, and the white space around it."""
MOST_TOKENS = 1 << 24
"""Ids that tables are made for: a file may name any number."""
MOST_TEMPLATE_BYTES = 1 << 20
"""Of one chat template: the longest there are have a twentieth of it."""


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library has panicked, as it does at some files and texts. That is none of Python's
    exceptions, and whoever handles those would be ended by it; its class can be told by its name alone."""
    return type(error).__name__ == "PanicException"


class Vocabulary:
    """What a tokenizer and a detokenizer need to know. Immutable once built; shared between threads.

    `num_embeddings` is how many token ids the model knows; 0: those of the tokenizer. Where there are more than the
    tokenizer has (embeddings are often padded), the others have no text; where there are fewer (a token was added to
    the tokenizer alone), prompts must not hold the rest. `size` covers both.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        bos_token: str = "",
        eos_token: str = "",
        chat_templates: Mapping[str, str] | None = None,
        num_embeddings: int = 0,
        tokenizer_class: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.tokenizer_class = tokenizer_class or ANY_TOKENIZER
        added = tokenizer.get_added_tokens_decoder()
        # Ids may have holes, so the highest one counts, not how many there are.
        num_tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
        if num_tokens > MOST_TOKENS:
            raise UnsupportedVocabulary(f"the tokenizer has ids up to {num_tokens - 1}, of at most {MOST_TOKENS - 1}")
        self.size = max(num_tokens, num_embeddings)
        self.num_embeddings = num_embeddings or num_tokens
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.eos_ids = tuple(token for token in dict.fromkeys(eos_ids) if 0 <= token < self.num_embeddings)
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.chat_templates = dict(chat_templates or {})
        """By name; the one a request gets unless it brings tools is `default`."""
        if any(len(text) > MOST_TEMPLATE_BYTES for text in self.chat_templates.values()):
            raise UnsupportedVocabulary(f"a chat template has more than {MOST_TEMPLATE_BYTES >> 20} MiB")

    @classmethod
    def load(cls, path: str | Path, num_embeddings: int = 0) -> Vocabulary:
        """From a GGUF file or a folder in Hugging Face's layout.

        Raises UnsupportedVocabulary when neither holds a vocabulary that can be read.
        """
        path = Path(path)
        with reading("the vocabulary", UnsupportedVocabulary):
            try:
                if path.is_dir():
                    vocabulary = cls.from_folder(path, num_embeddings)
                    vocabulary.tokenizer.encode("a")
                    return vocabulary
                from pawl.gpu.weights.gguf import read_gguf  # a folder must load without the room of the models

                return cls.from_gguf(read_gguf(path).metadata, num_embeddings)
            except BaseException as error:
                if is_panic(error):
                    raise UnsupportedVocabulary(f"the vocabulary cannot be read ({one_line(error)})") from None
                raise

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], num_embeddings: int = 0) -> Vocabulary:
        """From the metadata of a GGUF file. End tokens: those the file names, and turn ends its template writes."""
        tokenizer = tokenizer_from_gguf(metadata)
        templates = (
            {"default": str(metadata["tokenizer.chat_template"])} if metadata.get("tokenizer.chat_template") else {}
        )
        for key in metadata:
            if key.startswith("tokenizer.chat_template."):
                templates[key.removeprefix("tokenizer.chat_template.")] = str(metadata[key])
        named = (metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom"))
        eos_ids = [int(index) for index in named if index is not None]
        bos_id = metadata.get("tokenizer.ggml.bos_token_id")
        return cls(
            tokenizer,
            eos_ids=eos_ids + _turn_ends(tokenizer, templates),
            bos_token=_token(tokenizer, bos_id),
            eos_token=_token(tokenizer, eos_ids[0] if eos_ids else None),
            chat_templates=templates,
            num_embeddings=num_embeddings,
        )

    @classmethod
    def from_folder(cls, folder: Path, num_embeddings: int = 0) -> Vocabulary:
        """From tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json (or config.json)
        and chat templates. End tokens: all that these files name, and turn ends that the templates write."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UnsupportedVocabulary(f"{folder} holds no tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more special
            raise UnsupportedVocabulary(f"tokenizer.json cannot be read ({one_line(error)})") from error
        if (times := growth(tokenizer)) > MOST_GROWTH:
            raise UnsupportedVocabulary(
                f"its tokenizer makes texts {times:.3g} times as long; {MOST_GROWTH} is the most"
            )
        # A tokenizer.json may ask for truncation or padding, which would silently change prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        configuration = _read_json(folder / "tokenizer_config.json")
        named = _read_json(folder / "special_tokens_map.json")
        bos_token, eos_token = (
            _content(configuration.get(key)) or _content(named.get(key)) for key in ("bos_token", "eos_token")
        )
        templates = _folder_templates(folder, configuration.get("chat_template"))
        # Models disagree with themselves about where they end: what any file names, or the template writes, is an end.
        eos_ids = _ids(_read_json(folder / "generation_config.json").get("eos_token_id"))
        eos_ids += _ids(_read_json(folder / "config.json").get("eos_token_id")) if not eos_ids else []
        eos_ids += _ids(tokenizer.token_to_id(eos_token)) + _turn_ends(tokenizer, templates)
        return cls(
            tokenizer,
            eos_ids=eos_ids,
            bos_token=bos_token,
            eos_token=eos_token,
            chat_templates=templates,
            num_embeddings=num_embeddings,
            tokenizer_class=_content(configuration.get("tokenizer_class")),
        )

    def encode(self, text: str, add_special: bool = True) -> NDArray[np.int32]:
        """Token ids, int32 [n]. `add_special` puts the beginning token (and what else the model's tokenizer adds)
        around the text; a rendered chat template brings its own, so it is encoded without.

        Raises ValueError for text that is not valid Unicode (a lone surrogate).
        """
        try:
            if len(text) <= SHORT_TEXT:
                ids = self.tokenizer.encode(text, add_special_tokens=add_special).ids
            else:
                ids = self.tokenizer.encode_batch([text], add_special_tokens=add_special)[0].ids
        except TypeError:
            raise ValueError("the text is not valid Unicode: it holds half of a surrogate pair") from None
        except BaseException as error:
            if is_panic(error):
                raise RuntimeError("the tokenizers library fails on a text") from None
            raise
        return np.array(ids, dtype=np.int32)

    @property
    def added_tokens(self) -> dict[str, dict[str, str | bool]]:
        """By id, as `added_tokens_decoder` of tokenizer_config.json has them: tokens that are found in a text before it
        is cut into others."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {str(index): {name: getattr(token, name) for name in ADDED} for index, token in sorted(added.items())}

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: n tokens are text of at most n times as many. WordPiece makes one token of any
        word that it does not know, and none of white space: of its texts only what no reader would write is bounded."""
        if isinstance(self.tokenizer.model, models.WordPiece):
            return WORD_BYTES
        if self.byte_table is not None:
            return max(map(len, self.byte_table.entries), default=1)
        return max((len(token.encode()) for token in self.tokenizer.get_vocab()), default=1)

    def decode(self, ids: Iterable[int], skip_special: bool = True, from_start: bool = False) -> str:
        """The text of token ids that continue a text, or with `from_start` begin one: some tokenizers put a space
        before a text's first word, which is then taken away. Bytes that are not UTF-8 become U+FFFD."""
        if self.byte_table is None:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special))
        entries = self.byte_table.entries
        hidden = self.special_ids if skip_special else frozenset()
        text = b"".join([entries[i] for i in ids if i not in hidden]).decode("utf-8", "replace")
        return text.removeprefix(" ") if from_start and self.byte_table.strips_first_space else text

    def token_text(self, token: int) -> str:
        """One token by itself, special ones included; bytes that are only part of a character show as U+FFFD."""
        if self.byte_table is None:
            return self.decode((token,), skip_special=False)
        text = self.whole_texts[token]
        return text if text is not None else self.byte_table.entries[token].decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token by itself, which need not be whole characters."""
        return self.byte_table.entries[token] if self.byte_table is not None else self.token_text(token).encode()

    @cached_property
    def byte_table(self) -> ByteTable | None:
        """The bytes of each token, or None where text is not their concatenation."""
        return build_byte_table(self.tokenizer, self.size)

    def build_tables(self) -> None:
        """Build now what would otherwise be built when the first token needs it."""
        if len(self.visible_texts) not in (0, self.size):
            raise ValueError(f"the byte table has {len(self.visible_texts)} entries for {self.size} tokens")

    @cached_property
    def visible_texts(self) -> list[str | None]:
        """For each token its text with special tokens hidden; None where its bytes are not whole characters. Empty
        where there is no byte table."""
        return ["" if index in self.special_ids else text for index, text in enumerate(self.whole_texts)]

    @cached_property
    def whole_texts(self) -> list[str | None]:
        """As `visible_texts`, special tokens shown."""
        return [_text_or_none(entry) for entry in self.byte_table.entries] if self.byte_table else []


def _text_or_none(entry: bytes) -> str | None:
    try:
        return entry.decode()
    except UnicodeDecodeError:
        return None


def _token(tokenizer: Tokenizer, index: int | None) -> str:
    return "" if index is None else tokenizer.id_to_token(int(index)) or ""


def _ids(value: Any) -> list[int]:
    """Token ids in a configuration: one, a list, or none."""
    return [int(token) for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)]


def _turn_ends(tokenizer: Tokenizer, templates: Mapping[str, str]) -> list[int]:
    found = [tokenizer.token_to_id(end) for end in TURN_ENDS if any(end in text for text in templates.values())]
    return [index for index in found if index is not None]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    return read_object(path, UnsupportedVocabulary) if path.is_file() else {}


def _content(token: Any) -> str:
    """A special token in tokenizer_config.json: a string, or an object around one, or null."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _folder_templates(folder: Path, configured: Any) -> dict[str, str]:
    """Files win over the configuration, which holds one template or a list of named ones."""
    templates: dict[str, str] = {}
    if isinstance(configured, str):
        templates["default"] = configured
    elif isinstance(configured, list):
        templates |= {entry["name"]: entry["template"] for entry in configured}
        if not all(isinstance(text, str) for named in templates.items() for text in named):
            raise UnsupportedVocabulary("a chat template in tokenizer_config.json is no text")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = content_of(file, UnsupportedVocabulary, MOST_TEMPLATE_BYTES).decode("utf-8")
    if (file := folder / "chat_template.jinja").is_file():
        templates["default"] = content_of(file, UnsupportedVocabulary, MOST_TEMPLATE_BYTES).decode("utf-8")
    return templates
