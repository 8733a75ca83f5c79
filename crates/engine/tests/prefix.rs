//! Texts that begin alike: what one session has computed, another takes, and nobody can tell from the logits.

use std::path::Path;
use torque_engine::{BackendKind, Engine, EngineOptions, Overflow, Policy, Session, SessionOptions};

fn open(name: &str, backend: BackendKind) -> Engine {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/zoo"));
    let options = EngineOptions { backend, threads: Some(2), isa: None };
    Engine::open(path.join(format!("{name}.gguf")), &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Pages of sixteen tokens, none kept from being sealed, so that what a pass of whole pages leaves is what is shared.
fn options(k: &str, v: &str) -> SessionOptions {
    let policy = Policy { page: 16, sink: 16, tail: 0, ..Policy::uniform(k, v) };
    SessionOptions { context: Some(192), batch: 96, policy, ..SessionOptions::default() }
}

fn text(salt: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * i * 31 + i * 7 + salt) % 300).collect()
}

/// Bits of the logits now, and of those that follow.
fn go_on(session: &mut Session) -> Vec<u32> {
    let mut bits: Vec<u32> = session.logits().iter().map(|logit| logit.to_bits()).collect();
    for token in [5, 17, 200] {
        session.append(&[token]).unwrap();
        bits.extend(session.logits().iter().map(|logit| logit.to_bits()));
    }
    bits
}

/// No windows, windows, a recurrent state, values in keys.
const MODELS: [&str; 4] = ["llama-hd64", "gemma3", "qwen35", "deepseek2"];

#[test]
fn shared_pages_change_no_bit() {
    for name in MODELS {
        for (_, backend) in BackendKind::ALL {
            let engine = open(name, backend);
            for (k, v) in
                [("f32", "f32"), ("f16", "q8_0"), ("turbo4", "turbo3"), ("turbo3_tcq", "turbo2_tcq")]
            {
                let options = SessionOptions { prefix_bytes: 1 << 30, ..options(k, v) };
                let what = format!("{name} on {}, {k}/{v}", engine.backend());
                let (prefix, ends) = (text(0, 96), [text(3, 21), text(8, 30), text(11, 1)]);
                let texts = ends.map(|end| [&prefix[..], &end].concat());
                let mut sessions = engine.sessions(&options, 3).unwrap();
                let mut found = Vec::new();
                for (i, (session, text)) in sessions.iter_mut().zip(&texts).enumerate() {
                    assert_eq!(session.feed(text).unwrap(), if i == 0 { 0 } else { 96 }, "{what}");
                    assert_eq!(session.tokens(), text, "{what}");
                    found.push(go_on(session));
                }
                // A session that has ended leaves its pages for others.
                drop(sessions.remove(0));
                assert_eq!(sessions[0].feed(&text(7, 40)).unwrap(), 0, "{what}");
                let last = [&prefix[..], &text(40, 9)].concat();
                assert_eq!(sessions[0].feed(&last).unwrap(), 96, "{what}");
                found.push(go_on(&mut sessions[0]));
                for (text, found) in texts.iter().chain([&last]).zip(&found) {
                    // The same passes, alone.
                    let alone = SessionOptions { prefix_bytes: 0, ..options.clone() };
                    let mut alone = engine.session(&alone).unwrap();
                    assert_eq!(alone.feed(text).unwrap(), 0, "{what}");
                    assert!(go_on(&mut alone) == *found, "{what}");
                }
            }
        }
    }
}

#[test]
fn memory_is_shared_and_given_back() {
    for name in MODELS {
        let engine = open(name, BackendKind::Cpu);
        for prefix_bytes in [0, 1 << 30] {
            let options = SessionOptions { prefix_bytes, ..options("turbo4", "q8_0") };
            let mut sessions = engine.sessions(&options, 2).unwrap();
            let whole = text(0, 120);
            sessions[0].feed(&whole).unwrap();
            let (one, _) = sessions[0].kv_bytes();
            let reused = sessions[1].feed(&whole).unwrap();
            let (two, _) = sessions[0].kv_bytes();
            let plan = sessions[0].plan();
            // States of recurrent layers, and parts that no window holds any more, are there within a budget only.
            let budgeted = !plan.states.is_empty() || plan.windows.len() > 1;
            assert!(reused >= 96 || budgeted && prefix_bytes == 0, "{name}: {reused}");
            assert!(two < one + one / 2 || reused == 0, "{name}: {one}, {two}");
            // Another text in both: of the first, the budget has all, or none.
            let other = text(5, 64);
            for session in &mut sessions {
                session.feed(&other).unwrap();
            }
            assert_eq!(sessions[0].feed(&whole).unwrap() > 0, prefix_bytes > 0, "{name}");
            drop(sessions.pop());
            let mut last = sessions.pop().unwrap();
            last.rewind(0);
            assert_eq!(last.kv_bytes().0 > 0, prefix_bytes > 0, "{name}");
        }
    }
}

#[test]
fn a_budget_is_kept() {
    let engine = open("llama-hd64", BackendKind::Cpu);
    let plan = engine.plan(&options("turbo4", "q8_0").policy).unwrap();
    let prefix_bytes = (100.0 * plan.bytes_per_token()) as usize;
    let mut session = engine.session(&SessionOptions { prefix_bytes, ..options("turbo4", "q8_0") }).unwrap();
    for salt in 0..9 {
        session.feed(&text(salt, 80)).unwrap();
        let own = plan.sequence_bytes(80, 96) - plan.tail_bytes(96);
        let (sealed, _) = session.kv_bytes();
        assert!(sealed <= own + prefix_bytes, "{sealed} of {own} and {prefix_bytes}");
    }
    // The last is there, the first is not.
    assert!(session.feed(&text(7, 80)).unwrap() >= 64);
    assert_eq!(session.feed(&text(0, 80)).unwrap(), 0);
}

#[test]
fn other_policies_and_models_share_nothing() {
    let prompt = text(0, 100);
    let engine = open("llama-hd64", BackendKind::Cpu);
    let feed = |engine: &Engine, k: &str| {
        let options = SessionOptions { prefix_bytes: 1 << 30, ..options(k, "q8_0") };
        let mut session = engine.session(&options).unwrap();
        (session.feed(&prompt).unwrap(), go_on(&mut session))
    };
    let [(first, a), (again, same), (other, b)] = ["turbo4", "turbo4", "turbo3"].map(|k| feed(&engine, k));
    assert_eq!([first, again, other], [0; 3], "caches of their own");
    assert!(a == same && a != b);
    assert_eq!(feed(&open("llama-hd48", BackendKind::Cpu), "turbo4").0, 0);
}

#[test]
fn what_comes_behind_forgotten_tokens_is_not_shared() {
    let engine = open("llama-hd64", BackendKind::Cpu);
    for overflow in [Overflow::Shift, Overflow::Evict] {
        let options = SessionOptions {
            context: Some(96),
            overflow,
            prefix_bytes: 1 << 30,
            ..options("turbo4", "q8_0")
        };
        let mut sessions = engine.sessions(&options, 2).unwrap();
        let whole = text(0, 180);
        sessions[0].feed(&whole).unwrap();
        assert!(!sessions[0].forgotten().is_empty());
        // Before it was full, it was as any other; and so is what takes its pages.
        let reused = sessions[1].feed(&whole).unwrap();
        assert!((32..=96).contains(&reused) && reused.is_multiple_of(16), "{reused}");
        let mut alone = engine.session(&SessionOptions { prefix_bytes: 0, ..options.clone() }).unwrap();
        alone.append(&whole[..reused]).unwrap();
        alone.append(&whole[reused..]).unwrap();
        assert!(go_on(&mut alone) == go_on(&mut sessions[1]), "{overflow:?}");
        // Sinks that moved in one session have not moved in the tree.
        assert!(sessions[0].feed(&whole[..60]).unwrap() >= 32);
        let mut alone = engine.session(&options).unwrap();
        alone.feed(&whole[..60]).unwrap();
        let difference = sessions[0].logits().iter().zip(alone.logits()).map(|(a, b)| (a - b).abs());
        assert!(difference.fold(0.0, f32::max) < 0.5, "{overflow:?}");
    }
}

#[test]
fn sessions_of_a_cache_run_on_threads() {
    let engine = open("llama-hd64", BackendKind::Cpu);
    let options = options("turbo4", "turbo3");
    let expected: Vec<Vec<u32>> = (0..3)
        .map(|salt| {
            let mut session = engine.session(&options).unwrap();
            session.feed(&text(salt, 70)).unwrap();
            go_on(&mut session)
        })
        .collect();
    let sessions = engine.sessions(&options, 3).unwrap();
    std::thread::scope(|scope| {
        let threads = sessions.into_iter().enumerate().map(|(salt, mut session)| {
            scope.spawn(move || {
                session.feed(&text(salt as u32, 70)).unwrap();
                go_on(&mut session)
            })
        });
        let found: Vec<_> =
            threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(found == expected);
    });
}
