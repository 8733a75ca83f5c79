//! The scalar backend: the specification of every op in plain loops, sums in `f64`.
//!
//! It is never optimised. Other backends are tested against it, op by op.

use crate::host::{SealJob, State, Store, Tensor, unseal_head};
use crate::*;
use torque_kv::{Freed, Moved, PageId, Plan, Section, Sequence, Side, Span};
use torque_quant::{FormatOps, rotate};

/// The scalar backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn activate(activation: Activation, gate: f32, up: f32) -> f32 {
    let (g, u) = (f64::from(gate), f64::from(up));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let y = match activation {
        Activation::Sigmoid => sigmoid(g) * u,
        Activation::Silu => g * sigmoid(g) * u,
        Activation::Gelu => {
            0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g)).tanh()) * u
        }
        Activation::ClampedSwiglu => {
            let (g, u) = (g.clamp(f64::NEG_INFINITY, 7.0), u.clamp(-7.0, 7.0));
            g * sigmoid(1.702 * g) * (u + 1.0)
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

/// `w·x + b` of expert e.
fn biased_product(w: &[MatrixData], bias: &Option<Vec<f32>>, e: usize, x: &[f32]) -> Vec<f32> {
    let mut y = product(&w[e], x);
    if let Some(bias) = bias {
        let width = y.len();
        y.iter_mut().zip(&bias[e * width..][..width]).for_each(|(y, b)| *y += b);
    }
    y
}

/// The chosen experts of a token and their weights, the best first. Every backend's choice is this one.
pub fn route(logits: &[f32], routing: &Routing) -> Vec<(usize, f32)> {
    let scores = match routing.gating {
        Gating::Softmax => softmax(logits),
        Gating::Sigmoid => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        Gating::SoftmaxOfChosen => logits.to_vec(),
    };
    let mut biased = scores.clone();
    if let Some(bias) = routing.selection_bias {
        biased.iter_mut().zip(bias).for_each(|(score, b)| *score += b);
    }
    if let Some((count, used)) = routing.groups {
        let size = logits.len() / count;
        let best_two = |group: &[f32]| largest(group, 2).into_iter().map(|e| group[e]).sum();
        let sums: Vec<f32> = biased.chunks_exact(size).map(best_two).collect();
        for group in &largest(&sums, count)[used..] {
            biased[group * size..][..size].fill(f32::NEG_INFINITY);
        }
    }
    let chosen = largest(&biased, routing.used);
    let mut weights: Vec<f32> = chosen.iter().map(|&e| scores[e]).collect();
    if routing.gating == Gating::SoftmaxOfChosen {
        weights = softmax(&weights);
    }
    if routing.normalize {
        // Sigmoids may all be zero.
        let sum = weights.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let factor = |e: usize| routing.factors.map_or(1.0, |factors| factors[e]);
    chosen.into_iter().zip(weights).map(|(e, weight)| (e, weight * routing.scale * factor(e))).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
    let total: f32 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// Indices of the n largest values, in order; of equal ones the lower index first.
fn largest(values: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // NaN has a place too. Zero is added because −0 would be less than 0.
    order.sort_by(|&a, &b| (values[b] + 0.0).total_cmp(&(values[a] + 0.0)));
    order.truncate(n);
    order
}

/// All keys or values of one head that a sequence holds for a layer, as numbers: (their positions, `[tokens, head_dim]`),
/// rotated if the side is. Values that lie in the keys come as whole keys.
fn gather(
    store: &Store,
    layer: usize,
    side: Side,
    head: usize,
    sequence: &Sequence,
) -> (Vec<usize>, Vec<f32>) {
    let plan = &store.plan.layers[layer];
    let side_plan = plan.side(side);
    let (mut positions, mut values) = (Vec::new(), Vec::new());
    for span in sequence.spans(plan.window_class) {
        let part = store.part(*span, layer, side);
        let mut page = vec![0.0; store.plan.page * side_plan.head_dim];
        unseal_head(side_plan, part.head(side_plan, head), 1.0, &mut page);
        values.extend_from_slice(&page[..span.len * side_plan.head_dim]);
        positions.extend(span.start..span.start + span.len);
    }
    let mut tail = vec![0.0; sequence.tail_len() * side_plan.head_dim];
    let rows = store.tail(sequence.slot, layer, side).rows(head, 0, sequence.tail_len());
    side_plan.exact.decode_row(rows, &mut tail);
    values.extend(tail);
    positions.extend(sequence.tail_start()..sequence.len());
    (positions, values)
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

    fn linear(&self, x: &Tensor, products: &mut [(&MatrixData, &mut Tensor)]) {
        let mut row = Vec::new();
        for (w, out) in products {
            for o in 0..w.rows {
                decode_row(w, o, &mut row);
                for t in 0..x.rows() {
                    out.row_mut(t)[o] = dot(&row, x.row(t));
                }
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

    fn layer_norm_inplace(&self, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32, x: &mut Tensor) {
        for row in x.data_mut().chunks_exact_mut(weight.len()) {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (variance + f64::from(eps)).sqrt();
            for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *x = ((f64::from(*x) - mean) * factor) as f32 * w + b;
            }
        }
    }

    fn activate(&self, activation: Activation, x: &mut Tensor) {
        x.data_mut().iter_mut().for_each(|x| *x = activate(activation, *x, 1.0));
    }

    fn gate_rows(&self, gate: &Tensor, x: &mut Tensor) {
        let factors: Vec<f32> = gate.data().iter().map(|g| activate(Activation::Sigmoid, *g, 1.0)).collect();
        self.scale_rows(&factors, x);
    }

    fn copy_columns(&self, [runs, width]: [usize; 2], x: &Tensor, from: Runs, out: &mut Tensor, to: Runs) {
        for t in 0..x.rows() {
            for g in 0..runs {
                out.row_mut(t)[to.columns(g, width)].copy_from_slice(&x.row(t)[from.columns(g, width)]);
            }
        }
    }

    fn linear_runs(&self, w: &[MatrixData], x: &Tensor, from: Runs, out: &mut Tensor, to: Runs) {
        for (g, w) in w.iter().enumerate() {
            for t in 0..x.rows() {
                let y = product(w, &x.row(t)[from.columns(g, w.columns)]);
                out.row_mut(t)[to.columns(g, w.rows)].copy_from_slice(&y);
            }
        }
    }

    fn glu(&self, activation: Activation, up: &Tensor, gate: &mut Tensor) {
        gate.data_mut().iter_mut().zip(up.data()).for_each(|(g, u)| *g = activate(activation, *g, *u));
    }

    fn rope(&self, angles: &Angles, head_dim: usize, x: &mut Tensor) {
        for t in 0..x.rows() {
            x.row_mut(t).chunks_exact_mut(head_dim).for_each(|head| angles.turn(t, head));
        }
    }

    fn take_rows(&self, x: &Tensor, rows: &[usize], out: &mut Tensor) {
        rows.iter().enumerate().for_each(|(i, &row)| out.row_mut(i).copy_from_slice(x.row(row)));
    }

    fn experts(
        &self,
        experts: &Experts<MatrixData, Vec<f32>>,
        routing: &Routing,
        router: &Tensor,
        x: &Tensor,
        out: &mut Tensor,
    ) {
        for t in 0..x.rows() {
            let sum = out.row_mut(t);
            sum.fill(0.0);
            for (e, weight) in route(router.row(t), routing) {
                let mut inner = biased_product(&experts.gate, &experts.gate_bias, e, x.row(t));
                let up = biased_product(&experts.up, &experts.up_bias, e, x.row(t));
                inner.iter_mut().zip(up).for_each(|(g, u)| *g = activate(experts.activation, *g, u));
                let y = biased_product(&experts.down, &experts.down_bias, e, &inner);
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
        store: &mut Store,
        attention: &Attention<Vec<f32>>,
        segments: &[Segment],
        q: &mut Tensor,
        out: &mut Tensor,
    ) {
        let plan = &store.plan.layers[attention.layer];
        let guided = store.plan.guides(plan);
        let mut masses = Vec::new();
        let [k_side, v_side] = Side::BOTH.map(|side| plan.side(side));
        let v_dim = plan.shape.head_dim[1];
        let group = attention.heads / plan.shape.heads;
        let rotation = |side: &torque_kv::SidePlan| {
            side.rotated.then(|| rotate::Head::new(side.head_dim).expect("checked by Plan::new"))
        };
        let (q_rotation, v_rotation) = (rotation(k_side), rotation(v_side));
        for segment in segments {
            for kv_head in 0..plan.shape.heads {
                let (positions, keys) = gather(store, attention.layer, Side::K, kv_head, segment.sequence);
                let (_, values) = gather(store, attention.layer, Side::V, kv_head, segment.sequence);
                for (i, row) in segment.rows.clone().enumerate() {
                    let position = segment.position() + i;
                    let oldest = plan.shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
                    for head in kv_head * group..(kv_head + 1) * group {
                        let q = &mut q.row_mut(row)[head * k_side.head_dim..][..k_side.head_dim];
                        if let Some(rotation) = &q_rotation {
                            rotation.forward(q);
                        }
                        let visible = positions.partition_point(|p| *p < oldest)
                            ..positions.partition_point(|p| *p <= position);
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
                        if guided && row + 1 == segment.rows.end {
                            for span in segment.sequence.spans(plan.window_class) {
                                let first = positions.partition_point(|p| *p < span.start);
                                let mass: f64 = weights[first..first + span.len].iter().sum();
                                masses.push((span.page, (mass / total) as f32));
                            }
                        }
                        let mut value = vec![0.0; v_side.head_dim];
                        for (channel, out) in value.iter_mut().enumerate() {
                            let column = values[visible.start * v_side.head_dim..].iter().skip(channel);
                            let column = column.step_by(v_side.head_dim);
                            let sum: f64 = weights.iter().zip(column).map(|(w, v)| w * f64::from(*v)).sum();
                            *out = (sum / total) as f32;
                        }
                        if let Some(rotation) = &v_rotation {
                            rotation.inverse(&mut value);
                        }
                        // All of it, or the channels of the key that are the value.
                        out.row_mut(row)[head * v_dim..][..v_dim].copy_from_slice(&value[..v_dim]);
                    }
                }
            }
        }
        masses.into_iter().for_each(|(page, mass)| store.add_mass(page, mass));
    }
    fn take_mass(&self, store: &mut Store) -> Vec<f32> {
        store.take_mass()
    }

    fn delta_net(
        &self,
        store: &mut Store,
        net: &DeltaNet<Vec<f32>>,
        segments: &[Segment],
        qkv: &Tensor,
        alpha: &Tensor,
        beta: &Tensor,
        out: &mut Tensor,
    ) {
        let (channels, key_dim, value_dim) = (net.channels(), net.key_dim, net.value_dim);
        let kernel = net.conv.len() / channels;
        for segment in segments {
            store.recur(net.layer, segment, qkv, |state, rows| {
                let inputs = State::inputs(&state.conv, qkv, &rows);
                for (t, row) in rows.clone().enumerate() {
                    let convolved = |channel: usize| {
                        let taps = net.conv.iter().skip(channel).step_by(channels);
                        let terms = taps.zip(&inputs[t..t + kernel]);
                        let sum: f64 = terms.map(|(w, u)| f64::from(*w) * f64::from(u[channel])).sum();
                        sum / (1.0 + (-sum).exp())
                    };
                    let c: Vec<f64> = (0..channels).map(convolved).collect();
                    let (keys, values) = (net.key_heads * key_dim, 2 * net.key_heads * key_dim);
                    let normalised = |first: usize, scale: f64| -> Vec<f64> {
                        let head = &c[first..first + key_dim];
                        let squares: f64 = head.iter().map(|x| x * x).sum();
                        let factor = scale / (squares + f64::from(net.eps)).sqrt();
                        head.iter().map(|x| x * factor).collect()
                    };
                    for (head, s) in state.matrix.chunks_exact_mut(key_dim * value_dim).enumerate() {
                        let key_head = net.key_head(head);
                        let q = normalised(key_head * key_dim, 1.0 / (key_dim as f64).sqrt());
                        let k = normalised(keys + key_head * key_dim, 1.0);
                        let v = &c[values + head * value_dim..][..value_dim];
                        let step = f64::from(alpha.row(row)[head]) + f64::from(net.dt_bias[head]);
                        let softplus = step.max(0.0) + (-step.abs()).exp().ln_1p();
                        let a = (f64::from(net.decay[head]) * softplus).exp();
                        let b = 1.0 / (1.0 + (-f64::from(beta.row(row)[head])).exp());
                        let out = &mut out.row_mut(row)[head * value_dim..][..value_dim];
                        for (column, out) in out.iter_mut().enumerate() {
                            let at = |i: usize| i * value_dim + column;
                            let known: f64 = (0..key_dim).map(|i| k[i] * a * f64::from(s[at(i)])).sum();
                            let delta = b * (v[column] - known);
                            let mut o = 0.0;
                            for i in 0..key_dim {
                                let new = a * f64::from(s[at(i)]) + k[i] * delta;
                                o += q[i] * new;
                                s[at(i)] = new as f32;
                            }
                            *out = o as f32;
                        }
                    }
                }
            });
        }
    }

    fn rewind(&self, store: &mut Store, sequence: &Sequence) {
        store.rewind(sequence);
    }
    fn keep_state(&self, store: &mut Store, sequence: &Sequence, span: Span) {
        store.keep_state(sequence, span);
    }
    fn take_state(&self, store: &mut Store, sequence: &Sequence, page: PageId) {
        store.take_state(sequence, page);
    }
    fn drop_states(&self, store: &mut Store, pages: &[PageId]) {
        store.drop_states(pages);
    }
    fn seal(&self, store: &mut Store, sequence: &Sequence, span: Span) {
        store.seal(sequence, span, |jobs| jobs.iter_mut().for_each(|job| job.run(FormatOps::encode_blocks)));
    }
    fn reseal(&self, store: &mut Store, page: PageId, tier: usize) {
        store.reseal(page, tier, |jobs| jobs.iter_mut().for_each(|job| job.run(FormatOps::encode_blocks)));
    }
    fn turn(&self, store: &mut Store, moved: &[Moved], angles: &[Option<Angles>]) {
        let encode = |jobs: &mut [SealJob]| jobs.iter_mut().for_each(|job| job.run(FormatOps::encode_blocks));
        store.turn(moved, angles, encode);
    }
    fn free(&self, store: &mut Store, freed: &[Freed]) {
        store.free(freed);
    }
    fn copy_tail(&self, store: &mut Store, from: &Sequence, to_slot: usize) {
        store.copy_tail(from, to_slot);
    }
    fn export(&self, store: &Store, sequence: &Sequence, section: Section, out: &mut [u8]) {
        store.export(sequence, section, out);
    }
    fn import(&self, store: &mut Store, sequence: &Sequence, section: Section, bytes: &[u8]) {
        store.import(sequence, section, bytes);
    }
    fn store_bytes(&self, store: &Store) -> (usize, usize) {
        store.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::{AttentionCase, HEAD_SIZES, Random, check_close, relative_error};
    use torque_kv::{KvLayer, Pages, Policy};

    #[track_caller]
    fn check_route(logits: &[f32], routing: &Routing, expected: &[(usize, f32)]) {
        let (experts, weights): (Vec<usize>, Vec<f32>) = route(logits, routing).into_iter().unzip();
        let (expected_experts, expected): (Vec<_>, Vec<_>) = expected.iter().copied().unzip();
        assert_eq!(experts, expected_experts, "{weights:?}");
        check_close("weights", &expected, &weights, 1e-6);
    }

    #[test]
    fn routing_is_the_formula() {
        // Probabilities 0.1, 0.2, 0.3, 0.4 and, as sigmoids of their own, 1/11, 1/6, 3/13, 2/7.
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        let top = Routing::top(2);
        check_route(&logits, &top, &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)]);
        check_route(&logits, &Routing { normalize: false, scale: 2.0, ..top }, &[(3, 0.8), (2, 0.6)]);
        check_route(&logits, &Routing { used: 4, ..top }, &[(3, 0.4), (2, 0.3), (1, 0.2), (0, 0.1)]);
        let sigmoid = Routing { gating: Gating::Sigmoid, normalize: false, ..top };
        check_route(&[-1.0, 0.0, 1.0], &sigmoid, &[(2, 0.731_058_6), (1, 0.5)]);
        check_route(
            &[0.0, 3.0, 0.0],
            &Routing { normalize: true, ..sigmoid },
            &[(1, 0.655_783_5), (0, 0.344_216_5)],
        );
        let of_chosen = Routing { gating: Gating::SoftmaxOfChosen, normalize: false, ..top };
        check_route(&logits, &of_chosen, &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)]);
        // A bias chooses and does not weigh; factors weigh and do not choose.
        let bias = Routing { selection_bias: Some(&[0.5, 0.0, 0.0, 0.0]), normalize: false, ..top };
        check_route(&logits, &bias, &[(0, 0.1), (3, 0.4)]);
        let factors = Routing { factors: Some(&[1.0, 1.0, 10.0, 0.5]), normalize: false, ..top };
        check_route(&logits, &factors, &[(3, 0.2), (2, 3.0)]);
        check_route(&[f32::NEG_INFINITY; 3], &Routing { used: 1, normalize: true, ..sigmoid }, &[(0, 0.0)]);
    }

    #[test]
    fn groups_go_by_their_best_two() {
        // The best expert is in a group whose second is poor.
        let logits = [3.0, -9.0, -9.0, 2.0, 2.0, -9.0, 1.0, 1.5, 1.0];
        let routing = Routing {
            groups: Some((3, 1)),
            gating: Gating::SoftmaxOfChosen,
            normalize: false,
            ..Routing::top(2)
        };
        check_route(&logits, &routing, &[(3, 0.5), (4, 0.5)]);
        let two = Routing { groups: Some((3, 2)), used: 3, gating: Gating::Sigmoid, ..routing };
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        check_route(&logits, &two, &[(3, sigmoid(2.0)), (4, sigmoid(2.0)), (7, sigmoid(1.5))]);
        // Each a group of its own.
        let alone = Routing { groups: Some((9, 1)), used: 1, ..two };
        check_route(&logits, &alone, &[(0, sigmoid(3.0))]);
    }

    #[test]
    fn equals_go_by_index_and_nothing_panics() {
        let of_chosen = Routing { gating: Gating::SoftmaxOfChosen, ..Routing::top(2) };
        check_route(&[-0.0, 0.0, -0.0, -1.0], &of_chosen, &[(0, 0.5), (1, 0.5)]);
        check_route(&[7.0; 5], &Routing::top(3), &[(0, 1.0 / 3.0), (1, 1.0 / 3.0), (2, 1.0 / 3.0)]);
        let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1.0];
        for gating in [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxOfChosen] {
            let routing = Routing { gating, groups: Some((3, 2)), ..Routing::top(4) };
            assert_eq!(route(&odd, &routing).len(), 4);
            assert_eq!(route(&[f32::NAN; 6], &routing).len(), 4);
        }
    }

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
    fn recurrent_states_go_back() {
        crate::suite::check_snapshots(&Scalar);
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
    fn values_in_keys_are_their_first_channels() {
        // Where nothing is rounded, they are values that repeat those channels.
        let latent = KvLayer { heads: 2, head_dim: [48, 32], values_in_keys: true, window: None };
        let outputs = [latent, KvLayer { values_in_keys: false, ..latent }].map(|layer| {
            let plan =
                Plan::new(&Policy { page: 16, ..Policy::uniform("f32", "f32").bare() }, &[layer]).unwrap();
            let (mut store, mut sequence) = (Scalar.store(&plan, 1, 40), Sequence::new(&plan, 0));
            let (mut pages, mut random, mut outputs) = (Pages::default(), Random(5), Vec::new());
            for rows in [40, 3] {
                let k = random.gausses(rows * 2 * 48);
                let v: Vec<f32> = k.chunks_exact(48).flat_map(|key| &key[..32]).copied().collect();
                let mut q = Tensor::from_rows(4 * 48, &random.gausses(rows * 4 * 48));
                let mut out = Tensor::from_rows(4 * 32, &vec![0.0; rows * 4 * 32]);
                sequence.append(rows);
                let segment = Segment { rows: 0..rows, sequence: &sequence };
                let (k, v) = (Tensor::from_rows(2 * 48, &k), Tensor::from_rows(2 * 32, &v));
                Scalar.append(&mut store, 0, &segment, &k, &v);
                let attention = Attention { layer: 0, heads: 4, scale: 0.2, softcap: None, sinks: None };
                Scalar.attention(&mut store, &attention, &[segment], &mut q, &mut out);
                outputs.extend_from_slice(out.data());
                while let Some(span) = sequence.seal(&plan, &mut pages) {
                    Scalar.seal(&mut store, &sequence, span);
                }
            }
            (outputs, Scalar.store_bytes(&store))
        });
        let [(found, (sealed, tail)), (expected, bytes)] = outputs;
        assert_eq!(found, expected);
        assert_eq!((sealed * (48 + 32), tail * (48 + 32)), (bytes.0 * 48, bytes.1 * 48));
    }

    #[test]
    fn windows_and_sinks_are_the_formula() {
        // One head, keys and values chosen so that weights are known: all scores equal.
        let plan = Plan::new(
            &Policy::uniform("f32", "f32").bare(),
            &[KvLayer { heads: 1, head_dim: [16, 16], values_in_keys: false, window: Some(3) }],
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
        Scalar.attention(
            &mut store,
            &attention,
            std::slice::from_ref(&segment),
            &mut zeros.clone(),
            &mut out,
        );
        let firsts = |out: &Tensor| (0..5).map(|t| out.row(t)[0]).collect::<Vec<_>>();
        check_close("window of 3", &[0.0, 0.5, 1.0, 2.0, 3.0], &firsts(&out), 1e-6);
        // A sink of logit 0 is one more key of value 0.
        let sink = vec![0.0];
        attention.sinks = Some(&sink);
        Scalar.attention(&mut store, &attention, &[segment], &mut zeros.clone(), &mut out);
        check_close("with a sink", &[0.0, 1.0 / 3.0, 0.75, 1.5, 2.25], &firsts(&out), 1e-6);
    }
}
