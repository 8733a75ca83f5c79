//! The scalar backend: the specification of every op in plain loops, sums in `f64`.
//!
//! It is never optimised. Other backends are tested against it, op by op.

use crate::host::{SealJob, Store, Tensor};
use crate::*;
use half::f16;
use torque_kv::{Freed, Plan, Sequence, Side, Span};
use torque_quant::rotate;

/// The scalar backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn activate(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
    };
    y as f32
}

/// Row `row` of a matrix as numbers.
fn decode_row(w: &MatrixData, row: usize, out: &mut Vec<f32>) {
    out.resize(w.columns, 0.0);
    w.format.decode_row(w.row(row), out);
}

/// `w·x` for one row of activations.
fn product(w: &MatrixData, x: &[f32]) -> Vec<f32> {
    let mut row = Vec::new();
    (0..w.rows)
        .map(|o| {
            decode_row(w, o, &mut row);
            dot(&row, x)
        })
        .collect()
}

/// The chosen experts of a token and their weights: `p = softmax(logits)`, the `used` largest.
pub fn route(logits: &[f32], routing: &Routing) -> Vec<(usize, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
    let total: f32 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    order.truncate(routing.used);
    let chosen: f32 = order.iter().map(|&e| weights[e]).sum();
    let divisor = if routing.normalize { chosen } else { total };
    order.into_iter().map(|e| (e, weights[e] / divisor * routing.scale)).collect()
}

/// All keys or values of one head that a sequence holds for a layer, as numbers: (first position,
/// `[tokens, head_dim]`), rotated if the side is.
fn gather(store: &Store, layer: usize, side: Side, head: usize, sequence: &Sequence) -> (usize, Vec<f32>) {
    let plan = &store.plan.layers[layer];
    let side_plan = &plan.sides[side as usize];
    let spans = sequence.spans(plan.window_class);
    let mut values = Vec::new();
    for span in spans {
        let part = store.part(*span, layer, side);
        let (mean, blocks) = part.head(side_plan, head);
        let mut page = vec![0.0; store.plan.page * side_plan.head_dim];
        let (block, bytes) = part.format.head_block(side_plan.head_dim);
        for (block, out) in blocks.chunks_exact(bytes).zip(page.chunks_mut(block)) {
            (part.format.decode)(block, out);
        }
        for row in page.chunks_exact_mut(side_plan.head_dim) {
            for (x, m) in row.iter_mut().zip(mean.as_chunks::<2>().0) {
                *x += f16::from_le_bytes(*m).to_f32();
            }
        }
        values.extend_from_slice(&page[..span.len * side_plan.head_dim]);
    }
    let mut tail = vec![0.0; sequence.tail_len() * side_plan.head_dim];
    let rows = store.tail(sequence.slot, layer, side).rows(head, 0, sequence.tail_len());
    side_plan.exact.decode_row(rows, &mut tail);
    values.extend(tail);
    (spans.first().map_or(sequence.tail_start(), |s| s.start), values)
}

impl Backend for Scalar {
    type Tensor = Tensor;
    type Vector = Vec<f32>;
    type Matrix = MatrixData;
    type Store = Store;

    fn name(&self) -> &'static str {
        "scalar"
    }
    fn device(&self) -> String {
        "scalar".into()
    }
    fn threads(&self) -> usize {
        1
    }

    fn tensor(&self, capacity: usize) -> Tensor {
        Tensor::new(capacity)
    }
    fn reshape(&self, x: &mut Tensor, rows: usize, width: usize) {
        x.reshape(rows, width);
    }
    fn write(&self, values: &[f32], x: &mut Tensor) {
        x.data_mut().copy_from_slice(values);
    }
    fn read(&self, x: &Tensor, out: &mut [f32]) {
        out.copy_from_slice(x.data());
    }
    fn vector(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }
    fn matrix(&self, data: MatrixData) -> MatrixData {
        data
    }

    fn embed(&self, table: &MatrixData, tokens: &[u32], out: &mut Tensor) {
        for (i, token) in tokens.iter().enumerate() {
            table.format.decode_row(table.row(*token as usize), out.row_mut(i));
        }
    }

    fn linear(&self, w: &MatrixData, x: &Tensor, out: &mut Tensor) {
        let mut row = Vec::new();
        for o in 0..w.rows {
            decode_row(w, o, &mut row);
            for t in 0..x.rows() {
                out.row_mut(t)[o] = dot(&row, x.row(t));
            }
        }
    }

    fn add_bias(&self, bias: &Vec<f32>, x: &mut Tensor) {
        for row in x.data_mut().chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }

    fn add(&self, y: &Tensor, x: &mut Tensor) {
        x.data_mut().iter_mut().zip(y.data()).for_each(|(x, y)| *x += y);
    }

    fn scale(&self, factor: f32, x: &mut Tensor) {
        x.data_mut().iter_mut().for_each(|x| *x *= factor);
    }

    fn scale_rows(&self, factors: &[f32], x: &mut Tensor) {
        for (t, factor) in factors.iter().enumerate() {
            x.row_mut(t).iter_mut().for_each(|x| *x *= factor);
        }
    }

    fn softcap(&self, c: f32, x: &mut Tensor) {
        x.data_mut().iter_mut().for_each(|x| *x = c * (*x / c).tanh());
    }

    fn rms_norm(&self, weight: &Vec<f32>, eps: f32, x: &Tensor, out: &mut Tensor) {
        out.data_mut().copy_from_slice(x.data());
        self.rms_norm_inplace(weight, eps, out);
    }

    fn rms_norm_inplace(&self, weight: &Vec<f32>, eps: f32, x: &mut Tensor) {
        for group in x.data_mut().chunks_exact_mut(weight.len()) {
            let mean_square = group.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / weight.len() as f64;
            let factor = 1.0 / (mean_square + f64::from(eps)).sqrt();
            group.iter_mut().zip(weight).for_each(|(x, w)| *x = (f64::from(*x) * factor) as f32 * w);
        }
    }

    fn glu(&self, activation: Activation, up: &Tensor, gate: &mut Tensor) {
        gate.data_mut().iter_mut().zip(up.data()).for_each(|(g, u)| *g = activate(activation, *g) * u);
    }

    fn rope(&self, angles: &Angles, head_dim: usize, x: &mut Tensor) {
        let pairs = angles.channels / 2;
        for t in 0..x.rows() {
            let row_angles = &angles.cos_sin[t * pairs..][..pairs];
            for head in x.row_mut(t).chunks_exact_mut(head_dim) {
                for (i, [cos, sin]) in row_angles.iter().enumerate() {
                    let (i, j) = match angles.pairs {
                        RopePairs::Interleaved => (2 * i, 2 * i + 1),
                        RopePairs::Halves => (i, i + pairs),
                    };
                    let (a, b) = (head[i], head[j]);
                    head[i] = a * cos - b * sin;
                    head[j] = a * sin + b * cos;
                }
            }
        }
    }

    fn take_rows(&self, x: &Tensor, rows: &[usize], out: &mut Tensor) {
        rows.iter().enumerate().for_each(|(i, &row)| out.row_mut(i).copy_from_slice(x.row(row)));
    }

    fn experts(
        &self,
        experts: &Experts<MatrixData>,
        routing: &Routing,
        router: &Tensor,
        x: &Tensor,
        out: &mut Tensor,
    ) {
        for t in 0..x.rows() {
            let sum = out.row_mut(t);
            sum.fill(0.0);
            for (e, weight) in route(router.row(t), routing) {
                let mut inner = product(&experts.gate[e], x.row(t));
                let up = product(&experts.up[e], x.row(t));
                inner.iter_mut().zip(up).for_each(|(g, u)| *g = activate(experts.activation, *g) * u);
                let y = product(&experts.down[e], &inner);
                sum.iter_mut().zip(y).for_each(|(s, y)| *s += weight * y);
            }
        }
    }

    fn store(&self, plan: &Plan, sequences: usize, batch: usize) -> Store {
        Store::new(plan, sequences, batch)
    }

    fn append(&self, store: &mut Store, layer: usize, segment: &Segment, k: &Tensor, v: &Tensor) {
        store.append(layer, segment, k, v);
    }

    fn attention(
        &self,
        store: &Store,
        attention: &Attention<Vec<f32>>,
        segments: &[Segment],
        q: &mut Tensor,
        out: &mut Tensor,
    ) {
        let plan = &store.plan.layers[attention.layer];
        let [k_side, v_side] = &plan.sides;
        let group = attention.heads / plan.shape.heads;
        let rotation = |side: &torque_kv::SidePlan| {
            side.rotated.then(|| rotate::Head::new(side.head_dim).expect("checked by Plan::new"))
        };
        let (q_rotation, v_rotation) = (rotation(k_side), rotation(v_side));
        for segment in segments {
            for kv_head in 0..plan.shape.heads {
                let (first, keys) = gather(store, attention.layer, Side::K, kv_head, segment.sequence);
                let (_, values) = gather(store, attention.layer, Side::V, kv_head, segment.sequence);
                for (i, row) in segment.rows.clone().enumerate() {
                    let position = segment.position() + i;
                    let oldest = plan.shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
                    for head in kv_head * group..(kv_head + 1) * group {
                        let q = &mut q.row_mut(row)[head * k_side.head_dim..][..k_side.head_dim];
                        if let Some(rotation) = &q_rotation {
                            rotation.forward(q);
                        }
                        let visible = oldest.max(first) - first..position + 1 - first;
                        let mut weights: Vec<f64> = keys
                            [visible.start * k_side.head_dim..visible.end * k_side.head_dim]
                            .chunks_exact(k_side.head_dim)
                            .map(|key| f64::from(dot(q, key) * attention.scale))
                            .map(|s| {
                                attention.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                            })
                            .collect();
                        let sink = attention.sinks.map(|sinks| f64::from(sinks[head]));
                        let max = weights.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                        weights.iter_mut().for_each(|w| *w = (*w - max).exp());
                        let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
                        let out = &mut out.row_mut(row)[head * v_side.head_dim..][..v_side.head_dim];
                        for (channel, out) in out.iter_mut().enumerate() {
                            let column = values[visible.start * v_side.head_dim..].iter().skip(channel);
                            let column = column.step_by(v_side.head_dim);
                            let sum: f64 = weights.iter().zip(column).map(|(w, v)| w * f64::from(*v)).sum();
                            *out = (sum / total) as f32;
                        }
                        if let Some(rotation) = &v_rotation {
                            rotation.inverse(out);
                        }
                    }
                }
            }
        }
    }

    fn seal(&self, store: &mut Store, sequence: &Sequence, span: Span) {
        store.seal(sequence, span, |jobs| jobs.iter_mut().for_each(SealJob::run));
    }
    fn free(&self, store: &mut Store, freed: &[Freed]) {
        store.free(freed);
    }
    fn copy_tail(&self, store: &mut Store, from: &Sequence, to_slot: usize) {
        store.copy_tail(from, to_slot);
    }
    fn store_bytes(&self, store: &Store) -> (usize, usize) {
        store.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::{AttentionCase, HEAD_SIZES, check_close, relative_error};
    use torque_kv::Policy;

    #[test]
    fn an_f16_page_is_what_no_sealing_gives() {
        for head_dim in HEAD_SIZES {
            let sealed = AttentionCase::new("f16", "f16", head_dim);
            let open =
                AttentionCase { policy: Policy { tail: 1000, ..sealed.policy.clone() }, ..sealed.clone() };
            assert_eq!(sealed.run(&Scalar), open.run(&Scalar), "head size {head_dim}");
        }
    }

    #[test]
    fn exact_tail_and_sinks_lower_the_error() {
        let exact = AttentionCase::new("f32", "f32", 64).run(&Scalar);
        let bare = AttentionCase::new("turbo2", "turbo2", 64);
        let error = |tail: usize, sink: usize| {
            let policy = Policy { tail, sink, ..bare.policy.clone() };
            relative_error(&exact, &AttentionCase { policy, ..bare.clone() }.run(&Scalar))
        };
        assert!(error(16, 0) < 0.9 * error(0, 0));
        assert!(error(0, 32) < 0.9 * error(0, 0));
        assert!(error(1000, 0) < 2e-3);
    }

    #[test]
    fn windows_and_sinks_are_the_formula() {
        // One head, keys and values chosen so that weights are known: all scores equal.
        let plan = Plan::new(
            &Policy::uniform("f32", "f32").bare(),
            &[torque_kv::KvLayer { heads: 1, head_dim: [16, 16], window: Some(3) }],
        )
        .unwrap();
        let (mut store, mut sequence) = (Scalar.store(&plan, 1, 8), Sequence::new(&plan, 0));
        let zeros = Tensor::from_rows(16, &[0.0; 16 * 5]);
        let values: Vec<f32> = (0..5).flat_map(|t| [t as f32; 16]).collect();
        sequence.append(5);
        let segment = Segment { rows: 0..5, sequence: &sequence };
        Scalar.append(&mut store, 0, &segment, &zeros, &Tensor::from_rows(16, &values));
        let mut out = zeros.clone();
        let mut attention = Attention { layer: 0, heads: 1, scale: 1.0, softcap: None, sinks: None };
        Scalar.attention(&store, &attention, std::slice::from_ref(&segment), &mut zeros.clone(), &mut out);
        let firsts = |out: &Tensor| (0..5).map(|t| out.row(t)[0]).collect::<Vec<_>>();
        check_close("window of 3", &[0.0, 0.5, 1.0, 2.0, 3.0], &firsts(&out), 1e-6);
        // A sink of logit 0 is one more key of value 0.
        let sink = vec![0.0];
        attention.sinks = Some(&sink);
        Scalar.attention(&store, &attention, &[segment], &mut zeros.clone(), &mut out);
        check_close("with a sink", &[0.0, 1.0 / 3.0, 0.75, 1.5, 2.25], &firsts(&out), 1e-6);
    }
}
