"""A GGUF's tokenizer, called like one of transformers.

    tokenizer = model.tokenizer
    ids = tokenizer("Hello", add_special_tokens=False)["input_ids"]

So prompts are rendered by the same code as for transformers' models (`prompts.py`), and texts are
cut at stop strings by the same code (`stopping.py`).

llama.cpp's own tokenizers are not quite those that a model was trained with: SentencePiece models
get a space after each special token, and one more before a text that begins with a space. So where
the file carries the tokenizer of Hugging Face (`tokenizer.huggingface.json` of the GGUF
specification; recipes/quantized/convert.py writes it), that one is used, and the ids are those of
training.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from llm_recipes.gguf import engine

NONE = -1  # LLAMA_TOKEN_NULL
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#hugging-face
HUGGING_FACE_KEY = "tokenizer.huggingface.json"


class GgufTokenizer:
    """What prompts and stopping want of a tokenizer; the vocabulary belongs to a loaded model.

    end_ids: tokens that end a text or a turn. adds_bos: whether texts begin with bos_token_id.
    hugging_face: whether the file carries Hugging Face's tokenizer.

    Args:
        vocabulary: llama.cpp's handle.
        chat_template: Jinja; None for models that know no chat.
        original: Hugging Face's tokenizer.json; None: llama.cpp's tokenizer is used.
    """

    def __init__(
        self, vocabulary: Any, chat_template: str | None, original: str | None = None
    ) -> None:
        llama = engine.library()
        self._vocabulary = vocabulary
        self.hugging_face = original is not None
        self._original = None if original is None else _hugging_face(original)
        self.chat_template = chat_template
        self.size = int(llama.llama_vocab_n_tokens(vocabulary))
        self.adds_bos = bool(llama.llama_vocab_get_add_bos(vocabulary))
        self.bos_token_id = _token(llama.llama_vocab_bos(vocabulary))
        self.eos_token_id = _token(llama.llama_vocab_eos(vocabulary))
        self.end_ids = frozenset(
            token for token in range(self.size) if llama.llama_vocab_is_eog(vocabulary, token)
        )

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a text."""
        return self._text(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """Text of the token that ends a text."""
        return self._text(self.eos_token_id)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
    ) -> dict[str, Any]:
        """Token ids of a text, or of several.

        Args:
            text: A text, or a list of them.
            add_special_tokens: Begin with BOS, as far as the model wants it.
            split_special_tokens: `</s>` in the text are characters, not the token.

        Returns:
            {"input_ids": list of ids, or a list of such lists}.
        """
        if self._original is not None:
            given = text if isinstance(text, str) else list(text)
            ids = self._original(
                given,
                add_special_tokens=add_special_tokens,
                split_special_tokens=split_special_tokens,
            )["input_ids"]
            return {"input_ids": ids}
        if isinstance(text, str):
            return {"input_ids": self._encode(text, add_special_tokens, not split_special_tokens)}
        many = [self._encode(one, add_special_tokens, not split_special_tokens) for one in text]
        return {"input_ids": many}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens in it count as such."""
        ids: list[int] = self(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens; half a character at the end is U+FFFD."""
        count = len(token_ids)
        if not count:
            return ""
        if self._original is not None:
            text: str = self._original.decode(token_ids, skip_special_tokens=skip_special_tokens)
            return text
        llama = engine.library()
        ids = (ctypes.c_int32 * count)(*token_ids)
        room = 8 * count + 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            used = llama.llama_detokenize(
                self._vocabulary, ids, count, buffer, room, False, not skip_special_tokens
            )
            if used >= 0:
                return buffer.raw[:used].decode("utf-8", "replace")
            room = -used

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a chat, rendered as transformers does.

        Raises:
            jinja2.TemplateError: If the template refuses the messages.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize and self.chat_template is not None
        rendered, _ = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token or "",
            eos_token=self.eos_token or "",
            **variables,
        )
        text: str = rendered[0]
        return text

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        if not data and not add_special:
            return []
        llama = engine.library()
        room = len(data) + 16
        while True:
            ids = (ctypes.c_int32 * room)()
            found = llama.llama_tokenize(
                self._vocabulary, data, len(data), ids, room, add_special, parse_special
            )
            if found >= 0:
                return ids[:found]
            room = -found

    def _text(self, token: int | None) -> str | None:
        if token is None:
            return None
        raw = engine.library().llama_vocab_get_text(self._vocabulary, token)
        return raw.decode("utf-8", "replace") if raw else None


def _hugging_face(original: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(original))


def _token(number: int) -> int | None:
    return None if number == NONE else int(number)
