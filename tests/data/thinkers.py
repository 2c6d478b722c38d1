"""Chat templates in the forms of models that think, read the clock or change the past, in short."""

# DeepSeek-R1's distillates: the prompt opens a thought, past answers lose theirs.
R1 = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}\
{% elif m.role == 'assistant' %}\
{{ '<|Assistant|>' + m.content.split('</think>')[-1].lstrip('\\n') + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

# EXAONE 4: without thinking, the prompt holds the empty thought that no answer shows.
EXAONE = """\
{% for m in messages %}{{ '[|' + m.role + '|]\\n' + m.content + '[|endofturn|]\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '[|assistant|]\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}"""

# Mistral Nemo: the system prompt stands in the last user turn, while that is the last turn.
NEMO = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}\
{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}\
{% if m.role == 'user' %}{{ '[INST]' }}{% if loop.last and system is defined %}{{ system + '\\n\\n' }}\
{% endif %}{{ m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"""

# gpt-oss: thoughts and answers in channels; the last answer ends with another token than the others.
GPT_OSS = """\
{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking is defined and loop.last %}\
{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}\
{% if m.tool_calls %}{{ '<|start|>assistant to=' + m.tool_calls[0].function.name \
+ '<|message|>' + m.tool_calls[0].function.arguments | tojson + '<|call|>' }}\
{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content \
+ ('<|return|>' if loop.last else '<|end|>') }}{% endif %}\
{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + (tools | tojson if tools and \
m.role == 'system' else '') + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# GLM 4: the token of the next speaker ends an answer, and nothing ends the last.
GLM = """\
{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

# Command R7B: two tokens close an answer.
COMMAND = """\
{% for m in messages %}{% if m.role == 'user' %}{{ '<|TURN|><|USER|>' + m.content + '<|END_TURN|>' }}\
{% else %}{{ '<|TURN|><|BOT|><|START|>' + m.content + '<|END|><|END_TURN|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|TURN|><|BOT|>' }}{% endif %}"""

# Llama 3.x, and gpt-oss and Mistral Small: the day stands in the system turn.
CLOCK = """\
{% if date_string is not defined %}{% if strftime_now is defined %}\
{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}\
{{ 'Today is ' + date_string + '. ' + strftime_now('%Y-%m-%d') + '\\n' }}\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# A switch, as Qwen 3 and GLM 4.5 have: off puts the empty thought into the prompt.
SWITCH = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}\
{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}\
{{ m.content + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}\
{% endif %}{% endif %}"""

TOKENS = {
    R1: ["<|User|>", "<|Assistant|>"],
    EXAONE: ["[|user|]", "[|assistant|]", "[|endofturn|]"],
    NEMO: ["[INST]", "[/INST]"],
    GPT_OSS: ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"],
    GLM: ["<|user|>", "<|assistant|>", "<|system|>"],
    COMMAND: ["<|TURN|>", "<|USER|>", "<|BOT|>", "<|START|>", "<|END|>", "<|END_TURN|>"],
    CLOCK: [],
    SWITCH: [],
}
