"""What llama.cpp's converter gets wrong with folders that transformers 5 reads and writes.

    from llm_recipes.gguf.converter_repairs import repair, repaired_settings

Each repair can go when the converter does it itself. That the GGUF is the model shows afterwards,
when its tokens and its answers are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_recipes.architecture import read_json

ADDED_SCORE = -1000.0  # as the converter gives to tokens that were added


def repaired_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the names and values that the converter looks for.

    It reads them through transformers, whose version 5 has moved GPT-NeoX's share of rotary
    dimensions, and says of Falcon with one key for all heads that it has one for each.
    """
    family = settings.get("model_type")
    if family == "gpt_neox":
        rope = settings.get("rope_parameters") or {}
        return {"rotary_pct": rope.get("partial_rotary_factor", 0.25), **settings}
    if family == "falcon" and not settings.get("new_decoder_architecture"):
        heads = 1 if settings.get("multi_query", True) else settings["num_attention_heads"]
        return {**settings, "num_kv_heads": heads}
    return settings


def repair(model: Any, folder: Path) -> None:
    """Let the converter's object of a model find what it would miss or take for granted."""
    if model.hparams.get("model_type") == "falcon":
        _write_sizes_of_falcon(model)
    if (folder / "tokenizer.model").is_file():
        _find_added_tokens(model, folder / "tokenizer.json")
        _take_sentencepiece(model, folder / "tokenizer_config.json")


def is_unknown_pre_tokenizer(error: Exception) -> bool:
    """Whether the converter said that it does not recognize a BPE tokenizer."""
    return "BPE pre-tokenizer was not recognized" in str(error)


def _write_sizes_of_falcon(model: Any) -> None:
    """It writes those of the first Falcons, whatever the settings say."""
    usual = model.set_gguf_parameters
    settings, writer = model.hparams, model.gguf_writer

    def set_parameters() -> None:
        usual()
        for key, name in (
            ("feed_forward_length", "ffn_hidden_size"),
            ("context_length", "max_position_embeddings"),
        ):
            if settings.get(name):
                writer.remove_key(f"falcon.{key}")
                writer.add_uint32(f"falcon.{key}", settings[name])

    model.set_gguf_parameters = set_parameters


def _find_added_tokens(model: Any, path: Path) -> None:
    """It looks for added tokens in tokenizer_config.json, and they are in tokenizer.json alone."""
    if not path.is_file():
        return
    from conversion import SentencePieceTokenTypes as Kind

    read = model._create_vocab_sentencepiece
    added = read_json(path).get("added_tokens") or []

    def complete(*arguments: Any, **options: Any) -> Any:
        tokens, scores, kinds = read(*arguments, **options)
        for token in added:
            number, text = token["id"], token["content"]
            if number < len(tokens) and kinds[number] == Kind.UNUSED:
                special = token.get("special") or model.does_token_look_special(text)
                tokens[number], scores[number] = text.encode(), ADDED_SCORE
                kinds[number] = Kind.CONTROL if special else Kind.USER_DEFINED
        return tokens, scores, kinds

    model._create_vocab_sentencepiece = complete


def _take_sentencepiece(model: Any, settings: Path) -> None:
    """Families whose published models have BPE tokenizers may have a SentencePiece one too."""
    usual = model.set_vocab

    def set_vocab() -> None:
        try:
            usual()
        except NotImplementedError as error:
            if not is_unknown_pre_tokenizer(error):
                raise
            prefix = read_json(settings).get("add_prefix_space") if settings.is_file() else None
            if prefix is not None:
                model.gguf_writer.add_add_space_prefix(prefix)
            model._set_vocab_sentencepiece()

    model.set_vocab = set_vocab
