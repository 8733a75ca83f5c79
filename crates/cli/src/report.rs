//! What commands say about a model, its KV cache and its speed.

use crate::note;
use crate::text::{count, rate, thousands};
use std::time::Duration;
use torque_engine::{Engine, Generation, LayerKv, Plan, Policy, Session, available_memory, human_bytes};

/// The two sides' formats as one word: `turbo4/turbo3`.
pub fn pair(k: &str, v: &str) -> String {
    format!("{k}/{v}")
}

/// The model, its device and its KV cache, layer by layer, on stderr.
pub fn verbose(engine: &Engine, session: &Session, policy: &Policy) -> anyhow::Result<()> {
    let config = engine.config();
    note!(
        "model    {} ({}), {} parameters, {}, {} read per token",
        config.name,
        config.arch.name,
        count(engine.parameters()),
        types(engine),
        human_bytes(engine.active_bytes() as f64)
    );
    note!("backend  {} ({}), {}", engine.backend(), engine.device(), threads(engine));
    for (layers, kv) in like_layers(&engine.layer_kv(policy)?) {
        let window = kv.window.map(|window| format!(", window {window}")).unwrap_or_default();
        note!(
            "KV       layer {layers}: {}, {} × {}{window}, {:.1} bytes per token",
            pair(&kv.k, &kv.v),
            kv.heads,
            kv.head_dim,
            kv.bytes_per_token
        );
    }
    let plan = session.plan();
    note!(
        "         newest {} and first {} tokens exact, the rest sealed {} at a time",
        plan.tail,
        plan.sink_pages * plan.page,
        plan.page
    );
    if !plan.tiers.is_empty() {
        let tiers: Vec<_> = plan.tiers.iter().map(|percent| format!("{percent} %")).collect();
        note!(
            "         of sealed tokens, the oldest {} are sealed again in the smaller formats",
            tiers.join(" and ")
        );
    }
    if !plan.states.is_empty() {
        note!(
            "state    {} recurrent layers, {}; to go back, up to {} snapshots of it, {}",
            plan.states.len(),
            human_bytes(plan.state_bytes() as f64),
            plan.snapshots,
            human_bytes(plan.snapshot_bytes(plan.snapshots) as f64)
        );
    }
    note!(
        "context  {} tokens, {:.2} KiB of KV per token; {} would fit in the {} that are free",
        thousands(session.context() as u64),
        plan.bytes_per_token() / 1024.0,
        fits(plan),
        human_bytes(available_memory() as f64)
    );
    Ok(())
}

/// What a session has forgotten, if it has.
pub fn forgotten(session: &Session) {
    let forgotten = session.forgotten();
    if !forgotten.is_empty() {
        note!(
            "the context of {} tokens was full: of {} tokens, {} behind the first {} are forgotten",
            thousands(session.context() as u64),
            thousands(session.tokens().len() as u64),
            thousands(forgotten.len() as u64),
            thousands(forgotten.start as u64)
        );
    }
}

/// `1 thread`, `2 threads`.
pub fn threads(engine: &Engine) -> String {
    let n = engine.threads();
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}

/// The tensor types that hold most of a model: `Q4_K, Q6_K`.
fn types(engine: &Engine) -> String {
    let mut types: Vec<(String, usize)> = Vec::new();
    for tensor in engine.gguf().tensors().iter().filter(|tensor| tensor.shape.len() > 1) {
        let name = tensor.kind.name();
        match types.iter_mut().find(|(known, _)| *known == name) {
            Some((_, bytes)) => *bytes += tensor.data.len(),
            None => types.push((name.into_owned(), tensor.data.len())),
        }
    }
    types.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    types.iter().map(|(name, _)| &name[..]).take(3).collect::<Vec<_>>().join(" ")
}

/// Layers joined with their like: `0-1,26-27`, and one of them.
fn like_layers(layers: &[LayerKv]) -> Vec<(String, &LayerKv)> {
    let key = |kv: &LayerKv| (kv.k.clone(), kv.v.clone(), kv.heads, kv.head_dim, kv.window);
    let mut groups: Vec<(&LayerKv, Vec<(usize, usize)>)> = Vec::new();
    for kv in layers {
        match groups.iter_mut().find(|(like, _)| key(like) == key(kv)) {
            None => groups.push((kv, vec![(kv.layer, kv.layer)])),
            Some((_, ranges)) => match ranges.last_mut() {
                Some((_, last)) if *last + 1 == kv.layer => *last = kv.layer,
                _ => ranges.push((kv.layer, kv.layer)),
            },
        }
    }
    let range = |&(first, last): &(usize, usize)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    groups
        .into_iter()
        .map(|(kv, ranges)| (ranges.iter().map(range).collect::<Vec<_>>().join(","), kv))
        .collect()
}

/// The context that fits in the memory that is free, in words.
pub fn fits(plan: &Plan) -> String {
    const BATCH: usize = 512;
    match plan.context_that_fits(available_memory() as usize, BATCH) {
        n if n < 1_000_000 => format!("{} tokens", thousands(n as u64)),
        n => format!("{} tokens", count(n as u64)),
    }
}

/// What a prompt and its continuation took.
pub struct Speed {
    prompt_tokens: usize,
    /// Tokens before them that were there already.
    reused: usize,
    prompt_time: Duration,
    generation: Option<Generation>,
    /// Bytes that decoding reads, a token, on average.
    bytes_per_token: f64,
    /// [`skipped`].
    values_skipped: Option<f64>,
}

/// A session before it decodes.
pub struct Before {
    /// What decoding reads of the KV cache.
    kv_bytes: usize,
    /// [`Session::value_parts`].
    value_parts: [u64; 2],
}

impl Before {
    pub fn of(session: &Session) -> Before {
        Before { kv_bytes: session.kv_read_bytes(), value_parts: session.value_parts() }
    }
}

/// Of the values that attention met between two times, where it may leave some out, the share that it did.
pub fn skipped([parts_before, before]: [u64; 2], [parts, skipped]: [u64; 2]) -> Option<f64> {
    (parts > parts_before).then(|| (skipped - before) as f64 / (parts - parts_before) as f64)
}

impl Speed {
    /// After a prompt, before decoding.
    pub fn of_prompt(tokens: usize, time: Duration) -> Speed {
        Speed {
            prompt_tokens: tokens,
            reused: 0,
            prompt_time: time,
            generation: None,
            bytes_per_token: 0.0,
            values_skipped: None,
        }
    }

    /// Adds how many tokens before the prompt need not be read.
    pub fn reused(self, tokens: usize) -> Speed {
        Speed { reused: tokens, ..self }
    }

    /// Adds what decoding took.
    pub fn decoded(
        self,
        generation: Generation,
        engine: &Engine,
        before: Before,
        session: &Session,
    ) -> Speed {
        let after = Before::of(session);
        let kv = (before.kv_bytes + after.kv_bytes) as f64 / 2.0;
        let values_skipped = skipped(before.value_parts, after.value_parts);
        let bytes_per_token = engine.active_bytes() as f64 + kv;
        Speed { generation: Some(generation), bytes_per_token, values_skipped, ..self }
    }

    /// Tokens per second of the prompt.
    pub fn prompt(&self) -> String {
        rate(self.prompt_tokens, self.prompt_time.as_secs_f64())
    }

    /// Tokens per second of decoding.
    pub fn decode(&self) -> String {
        self.generation.map_or("–".into(), |g| rate(g.tokens, g.time.as_secs_f64()))
    }

    /// Bytes that decoding read a second.
    pub fn gigabytes(&self) -> f64 {
        self.generation
            .map_or(0.0, |g| g.tokens as f64 * self.bytes_per_token / g.time.as_secs_f64().max(1e-9) / 1e9)
    }

    /// Everything in one line.
    pub fn line(&self, session: &Session, policy: &Policy) -> String {
        let mut line =
            format!("prompt {} tokens, {} tokens/s", thousands(self.prompt_tokens as u64), self.prompt());
        if self.reused > 0 {
            line += &format!(", {} more reused", thousands(self.reused as u64));
        }
        if let Some(generation) = self.generation {
            let (tokens, decode) = (thousands(generation.tokens as u64), self.decode());
            line += &format!(" · decode {tokens} tokens, {decode} tokens/s, {:.2} GB/s", self.gigabytes());
        }
        let (sealed, tail) = session.kv_bytes();
        let bytes = human_bytes((sealed + tail) as f64);
        line += &format!(" · KV {bytes}, {}", pair(&policy.k, &policy.v));
        if let Some(share) = self.values_skipped {
            line += &format!(", {:.1} % of values skipped", 100.0 * share);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_layers_are_told_once() {
        let kv = |layer, k: &str| LayerKv {
            layer,
            k: k.into(),
            v: "f16".into(),
            heads: 2,
            head_dim: 64,
            window: None,
            bytes_per_token: 1.0,
        };
        let layers: Vec<_> = ["q8_0", "q8_0", "f16", "f16", "f16", "q8_0"]
            .into_iter()
            .enumerate()
            .map(|(i, k)| kv(i, k))
            .collect();
        let groups: Vec<_> =
            like_layers(&layers).into_iter().map(|(layers, kv)| (layers, &kv.k[..])).collect();
        assert_eq!(groups, [("0-1,5".into(), "q8_0"), ("2-4".into(), "f16")]);
    }
}
