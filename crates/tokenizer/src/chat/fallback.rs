//! Templates for files that ship none, chosen by the special tokens of the vocabulary.

use crate::vocabulary::Vocabulary;

/// A well-known format.
pub struct Fallback {
    /// What warnings and errors call it.
    pub name: &'static str,
    /// Tokens that all have to be in the vocabulary.
    pub tokens: &'static [&'static str],
    /// The template.
    pub source: &'static str,
}

/// The formats, most telling tokens first.
pub const FALLBACKS: &[Fallback] = &[
    Fallback {
        name: "DeepSeek",
        tokens: &["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
        source: "\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}
    {%- else %}
        {{- ('<｜User｜>' if message['role'] == 'user' else '') + message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜>' }}
{%- endif %}",
    },
    Fallback {
        name: "harmony",
        tokens: &["<|start|>", "<|channel|>", "<|message|>", "<|end|>"],
        source: "\
{%- for message in messages %}
    {%- set role = 'developer' if message['role'] == 'system' else message['role'] %}
    {{- '<|start|>' + role + ('<|channel|>final' if role == 'assistant' else '') + '<|message|>' }}
    {{- ('# Instructions\\n\\n' if role == 'developer' else '') + message['content'] + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant' }}
{%- endif %}",
    },
    Fallback {
        name: "Gemma 4",
        tokens: &["<|turn>", "<turn|>"],
        source: "\
{{- bos_token }}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<|turn>' + role + '\\n' + message['content'] | trim + '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn>model\\n' }}
{%- endif %}",
    },
    Fallback {
        name: "GLM",
        tokens: &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
        source: "\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}",
    },
    Fallback {
        name: "ChatML",
        tokens: &["<|im_start|>", "<|im_end|>"],
        source: "\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}",
    },
    Fallback {
        name: "Llama 3",
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        source: "\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}",
    },
    Fallback {
        name: "Gemma",
        tokens: &["<start_of_turn>", "<end_of_turn>"],
        // Gemma has no system role: the system message goes in front of the first user message.
        source: "\
{{- bos_token }}
{%- set system = namespace(text='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set system.text = system.text + message['content'] | trim + '\\n\\n' %}
    {%- else %}
        {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
        {{- '<start_of_turn>' + role + '\\n' }}
        {%- if role == 'user' %}
            {{- system.text }}
            {%- set system.text = '' %}
        {%- endif %}
        {{- message['content'] | trim + '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}",
    },
    Fallback {
        name: "Phi-3",
        tokens: &["<|user|>", "<|assistant|>", "<|end|>"],
        source: "\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}",
    },
    Fallback {
        name: "Mistral",
        tokens: &["[INST]", "[/INST]"],
        // No system role either.
        source: "\
{{- bos_token }}
{%- set system = namespace(text='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set system.text = system.text + message['content'] + '\\n\\n' %}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' + system.text + message['content'] + ' [/INST]' }}
        {%- set system.text = '' %}
    {%- else %}
        {{- ' ' + message['content'] }}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}",
    },
];

/// The format whose tokens this vocabulary has.
pub fn for_vocabulary(vocabulary: &Vocabulary) -> Option<&'static Fallback> {
    let has = |token: &&str| vocabulary.id_of(token.as_bytes()).is_some();
    FALLBACKS.iter().find(|fallback| fallback.tokens.iter().all(has))
}
