//! Mixture of experts: tokens are grouped by expert, so that each expert's weights are read once.
//!
//! All chosen experts go through a step together: gate and up projections, down projections, weighted sums.
//! The pieces of work of a projection are a few rows of one expert, for all its tokens.

use crate::linear::{Inputs, Matrix, Reader};
use crate::pool::Pool;
use crate::{elementwise, for_chunks};
use std::cell::RefCell;
use torque_backend::host::Tensor;
use torque_backend::{Experts, Routing, scalar};
use torque_simd::Level;

/// What the op works in.
#[derive(Default)]
pub struct Buffers {
    /// What goes in, as gate and up projections read it.
    x: Inputs,
    /// Of each group, what its projections read.
    inputs: Vec<Inputs>,
    /// Between the projections: `[routes, feed_forward]`, see [`project`].
    hidden: Vec<f32>,
    /// What the experts give: `[routes, embedding]`, see [`project`].
    outputs: Vec<f32>,
}

/// An expert and the tokens that go to it.
struct Group {
    expert: usize,
    tokens: Vec<usize>,
    /// Tokens of the groups before.
    start: usize,
}

thread_local! {
    /// A worker's up projections, or rows it has put together.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// See [`torque_backend::Backend::experts`].
pub fn run(
    pool: &Pool,
    level: Level,
    buffers: &mut Buffers,
    experts: &Experts<Matrix, Vec<f32>>,
    routing: &Routing,
    router: &Tensor,
    x: &Tensor,
    out: &mut Tensor,
) {
    let Experts { gate, up, down, gate_bias, up_bias, down_bias, activation } = experts;
    let (used, width) = (routing.used, out.width());
    assert!((1..=gate.len()).contains(&used), "{used} of {} experts", gate.len());

    // `[tokens, used]`: an expert and its weight.
    let mut routes = vec![(0, 0.0); x.rows() * used];
    for_chunks(pool, router.data().len(), &mut routes, used, |t, routes| {
        routes.copy_from_slice(&scalar::route(router.row(t), routing));
    });
    let (groups, places) = group(&routes, used, gate.len());

    // Activations are brought to the form that weights read once, then sorted by expert.
    let readers = groups.iter().map(|group| [gate, up].map(|w| (&w[group.expert], group.tokens.len())));
    let readers: Vec<[Reader; 2]> = readers.collect();
    buffers.x.prepare(Some(pool), x.data(), readers.as_flattened());
    if buffers.inputs.len() < groups.len() {
        buffers.inputs.resize_with(groups.len(), Inputs::default);
    }
    let inputs = &mut buffers.inputs[..groups.len()];
    for_chunks(pool, routes.len() * x.width(), inputs, 1, |g, inputs| {
        inputs[0].take_rows(&buffers.x, &groups[g].tokens, &readers[g]);
    });

    let hidden = &mut buffers.hidden;
    project(pool, &groups, gate, hidden, |g, first, out| {
        let group = &groups[g];
        let product = |w: &[Matrix], bias: &Option<Vec<f32>>, out: &mut [f32]| {
            product(level, group, &w[group.expert], bias.as_ref(), &inputs[g], first, out);
        };
        SCRATCH.with_borrow_mut(|up_out| {
            up_out.resize(out.len(), 0.0);
            product(gate, gate_bias, out);
            product(up, up_bias, up_out);
            elementwise::glu(level, *activation, up_out, out);
        });
    });

    for_chunks(pool, hidden.len(), inputs, 1, |g, inputs| {
        let group = &groups[g];
        SCRATCH.with_borrow_mut(|rows| {
            rows.clear();
            for i in 0..group.tokens.len() {
                group.row(gate, hidden, i).for_each(|part| rows.extend_from_slice(part));
            }
            inputs[0].prepare(None, rows, &[(&down[group.expert], group.tokens.len())]);
        });
    });
    let outputs = &mut buffers.outputs;
    project(pool, &groups, down, outputs, |g, first, out| {
        let group = &groups[g];
        product(level, group, &down[group.expert], down_bias.as_ref(), &inputs[g], first, out);
    });

    for_chunks(pool, outputs.len(), out.data_mut(), width, |t, out| {
        out.fill(0.0);
        for i in t * used..(t + 1) * used {
            let ((_, weight), (g, place)) = (routes[i], places[i]);
            let mut rest = &mut *out;
            for part in groups[g].row(down, outputs, place) {
                let (sum, others) = rest.split_at_mut(part.len());
                elementwise::add_scaled(level, weight, part, sum);
                rest = others;
            }
        }
    });
}

/// Groups the tokens by expert. Also says of each route which group it is in, and where.
fn group(routes: &[(usize, f32)], used: usize, experts: usize) -> (Vec<Group>, Vec<(usize, usize)>) {
    let mut groups: Vec<Group> = Vec::new();
    let mut group_of = vec![None; experts];
    let place = |(i, (expert, _)): (usize, &(usize, f32))| {
        let g = *group_of[*expert].get_or_insert_with(|| {
            groups.push(Group { expert: *expert, tokens: Vec::new(), start: 0 });
            groups.len() - 1
        });
        groups[g].tokens.push(i / used);
        (g, groups[g].tokens.len() - 1)
    };
    let places = routes.iter().enumerate().map(place).collect();
    let mut start = 0;
    for group in &mut groups {
        group.start = start;
        start += group.tokens.len();
    }
    (groups, places)
}

/// Calls `f(group, first row, out)` for pieces of the product of every group with its expert's matrix of w.
///
/// Results lie group after group. A worker writes `[tokens, rows of the piece]`, so a token's row is spread
/// over the group's pieces: [`Group::row`] puts it together.
fn project(
    pool: &Pool,
    groups: &[Group],
    w: &[Matrix],
    results: &mut Vec<f32>,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let routes: usize = groups.iter().map(|group| group.tokens.len()).sum();
    results.resize(routes * w[0].data.rows, 0.0);
    let (mut pieces, mut rest) = (Vec::new(), &mut results[..]);
    for (g, group) in groups.iter().enumerate() {
        let (tokens, w) = (group.tokens.len(), &w[group.expert]);
        let (own, others) = rest.split_at_mut(tokens * w.data.rows);
        let step = w.piece(tokens);
        pieces.extend(own.chunks_mut(tokens * step).enumerate().map(|(i, out)| (g, i * step, out)));
        rest = others;
    }
    pool.for_chunks(&mut pieces, 1, |_, piece| {
        let (g, first, out) = &mut piece[0];
        f(*g, *first, out);
    });
}

impl Group {
    /// The parts of its row i of what [`project`] has made with w.
    fn row<'a>(&self, w: &[Matrix], results: &'a [f32], i: usize) -> impl Iterator<Item = &'a [f32]> {
        let (tokens, w) = (self.tokens.len(), &w[self.expert]);
        let own = &results[self.start * w.data.rows..][..tokens * w.data.rows];
        own.chunks(tokens * w.piece(tokens)).map(move |piece| {
            let rows = piece.len() / tokens;
            &piece[i * rows..][..rows]
        })
    }
}

/// Rows `first ..` of the products of a group's tokens with its expert's matrix, and their biases.
fn product(
    level: Level,
    group: &Group,
    w: &Matrix,
    bias: Option<&Vec<f32>>,
    x: &Inputs,
    first: usize,
    out: &mut [f32],
) {
    let tokens = group.tokens.len();
    w.multiply(first, w.input(x), tokens, out);
    if let Some(bias) = bias {
        let rows = out.len() / tokens;
        let bias = &bias[group.expert * w.data.rows + first..][..rows];
        out.chunks_exact_mut(rows).for_each(|row| elementwise::add(level, bias, row));
    }
}
