"""A GGUF model for lm-evaluation-harness, in this process: log-likelihoods and generation.

    from llm_recipes.gguf.harness_model import GgufLM
    results = lm_eval.simple_evaluate(GgufLM(model, settings), tasks=["arc_easy"])
    results = lm_eval.simple_evaluate("gguf-file", "path=model.gguf", tasks=["arc_easy"])

What a task sends becomes tokens as in lm-eval's own class for transformers models (`HFLM`,
lm_eval/models/huggingface.py of version 0.4.13): where context and continuation part, BOS, what is
cut off on the left, how answers end. So a GGUF in f16 scores as the folder it was made of.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import jinja2
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    postprocess_generated_text,
)

from llm_recipes.decoding import DecodeSettings, Request
from llm_recipes.errors import LLMError
from llm_recipes.gguf.decoder import GgufDecoder
from llm_recipes.gguf.file import gguf_digest
from llm_recipes.gguf.model import ContextSettings, GgufContext, GgufModel
from llm_recipes.gguf.scoring import score_all
from llm_recipes.harness_requests import (
    Encoded,
    Generation,
    no_room,
    nothing_to_score,
    read_generation,
    window,
)
from llm_recipes.progress import Progress
from llm_recipes.prompts import check_knows_chat

Scored = tuple[float, bool]  # log-likelihood of a continuation, and whether it is the likeliest
Message = dict[str, str]


@register_model("gguf-file")
class GgufLM(TemplateLM):
    """A loaded model as lm-eval wants it; several requests run side by side.

    tokenizer: the model's. max_length: tokens that it sees at once. seed: of sampled answers, where
    the task doesn't say.
    """

    seed = 0

    def __init__(
        self,
        model: GgufModel,
        settings: ContextSettings,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a model, which belongs to the caller.

        Args:
            model: The model.
            settings: Sequences are so many at most, and tokens x sequences is the room for all:
                longer requests are fewer at once.
            max_length: Tokens that the model sees at once; None: as many as it was trained to.
            max_gen_toks: Tokens of an answer at most, where the task says nothing.
            add_bos_token: Whether texts begin with BOS; None: as the model's tokenizer does.
            prefix_token_id: What an empty context is; None: BOS, or the end token without one.
            chat_template_args: Variables for the chat template, such as enable_thinking.
        """
        super().__init__()
        self.model = model
        self.settings = settings
        self.tokenizer = model.tokenizer
        self.max_length = max_length or model.context_length or settings.tokens
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self.chat_template_args = dict(chat_template_args or {})
        self._prefix = prefix_token_id

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> GgufLM:
        """What lm-eval makes of the model's name and arguments: those of `open_lm`, and `path`."""
        from llm_recipes.gguf.harness_opening import open_for_good

        rows = (additional_config or {}).get("batch_size")
        given = {"parallel": rows} if isinstance(rows, int) else {}
        return open_for_good(**{**given, **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> GgufLM:
        """As `create_from_arg_obj`, of `path=model.gguf,parallel=8`."""
        return cls.create_from_arg_obj(
            utils.simple_parse_args_string(arg_string), additional_config
        )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return self.prefix_token_id if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """What comes before the first token of a text without context.

        Raises:
            LLMError: If the model has neither BOS nor an end token.
        """
        for token in (self._prefix, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        why = "its vocabulary names neither a BOS nor an end token"
        raise LLMError("the model can't score a text without context", why, "convert it again")

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of rendered prompts is keyed by: file name and chat template."""
        template = self.tokenizer.chat_template or ""
        digest = sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.model.file.path.name}-{digest[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results about the model."""
        return {
            "model_num_parameters": self.model.parameters,
            "model_dtype": self.model.file.file_type,
            "model_revision": "",
            "model_sha": gguf_digest(self.model.file),
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text; with BOS if the tokenizer does so, but never with a second one."""
        special = add_special_tokens is not False
        prefix = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and has_bos_prefix(string, prefix):
            special = False
        return self._encoded(string, special)

    def _encoded(self, text: str, special: bool) -> list[int]:
        special = special and self.add_bos_token is not False
        ids = self.tokenizer.encode(text, add_special_tokens=special)
        bos = self.tokenizer.bos_token_id
        if special and self.add_bos_token and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the likeliest.

        Raises:
            LLMError: If a continuation is empty or longer than the window.
        """
        for request in requests:
            if not "".join(request.args):
                raise nothing_to_score("")
        quiet = disable_tqdm or not sys.stderr.isatty()
        return super().loglikelihood(requests, disable_tqdm=quiet)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows of max_length."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            found = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(window) for window in found]
            windows += [(None, before, after) for before, after in pairs]
            owners += [owner] * len(pairs)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows)
        for owner, (value, _) in zip(owners, scored, strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **kwargs: Any) -> list[Scored]:
        if not requests:
            return []
        wanted = [window(request, self.max_length, self.prefix_token_id) for request in requests]
        cut = sum(
            len(before) + len(after) > len(ids)
            for (_, before, after), (ids, _) in zip(requests, wanted, strict=True)
        )
        self._say_cut(cut, "contexts")
        found: list[Scored] = [(0.0, False)] * len(requests)
        longest = max(len(ids) - 1 for ids, _ in wanted)
        with (
            self._context(longest) as context,
            Progress("lm-eval", len(requests), "log-likelihoods") as progress,
        ):
            for index, scores in score_all(context, wanted):
                ids, first = wanted[index]
                is_greedy = bool((scores.best == ids[first:]).all())
                found[index] = (float(scores.logprobs.sum()), is_greedy)
                if (texts := requests[index][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, found[index])
                progress.advance()
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each cut before the first text that ends it.

        Raises:
            LLMError: If a task asks for what isn't known here, or for more tokens than there is
                room for.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = json.dumps(request.args[1], sort_keys=True, default=str)
            groups.setdefault(key, []).append(index)
        answers = [""] * len(requests)
        with Progress("lm-eval", len(requests), "answers") as progress:
            for indices in groups.values():
                options = requests[indices[0]].args[1]
                wanted = read_generation(options, self.max_gen_toks, self.seed)
                prompts = self._prompts(requests, indices, wanted)
                for completion_ids, index in self._complete(prompts, wanted):
                    answers[index] = self._text(completion_ids, wanted)
                    self.cache_hook.add_partial(
                        "generate_until", requests[index].args, answers[index]
                    )
                    progress.advance()
        return answers

    def _prompts(
        self, requests: Sequence[Instance], indices: Sequence[int], wanted: Generation
    ) -> dict[Request, int]:
        """What is asked of the decoder, and which request it answers; cut on the left."""
        room = self.max_length - wanted.new_tokens
        if room <= 0:
            raise no_room(wanted.new_tokens, self.max_length)
        prompts: dict[Request, int] = {}
        repeats: Counter[str] = Counter()
        cut = 0
        for index in indices:
            asked = requests[index]
            # A chat template has written BOS already.
            special = not has_bos_prefix(asked.args[0], self.tokenizer.bos_token)
            ids = self._encoded(asked.args[0], special) or [self.prefix_token_id]
            cut += len(ids) > room
            name = f"{asked.task_name}/{asked.doc_id}/{asked.idx}"
            prompts[Request(name, repeats[name], tuple(ids[-room:]))] = index
            repeats[name] += 1
        self._say_cut(cut, "prompts")
        return prompts

    def _complete(
        self, prompts: Mapping[Request, int], wanted: Generation
    ) -> Iterator[tuple[tuple[int, ...], int]]:
        """Token ids of each answer and which request it answers; the longest prompts first."""
        # lm-eval's answers have no first space, so one that a text begins with is no end yet. Such
        # an end is found when all is generated.
        stop = tuple(text for text in wanted.until if not text.startswith(" "))
        settings = DecodeSettings(
            max_new_tokens=wanted.new_tokens,
            sampling=wanted.sampling,
            stop=stop,
            stop_token_ids=self.tokenizer.end_ids,
            context=self.max_length,
        )
        ordered = sorted(prompts, key=lambda request: -len(request.token_ids))
        with self._context(len(ordered[0].token_ids) + wanted.new_tokens) as context:
            decoder = GgufDecoder(context, self.tokenizer, settings)
            for completion in decoder.complete(ordered):
                yield completion.token_ids, prompts[completion.request]

    def _text(self, token_ids: Sequence[int], wanted: Generation) -> str:
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        stops = handle_stop_sequences(list(wanted.until), self.tokenizer.eos_token)
        return postprocess_generated_text(text, stops, None)

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat by the model's template; without system messages if it wants none.

        Raises:
            LLMError: If the model knows no chat, or the template not this one.
        """
        check_knows_chat(self.tokenizer)
        others = [message for message in chat_history if message["role"] != "system"]
        try:
            try:
                return self._rendered(chat_history, add_generation_prompt)
            except jinja2.TemplateError:
                return self._rendered(others, add_generation_prompt)
        except (jinja2.TemplateError, ValueError) as error:
            what = "a task's chat does not fit the model's chat template"
            why = str(error) or type(error).__name__
            raise LLMError(what, why, "leave --apply-chat-template out") from None

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.chat_template_args,
        )

    @contextmanager
    def _context(self, tokens: int) -> Iterator[GgufContext]:
        """Room for sequences of so many tokens, as many as the settings' room is divided into."""
        room = self.settings.tokens * self.settings.sequences
        sequences = min(self.settings.sequences, max(1, room // max(1, tokens)))
        with self.model.context(
            replace(self.settings, tokens=tokens, sequences=sequences)
        ) as context:
            yield context

    def _say_cut(self, count: int, what: str) -> None:
        if count:
            seen = f"longer than the {self.max_length} tokens that the model sees"
            print(f"{count} {what} are {seen}: their beginnings are left out", file=sys.stderr)
