//! `torque` alone: the model inside this program continues a text, and a table tells what a KV cache costs.

use crate::commands::run::{Out, prefill};
use crate::report::{self, Before, Speed};
use crate::table::Table;
use crate::text::{count, thousands};
use crate::{flags, interrupt, model};
use anyhow::Result;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;
use torque_engine::sampler::{Sampler, SamplerParams};
use torque_engine::tokenizer::Encode;
use torque_engine::{
    Engine, EngineOptions, Policy, Request, SessionOptions, available_memory, generate, human_bytes,
};

const PROMPT: &str = "When a file is opened, the kernel";
const TOKENS: usize = 96;
const SEED: u64 = 2;

/// The pairs of formats that the table compares.
const PAIRS: [(&str, &str); 6] = [
    ("f16", "f16"),
    ("q8_0", "q8_0"),
    ("turbo4", "turbo4"),
    ("turbo4", "turbo3"),
    ("turbo3", "turbo3"),
    ("turbo2", "turbo2"),
];

/// Runs the demo.
pub fn run() -> Result<ExitCode> {
    interrupt::catch();
    let options = EngineOptions { isa: flags::isa(), ..EngineOptions::default() };
    let engine = Engine::from_gguf(model::demo(), &options)?;
    let mut session = engine.session(&SessionOptions { context: Some(1024), ..SessionOptions::default() })?;
    let params =
        SamplerParams { seed: Some(SEED), temperature: 0.5, repeat_penalty: 1.1, ..SamplerParams::default() };
    let mut sampler = Sampler::new(params, engine.config().vocabulary)?;
    let bold = anstyle::Style::new().bold();
    let dim = anstyle::Style::new().dimmed();
    writeln!(
        anstream::stdout(),
        "{bold}Torque {}{bold:#} with the model inside it, a toy of {} parameters:\n",
        env!("CARGO_PKG_VERSION"),
        count(engine.parameters())
    )?;

    let mut out = Out::default();
    out.write(PROMPT);
    let request = Request { max_tokens: Some(TOKENS), ignore_eos: true, ..Request::default() };
    let speed = interrupt::work(|| -> Result<_> {
        let tokens = engine.tokenizer().encode(PROMPT, Encode { add_special: true, parse_special: false });
        let start = Instant::now();
        prefill(&mut session, &tokens)?;
        let speed = Speed::of_prompt(tokens.len(), start.elapsed());
        tokens.iter().for_each(|&token| sampler.accept(token));
        let before = Before::of(&session);
        let mut text = |piece: &str| out.write(piece) && !interrupt::stopped();
        let generation = generate(&mut session, engine.tokenizer(), &mut sampler, &request, &mut text)?;
        Ok(speed.decoded(generation, &engine, before, &session))
    })?;
    out.end()?;
    if interrupt::stopped() {
        return Ok(ExitCode::from(interrupt::STATUS));
    }

    let mut out = anstream::stdout().lock();
    writeln!(
        out,
        "\n{dim}prompt {} tokens/s, decode {} tokens/s ({:.2} GB/s), {} on {}{dim:#}\n",
        speed.prompt(),
        speed.decode(),
        speed.gigabytes(),
        engine.device(),
        report::threads(&engine)
    )?;
    let free = format!(">context in {} free", human_bytes(available_memory() as f64));
    let mut table = Table::new(&["KV cache", ">bits", ">bytes per token", ">smaller", &free]);
    let f16 = engine.plan(&Policy::default())?.bytes_per_token();
    for (k, v) in PAIRS {
        let plan = engine.plan(&Policy::uniform(k, v))?;
        let bytes = plan.bytes_per_token();
        table.row([
            report::pair(k, v),
            format!("{:.2}", 16.0 * bytes / f16),
            thousands(bytes.round() as u64),
            format!("{:.1}×", f16 / bytes),
            report::fits(&plan),
        ]);
    }
    writeln!(out, "{table}")?;
    writeln!(out, "Your own model: torque chat -m model.gguf. Everything else: torque --help")?;
    Ok(ExitCode::SUCCESS)
}
