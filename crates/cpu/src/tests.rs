//! The backend against the scalar one, over every instruction set of this machine.

use super::*;
use torque_backend::Scalar;
use torque_backend::suite::{self, AttentionCase, DeltaCase, ExpertsCase, Random};
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
    suite::check_case(&backend, &AttentionCase { policy: policy.clone(), ..base.clone() }, TOLERANCE);
    // Older pages are sealed again, one of the sides from a format that is not rotated.
    for (k, v) in [("turbo4", "q8_0"), ("f16", "turbo3"), ("turbo4_nested", "turbo3_nested")] {
        let policy = Policy { k: k.into(), v: v.into(), ..policy.clone() }.with_decay("25,40,35").unwrap();
        suite::check_case(
            &backend,
            &AttentionCase { policy, chunks: vec![90, 60, 1, 40, 1], ..base.clone() },
            TOLERANCE,
        );
    }
}

#[test]
fn attention_tells_what_it_looks_at() {
    let policy = Policy { page: 16, tail: 24, sink: 32, ..Policy::uniform("q8_0", "turbo4") };
    let policy = policy.with_decay("25,40,35").unwrap();
    // Short runs and long ones; many rows in blocks; a logit that is no key's.
    let base = AttentionCase {
        policy,
        sinks: true,
        sharpness: 2.0,
        chunks: vec![180, 1, 1, 20, 100, 1, 7],
        ..AttentionCase::new("", "", 64)
    };
    let backends = backends();
    suite::check_case(&backends[0], &base, TOLERANCE);
    suite::check_case(&backends[0], &AttentionCase { kv_heads: 1, group: 7, ..base.clone() }, TOLERANCE);
    let outputs: Vec<_> = backends.iter().map(|backend| base.run(backend)).collect();
    assert!(outputs.iter().all(|o| *o == outputs[0]), "threads or instruction sets matter");
    let latent = AttentionCase::latent("", [80, 64]);
    let latent = AttentionCase { policy: base.policy, chunks: base.chunks, kv_heads: 1, group: 70, ..latent };
    suite::check_case(&backends[0], &latent, TOLERANCE);
}

#[test]
fn values_that_weigh_little_are_left_out() {
    let base = AttentionCase {
        sharpness: 6.0,
        chunks: [600].into_iter().chain([1; 16]).collect(),
        ..AttentionCase::new("f32", "turbo3", 128)
    };
    let with =
        |share| AttentionCase { policy: Policy { sparse_v: share, ..base.policy.clone() }, ..base.clone() };
    let squares = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    // A prompt reads everything; what matters are the outputs after it.
    let decoded = |outputs: Vec<f32>| outputs[600 * 4 * 128..].to_vec();
    let exact = decoded(AttentionCase { policy: Policy::uniform("f32", "f32"), ..base.clone() }.run(&Scalar));
    let backends = backends();
    let dense = decoded(base.run(&backends[0]));
    assert_eq!(backends[0].value_parts(), [0, 0]);
    let of_format = squares(&dense, &exact);
    for share in [0.1, 1.0] {
        let sparse: Vec<_> = backends.iter().map(|backend| decoded(with(share).run(backend))).collect();
        assert!(sparse.iter().all(|o| *o == sparse[0]), "threads or instruction sets matter");
        let (lost, [parts, skipped]) = (squares(&sparse[0], &dense), backends[0].value_parts());
        println!("{share}: {skipped} of {parts} left out, {lost} lost, {of_format} by the format");
        assert!(0.0 < lost && lost < share * of_format, "{lost} of {of_format}");
        assert!(0 < skipped && skipped < parts, "{skipped} of {parts}");
    }
}

#[test]
fn values_in_keys_agree() {
    for backend in backends() {
        for (format, head_dim) in [("turbo3", [576, 512]), ("q4_0", [80, 64])] {
            suite::check_case(&backend, &AttentionCase::latent(format, head_dim), TOLERANCE);
        }
    }
    let backend = Cpu::new(Some(2), None).unwrap();
    // So many heads that rows are cut into small blocks, and decode into short runs.
    let long = AttentionCase {
        kv_heads: 1,
        group: 130,
        chunks: vec![100, 70, 1, 9],
        ..AttentionCase::latent("turbo4", [80, 64])
    };
    suite::check_case(&backend, &long, TOLERANCE);
    let policy = Policy { page: 48, tail: 24, sink: 32, ..long.policy.clone() };
    suite::check_case(&backend, &AttentionCase { policy, window: Some(90), ..long }, TOLERANCE);
    suite::check_values_in_keys(&backend, TOLERANCE);
}

#[test]
fn sequences_share_pages_are_cut_and_go_on() {
    for backend in backends() {
        suite::check_histories(&backend, TOLERANCE);
    }
}

#[test]
fn full_sequences_forget_and_go_on() {
    for backend in backends() {
        suite::check_forgetting(&backend, TOLERANCE);
        suite::check_turned_keys(&backend, TOLERANCE);
    }
}

#[test]
fn nested_pages_are_narrowed_to_the_bit() {
    suite::check_narrowed_pages(&Scalar);
    for backend in backends() {
        suite::check_narrowed_pages(&backend);
    }
}

#[test]
fn delta_net_agrees_on_every_instruction_set() {
    suite::check_delta_net(&backends(), TOLERANCE);
}

#[test]
fn recurrent_states_go_back() {
    suite::check_snapshots(&Cpu::new(Some(2), None).unwrap());
}

#[test]
fn delta_net_does_not_depend_on_threads_or_instruction_set() {
    let case = DeltaCase::new([2, 6], [64, 80], &[70, 1, 2, 200, 1]);
    let outputs: Vec<_> = backends().iter().map(|backend| case.run(backend)).collect();
    assert!(outputs.iter().all(|o| *o == outputs[0]));
}

#[test]
fn results_do_not_depend_on_threads_or_instruction_set() {
    let case =
        AttentionCase { chunks: vec![70, 1, 1, 200, 1], ..AttentionCase::new("turbo4", "turbo3", 128) };
    let latent = AttentionCase { chunks: case.chunks.clone(), ..AttentionCase::latent("turbo3", [320, 256]) };
    for case in [case, latent] {
        let outputs: Vec<_> = backends().iter().map(|backend| case.run(backend)).collect();
        assert!(outputs.iter().all(|o| *o == outputs[0]), "{case:?}");
    }
}

#[test]
fn row_ops_agree() {
    for backend in backends() {
        suite::check_row_ops(&backend, TOLERANCE);
        suite::check_linear_runs(&backend, TOLERANCE);
    }
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
            Scalar.linear(&x, &mut [(&data, &mut expected)]);
            for backend in backends() {
                let (mut found, mut again) = (expected.clone(), expected.clone());
                let w = backend.matrix(data.clone());
                backend.linear(&x, &mut [(&w, &mut found), (&w, &mut again)]);
                let what = format!("{} × {tokens} on {}", format.name, backend.device());
                let tolerance = match format.rotation {
                    // Activations rounded to 8 bits; the exact bound is tested with the kernel.
                    _ if format.rounds_activations() => 0.01,
                    // Weights that are multiplied in a rotated domain round once more.
                    Rotation::Block32 => 4.0 * TOLERANCE,
                    _ => TOLERANCE,
                };
                suite::check_close(&what, expected.data(), found.data(), tolerance);
                assert_eq!(found.data(), again.data(), "{what}: of two matrices");
                for t in [0, tokens - 1] {
                    let mut alone = Tensor::from_rows(rows, &vec![0.0; rows]);
                    let row = Tensor::from_rows(columns, x.row(t));
                    backend.linear(&row, &mut [(&w, &mut alone)]);
                    assert_eq!(alone.data(), found.row(t), "{what}: alone and in a batch");
                }
            }
        }
    }
}

/// Backends that multiply many tokens in tiles: emulated ones, and the processor's where it has them.
fn tile_backends() -> Vec<Cpu> {
    let emulated = |threads| Cpu {
        tiles: Some(tiles::multiply::<torque_simd::tiles::Emulated>),
        ..Cpu::new(Some(threads), None).unwrap()
    };
    let mut backends = vec![emulated(1), emulated(3)];
    if Level::Amx.is_available() {
        backends.extend([1, 2].map(|threads| Cpu::new(Some(threads), Some("amx")).unwrap()));
    }
    backends
}

/// What rounding both factors to bfloat16 may cost an output.
const TILE_TOLERANCE: f32 = 0.01;

#[test]
fn products_of_many_tokens_agree_in_tiles() {
    let mut random = Random(5);
    let (rows, columns, tokens) = (150, 768, tiles::TOKENS + 5);
    let x = Tensor::from_rows(columns, &random.gausses(tokens * columns));
    for format in FORMATS.iter().filter(|f| f.weights) {
        let mut bytes = vec![0; rows * format.row_bytes(columns)];
        format.encode_row(&random.gausses(rows * columns), &mut bytes);
        let data = MatrixData { format, rows, columns, bytes: bytes.into() };
        let blank = Tensor::from_rows(rows, &vec![0.0; tokens * rows]);
        let mut expected = blank.clone();
        Scalar.linear(&x, &mut [(&data, &mut expected)]);
        let run = |backend: &Cpu| {
            let (mut found, mut again) = (blank.clone(), blank.clone());
            let w = backend.matrix(data.clone());
            backend.linear(&x, &mut [(&w, &mut found), (&w, &mut again)]);
            assert_eq!(found.data(), again.data(), "{}: of two matrices", format.name);
            // Few tokens are multiplied without tiles.
            let few = tiles::TOKENS / 2;
            let mut part = Tensor::from_rows(rows, &vec![0.0; few * rows]);
            backend.linear(&Tensor::from_rows(columns, &x.data()[..few * columns]), &mut [(&w, &mut part)]);
            (found, part)
        };
        let plain = run(&Cpu::new(Some(2), Some(Level::Scalar.name())).unwrap());
        let found: Vec<_> = tile_backends().iter().map(run).collect();
        for (found, part) in &found {
            suite::check_close(format.name, expected.data(), found.data(), TILE_TOLERANCE);
            assert_eq!(found.data() == plain.0.data(), format.is_float(), "{}: tiles are used", format.name);
            assert_eq!(part.data(), plain.1.data(), "{}: few tokens", format.name);
        }
        assert!(
            found.windows(2).all(|two| two[0].0.data() == two[1].0.data()),
            "{}: any threads",
            format.name
        );
    }
}

/// Experts of which some have few tokens and some many.
#[test]
fn experts_agree_in_tiles() {
    for format in ["q4_k", "q8_0", "tq4_1s", "f16"] {
        let case = ExpertsCase { biases: true, ..ExpertsCase::new(format, 300) };
        let weights = case.weights();
        let run = |backend: &Cpu| case.run(backend, &weights, case.tokens);
        let plain = run(&Cpu::new(Some(2), None).unwrap());
        let found: Vec<_> = tile_backends().iter().map(run).collect();
        let expected = case.run(&Scalar, &weights, case.tokens);
        suite::check_close(format, &expected, &found[0], 2.0 * TILE_TOLERANCE);
        assert_eq!(found[0] == plain, format == "f16", "{format}: tiles are used");
        assert!(found.windows(2).all(|two| two[0] == two[1]), "{format}: any threads");
    }
}

/// What rounding activations to 8 bits may cost an output of two products, if any of these formats rounds.
fn experts_tolerance(_: &Cpu, formats: &[&'static str; 3]) -> f32 {
    let rounds = |name: &&str| torque_quant::by_name(name).unwrap().rounds_activations();
    match formats.iter().any(rounds) {
        true => 0.02,
        false => 4.0 * TOLERANCE,
    }
}

#[test]
fn experts_agree_on_every_instruction_set() {
    suite::check_experts(&backends(), experts_tolerance);
}

#[test]
fn experts_do_not_depend_on_threads_instruction_set_or_company() {
    for tokens in [1, 6, 50] {
        for format in ["bf16", "q4_k", "q6_k", "q8_0"] {
            let case = ExpertsCase { biases: true, ..ExpertsCase::new(format, tokens) };
            let weights = case.weights();
            let run = |backend: &Cpu| [tokens, 1].map(|chunk| case.run(backend, &weights, chunk));
            let outputs: Vec<_> = backends().iter().flat_map(run).collect();
            assert!(outputs.iter().all(|o| *o == outputs[0]), "{tokens} tokens, {format}");
        }
    }
}

#[test]
fn glu_agrees_at_its_edges() {
    let values = [0.0, -0.0, 1.0, -1.0, 6.999, 7.0, 7.001, -7.5, 30.0, -30.0, 1e4, -1e4, f32::NAN];
    let pairs: Vec<(f32, f32)> = values.iter().flat_map(|g| values.map(|u| (*g, u))).collect();
    let (gate, up): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
    for activation in [Activation::Silu, Activation::Gelu, Activation::ClampedSwiglu] {
        let run = |mut out: Vec<f32>, glu: &dyn Fn(&Tensor, &mut Tensor)| {
            let mut gate = Tensor::from_rows(out.len(), &out);
            glu(&Tensor::from_rows(up.len(), &up), &mut gate);
            out.copy_from_slice(gate.data());
            out
        };
        let expected = run(gate.clone(), &|up, gate| Scalar.glu(activation, up, gate));
        for backend in backends() {
            let found = run(gate.clone(), &|up, gate| backend.glu(activation, up, gate));
            for ((e, f), pair) in expected.iter().zip(found).zip(&pairs) {
                let agree = e.is_nan() && f.is_nan() || *e == f || (e - f).abs() <= 1e-6 * (1.0 + e.abs());
                assert!(agree, "{activation:?} of {pair:?} on {}: {f}, expected {e}", backend.device());
            }
        }
    }
}
