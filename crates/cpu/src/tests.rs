//! The backend against the scalar one, over every instruction set of this machine.

use super::*;
use torque_backend::Scalar;
use torque_backend::suite::{self, AttentionCase, Random};
use torque_kv::Policy;
use torque_quant::{FORMATS, Rotation};

/// The best instruction set with one, two and three threads; the others with two.
fn backends() -> Vec<Cpu> {
    let mut backends: Vec<_> =
        Level::all_available().iter().map(|level| Cpu::new(Some(2), Some(level.name())).unwrap()).collect();
    backends.extend([1, 3].map(|threads| Cpu::new(Some(threads), None).unwrap()));
    backends
}

/// Float arithmetic in another order: a few hundred roundings of 2^-24.
const TOLERANCE: f32 = 2e-5;

#[test]
fn attention_agrees_on_every_instruction_set() {
    for backend in backends() {
        for (k, v, head_dim) in [("turbo3", "q4_0", 48), ("q8_0", "turbo2", 128), ("f16", "turbo4", 192)] {
            suite::check_case(&backend, &AttentionCase::new(k, v, head_dim), TOLERANCE);
        }
    }
}

#[test]
fn attention_agrees_in_other_shapes() {
    let backend = Cpu::new(Some(2), None).unwrap();
    let base = AttentionCase::new("turbo3", "q8_0", 64);
    // Many pages, so that decode is cut into runs; a large chunk, so that rows are cut into blocks.
    let long = AttentionCase { chunks: vec![300, 200, 1, 1, 9], ..base.clone() };
    suite::check_case(&backend, &long, TOLERANCE);
    suite::check_case(&backend, &AttentionCase { window: Some(100), ..long }, TOLERANCE);
    suite::check_case(&backend, &AttentionCase { group: 7, kv_heads: 1, ..base.clone() }, TOLERANCE);
    suite::check_case(&backend, &AttentionCase { head_dim: [128, 64], ..base.clone() }, TOLERANCE);
    let policy = Policy { tail: 24, sink: 32, ..base.policy.clone() };
    suite::check_case(&backend, &AttentionCase { policy, ..base }, TOLERANCE);
}

#[test]
fn results_do_not_depend_on_threads_or_instruction_set() {
    let case =
        AttentionCase { chunks: vec![70, 1, 1, 200, 1], ..AttentionCase::new("turbo4", "turbo3", 128) };
    let outputs: Vec<_> = backends().iter().map(|backend| case.run(backend)).collect();
    assert!(outputs.iter().all(|o| *o == outputs[0]));
}

#[test]
fn products_agree_for_every_weight_format() {
    let mut random = Random(3);
    let (rows, columns) = (70, 512);
    for format in FORMATS.iter().filter(|f| f.weights) {
        let mut bytes = vec![0; rows * format.row_bytes(columns)];
        format.encode_row(&random.gausses(rows * columns), &mut bytes);
        let data = MatrixData { format, rows, columns, bytes: bytes.into() };
        for tokens in [1, 2, 7, 9, 33] {
            let x = Tensor::from_rows(columns, &random.gausses(tokens * columns));
            let mut expected = Tensor::from_rows(rows, &vec![0.0; tokens * rows]);
            Scalar.linear(&data, &x, &mut expected);
            for backend in backends() {
                let mut found = Tensor::from_rows(rows, &vec![0.0; tokens * rows]);
                backend.linear(&backend.matrix(data.clone()), &x, &mut found);
                let what = format!("{} × {tokens} on {}", format.name, backend.device());
                let tolerance = match format.rotation {
                    // Activations rounded to 8 bits; the exact bound is tested with the kernel.
                    _ if backend.rounds(format) => 0.01,
                    // Weights that are multiplied in a rotated domain round once more.
                    Rotation::Block32 => 4.0 * TOLERANCE,
                    _ => TOLERANCE,
                };
                suite::check_close(&what, expected.data(), found.data(), tolerance);
            }
        }
    }
}
