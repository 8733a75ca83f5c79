//! What every backend must pass: each op against [`Scalar`], over the lists of formats and shapes.
//!
//! A backend's tests call these functions; a new format or op is tested before anyone remembers to.

use crate::*;
use torque_kv::{Age, KvLayer, LayerPlan, Pages, Policy, StateShape, Tier};
use torque_quant::{FORMATS, FormatOps};

/// Pseudo-random numbers that are the same everywhere (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A sum of uniform numbers: nearly Gaussian, standard deviation 1.
    pub fn gauss(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32).sum();
        sum - 6.0
    }

    /// That many of them.
    pub fn gausses(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.gauss()).collect()
    }
}

/// One attention layer fed with the same tokens on any backend.
#[derive(Clone, Debug)]
pub struct AttentionCase {
    /// What pages are sealed in; short pages, so that few tokens seal.
    pub policy: Policy,
    /// K and V head size.
    pub head_dim: [usize; 2],
    /// Whether values are the first channels of the keys.
    pub values_in_keys: bool,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Sliding window.
    pub window: Option<usize>,
    /// Soft cap of scores.
    pub softcap: Option<f32>,
    /// A learned sink logit for each head.
    pub sinks: bool,
    /// What multiplies queries: the larger, the fewer keys have most of the weight.
    pub sharpness: f32,
    /// Tokens arriving at once, in turn.
    pub chunks: Vec<usize>,
}

impl AttentionCase {
    /// Heads of one size, pages of 16 tokens, no tail.
    pub fn new(k: &str, v: &str, head_dim: usize) -> AttentionCase {
        AttentionCase {
            policy: Policy { page: 16, ..Policy::uniform(k, v).bare() },
            head_dim: [head_dim; 2],
            values_in_keys: false,
            kv_heads: 2,
            group: 2,
            window: None,
            softcap: None,
            sinks: false,
            sharpness: 1.0,
            // Prefill, a single token, a chunk that straddles pages, then decode.
            chunks: [40, 1, 47].into_iter().chain([1; 8]).collect(),
        }
    }

    /// Heads whose values are the first channels of the keys.
    pub fn latent(format: &str, head_dim: [usize; 2]) -> AttentionCase {
        // The format named for values does not count.
        AttentionCase { head_dim, values_in_keys: true, ..AttentionCase::new(format, "f32", 0) }
    }

    /// The outputs of every token, `[tokens, heads·head_dim]`, and after those of each chunk the masses of pages, if these are
    /// wanted. Keys carry a large constant, as those of models with biases do. What the store holds is what the plan says.
    pub fn run<B: Backend>(&self, backend: &B) -> Vec<f32> {
        let layer = KvLayer {
            heads: self.kv_heads,
            head_dim: self.head_dim,
            values_in_keys: self.values_in_keys,
            window: self.window,
        };
        let plan = Plan::new(&self.policy, &[layer]).expect("a valid case");
        let batch = self.chunks.iter().copied().max().unwrap_or(1);
        let (mut store, mut pages) = (backend.store(&plan, 1, batch), Pages::default());
        let mut sequence = Sequence::new(&plan, 0);
        let mut random = Random(7);
        let heads = self.kv_heads * self.group;
        let [k_dim, v_dim] = self.head_dim;
        let bias: Vec<f32> = random.gausses(self.kv_heads * k_dim).iter().map(|b| 3.0 * b).collect();
        let sinks = backend.vector(&random.gausses(heads));
        let attention = Attention {
            layer: 0,
            heads,
            scale: self.sharpness / (k_dim as f32).sqrt(),
            softcap: self.softcap,
            sinks: self.sinks.then_some(&sinks),
        };
        let mut outputs = Vec::new();
        for &tokens in &self.chunks {
            let mut k = random.gausses(tokens * self.kv_heads * k_dim);
            k.chunks_exact_mut(bias.len())
                .for_each(|row| row.iter_mut().zip(&bias).for_each(|(k, b)| *k += b));
            let k = from_host(backend, tokens, &k);
            let mut v = random.gausses(tokens * self.kv_heads * v_dim);
            if self.values_in_keys {
                v.fill(f32::NAN);
            }
            let v = from_host(backend, tokens, &v);
            let mut q = from_host(backend, tokens, &random.gausses(tokens * heads * k_dim));
            let mut out = from_host(backend, tokens, &vec![f32::NAN; tokens * heads * v_dim]);
            sequence.append(tokens);
            let segment = Segment { rows: 0..tokens, sequence: &sequence };
            backend.append(&mut store, 0, &segment, &k, &v);
            backend.attention(&mut store, &attention, &[segment], &mut q, &mut out);
            outputs.extend(to_host(backend, &out, tokens * heads * v_dim));
            let masses = backend.take_mass(&mut store);
            assert_eq!(masses.is_empty(), !plan.guided || sequence.spans(0).is_empty(), "{self:?}");
            outputs.extend(&masses);
            pages.attend(&plan, &[(&sequence, tokens)], &masses);
            while let Some(span) = sequence.seal(&plan, &mut pages) {
                backend.seal(&mut store, &sequence, span);
            }
            let mut freed = Vec::new();
            sequence.expire(&plan, &mut pages, &mut freed);
            backend.free(&mut store, &freed);
            for (page, tier) in pages.grow_old(&plan, std::slice::from_ref(&sequence)) {
                backend.reseal(&mut store, page, tier);
            }
            let spans = sequence.spans(0).iter();
            let sealed = spans.map(|span| plan.page_bytes(pages.age(span.page), 0)).sum();
            assert_eq!(backend.store_bytes(&store), (sealed, plan.tail_bytes(batch)), "{self:?}");
        }
        outputs
    }
}

/// One gated DeltaNet layer fed with the same tokens on any backend.
#[derive(Clone, Debug)]
pub struct DeltaCase {
    /// Heads of q and k, heads of v.
    pub heads: [usize; 2],
    /// Size of a q or k head, of a v head.
    pub dims: [usize; 2],
    /// Whether key heads repeat after one another, or each several times.
    pub tiled: bool,
    /// Taps of the convolution.
    pub kernel: usize,
    /// For each pass, the tokens of each sequence.
    pub passes: Vec<Vec<usize>>,
    /// Tokens in a page: snapshots are taken at its multiples.
    pub page: usize,
}

impl DeltaCase {
    /// One sequence.
    pub fn new(heads: [usize; 2], dims: [usize; 2], tokens: &[usize]) -> DeltaCase {
        let passes = tokens.iter().map(|&tokens| vec![tokens]).collect();
        DeltaCase { heads, dims, tiled: true, kernel: 4, passes, page: 128 }
    }

    /// The sequences of a backend, nothing done yet.
    pub fn start<'a, B: Backend>(&'a self, backend: &'a B) -> DeltaRun<'a, B> {
        let ([key_heads, value_heads], [key_dim, value_dim]) = (self.heads, self.dims);
        let channels = 2 * key_heads * key_dim + value_heads * value_dim;
        let state =
            StateShape { conv: [self.kernel - 1, channels], matrix: [value_heads, key_dim, value_dim] };
        let policy = Policy { page: self.page, ..Policy::default() };
        let plan = Plan::new(&policy, &[]).and_then(|plan| plan.with_states(vec![state; 2]));
        let plan = plan.expect("a valid case");
        let sequences = self.passes.iter().map(Vec::len).max().unwrap_or(0);
        let mut random = Random(11);
        // From heads that never forget to heads that forget all but the last token.
        let decay: Vec<f32> = (0..value_heads).map(|j| [-1e-4, -0.05, -1.0, -30.0][j % 4]).collect();
        DeltaRun {
            case: self,
            backend,
            channels,
            vectors: [random.gausses(self.kernel * channels), decay, random.gausses(value_heads)]
                .map(|values| backend.vector(&values)),
            store: backend.store(
                &plan,
                sequences,
                self.passes.iter().map(|p| p.iter().sum()).max().unwrap_or(0),
            ),
            sequences: (0..sequences).map(|slot| Sequence::new(&plan, slot)).collect(),
            texts: (0..sequences).collect(),
            plan,
        }
    }

    /// The outputs of every sequence, `[tokens, value_heads·value_dim]`.
    pub fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut run = self.start(backend);
        let mut outputs = vec![Vec::new(); run.sequences.len()];
        for pass in &self.passes {
            for (all, new) in outputs.iter_mut().zip(run.pass(pass)) {
                all.extend(new);
            }
        }
        outputs
    }
}

/// A [`DeltaCase`] under way.
pub struct DeltaRun<'a, B: Backend> {
    case: &'a DeltaCase,
    backend: &'a B,
    channels: usize,
    /// Convolution, decay, bias of the step.
    vectors: [B::Vector; 3],
    /// The states.
    pub store: B::Store,
    /// Their sequences.
    pub sequences: Vec<Sequence>,
    /// Which text each of them has.
    texts: Vec<usize>,
    /// The plan of both.
    pub plan: Plan,
}

impl<B: Backend> DeltaRun<'_, B> {
    /// Runs the next `tokens[i]` tokens of each sequence i; returns the outputs of each. What a token is depends
    /// on its text and position alone.
    pub fn pass(&mut self, tokens: &[usize]) -> Vec<Vec<f32>> {
        let ([key_heads, value_heads], [key_dim, value_dim]) = (self.case.heads, self.case.dims);
        let [mut qkv, mut alpha, mut beta] = [const { Vec::new() }; 3];
        for (i, (sequence, &tokens)) in self.sequences.iter_mut().zip(tokens).enumerate() {
            for position in sequence.len()..sequence.len() + tokens {
                let mut random = Random((1000 * self.texts[i] + position) as u64 * 7919);
                qkv.extend(random.gausses(self.channels));
                alpha.extend(random.gausses(value_heads));
                beta.extend(random.gausses(value_heads));
            }
            sequence.append(tokens);
        }
        let mut rows = 0;
        let mut segments = Vec::new();
        for (sequence, &tokens) in self.sequences.iter().zip(tokens).filter(|(_, tokens)| **tokens > 0) {
            segments.push(Segment { rows: rows..rows + tokens, sequence });
            rows += tokens;
        }
        let [qkv, alpha, beta] = [qkv, alpha, beta].map(|x| from_host(self.backend, rows, &x));
        let width = value_heads * value_dim;
        let mut out = from_host(self.backend, rows, &vec![f32::NAN; rows * width]);
        let [conv, decay, dt_bias] = &self.vectors;
        let tiled = self.case.tiled;
        // A layer before the one that is asked for: states of different layers must not be mixed up.
        for (layer, alpha, beta) in [(0, &beta, &alpha), (1, &alpha, &beta)] {
            let net = DeltaNet {
                layer,
                key_heads,
                value_heads,
                key_dim,
                value_dim,
                tiled,
                conv,
                decay,
                dt_bias,
                eps: 1e-6,
            };
            self.backend.delta_net(&mut self.store, &net, &segments, &qkv, alpha, beta, &mut out);
        }
        let mut out = &to_host(self.backend, &out, rows * width)[..];
        let mut take = |tokens: &usize| out.split_off(..tokens * width).expect("rows of this pass").to_vec();
        tokens.iter().map(&mut take).collect()
    }

    /// Makes sequence `to`, which must be empty, a copy of `from`.
    pub fn fork(&mut self, from: usize, to: usize) {
        self.texts[to] = self.texts[from];
        let [from, to] = self.sequences.get_disjoint_mut([from, to]).expect("two sequences of this run");
        to.fork_from(from, &mut Pages::default());
        self.backend.copy_tail(&mut self.store, from, to.slot);
    }

    /// Takes a sequence back to `to`, or to the snapshot before it. Returns its new length.
    pub fn truncate(&mut self, sequence: usize, to: usize) -> usize {
        let sequence = &mut self.sequences[sequence];
        let before = sequence.len();
        let len = sequence.truncate(to, &self.plan, &mut Pages::default(), &mut Vec::new());
        let len = len.expect("no windows");
        if len < before {
            self.backend.rewind(&mut self.store, sequence);
        }
        len
    }
}

/// Snapshots of a recurrent state: going back to a new one is exact, to an old one costs what 8 bits cost; a
/// copy goes its own way; bytes are those of the plan.
pub fn check_snapshots<B: Backend>(backend: &B) {
    let case = DeltaCase { page: 16, passes: vec![vec![1, 0]], ..DeltaCase::new([2, 4], [64, 64], &[]) };
    let mut run = case.start(backend);
    let state_bytes = 2 * run.plan.state_bytes();
    let mut straight: Vec<Vec<f32>> = Vec::new();
    for len in 1..=200 {
        straight.push(run.pass(&[1, 0]).swap_remove(0));
        let snapshots = run.plan.snapshot_bytes((len / 16).min(run.plan.snapshots));
        assert_eq!(backend.store_bytes(&run.store), (snapshots, state_bytes), "{len} tokens");
    }
    // The outputs of some tokens after a way back, against those of going straight on.
    let error = |run: &mut DeltaRun<B>, sequence: usize, from: usize| {
        let mut tokens = [0, 0];
        tokens[sequence] = 1;
        let found: Vec<f32> = (from..200).flat_map(|_| run.pass(&tokens).swap_remove(sequence)).collect();
        relative_error(&straight[from..].concat(), &found)
    };
    assert_eq!(run.truncate(0, 200), 200);
    for (to, expected) in [(199, 192), (192, 192), (191, 176), (180, 176)] {
        let left = run.truncate(0, to);
        assert_eq!(left, expected, "back to {to}");
        assert_eq!(error(&mut run, 0, left), 0.0, "back to {to}");
    }
    // A copy that shares the snapshots: it costs a state alone, until its own are newer.
    let shared = backend.store_bytes(&run.store);
    run.fork(0, 1);
    assert_eq!(backend.store_bytes(&run.store), shared);
    assert_eq!(run.truncate(1, 185), 176);
    assert_eq!(error(&mut run, 1, 176), 0.0, "a copy");
    let oldest = run.sequences[0].snapshots().positions()[0];
    for to in [170, 100, oldest] {
        let left = run.truncate(0, to);
        assert!(0 < left && left <= to, "back to {to}: {left}");
        let error = error(&mut run, 0, left);
        println!("back to {to}, {left}: {error:.1e}");
        assert!(error > 0.0 && error < 5e-3, "back to {to}, {left}: {error}");
    }
    assert_eq!(run.truncate(0, oldest - 1), 0);
    assert_eq!(error(&mut run, 0, 0), 0.0, "from the start");
    assert_eq!((run.truncate(0, 0), run.truncate(1, 0)), (0, 0));
    assert_eq!(backend.store_bytes(&run.store), (0, state_bytes));
}

/// Gated DeltaNet in many shapes and divisions into passes: `backends` against the scalar backend within
/// `tolerance` of a head's largest output, and tokens in passes of any size against one pass.
pub fn check_delta_net<B: Backend>(backends: &[B], tolerance: f32) {
    let check = |case: &DeltaCase, expected: &[Vec<f32>], backend: &B| {
        for (i, (expected, found)) in expected.iter().zip(case.run(backend)).enumerate() {
            for head in 0..case.heads[1] {
                let of_head = |x: &[f32]| -> Vec<f32> {
                    let rows = x.chunks_exact(case.heads[1] * case.dims[1]);
                    rows.flat_map(|row| &row[head * case.dims[1]..][..case.dims[1]]).copied().collect()
                };
                let what = format!("sequence {i}, head {head} of {case:?} on {}", backend.device());
                check_close(&what, &of_head(expected), &of_head(&found), tolerance);
            }
        }
    };
    for (heads, dims, kernel) in
        [([2, 4], [64, 64], 4), ([1, 3], [32, 48], 4), ([4, 4], [16, 128], 2), ([2, 8], [128, 16], 1)]
    {
        for tiled in [false, true] {
            let mut case = DeltaCase { tiled, kernel, ..DeltaCase::new(heads, dims, &[300]) };
            let expected = case.run(&Scalar);
            let single = [&[1; 100][..], &[200]].concat();
            let odd = [63, 1, 1, 64, 2, 65, 4, 100];
            for sizes in [&[300][..], &single, &odd, &[3, 128, 120, 49], &[127, 2, 126, 45]] {
                case.passes = sizes.iter().map(|&tokens| vec![tokens]).collect();
                backends.iter().for_each(|backend| check(&case, &expected, backend));
            }
            let sizes = [[40, 0, 1], [1, 130, 2], [1, 1, 1], [0, 5, 70], [30, 1, 9]];
            case.passes = sizes.map(Vec::from).into();
            let expected = case.run(&Scalar);
            backends.iter().for_each(|backend| check(&case, &expected, backend));
        }
    }
}

/// A tensor of these rows.
pub fn from_host<B: Backend>(backend: &B, rows: usize, values: &[f32]) -> B::Tensor {
    let mut x = backend.tensor(values.len());
    backend.reshape(&mut x, rows, values.len() / rows);
    backend.write(values, &mut x);
    x
}

/// A tensor's values.
pub fn to_host<B: Backend>(backend: &B, x: &B::Tensor, values: usize) -> Vec<f32> {
    let mut out = vec![0.0; values];
    backend.read(x, &mut out);
    out
}

/// Head sizes every backend must have.
pub const HEAD_SIZES: [usize; 8] = [48, 64, 80, 96, 112, 128, 192, 256];

/// One cell of the matrix of K format, V format and head size.
pub struct Cell {
    /// K format.
    pub k: &'static str,
    /// V format.
    pub v: &'static str,
    /// Head size.
    pub head_dim: usize,
    /// Error of the attention output against exact arithmetic on unquantised K and V: root mean square,
    /// relative to the output's.
    pub error: f64,
}

/// What may differ, relative to the largest output, where K and V of these formats are read: `tolerance` is that of
/// float arithmetic, codes may be multiplied as whole numbers with queries and weights of sixteen bits, or of eight if the
/// format is [`torque_quant::Format::COARSE`], and levels may be rounded to bytes.
pub fn attention_tolerance(tolerance: f32, formats: [&str; 2]) -> f32 {
    let of = |name| torque_quant::by_name(name).expect("a known format");
    formats.iter().fold(tolerance, |sum, name| sum + side_tolerance(of(name)))
}

/// The part of one side in it.
fn side_tolerance(format: &FormatOps) -> f32 {
    if format.is_float() {
        return 0.0;
    }
    3.0 * format.code_error + if format.coarse { 0.01 } else { 5e-5 }
}

/// Every pair of KV formats, head size by head size, causal and windowed, with and without soft cap and
/// learned sinks, prefill and decode: `backend` against the scalar backend within [`attention_tolerance`] of the
/// largest output, and the causal case against unquantised K and V within what the two formats may
/// cost.
pub fn check_every_pair<B: Backend>(backend: &B, head_dims: &[usize], tolerance: f32) -> Vec<Cell> {
    let formats: Vec<&FormatOps> = FORMATS.iter().filter(|f| f.kv).collect();
    let mut cells = Vec::new();
    for &head_dim in head_dims {
        let exact = AttentionCase::new("f32", "f32", head_dim).run(&Scalar);
        for k in &formats {
            for v in &formats {
                let base = AttentionCase::new(k.name, v.name, head_dim);
                let found = base.run(backend);
                let allowed = attention_tolerance(tolerance, [k.name, v.name]);
                check_close(&format!("{base:?}"), &base.run(&Scalar), &found, allowed);
                for (window, softcap, sinks) in
                    [(Some(20), None, true), (None, Some(20.0), true), (Some(33), Some(5.0), false)]
                {
                    check_case(backend, &AttentionCase { window, softcap, sinks, ..base.clone() }, tolerance);
                }
                let (error, bound) = (relative_error(&exact, &found), error_bound(k) + error_bound(v));
                assert!(
                    error <= bound,
                    "{} / {} at head size {head_dim}: error {error} > {bound}",
                    k.name,
                    v.name
                );
                cells.push(Cell { k: k.name, v: v.name, head_dim, error });
            }
        }
    }
    cells
}

/// Head sizes of latent attention every backend must have, K and V.
pub const LATENT_HEAD_SIZES: [[usize; 2]; 4] = [[80, 64], [160, 128], [320, 256], [576, 512]];

/// As [`check_every_pair`], for values that lie in the keys: every KV format, head size by head size.
pub fn check_values_in_keys<B: Backend>(backend: &B, tolerance: f32) {
    for head_dim in LATENT_HEAD_SIZES {
        let exact = AttentionCase::latent("f32", head_dim).run(&Scalar);
        for format in FORMATS.iter().filter(|f| f.kv) {
            let base = AttentionCase::latent(format.name, head_dim);
            let found = base.run(backend);
            let allowed = attention_tolerance(tolerance, [format.name; 2]);
            check_close(&format!("{base:?}"), &base.run(&Scalar), &found, allowed);
            let (error, bound) = (relative_error(&exact, &found), error_bound(format));
            assert!(error <= bound, "{base:?}: error {error} > {bound}");
            // One KV head for very many heads, as models have it.
            let one = AttentionCase { kv_heads: 1, group: 20, ..base };
            check_case(backend, &AttentionCase { window: Some(20), sinks: true, ..one.clone() }, tolerance);
            check_case(backend, &AttentionCase { softcap: Some(20.0), group: 16, ..one }, tolerance);
        }
    }
}

/// Layers with values in their keys beside others, and sequences that share pages, are cut and go on: `backend`
/// against the scalar backend, and the scalar backend against sequences that were fed the same tokens alone. That
/// sequences were saved and restored in between changes nothing.
pub fn check_histories<B: Backend>(backend: &B, tolerance: f32) {
    for format in ["f32", "q8_0", "turbo3"] {
        let expected = history(&mut Cache::new(&Scalar, format), |_| {});
        let found = history(&mut Cache::new(backend, format), |_| {});
        let restored = history(&mut Cache::new(backend, format), |cache| cache.save_and_restore());
        assert!(found == restored, "{format}: restored sequences are others");
        let allowed = attention_tolerance(tolerance, [format; 2]);
        check_close(&format!("sequences in {format}"), &expected, &found, allowed);
    }
    let (cut, whole): (Vec<u64>, Vec<u64>) = ((0..50).chain(200..250).collect(), (0..120).collect());
    let mut fresh = Cache::new(&Scalar, "f32");
    fresh.feed(&[(0, &cut[..99]), (1, &whole[..119])]);
    let expected = fresh.feed(&[(0, &cut[99..]), (1, &whole[119..])]);
    let found = history(&mut Cache::new(&Scalar, "f32"), |_| {});
    check_close("sequences and their tokens alone", &expected, &found, 1e-6);
}

/// One sequence forks; it is cut inside a page and goes another way, its copy goes on. The outputs of the last
/// token of each. `between` is called twice on the way.
fn history<B: Backend>(cache: &mut Cache<B>, between: impl Fn(&mut Cache<B>)) -> Vec<f32> {
    let tokens = |range: Range<u64>| range.collect::<Vec<_>>();
    cache.feed(&[(0, &tokens(0..70))]);
    cache.fork();
    cache.truncate(50);
    between(cache);
    cache.feed(&[(0, &tokens(200..233)), (1, &tokens(70..90))]);
    between(cache);
    cache.feed(&[(1, &tokens(90..119)), (0, &tokens(233..249))]);
    cache.feed(&[(0, &[249]), (1, &[119])])
}

/// Two sequences of three layers, fed with numbers that depend on layer and token alone.
struct Cache<'a, B: Backend> {
    backend: &'a B,
    plan: Plan,
    store: B::Store,
    pages: Pages,
    sequences: [Sequence; 2],
}

impl<'a, B: Backend> Cache<'a, B> {
    const BATCH: usize = 256;

    fn new(backend: &'a B, format: &str) -> Self {
        let latent = KvLayer { heads: 1, head_dim: [80, 64], values_in_keys: true, window: None };
        let plain = KvLayer { heads: 2, head_dim: [48, 64], values_in_keys: false, window: None };
        let layers = [latent, plain, KvLayer { window: Some(60), ..latent }];
        let policy = Policy { page: 16, tail: 8, sink: 16, ..Policy::uniform(format, "q4_0") };
        let policy = if format == "f32" { Policy { v: "f32".into(), ..policy } } else { policy };
        let plan = Plan::new(&policy, &layers).expect("a valid policy");
        let sequences = [0, 1].map(|slot| Sequence::new(&plan, slot));
        Cache {
            backend,
            store: backend.store(&plan, 2, Self::BATCH),
            plan,
            pages: Pages::default(),
            sequences,
        }
    }

    fn feed(&mut self, batch: &[(usize, &[u64])]) -> Vec<f32> {
        let tokens: Vec<u64> = batch.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut end = 0;
        batch.iter().for_each(|(slot, tokens)| self.sequences[*slot].append(tokens.len()));
        let segments: Vec<Segment> = (batch.iter())
            .map(|(slot, tokens)| {
                end += tokens.len();
                Segment { rows: end - tokens.len()..end, sequence: &self.sequences[*slot] }
            })
            .collect();
        let mut outputs = Vec::new();
        for (layer, LayerPlan { shape, .. }) in self.plan.layers.iter().enumerate() {
            let ([k_dim, v_dim], heads) = (shape.head_dim, 4);
            let numbers = |width: usize, salt: u64| {
                let row = |token: &u64| Random(token * 1000 + layer as u64 * 10 + salt).gausses(width);
                from_host(self.backend, tokens.len(), &tokens.iter().flat_map(row).collect::<Vec<_>>())
            };
            let (k, v) = (numbers(shape.heads * k_dim, 0), numbers(shape.heads * v_dim, 1));
            let (mut q, mut out) = (numbers(heads * k_dim, 2), numbers(heads * v_dim, 3));
            for segment in &segments {
                self.backend.append(&mut self.store, layer, segment, &k, &v);
            }
            let attention = Attention { layer, heads, scale: 0.2, softcap: None, sinks: None };
            self.backend.attention(&mut self.store, &attention, &segments, &mut q, &mut out);
            let out = to_host(self.backend, &out, tokens.len() * heads * v_dim);
            let last = |segment: &Segment| &out[(segment.rows.end - 1) * heads * v_dim..][..heads * v_dim];
            outputs.extend(segments.iter().flat_map(last));
        }
        let mut freed = Vec::new();
        for sequence in &mut self.sequences {
            while let Some(span) = sequence.seal(&self.plan, &mut self.pages) {
                self.backend.seal(&mut self.store, sequence, span);
            }
            sequence.expire(&self.plan, &mut self.pages, &mut freed);
        }
        self.backend.free(&mut self.store, &freed);
        outputs
    }

    /// Makes the second sequence a copy of the first.
    fn fork(&mut self) {
        let [from, to] = &mut self.sequences;
        to.fork_from(from, &mut self.pages);
        self.backend.copy_tail(&mut self.store, from, to.slot);
    }

    /// Makes the second sequence forget two pages, and its sinks move up if it shall.
    fn forget(&mut self, shift: bool) {
        let (sequence, mut freed) = (&mut self.sequences[1], Vec::new());
        let forgotten = sequence.forget(32, &self.plan, &mut self.pages, &mut freed);
        assert_eq!(forgotten, 32, "two whole pages are there");
        self.backend.free(&mut self.store, &freed);
        if shift {
            freed.clear();
            let (distance, moved) = sequence.close_gap(&mut self.pages, &mut freed);
            let turn = |i: usize| (distance as f32 / (1 + i) as f32).sin_cos();
            let cos_sin: Vec<[f32; 2]> = (0..8).map(turn).map(|(s, c)| [c, s]).collect();
            let angles = |pairs, first| Some(Angles { pairs, first, channels: 16, cos_sin: &cos_sin });
            let (latent, plain) = (angles(RopePairs::Interleaved, 64), angles(RopePairs::Halves, 0));
            self.backend.turn(&mut self.store, &moved, &[latent, plain, None]);
            self.backend.free(&mut self.store, &freed);
        }
    }

    /// Saves the sequences, forgets them, and restores each in pages of its own and in the other's slot.
    fn save_and_restore(&mut self) {
        let saved = self.sequences.each_ref().map(|sequence| {
            let saved = sequence.saved(&self.plan, &self.pages);
            let sections = saved.sections(&self.plan).expect("a sequence of this plan is sound");
            let export = |(section, bytes)| {
                let mut out = vec![0; bytes];
                self.backend.export(&self.store, sequence, section, &mut out);
                (section, out)
            };
            (saved, sections.into_iter().map(export).collect::<Vec<_>>())
        });
        let mut freed = Vec::new();
        self.sequences.iter_mut().for_each(|sequence| sequence.clear(&mut self.pages, &mut freed));
        self.backend.free(&mut self.store, &freed);
        for (sequence, (saved, sections)) in self.sequences.iter_mut().zip(saved) {
            let slot = 1 - sequence.slot;
            let restored = Sequence::restore(&self.plan, slot, &saved, &mut self.pages);
            *sequence = restored.expect("a sequence of this plan is sound").0;
            for (section, bytes) in sections {
                self.backend.import(&mut self.store, sequence, section, &bytes);
            }
        }
    }

    /// Cuts the first sequence.
    fn truncate(&mut self, to: usize) {
        let mut freed = Vec::new();
        let cut = self.sequences[0].truncate(to, &self.plan, &mut self.pages, &mut freed);
        cut.expect("no window has dropped what is needed");
        self.backend.free(&mut self.store, &freed);
    }
}

/// Sequences that are full and forget: `backend` against the scalar backend. That they were saved and restored in between
/// changes nothing, and a copy that shares the sinks keeps them where they were.
pub fn check_forgetting<B: Backend>(backend: &B, tolerance: f32) {
    for format in ["f32", "q8_0", "turbo3"] {
        for shifts in [[true, true], [true, false], [false, false]] {
            let expected = forgetful(&mut Cache::new(&Scalar, format), shifts, |_| {});
            let found = forgetful(&mut Cache::new(backend, format), shifts, |_| {});
            let restored =
                forgetful(&mut Cache::new(backend, format), shifts, |cache| cache.save_and_restore());
            assert!(found == restored, "{format}: restored sequences are others");
            let what = format!("sequences in {format} that forget, {shifts:?}");
            check_close(&what, &expected, &found, attention_tolerance(tolerance, [format; 2]));
        }
    }
}

/// A sequence forks; one of the two forgets twice, and moves its sinks or not. The outputs of the last token of each.
fn forgetful<B: Backend>(
    cache: &mut Cache<B>,
    shifts: [bool; 2],
    between: impl Fn(&mut Cache<B>),
) -> Vec<f32> {
    let tokens = |range: Range<u64>| range.collect::<Vec<_>>();
    cache.feed(&[(0, &tokens(0..110))]);
    cache.fork();
    cache.forget(shifts[0]);
    between(cache);
    cache.feed(&[(0, &tokens(110..150)), (1, &tokens(300..310))]);
    cache.forget(shifts[1]);
    between(cache);
    cache.feed(&[(1, &tokens(310..341)), (0, &tokens(150..151))]);
    cache.feed(&[(0, &[151]), (1, &[341])])
}

/// Keys that are turned in their pages: in every format, every order of pairs and place in a head, `backend` against the
/// scalar backend, and the scalar backend against keys that were turned before they came.
pub fn check_turned_keys<B: Backend>(backend: &B, tolerance: f32) {
    let cos_sin: Vec<[f32; 2]> = (0..8).map(|i| (0.3 + i as f32).sin_cos()).map(|(s, c)| [c, s]).collect();
    let plain = KvLayer { heads: 2, head_dim: [64, 48], values_in_keys: false, window: None };
    let latent = KvLayer { heads: 1, head_dim: [80, 64], values_in_keys: true, window: None };
    let angles = |pairs, first| Angles { pairs, first, channels: 16, cos_sin: &cos_sin };
    for format in FORMATS.iter().filter(|format| format.kv) {
        for (layer, angles) in [
            (plain, angles(RopePairs::Halves, 0)),
            (plain, angles(RopePairs::Interleaved, 24)),
            (latent, angles(RopePairs::Interleaved, 64)),
        ] {
            for to in [0, 1] {
                let turned = |name| turned_keys(backend, layer, name, &angles, to, false);
                let by_scalar = |name, before| turned_keys(&Scalar, layer, name, &angles, to, before);
                let what = format!("{}, page {to} of {layer:?}", format.name);
                let (expected, exact) = (by_scalar(format.name, false), by_scalar("f32", true));
                let allowed = attention_tolerance(tolerance, [format.name; 2]);
                check_close(&what, &expected, &turned(format.name), allowed);
                let (error, bound) = (relative_error(&exact, &expected), 3.0 * error_bound(format));
                assert!(error <= bound, "{what}: error {error} > {bound}");
            }
        }
    }
}

/// The output of one token behind three sealed pages, when the keys of the first are turned and become, with its
/// values, page `to`; or when all of that is done `before` they come.
fn turned_keys<B: Backend>(
    backend: &B,
    layer: KvLayer,
    format: &str,
    angles: &Angles,
    to: usize,
    before: bool,
) -> Vec<f32> {
    const PAGE: usize = 16;
    let plan = Plan::new(&Policy { page: PAGE, ..Policy::uniform(format, format).bare() }, &[layer]);
    let plan = plan.expect("a valid case");
    let (mut store, mut pages) = (backend.store(&plan, 1, 3 * PAGE), Pages::default());
    let (mut sequence, mut random) = (Sequence::new(&plan, 0), Random(3));
    let ([k_dim, v_dim], heads) = (layer.head_dim, 4);
    let attention = Attention { layer: 0, heads, scale: 0.2, softcap: None, sinks: None };
    let mut result = Vec::new();
    for rows in [3 * PAGE, 1] {
        let (mut k, mut v) =
            (random.gausses(rows * layer.heads * k_dim), random.gausses(rows * layer.heads * v_dim));
        if before && rows > 1 {
            for (values, width) in [(&mut k, k_dim), (&mut v, v_dim)] {
                let page = PAGE * layer.heads * width;
                values.copy_within(..page, to * page);
            }
            let keys = &mut k[to * PAGE * layer.heads * k_dim..][..PAGE * layer.heads * k_dim];
            keys.chunks_exact_mut(k_dim).for_each(|key| angles.turn(0, key));
        }
        let (k, v) = (from_host(backend, rows, &k), from_host(backend, rows, &v));
        let mut q = from_host(backend, rows, &random.gausses(rows * heads * k_dim));
        let mut out = from_host(backend, rows, &vec![f32::NAN; rows * heads * v_dim]);
        sequence.append(rows);
        let segment = Segment { rows: 0..rows, sequence: &sequence };
        backend.append(&mut store, 0, &segment, &k, &v);
        backend.attention(&mut store, &attention, &[segment], &mut q, &mut out);
        result = to_host(backend, &out, rows * heads * v_dim);
        while let Some(span) = sequence.seal(&plan, &mut pages) {
            backend.seal(&mut store, &sequence, span);
        }
        if rows > 1 && !before {
            let [from, to] = [0, to].map(|page| sequence.span(page).page);
            backend.turn(&mut store, &[Moved { from, to, window_class: 0 }], &[Some(*angles)]);
        }
    }
    result
}

/// Pages of a nested format that are sealed again in fewer bits: they are, to the bit, what they would be if they had been
/// sealed so at once, and memory is less by the planes.
pub fn check_narrowed_pages<B: Backend>(backend: &B) {
    let formats = || FORMATS.iter().filter(|format| format.kv);
    for (finer, coarser) in formats().flat_map(|finer| formats().map(move |coarser| (finer, coarser))) {
        if !coarser.begins(finer) {
            continue;
        }
        // Planes lie apart in parts of the first two, and in blocks in the last.
        for head_dim in [64, 256, 80] {
            let policy = |format: &FormatOps, older: &FormatOps| {
                let (name, older) = (format.name, Some(older.name.to_string()));
                let tiers = vec![Tier { percent: 100, k: older.clone(), v: older }];
                Policy { page: 16, tiers, ..Policy::uniform(name, name).bare() }
            };
            let [whole, narrowed] =
                [0, 1].map(|tier| sealed_pages(backend, head_dim, &policy(finer, coarser), tier));
            let at_once = sealed_pages(backend, head_dim, &policy(coarser, coarser), 0);
            let what = format!("{} of {}, heads of {head_dim}", coarser.name, finer.name);
            assert!(narrowed == at_once, "{what}");
            let planes = finer.planes.zip(coarser.planes).map_or(0, |(finer, coarser)| finer - coarser);
            // Of keys and values of two heads, a bit a value.
            let freed = planes * 2 * 2 * 48 * head_dim / 8;
            assert_eq!(whole.bytes - narrowed.bytes, freed, "{what}: what the planes took");
        }
    }
}

/// What three pages, which were made those of a tier, take, what is saved of them, and the output of a token behind them.
#[derive(PartialEq)]
struct SealedPages {
    bytes: usize,
    saved: Vec<Vec<u8>>,
    output: Vec<f32>,
}

fn sealed_pages<B: Backend>(backend: &B, head_dim: usize, policy: &Policy, tier: usize) -> SealedPages {
    let layer = KvLayer { heads: 2, head_dim: [head_dim; 2], values_in_keys: false, window: None };
    let plan = Plan::new(policy, &[layer]).expect("a valid case");
    let (mut store, mut pages) = (backend.store(&plan, 1, 48), Pages::default());
    let (mut sequence, mut random, width) = (Sequence::new(&plan, 0), Random(5), 2 * head_dim);
    let mut append = |store: &mut B::Store, sequence: &mut Sequence, rows: usize| {
        let [k, v] = [(); 2].map(|()| from_host(backend, rows, &random.gausses(rows * width)));
        sequence.append(rows);
        backend.append(store, 0, &Segment { rows: 0..rows, sequence }, &k, &v);
        from_host(backend, rows, &random.gausses(rows * 2 * width))
    };
    append(&mut store, &mut sequence, 48);
    while let Some(span) = sequence.seal(&plan, &mut pages) {
        backend.seal(&mut store, &sequence, span);
        if tier > 0 {
            backend.reseal(&mut store, span.page, tier);
        }
    }
    let bytes = backend.store_bytes(&store).0;
    let export = |span| {
        let age = Age::Tier(tier);
        let mut out = vec![0; plan.page_bytes(age, 0)];
        let section = Section::Page { span, window_class: 0, age };
        backend.export(&store, &sequence, section, &mut out);
        out
    };
    let saved: Vec<_> = (0..3).map(export).collect();
    // What is saved is what is read again.
    let mut restored = backend.store(&plan, 1, 48);
    for (span, bytes) in saved.iter().enumerate() {
        let section = Section::Page { span, window_class: 0, age: Age::Tier(tier) };
        backend.import(&mut restored, &sequence, section, bytes);
    }
    let mut q = append(&mut restored, &mut sequence, 1);
    let mut out = from_host(backend, 1, &vec![f32::NAN; 2 * width]);
    let attention = Attention { layer: 0, heads: 4, scale: 0.2, softcap: None, sinks: None };
    let segment = Segment { rows: 0..1, sequence: &sequence };
    backend.attention(&mut restored, &attention, &[segment], &mut q, &mut out);
    SealedPages { bytes, saved, output: to_host(backend, &out, 2 * width) }
}

/// The ops on single rows against the scalar backend, at widths with and without a rest.
pub fn check_row_ops<B: Backend>(backend: &B, tolerance: f32) {
    for (rows, width) in [(1, 16), (3, 64), (5, 40), (2, 300), (700, 96)] {
        let expected = row_ops(&Scalar, rows, width);
        for ((what, expected), (_, found)) in expected.iter().zip(row_ops(backend, rows, width)) {
            check_close(&format!("{what} of [{rows}, {width}]"), expected, &found, tolerance);
        }
    }
}

/// What each op makes of the same random rows.
fn row_ops<B: Backend>(backend: &B, rows: usize, width: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random(11);
    let mut gausses = |n: usize| random.gausses(n).iter().map(|x| 3.0 * x + 1.0).collect::<Vec<f32>>();
    let (x, y) = (gausses(rows * width), gausses(rows * width));
    let (weight, bias) = (backend.vector(&gausses(width)), backend.vector(&gausses(width)));
    let gate = from_host(backend, rows, &gausses(rows));
    let cos_sin: Vec<[f32; 2]> = gausses(rows * 4).iter().map(|angle| [angle.cos(), angle.sin()]).collect();
    let y_tensor = from_host(backend, rows, &y);
    let apply = |what, op: &dyn Fn(&mut B::Tensor)| {
        let mut x = from_host(backend, rows, &x);
        op(&mut x);
        (what, to_host(backend, &x, rows * width))
    };
    let rope = |pairs, first| {
        let angles = Angles { pairs, first, channels: 8, cos_sin: &cos_sin };
        move |x: &mut B::Tensor| backend.rope(&angles, width, x)
    };
    let [from, to] = [Runs { first: 3, stride: 5 }, Runs { first: 0, stride: 4 }];
    vec![
        apply("layer_norm_inplace", &|x| backend.layer_norm_inplace(&weight, &bias, 1e-5, x)),
        apply("rms_norm_inplace", &|x| backend.rms_norm_inplace(&weight, 1e-5, x)),
        apply("activate sigmoid", &|x| backend.activate(Activation::Sigmoid, x)),
        apply("activate gelu", &|x| backend.activate(Activation::Gelu, x)),
        apply("glu sigmoid", &|x| backend.glu(Activation::Sigmoid, &y_tensor, x)),
        apply("glu silu", &|x| backend.glu(Activation::Silu, &y_tensor, x)),
        apply("gate_rows", &|x| backend.gate_rows(&gate, x)),
        apply("copy_columns", &|x| backend.copy_columns([2, 3], &y_tensor, from, x, to)),
        apply("rope halves", &rope(RopePairs::Halves, 0)),
        apply("rope interleaved from channel 5", &rope(RopePairs::Interleaved, 5)),
    ]
}

/// Products of runs of columns against the scalar backend.
pub fn check_linear_runs<B: Backend>(backend: &B, tolerance: f32) {
    let format = torque_quant::by_name("f32").expect("listed");
    let mut random = Random(13);
    let bytes: Vec<Vec<u8>> =
        (0..3).map(|_| random.gausses(7 * 16).iter().flat_map(|w| w.to_le_bytes()).collect()).collect();
    for rows in [1, 4, 30] {
        let x = random.gausses(rows * 64);
        fn run<B: Backend>(backend: &B, w: Vec<MatrixData>, rows: usize, x: &[f32]) -> Vec<f32> {
            let w: Vec<B::Matrix> = w.into_iter().map(|w| backend.matrix(w)).collect();
            let (x, mut out) = (from_host(backend, rows, x), from_host(backend, rows, &vec![0.5; rows * 40]));
            let [from, to] = [Runs { first: 2, stride: 20 }, Runs { first: 1, stride: 12 }];
            backend.linear_runs(&w, &x, from, &mut out, to);
            to_host(backend, &out, rows * 40)
        }
        let matrices = || -> Vec<MatrixData> {
            let matrix =
                |bytes: &Vec<u8>| MatrixData { format, rows: 7, columns: 16, bytes: bytes.clone().into() };
            bytes.iter().map(matrix).collect()
        };
        let (expected, found) = (run(&Scalar, matrices(), rows, &x), run(backend, matrices(), rows, &x));
        check_close(&format!("linear_runs of {rows} rows"), &expected, &found, tolerance);
    }
}

/// A mixture of experts that sees the same tokens on any backend.
#[derive(Clone, Debug)]
pub struct ExpertsCase {
    /// Formats of the gate, up and down projections.
    pub formats: [&'static str; 3],
    /// Tokens at once.
    pub tokens: usize,
    /// How many experts.
    pub count: usize,
    /// Inputs and outputs.
    pub embedding: usize,
    /// Width of an expert.
    pub feed_forward: usize,
    /// Between the projections.
    pub activation: Activation,
    /// Whether projections have biases.
    pub biases: bool,
    /// How experts are chosen.
    pub routing: Routing<'static>,
    /// Whether the choice has a bias.
    pub selection_bias: bool,
    /// Whether outputs have factors.
    pub factors: bool,
}

impl ExpertsCase {
    /// The two likeliest of five experts.
    pub fn new(format: &'static str, tokens: usize) -> ExpertsCase {
        ExpertsCase {
            formats: [format; 3],
            tokens,
            count: 5,
            embedding: 256,
            feed_forward: 256,
            activation: Activation::Silu,
            biases: false,
            routing: Routing::top(2),
            selection_bias: false,
            factors: false,
        }
    }

    /// Gate, up and down projections of every expert.
    pub fn weights(&self) -> [Vec<MatrixData>; 3] {
        let mut random = Random(12);
        let ([gate, up, down], outer, inner) = (self.formats, self.embedding, self.feed_forward);
        [(gate, inner, outer), (up, inner, outer), (down, outer, inner)].map(|(format, rows, columns)| {
            let format = torque_quant::by_name(format).expect("a format of the list");
            let mut matrix = || {
                let mut bytes = vec![0; rows * format.row_bytes(columns)];
                for row in bytes.chunks_mut(format.row_bytes(columns)) {
                    let values = random.gausses(columns);
                    let values: Vec<f32> = values.iter().map(|x| x / (columns as f32).sqrt()).collect();
                    format.encode_row(&values, row);
                }
                MatrixData { format, rows, columns, bytes: bytes.into() }
            };
            (0..self.count).map(|_| matrix()).collect()
        })
    }

    /// The outputs of every token, `[tokens, embedding]`, when so many come at once.
    pub fn run<B: Backend>(&self, backend: &B, weights: &[Vec<MatrixData>; 3], chunk: usize) -> Vec<f32> {
        let mut random = Random(11);
        let (count, embedding, feed_forward) = (self.count, self.embedding, self.feed_forward);
        let bring = |matrices: &Vec<MatrixData>| matrices.iter().map(|m| backend.matrix(m.clone())).collect();
        let [gate, up, down] = weights.each_ref().map(bring);
        let mut bias = |width: usize| self.biases.then(|| backend.vector(&random.gausses(count * width)));
        let [gate_bias, up_bias] = [bias(feed_forward), bias(feed_forward)];
        let down_bias = bias(embedding);
        let activation = self.activation;
        let experts = Experts { gate, up, down, gate_bias, up_bias, down_bias, activation };
        let (selection_bias, factors) = (random.gausses(count), random.gausses(count));
        let routing = Routing {
            selection_bias: self.selection_bias.then_some(&selection_bias),
            factors: self.factors.then_some(&factors),
            ..self.routing
        };
        // Large enough that clamps bite.
        let x: Vec<f32> = random.gausses(self.tokens * embedding).iter().map(|x| 4.0 * x).collect();
        let router = random.gausses(self.tokens * count);
        let chunks = x.chunks(chunk * embedding).zip(router.chunks(chunk * count));
        let outputs = chunks.map(|(x, router)| {
            let rows = router.len() / count;
            let [x, router] = [x, router].map(|values| from_host(backend, rows, values));
            let mut out = from_host(backend, rows, &vec![f32::NAN; rows * embedding]);
            backend.experts(&experts, &routing, &router, &x, &mut out);
            to_host(backend, &out, rows * embedding)
        });
        outputs.collect::<Vec<_>>().concat()
    }
}

/// Mixtures of experts in every weight format and with every way of routing, many tokens at once and one
/// by one: the backends against the scalar one, within what `tolerance` says of the formats, relative to
/// the largest output.
pub fn check_experts<B: Backend>(backends: &[B], tolerance: impl Fn(&B, &[&'static str; 3]) -> f32) {
    let check = |case: ExpertsCase| {
        let weights = case.weights();
        let expected = case.run(&Scalar, &weights, case.tokens);
        for backend in backends {
            for chunk in [case.tokens, 1] {
                let what = format!("{chunk} at once on {}: {case:?}", backend.device());
                let found = case.run(backend, &weights, chunk);
                check_close(&what, &expected, &found, tolerance(backend, &case.formats));
            }
        }
    };
    for format in FORMATS.iter().filter(|format| format.weights) {
        [3, 25].into_iter().for_each(|tokens| check(ExpertsCase::new(format.name, tokens)));
    }
    // Formats that may be read in different ways.
    check(ExpertsCase { formats: ["q4_k", "f16", "q6_k"], ..ExpertsCase::new("f32", 9) });
    check(ExpertsCase { formats: ["tq3_1s", "q8_0", "bf16"], ..ExpertsCase::new("f32", 9) });

    for format in ["f32", "mxfp4"] {
        let base = ExpertsCase { embedding: 96, feed_forward: 160, count: 7, ..ExpertsCase::new(format, 13) };
        for activation in [Activation::Silu, Activation::Gelu, Activation::ClampedSwiglu] {
            check(ExpertsCase { activation, biases: true, ..base.clone() });
        }
        for gating in [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxOfChosen] {
            for (normalize, scale, used) in [(true, 1.0, 3), (false, 2.5, 7), (true, 0.5, 1)] {
                let routing = Routing { gating, normalize, scale, ..Routing::top(used) };
                check(ExpertsCase { routing, ..base.clone() });
                check(ExpertsCase { routing, selection_bias: true, factors: true, ..base.clone() });
            }
            let routing = Routing { gating, groups: Some((4, 2)), ..Routing::top(5) };
            check(ExpertsCase { routing, selection_bias: true, count: 12, ..base.clone() });
        }
    }
    // Rows that are not whole pieces of work, and values that are not whole vectors.
    let odd = ExpertsCase {
        embedding: 301,
        feed_forward: 83,
        count: 3,
        biases: true,
        ..ExpertsCase::new("f32", 1)
    };
    [1, 2, 5, 29].into_iter().for_each(|tokens| check(ExpertsCase { tokens, ..odd.clone() }));
    // A token alone in its group, and one expert for all.
    check(ExpertsCase { count: 64, ..ExpertsCase::new("bf16", 3) });
    check(ExpertsCase { count: 1, routing: Routing::top(1), ..ExpertsCase::new("bf16", 40) });
}

/// Root-mean-square difference, relative to the expected values' root-mean-square.
pub fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = expected.iter().zip(found).map(|(e, f)| square(e - f)).sum();
    (error / expected.iter().map(|e| square(*e)).sum::<f64>()).sqrt()
}

/// What a format may cost an attention output, as K or as V: a few times the codec's own relative error,
/// which is about 2^-bits.
fn error_bound(format: &FormatOps) -> f64 {
    if format.name == "f32" { 2e-6 } else { 2.5 * 2f64.powf(-format.bits().min(10.0).floor()) }
}

/// One case on `backend` against the scalar backend.
pub fn check_case<B: Backend>(backend: &B, case: &AttentionCase, tolerance: f32) {
    let (expected, found) = (case.run(&Scalar), case.run(backend));
    // Of every side, the formats of all ages.
    let sides = &case.policy.formats(1).expect("a valid case")[0];
    let of_side = |ages: &Vec<&FormatOps>| ages.iter().map(|f| side_tolerance(f)).fold(0.0, f32::max);
    let allowed = tolerance + sides.iter().map(of_side).sum::<f32>();
    check_close(&format!("{case:?}"), &expected, &found, allowed);
}

/// Panics unless every difference is within `tolerance` of the largest expected value.
pub fn check_close(what: &str, expected: &[f32], found: &[f32], tolerance: f32) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        let difference = (e - f).abs();
        assert!(
            difference <= tolerance * largest,
            "{what}: value {i} of {} is {f}, expected {e}",
            expected.len()
        );
    }
}
