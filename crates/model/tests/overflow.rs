//! Sequences that are full: what they forget, where the rest is then, and that everything else stays as it was.

mod files;

use files::{
    feed, full_context, load, max_difference, mean_divergence, models, open, reference, short_pages,
};
use serde_json::{Value, json};
use std::sync::Arc;
use torque_backend::{Angles, Backend, Scalar};
use torque_cpu::Cpu;
use torque_gguf::Gguf;
use torque_kv::{BadSequence, Overflow, Policy, SavedSequence, Section};
use torque_model::{Context, Error, Model};
use torque_quant::FORMATS;

/// Tokens of a full context: a sink, and three pages of which one is forgotten.
const LENGTH: usize = 64;
const PAGE: usize = 16;

struct Loaded<B: Backend> {
    backend: Arc<B>,
    model: Arc<Model<B>>,
}

impl<B: Backend> Loaded<B> {
    fn new(backend: B, gguf: &Gguf) -> Loaded<B> {
        let model = load(&backend, gguf);
        Loaded { backend: Arc::new(backend), model }
    }

    fn context(&self, policy: &Policy, length: usize, overflow: Overflow) -> Result<Context<B>, Error> {
        full_context(&self.backend, &self.model, policy, length, overflow)
    }
}

fn on_cpu(gguf: &Gguf) -> Loaded<Cpu> {
    Loaded::new(Cpu::new(Some(2), None).unwrap(), gguf)
}

/// What a context shift is by its definition, on a full cache of f32: the page behind the sink is left out, and the keys of
/// all that follows are turned down by its tokens. `with_sink`: that of the sink too, so that it is as far away as before.
fn shifted_down(loaded: &Loaded<Cpu>, full: &Context<Cpu>, with_sink: bool) -> Context<Cpu> {
    let (plan, config) = (full.plan(), &loaded.model.config);
    // Of every layer with KV the rotary embedding, and (cos, sin) of its pairs a page backwards.
    let mut frequencies = full.rope_frequencies();
    let mut turns = Vec::new();
    for rope in &config.ropes {
        let pairs: Vec<f32> = frequencies.by_ref().take(rope.channels / 2).collect();
        let _multiplier = frequencies.next();
        let turn = |f: &f32| (-(PAGE as f64) * f64::from(*f)).sin_cos();
        turns.push(pairs.iter().map(turn).map(|(sin, cos)| [cos as f32, sin as f32]).collect::<Vec<_>>());
    }
    let first = config.latent.map_or(0, |latent| latent.rank);
    let layers = config.attention_layers().filter(|layer| !layer.shares);
    let ropes: Vec<_> = layers.map(|layer| layer.rope).collect();
    let turn = |layer: usize, keys: &mut [f32]| {
        let Some(rope) = ropes[layer] else { return };
        let (pairs, channels) = (config.ropes[rope].pairs, config.ropes[rope].channels);
        let angles = Angles { pairs, first, channels, cos_sin: &turns[rope] };
        keys.chunks_exact_mut(plan.layers[layer].sides[0].head_dim).for_each(|key| angles.turn(0, key));
    };

    let (saved, sections) = full.saved(0);
    let mut kept = Vec::new();
    for (section, bytes) in sections {
        let mut data = vec![0; bytes];
        full.export(0, section, &mut data);
        let (class, tokens) = match section {
            Section::Page { span: 1, .. } => continue,
            Section::Page { span, window_class, .. } if span > 1 || with_sink => (Some(window_class), PAGE),
            Section::Tail => (None, bytes / plan.tail_token_bytes().max(1)),
            _ => {
                kept.push(data);
                continue;
            }
        };
        let mut values: Vec<f32> = data.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let mut rest = &mut values[..];
        for (layer, numbers) in plan.layers.iter().enumerate() {
            if class.is_none_or(|class| numbers.window_class == class) {
                for (side, numbers) in numbers.sides.iter().enumerate() {
                    let part = rest.split_off_mut(..tokens * numbers.heads * numbers.head_dim).unwrap();
                    if side == 0 {
                        turn(layer, part);
                    }
                }
            }
        }
        assert!(rest.is_empty());
        kept.push(values.iter().flat_map(|x| x.to_le_bytes()).collect());
    }

    let mut saved = serde_json::to_value(saved).unwrap();
    let less = |value: &mut Value, by: usize| *value = json!(value.as_u64().unwrap() as usize - by);
    less(&mut saved["len"], PAGE);
    for list in ["spans", "ages"] {
        saved[list].as_array_mut().unwrap().remove(1);
    }
    let held = saved["held"].as_array_mut().unwrap().iter_mut();
    held.filter(|held| held.as_u64() > Some(1)).for_each(|held| less(held, 1));
    // Copies of a recurrent state have no place among the tokens that are left, only an order.
    let snapshots = saved["snapshots"].as_array_mut().unwrap().iter_mut();
    snapshots.for_each(|position| *position = json!(position.as_u64().unwrap() / 2));
    let saved: SavedSequence = serde_json::from_value(saved).unwrap();
    let text = vec![0; saved.len];

    let policy = &full.options().policy;
    let mut context = loaded.context(policy, LENGTH, Overflow::Stop).unwrap();
    let mut kept = kept.into_iter();
    let restored: Result<(), BadSequence> = context.restore(0, &saved, &text, |_, out| {
        out.copy_from_slice(&kept.next().expect("as many sections"));
        Ok(())
    });
    restored.unwrap();
    context
}

#[test]
fn every_model_forgets_as_a_context_shift_is_defined() {
    for (name, gguf) in models().iter().filter(|(name, _)| !name.contains("-q-") && name != "gpt2") {
        let (loaded, tokens) = (on_cpu(gguf), reference(name).tokens);
        let (start, rest) = tokens.split_at(LENGTH);
        for (overflow, with_sink) in [(Overflow::Shift, false), (Overflow::Evict, true)] {
            // The temperature of a query is a matter of its place in the text.
            if with_sink && loaded.model.config.temperature.is_some() {
                continue;
            }
            let policy = short_pages("f32", "f32");
            let mut found = loaded.context(&policy, LENGTH, overflow).unwrap();
            let mut expected = loaded.context(&policy, LENGTH, Overflow::Stop).unwrap();
            feed(&mut found, 0, start, PAGE);
            feed(&mut expected, 0, start, PAGE);
            let mut largest = 0.0f32;
            for chunk in rest.chunks(PAGE).filter(|chunk| chunk.len() == PAGE) {
                expected = shifted_down(&loaded, &expected, with_sink);
                let [expected, found] = [&mut expected, &mut found].map(|c| feed(c, 0, chunk, PAGE));
                largest = largest.max(max_difference(&expected, &found));
            }
            println!("{name}, {overflow:?}: {largest:.1e}");
            assert_eq!(found.forgotten(0), 16..16 * (rest.len() / PAGE + 1), "{name}");
            assert!(largest < 2e-4, "{name}, {overflow:?}: {largest:e}");
        }
    }
}

#[test]
fn every_format_forgets_as_well_as_it_remembers() {
    // Models whose experts do not flip. Values in keys are tested op by op.
    for name in ["llama-hd64", "llama-hd48", "gemma3", "qwen2-kbias"] {
        let (loaded, tokens) = (on_cpu(&open(name)), reference(name).tokens);
        let run = |format: &str, length: usize, overflow: Overflow| {
            let mut context = loaded.context(&short_pages(format, format), length, overflow).unwrap();
            let logits = feed(&mut context, 0, &tokens, PAGE);
            // A full context holds no more than it may.
            let (sealed, tail) = context.kv_bytes();
            let bound = context.plan().sequence_bytes(length, PAGE);
            assert!(sealed + tail <= bound + context.plan().tail_bytes(PAGE), "{name}, {format}");
            logits[LENGTH * logits.len() / tokens.len()..].to_vec()
        };
        for overflow in [Overflow::Shift, Overflow::Evict] {
            let exact = [(96, Overflow::Stop), (LENGTH, overflow)].map(|(n, o)| run("f32", n, o));
            for format in FORMATS.iter().filter(|format| format.kv) {
                let found = [(96, Overflow::Stop), (LENGTH, overflow)].map(|(n, o)| run(format.name, n, o));
                let divergence =
                    |i: usize| mean_divergence(&exact[i], &found[i], loaded.model.config.vocabulary);
                let (whole, forgetful) = (divergence(0), divergence(1));
                println!("{name}, {overflow:?}, {}: {whole:.1e}, {forgetful:.1e}", format.name);
                assert!(forgetful < 2.0 * whole + 1e-5, "{name}, {overflow:?}, {}", format.name);
            }
        }
    }
}

#[test]
fn backends_agree_about_what_is_forgotten() {
    for name in ["llama-hd64", "gemma3", "qwen35", "deepseek2"] {
        let (gguf, tokens) = (open(name), reference(name).tokens);
        for overflow in [Overflow::Shift, Overflow::Evict] {
            let policy = short_pages("q8_0", "f16");
            let [expected, found] = {
                let mut scalar = Loaded::new(Scalar, &gguf).context(&policy, LENGTH, overflow).unwrap();
                let mut cpu = on_cpu(&gguf).context(&policy, LENGTH, overflow).unwrap();
                [feed(&mut scalar, 0, &tokens, 5), feed(&mut cpu, 0, &tokens, 5)]
            };
            // Codes flip where the last bit decides.
            let divergence = mean_divergence(&expected, &found, expected.len() / tokens.len());
            assert!(divergence < 1e-4, "{name}, {overflow:?}: {divergence:e}");
        }
    }
}

#[test]
fn a_copy_keeps_what_the_other_forgets() {
    for name in ["llama-hd64", "gemma3", "qwen35", "deepseek2"] {
        let (loaded, tokens) = (on_cpu(&open(name)), reference(name).tokens);
        for overflow in [Overflow::Shift, Overflow::Evict] {
            let policy = short_pages("turbo3", "q8_0");
            let [mut both, mut alone] = [(); 2].map(|()| loaded.context(&policy, LENGTH, overflow).unwrap());
            for context in [&mut both, &mut alone] {
                feed(context, 0, &tokens[..60], PAGE);
            }
            both.fork(0, 1);
            feed(&mut both, 1, &tokens[30..60], 3);
            assert!(both.forgotten(1).len() > 16 && both.forgotten(0).is_empty());
            let [expected, found] = [&mut alone, &mut both].map(|c| feed(c, 0, &tokens[60..64], 2));
            assert!(expected == found, "{name}, {overflow:?}");
            // It forgets for itself, and what was shared is given back.
            let [expected, found] = [&mut alone, &mut both].map(|c| feed(c, 0, &tokens[64..], 8));
            assert!(expected == found, "{name}, {overflow:?}");
            both.clear(1);
            assert_eq!(both.kv_bytes(), alone.kv_bytes(), "{name}, {overflow:?}");
            both.clear(0);
            assert_eq!(both.kv_bytes().0, 0, "{name}, {overflow:?}");
        }
    }
}

#[test]
fn one_can_go_back_to_what_is_left() {
    for name in ["llama-hd64", "qwen35"] {
        let (loaded, tokens) = (on_cpu(&open(name)), reference(name).tokens);
        let policy = Policy { tail: 8, ..short_pages("f32", "f32") };
        let mut context = loaded.context(&policy, 80, Overflow::Shift).unwrap();
        let straight = feed(&mut context, 0, &tokens, 8);
        let end = context.forgotten(0).end;
        assert!(end > 16);
        let error = context.truncate(0, end - 1).unwrap_err().to_string();
        assert!(error.contains("forgotten"), "{name}: {error}");
        assert_eq!(context.len(0), tokens.len());
        let left = context.truncate(0, 90).unwrap();
        assert_eq!(left, if name == "qwen35" { 80 } else { 90 });
        let found = feed(&mut context, 0, &tokens[left..], 8);
        let difference = max_difference(&straight[left * loaded.model.config.vocabulary..], &found);
        assert!(difference < 1e-4, "{name}: {difference:e}");
        context.clear(0);
        assert_eq!((context.forgotten(0), context.kv_bytes().0), (0..0, 0));
    }
}

#[test]
fn what_cannot_forget_is_refused() {
    for overflow in [Overflow::Shift, Overflow::Evict] {
        let error = |name: &str, length| {
            let loaded = on_cpu(&open(name));
            loaded.context(&short_pages("f16", "f16"), length, overflow).err().expect("refused").to_string()
        };
        let learned = error("gpt2", 64);
        assert!(learned.contains("256") && learned.contains("--context-overflow stop"), "{learned}");
        let short = error("llama-hd64", 47);
        assert!(short.contains("-c 48") && short.contains("--kv-page"), "{short}");
    }
}
