//! Time to the first token of a session whose text begins as another's did, with and without taking its pages.
//!
//! `cargo run --release -p torque-engine --example prefix [-- MODEL.gguf]`; without a file, a synthetic model of 0.94 B
//! parameters in q4_0.

use std::time::Instant;
use torque_engine::quant::by_name;
use torque_engine::synthetic::{self, SHAPES};
use torque_engine::{Engine, EngineOptions, Policy, SessionOptions};

/// Tokens that both texts begin with, and those that follow.
const COMMON: usize = 2048;
const OWN: usize = 32;
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = EngineOptions::default();
    let engine = match std::env::args().nth(1) {
        Some(path) => Engine::open(path, &options)?,
        None => {
            let shape = SHAPES.iter().find(|shape| shape.name == "1b").expect("listed");
            let format = by_name("q4_0").expect("listed");
            Engine::from_gguf(synthetic::build(shape, format, shape.layers)?, &options)?
        }
    };
    let vocabulary = engine.config().vocabulary as u32;
    let text = |salt: u32, tokens: usize| -> Vec<u32> {
        (0..tokens as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(salt) % vocabulary).collect()
    };
    println!("{}, {COMMON} tokens in common, {OWN} of its own", engine.config().name);
    for (k, v) in [("f16", "f16"), ("turbo4", "turbo3")] {
        for round in 0..ROUNDS as u32 {
            let policy = Policy::uniform(k, v);
            let options =
                SessionOptions { context: Some(COMMON + 2 * OWN), policy, ..SessionOptions::default() };
            let mut sessions = engine.sessions(&options, 2)?;
            let common = text(round, COMMON);
            let times = sessions.iter_mut().enumerate().map(|(i, session)| {
                let own = text(1000 * (i as u32 + 1), OWN);
                let start = Instant::now();
                let reused = session.feed(&[&common[..], &own].concat())?;
                Ok((reused, start.elapsed().as_secs_f64() * 1e3))
            });
            let times = times.collect::<Result<Vec<_>, torque_engine::Error>>()?;
            let told: Vec<_> = times.iter().map(|(n, ms)| format!("{n} reused: {ms:.1} ms")).collect();
            println!("{k}/{v}: {}", told.join(", "));
        }
    }
    Ok(())
}
