"""Chat templates of Llama 2 and Llama 3, for tokenizers that bring none.

The forms are Meta's:
https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-2/ and
https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
"""

from __future__ import annotations

# A system message stands within the first question; each question and its answer are a text of
# their own, between BOS and EOS.
LLAMA_2 = """\
{%- set chat = namespace(system='', next='user') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and loop.first -%}
{%- set chat.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] != chat.next -%}
{{- raise_exception('a message of the role ' + chat.next + ' is expected, not ' \
+ message['role']) -}}
{%- elif message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (chat.system + message['content']) | trim + ' [/INST]' -}}
{%- set chat.system = '' -%}
{%- set chat.next = 'assistant' -%}
{%- else -%}
{{- ' ' + message['content'] | trim + ' ' + eos_token -}}
{%- set chat.next = 'user' -%}
{%- endif -%}
{%- endfor -%}
{%- if chat.system or (add_generation_prompt and chat.next == 'user') -%}
{{- raise_exception('the last message must be of the role user') -}}
{%- endif -%}
"""
LLAMA_3 = """\
{{- bos_token -}}
{%- set chat = namespace(next='user') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and loop.first -%}
{%- elif message['role'] != chat.next -%}
{{- raise_exception('a message of the role ' + chat.next + ' is expected, not ' \
+ message['role']) -}}
{%- else -%}
{%- set chat.next = 'assistant' if chat.next == 'user' else 'user' -%}
{%- endif -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if chat.next == 'user' -%}
{{- raise_exception('the last message must be of the role user') -}}
{%- endif -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
