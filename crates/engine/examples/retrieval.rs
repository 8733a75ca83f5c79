//! Writes a model made by hand that retrieves, for `torque eval needle`, with the tokenizer and chat template of another.
//!
//! `cargo run --release -p torque-engine --example retrieval -- ../shared/demo/demo.gguf retrieval.gguf`; a third argument is how
//! loud keys and values are beside what is looked for, instead of [`LOUD`]: 0 makes retrieval easy.

use std::error::Error;
use torque_engine::gguf::{Gguf, Writer};
use torque_engine::retrieval::{self, LOUD};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (from, to, loud) = match &arguments[..] {
        [from, to] => (from, to, LOUD),
        [from, to, loud] => (from, to, loud.parse()?),
        _ => return Err("expected two file names, from and to, and perhaps a number".into()),
    };
    let gguf = retrieval::build(&Gguf::open(from)?, loud)?;
    let mut writer = Writer::new(gguf.metadata().clone())?;
    for tensor in gguf.tensors() {
        writer.tensor(tensor.name.clone(), &tensor.shape, tensor.kind, tensor.data.clone())?;
    }
    writer.write(to)?;
    println!("{to}: {} bytes", std::fs::metadata(to)?.len());
    Ok(())
}
