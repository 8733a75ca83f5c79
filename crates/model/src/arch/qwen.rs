//! Qwen 2 to 3.5, dense and mixture of experts.

use super::{Arch, HeadOrder, Mixing, RopePairs, llama::LLAMA};

pub const QWEN2: Arch = Arch {
    name: "qwen2",
    models: "Qwen 2, 2.5",
    pairs: Some(RopePairs::Halves),
    required: &["attn_q.bias", "attn_k.bias", "attn_v.bias"],
    ..LLAMA
};

pub const QWEN3: Arch =
    Arch { name: "qwen3", models: "Qwen 3", pairs: Some(RopePairs::Halves), normalizes_heads: true, ..LLAMA };

pub const QWEN3MOE: Arch = Arch {
    name: "qwen3moe",
    models: "Qwen 3 mixtures of experts",
    required: &["ffn_gate_inp.weight"],
    ..QWEN3
};

pub const QWEN3NEXT: Arch = Arch {
    name: "qwen3next",
    models: "Qwen 3 Next",
    mixing: Mixing::Hybrid(HeadOrder::Grouped),
    ffn_norm: "post_attention_norm",
    required: &["ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight"],
    ..QWEN3
};

pub const QWEN35MOE: Arch = Arch {
    name: "qwen35moe",
    models: "Qwen 3.5 mixtures of experts",
    mixing: Mixing::Hybrid(HeadOrder::Tiled),
    ..QWEN3NEXT
};

pub const QWEN35: Arch = Arch { name: "qwen35", models: "Qwen 3.5, dense", required: &[], ..QWEN35MOE };
