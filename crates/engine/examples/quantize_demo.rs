//! Makes the model inside the program from the trained one: every matrix becomes Q8_0, everything else stays.
//!
//! `cargo run --release -p torque-engine --example quantize_demo -- ../shared/demo/demo.gguf assets/demo.gguf`

use std::error::Error;
use torque_engine::gguf::{Gguf, TensorType, Writer};
use torque_engine::quant::{by_ggml_type, by_name};

/// `general.file_type` of files that are mostly Q8_0.
const MOSTLY_Q8_0: u32 = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &arguments[..] else { return Err("expected two file names: from, to".into()) };
    let gguf = Gguf::open(from)?;
    let format = by_name("q8_0").expect("listed");
    let mut metadata = gguf.metadata().clone();
    metadata.insert("general.file_type", MOSTLY_Q8_0);
    metadata.insert("general.quantization_version", 2u32);
    let mut writer = Writer::new(metadata)?;
    for tensor in gguf.tensors() {
        if tensor.shape.len() != 2 {
            writer.tensor(tensor.name.clone(), &tensor.shape, tensor.kind, tensor.data.clone())?;
            continue;
        }
        let stored =
            by_ggml_type(tensor.kind.id()).ok_or_else(|| format!("{}: {}", tensor.name, tensor.kind))?;
        let columns = usize::try_from(tensor.shape[0])?;
        let (mut row, mut bytes) = (vec![0.0; columns], Vec::new());
        for source in tensor.data.chunks_exact(stored.row_bytes(columns)) {
            stored.decode_row(source, &mut row);
            let start = bytes.len();
            bytes.resize(start + format.row_bytes(columns), 0);
            format.encode_row(&row, &mut bytes[start..]);
        }
        writer.tensor(tensor.name.clone(), &tensor.shape, TensorType::Q8_0, bytes)?;
    }
    writer.write(to)?;
    println!("{to}: {} bytes", std::fs::metadata(to)?.len());
    Ok(())
}
