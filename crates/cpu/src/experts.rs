//! Mixture of experts: tokens are grouped by expert, so that each expert's weights are read once.

use crate::elementwise;
use crate::linear::Matrix;
use crate::pool::Pool;
use torque_backend::host::Tensor;
use torque_backend::{Experts, Routing, scalar};
use torque_simd::Level;

/// See [`torque_backend::Backend::experts`].
pub fn run(
    pool: &Pool,
    level: Level,
    experts: &Experts<Matrix>,
    routing: &Routing,
    router: &Tensor,
    x: &Tensor,
    out: &mut Tensor,
) {
    // (expert, token, weight), by expert.
    let mut routes: Vec<(usize, usize, f32)> = (0..x.rows())
        .flat_map(|t| scalar::route(router.row(t), routing).into_iter().map(move |(e, w)| (e, t, w)))
        .collect();
    routes.sort_by_key(|(expert, token, _)| (*expert, *token));
    out.data_mut().fill(0.0);
    let (mut inputs, mut gate, mut up, mut down) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for group in routes.chunk_by(|a, b| a.0 == b.0) {
        let (expert, tokens) = (group[0].0, group.len());
        let inner = experts.gate[expert].data.rows;
        inputs.clear();
        group.iter().for_each(|(_, token, _)| inputs.extend_from_slice(x.row(*token)));
        gate.resize(tokens * inner, 0.0);
        up.resize(tokens * inner, 0.0);
        down.resize(tokens * out.width(), 0.0);
        experts.gate[expert].product(pool, &inputs, tokens, &mut gate);
        experts.up[expert].product(pool, &inputs, tokens, &mut up);
        elementwise::glu(level, experts.activation, &up, &mut gate);
        experts.down[expert].product(pool, &gate, tokens, &mut down);
        for ((_, token, weight), y) in group.iter().zip(down.chunks_exact(out.width())) {
            elementwise::add_scaled(level, *weight, y, out.row_mut(*token));
        }
    }
}
