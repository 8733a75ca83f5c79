//! Keeps `docs/models.md`, which is written from the list of architectures and the files that the other
//! tests here run.

mod files;

use std::collections::BTreeSet;
use std::fmt::Write;
use torque_gguf::Gguf;
use torque_kv::Policy;
use torque_model::config::{Config, MixerConfig};
use torque_model::{ARCHS, config};

#[test]
fn the_documentation_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models.md");
    let expected = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/models.md is stale: run `UPDATE_DOCS=1 cargo test --release -p torque-model --test docs`"
    );
}

fn document() -> String {
    let mut text = String::from(
        "# Models\n\n\
         <!-- Written by crates/model/tests/docs.rs from the list of architectures and the files that tests run. -->\n\n\
         | `general.architecture` | models | layers |\n|---|---|---|\n",
    );
    for arch in ARCHS {
        writeln!(text, "| {} | {} | {} |", arch.name, arch.models, arch.mixing).unwrap();
    }
    text += "\nAny number of experts and any number of them used; rope scaling linear, YaRN and longrope; sliding windows by \
             period or by list. Blocks that predict further tokens are skipped. A file with a tensor that would change the \
             result and that its architecture is not known to have is refused.\n\n\
             ## What is proven\n\n\
             Every file below is a small model of random weights with logits recorded from `transformers` (quantised files: from \
             their weights expanded to float). Tests run all of them on every change:\n\n\
             - in float with an exact cache, on the scalar and the CPU backend: within 2·10⁻⁴ of every recorded logit; where the \
             CPU rounds activations to 8 bits (quantised weights), KL divergence below 5·10⁻³;\n\
             - a prompt in one batch, token by token and in odd chunks, with pages sealing on the way: within 10⁻⁴ in float;\n\
             - an f16 cache: KL divergence below 10⁻⁵;\n\
             - q8_0, turbo4, turbo3 and turbo2 caches: KL divergence below that of the same formats stored row by row, as recorded \
             from another engine (to 2·10⁻⁴).\n\n\
             | file | weights | layers | head size | KV bytes per token, f16 | turbo3 |\n|---|---|---|---|---|---|\n";
    for (name, gguf) in files::models() {
        let config = Config::from_metadata(gguf.metadata()).unwrap();
        let bytes = |format: &str| {
            let plan = config.plan(&Policy::uniform(format, format)).unwrap();
            format!("{:.0}", plan.bytes_per_token())
        };
        let (weights, layers, heads) = (weights(&gguf), layers(&config), head_sizes(&config));
        writeln!(
            text,
            "| {name} | {weights} | {layers} | {heads} | {} | {} |",
            bytes("f16"),
            bytes("turbo3")
        )
        .unwrap();
    }
    text
}

/// The types of matrices, most bytes first.
fn weights(gguf: &Gguf) -> String {
    let mut types: Vec<(String, usize)> = Vec::new();
    for tensor in gguf.tensors().iter().filter(|t| t.shape.len() > 1) {
        let (name, bytes) = (tensor.kind.name(), tensor.data.len());
        match types.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += bytes,
            None => types.push((name.to_string(), bytes)),
        }
    }
    types.sort_by_key(|(name, bytes)| (usize::MAX - bytes, name.clone()));
    types.into_iter().filter(|(name, _)| name != "f32").map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

fn layers(config: &Config) -> String {
    let count = |what: &str, wanted: &dyn Fn(&MixerConfig) -> bool| {
        let n = config.layers.iter().filter(|layer| wanted(&layer.mixer)).count();
        (n > 0).then(|| format!("{n} {what}"))
    };
    let attention = |mixer: &MixerConfig, wanted: &dyn Fn(&config::AttentionConfig) -> bool| match mixer {
        MixerConfig::Attention(attention) => wanted(attention),
        MixerConfig::DeltaNet(_) => false,
    };
    let kind = if config.latent.is_some() { "latent attention" } else { "attention" };
    [
        count(kind, &|m| attention(m, &|a| !a.shares && a.kv.window.is_none())),
        count("windowed", &|m| attention(m, &|a| !a.shares && a.kv.window.is_some())),
        count("on another's cache", &|m| attention(m, &|a| a.shares)),
        count("Gated DeltaNet", &|m| matches!(m, MixerConfig::DeltaNet(_))),
        config.experts.map(|e| format!("{} of {} experts", e.used, e.count)),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

fn head_sizes(config: &Config) -> String {
    let sizes: BTreeSet<[usize; 2]> = config.attention_layers().map(|layer| layer.kv.head_dim).collect();
    let name = |[k, v]: &[usize; 2]| if k == v { k.to_string() } else { format!("{k}/{v}") };
    sizes.iter().map(name).collect::<Vec<_>>().join(", ")
}
