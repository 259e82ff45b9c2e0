"""A chat format as a Jinja template, for programs that know nothing of ftbench."""

import json

from ftbench.models.chat import ChatFormat

_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### Question:\\n' + message['content'] + '\\n\\n### Answer:\\n' }}"
    "{% else %}{{ message['content'] + '\\n\\n' }}"
    "{% endif %}{% endfor %}"
)
"""`PLAIN_FORMAT`."""
_SYSTEM = (
    "{{% if messages[0]['role'] == 'system' %}}"
    "{{% set told = {text} + '\\n\\n' + messages[0]['content'] %}}{{% set messages = messages[1:] %}}"
    "{{% else %}}{{% set told = {text} %}}{{% endif %}}"
    "{{% set messages = [{{'role': 'system', 'content': told}}] + messages %}}"
)


def template_of(chat: ChatFormat) -> str:
    """Return the template that writes a prompt as `chat` does.

    A system prompt stands in it, before what conversations bring of their own. What no template can do is to break
    control tokens in user text (`ChatFormat.harmless`).
    """
    tokenizer = chat.tokenizer
    template = str(tokenizer.chat_template) if tokenizer.chat_template else _begin(chat) + _PLAIN
    if not chat.system:
        return template
    return _SYSTEM.format(text=json.dumps(chat.system, ensure_ascii=False)) + template


def _begin(chat: ChatFormat) -> str:
    """Return what the tokenizer itself puts before a text; programs leave that to a template, where there is one."""
    tokenizer = chat.tokenizer
    special, plain = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
    before = str(tokenizer.decode(special[: special.index(plain[0])]))
    return f"{{{{ {json.dumps(before, ensure_ascii=False)} }}}}" if before else ""
