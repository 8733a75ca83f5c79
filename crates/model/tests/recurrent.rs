//! Models with recurrent layers: going back to snapshots of the state, copies, and the bytes of both.

mod files;

use files::{context, feed, load, max_difference, mean_divergence, open, reference};
use std::sync::Arc;
use torque_cpu::Cpu;
use torque_kv::Policy;
use torque_model::Context;

const MODELS: [&str; 3] = ["qwen3next", "qwen35", "qwen35moe"];

/// A context of two sequences, a snapshot every sixteen tokens, and the model's tokens. The KV cache is exact, so that
/// all that is lost is lost by the state.
fn start(name: &str) -> (Context<Cpu>, Vec<u32>) {
    let backend = Arc::new(Cpu::new(Some(2), None).unwrap());
    let model = load(&*backend, &open(name));
    let policy = Policy { page: 16, tail: 1000, ..Policy::uniform("f32", "f32") };
    (context(&backend, &model, &policy, 2), reference(name).tokens)
}

#[test]
fn a_roll_back_of_a_page_is_exact() {
    for name in MODELS {
        let (mut context, tokens) = start(name);
        let straight = feed(&mut context, 0, &tokens, 1);
        let width = straight.len() / tokens.len();
        for (to, expected) in [(95, 80), (85, 80), (80, 80)] {
            assert_eq!(context.truncate(0, to).unwrap(), expected, "{name}");
            assert_eq!(context.len(0), expected, "{name}");
            assert!(feed(&mut context, 0, &tokens[expected..], 1) == straight[expected * width..], "{name}");
        }
        // In one pass instead of many: the same to rounding.
        context.truncate(0, 90).unwrap();
        let found = feed(&mut context, 0, &tokens[80..], 96);
        let difference = max_difference(&straight[80 * width..], &found);
        assert!(difference < 1e-4, "{name}: {difference:e}");
        context.clear(0);
        assert!(feed(&mut context, 0, &tokens, 1) == straight, "{name}: after clearing");
    }
}

#[test]
fn an_old_snapshot_costs_little() {
    for name in MODELS {
        let (mut context, tokens) = start(name);
        let margins = reference(name).margins;
        let straight = feed(&mut context, 0, &tokens, 1);
        let width = straight.len() / tokens.len();
        // Where experts are nearly a tie, the smallest difference chooses others. Such a row says nothing, and where it
        // is the first one, neither do those behind it: the state remembers.
        let tie = |position: usize| margins.get(position).is_some_and(|margin| *margin < 0.05);
        for to in [64, 48, 32, 16].into_iter().filter(|&to| !tie(to)) {
            assert_eq!(context.truncate(0, to + 7).unwrap(), to, "{name}");
            let found = feed(&mut context, 0, &tokens[to..], 1);
            let rows = straight[to * width..].chunks(width).zip(found.chunks(width)).enumerate();
            let clear = rows.filter(|(i, _)| !tie(to + i));
            let (expected, found): (Vec<_>, Vec<_>) = clear.map(|(_, pair)| pair).unzip();
            let divergence = mean_divergence(&expected.concat(), &found.concat(), width);
            println!("{name} from {to}: {divergence:.1e}");
            assert!(divergence > 0.0 && divergence < 1e-4, "{name} from {to}: {divergence:e}");
        }
    }
}

#[test]
fn copies_go_their_own_ways() {
    for name in MODELS {
        let (mut context, tokens) = start(name);
        let (first, second) = tokens.split_at(40);
        feed(&mut context, 0, first, 40);
        let (snapshots, _) = context.kv_bytes();
        assert_eq!(snapshots, context.plan().snapshot_bytes(1), "{name}");
        context.fork(0, 1);
        assert_eq!(context.kv_bytes().0, snapshots, "{name}: copies share snapshots");
        let expected = feed(&mut context, 0, second, 1);
        feed(&mut context, 1, &second[..3], 1);
        assert_eq!(context.truncate(1, 39).unwrap(), 32, "{name}");
        feed(&mut context, 1, &first[32..], 8);
        let found = feed(&mut context, 1, second, 1);
        let difference = max_difference(&expected, &found);
        assert!(difference < 1e-4, "{name}: {difference:e}");
        let plan = context.plan();
        assert!(context.kv_bytes().0 <= 2 * plan.snapshot_bytes(plan.snapshots), "{name}");
        context.clear(0);
        context.clear(1);
        assert_eq!(context.kv_bytes().0, 0, "{name}");
    }
}
