//! Speed of the gated DeltaNet op: tokens a second of one layer, and for decode the share of the state's traffic.
//!
//! `cargo run --release -p torque-cpu --example delta_net`

use std::time::Instant;
use torque_backend::suite::{Random, from_host};
use torque_backend::{Backend, DeltaNet, Segment};
use torque_cpu::Cpu;
use torque_kv::{Plan, Policy, Sequence, StateShape};

fn main() {
    let backend = Cpu::new(None, None).expect("the best instruction set is available");
    let (key_heads, value_heads, dim, kernel) = (16, 32, 128, 4);
    let channels = (2 * key_heads + value_heads) * dim;
    let state = StateShape { conv: [kernel - 1, channels], matrix: [value_heads, dim, dim] };
    // As many layers as no cache holds.
    let layers = 24;
    let plan = Plan::new(&Policy::default(), &[]).and_then(|plan| plan.with_states(vec![state; layers]));
    let plan = plan.expect("a valid shape");
    let mut random = Random(1);
    let conv = backend.vector(&random.gausses(kernel * channels));
    let decay = backend.vector(&vec![-0.1; value_heads]);
    let dt_bias = backend.vector(&random.gausses(value_heads));
    println!("{} on {} threads, {value_heads} heads of {dim} x {dim}", backend.device(), backend.threads());
    for tokens in [1, 2, 3, 4, 6, 8, 16, 32, 64, 512] {
        let mut store = backend.store(&plan, 1, tokens);
        let qkv = from_host(&backend, tokens, &random.gausses(tokens * channels));
        let gates = [(); 2].map(|()| from_host(&backend, tokens, &random.gausses(tokens * value_heads)));
        let mut out = from_host(&backend, tokens, &vec![0.0; tokens * value_heads * dim]);
        let mut sequence = Sequence::new(&plan, 0);
        sequence.append(tokens);
        let segment = [Segment { rows: 0..tokens, sequence: &sequence }];
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            for layer in 0..layers {
                let (conv, decay, dt_bias) = (&conv, &decay, &dt_bias);
                let net = DeltaNet {
                    layer,
                    key_heads,
                    value_heads,
                    key_dim: dim,
                    value_dim: dim,
                    tiled: true,
                    conv,
                    decay,
                    dt_bias,
                    eps: 1e-6,
                };
                backend.delta_net(&mut store, &net, &segment, &qkv, &gates[0], &gates[1], &mut out);
            }
            best = best.min(start.elapsed().as_secs_f64() / layers as f64);
        }
        println!(
            "{tokens:4} tokens: {:7.1} us each, state {:5.1} GB/s read and written",
            1e6 * best / tokens as f64,
            2.0 * state.bytes() as f64 / best / 1e9
        );
    }
}
