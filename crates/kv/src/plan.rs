//! The plan of a cache: a policy applied to a model's layers, every number checked once.

use crate::state::EXACT_SNAPSHOTS;
use crate::{Policy, PolicyError, Side, StateShape};
use serde::{Deserialize, Serialize};
use torque_quant::{FormatOps, Rotation, by_name, rotate};

/// The shape of one layer that has KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// KV heads.
    pub heads: usize,
    /// Values of one head, K and V.
    pub head_dim: [usize; 2],
    /// Whether values are the first channels of the keys, as in multi-head latent attention: one vector a
    /// token, which is stored once, and in the format of keys.
    pub values_in_keys: bool,
    /// Sliding window: a query sees this many newest keys, itself included.
    pub window: Option<usize>,
}

/// What a cache looks like: every layer and side with its formats, and the page geometry.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Layers that have KV, in order.
    pub layers: Vec<LayerPlan>,
    /// Layers that have a recurrent state instead, in order.
    pub states: Vec<StateShape>,
    /// The most snapshots of that state a sequence keeps.
    pub snapshots: usize,
    /// The distinct windows of the layers; a page's parts are freed window by window.
    pub windows: Vec<Option<usize>>,
    /// Tokens in a page.
    pub page: usize,
    /// Newest tokens that are never sealed.
    pub tail: usize,
    /// Pages at the start of a sequence that are sealed in f16.
    pub sink_pages: usize,
    /// How many of a sequence's sealed tokens belong to each tier of older ones, in percent, the oldest last.
    pub tiers: Vec<usize>,
    /// What attention may lose by leaving out values that weigh little: a share, from 0 to 1, of the least that formats of their size
    /// can lose.
    pub sparse_v: f32,
    /// Whether attention says which of the older pages grow old first.
    pub guided: bool,
}

/// What decides in which format a page is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Age {
    /// Its tokens are the first of a sequence, and stay exact.
    Sink,
    /// 0 for a new page; of older ones, the tier.
    Tier(usize),
}

/// One layer of a [`Plan`].
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// Shape.
    pub shape: KvLayer,
    /// Index into [`Plan::windows`].
    pub window_class: usize,
    /// What is stored: K, then V unless values lie in the keys.
    pub sides: Vec<SidePlan>,
}

/// Keys or values of one layer.
#[derive(Clone, Debug)]
pub struct SidePlan {
    /// KV heads.
    pub heads: usize,
    /// Values of one head.
    pub head_dim: usize,
    /// What pages are sealed in: new ones, then those of every tier; or one format for all ages.
    pub formats: Vec<&'static FormatOps>,
    /// What sink pages are sealed in: f16, or f32 where the tail is f32.
    pub exact: &'static FormatOps,
    /// Whether heads are stored rotated, in every page and in the tail.
    pub rotated: bool,
}

impl LayerPlan {
    /// Where a side lies in [`LayerPlan::sides`]: values that lie in the keys, where the keys do.
    pub fn place(&self, side: Side) -> usize {
        (side as usize).min(self.sides.len() - 1)
    }

    /// What a side is read from: the keys, for values that lie in them.
    pub fn side(&self, side: Side) -> &SidePlan {
        &self.sides[self.place(side)]
    }
}

impl SidePlan {
    /// What a page is sealed in.
    pub fn page_format(&self, age: Age) -> &'static FormatOps {
        match age {
            Age::Sink => self.exact,
            Age::Tier(tier) => self.formats[tier.min(self.formats.len() - 1)],
        }
    }

    /// Bytes of one head's values of `tokens` tokens in `format`, its page mean included.
    pub fn head_bytes(&self, format: &FormatOps, tokens: usize) -> usize {
        let (values, bytes) = format.head_block(self.head_dim);
        self.mean_bytes(format) + (tokens * self.head_dim).div_ceil(values) * bytes
    }

    /// Bytes of the mean that a part in `format` carries for each head: one f16 a channel, nothing
    /// for float formats, which are not centred.
    pub fn mean_bytes(&self, format: &FormatOps) -> usize {
        if centred(format) { 2 * self.head_dim } else { 0 }
    }

    /// Bytes of a part in `format`: all heads.
    pub fn part_bytes(&self, format: &FormatOps, tokens: usize) -> usize {
        self.heads * self.head_bytes(format, tokens)
    }

    /// Bytes of one token in the tail.
    pub fn tail_token_bytes(&self) -> usize {
        self.heads * self.exact.row_bytes(self.head_dim)
    }
}

/// Whether a page's mean is taken out before `format` encodes it: all but float formats.
pub fn centred(format: &FormatOps) -> bool {
    !format.is_float()
}

impl Plan {
    /// Applies `policy` to a model's layers.
    pub fn new(policy: &Policy, layers: &[KvLayer]) -> Result<Plan, PolicyError> {
        let formats = policy.formats(layers.len())?;
        let mut windows = Vec::new();
        let mut plans = Vec::new();
        for (shape, formats) in layers.iter().zip(formats) {
            let window_class = windows.iter().position(|w| *w == shape.window).unwrap_or_else(|| {
                windows.push(shape.window);
                windows.len() - 1
            });
            let side = |side: Side| -> Result<SidePlan, PolicyError> {
                let (mut formats, head_dim) = (formats[side as usize].clone(), shape.head_dim[side as usize]);
                // What a window holds is new.
                formats.truncate(if shape.window.is_some() { 1 } else { formats.len() });
                if head_dim == 0 || !head_dim.is_multiple_of(16) {
                    return Err(PolicyError::HeadSize(head_dim));
                }
                let rotated = formats.iter().find(|format| format.rotation == Rotation::Head);
                if let Some(format) = rotated
                    && rotate::Head::new(head_dim).is_none()
                {
                    return Err(PolicyError::NoRotation { head_dim, format: format.name.into() });
                }
                let (rotated, is_f32) = (rotated.is_some(), formats[0].name == "f32");
                let exact = by_name(if is_f32 { "f32" } else { "f16" }).expect("both are listed");
                Ok(SidePlan { heads: shape.heads, head_dim, formats, exact, rotated })
            };
            let mut sides = vec![side(Side::K)?];
            if shape.values_in_keys {
                assert!(shape.head_dim[1] <= shape.head_dim[0], "values are channels of the keys");
            } else {
                sides.push(side(Side::V)?);
            }
            plans.push(LayerPlan { shape: *shape, window_class, sides });
        }
        Ok(Plan {
            layers: plans,
            states: Vec::new(),
            snapshots: policy.snapshots,
            windows,
            page: policy.page,
            tail: policy.tail,
            sink_pages: policy.sink.div_ceil(policy.page),
            tiers: policy.tiers.iter().map(|tier| tier.percent).collect(),
            sparse_v: policy.sparse_v,
            guided: policy.guided && !policy.tiers.is_empty(),
        })
    }

    /// Adds a model's recurrent layers.
    pub fn with_states(self, states: Vec<StateShape>) -> Result<Plan, PolicyError> {
        let sizes = states.iter().flat_map(|s| [s.matrix[1], s.matrix[2]]);
        match sizes.into_iter().find(|size| *size == 0 || !size.is_multiple_of(16)) {
            Some(size) => Err(PolicyError::StateSize(size)),
            None => Ok(Plan { states, ..self }),
        }
    }

    /// The window class whose pages grow old: that without a window.
    pub fn ageing_class(&self) -> Option<usize> {
        self.windows.iter().position(Option::is_none).filter(|_| !self.tiers.is_empty())
    }

    /// Whether attention in a layer says which pages grow old first.
    pub fn guides(&self, layer: &LayerPlan) -> bool {
        self.guided && layer.shape.window.is_none()
    }

    /// Rows a tail must hold when up to `batch` tokens arrive at once.
    pub fn tail_capacity(&self, batch: usize) -> usize {
        self.tail + self.page + batch
    }

    /// What the page that starts at token `start` is when it is sealed.
    pub fn new_age(&self, start: usize) -> Age {
        if start < self.sink_pages * self.page { Age::Sink } else { Age::Tier(0) }
    }

    /// Of `sealed` tokens, those that belong to a tier of older ones or to an older tier: the first.
    fn older(&self, tier: usize, sealed: usize) -> usize {
        let percent: usize = self.tiers[tier - 1..].iter().sum();
        (sealed as u128 * percent as u128 / 100) as usize
    }

    /// The tier of a page that ends at token `end` of a sequence of which so many are sealed.
    pub fn tier(&self, end: usize, sealed: usize) -> usize {
        (1..=self.tiers.len()).rev().find(|tier| end <= self.older(*tier, sealed)).unwrap_or(0)
    }

    /// Of so many sealed pages, the first of them sinks, how many belong to each tier.
    fn tier_pages(&self, pages: usize, sinks: usize) -> impl Iterator<Item = usize> {
        let older = move |tier: usize| {
            let pages = if tier <= self.tiers.len() { self.older(tier, pages) } else { 0 };
            pages.max(sinks)
        };
        (0..=self.tiers.len())
            .map(move |tier| if tier == 0 { pages - older(1) } else { older(tier) - older(tier + 1) })
    }

    /// [`Plan::bytes_per_token`] when so many tokens are sealed, none of them a sink: few pages make tiers of other
    /// sizes than their shares.
    pub fn bytes_per_token_of(&self, sealed: usize) -> f64 {
        let pages = sealed / self.page;
        if pages == 0 || self.tiers.is_empty() {
            return self.bytes_per_token();
        }
        let classes = 0..self.windows.len();
        let of_tier =
            |tier| classes.clone().map(|class| self.page_bytes(Age::Tier(tier), class)).sum::<usize>();
        let bytes: usize = self.tier_pages(pages, 0).enumerate().map(|(tier, n)| n * of_tier(tier)).sum();
        bytes as f64 / (pages * self.page) as f64
    }

    /// Bytes of a sealed page's parts in layers of one window class.
    pub fn page_bytes(&self, age: Age, window_class: usize) -> usize {
        self.sides(window_class).map(|s| s.part_bytes(s.page_format(age), self.page)).sum()
    }

    /// Bytes per token of sealed pages, all layers: what a long context costs.
    pub fn bytes_per_token(&self) -> f64 {
        self.layers.iter().map(|layer| self.layer_bytes_per_token(layer)).sum()
    }

    /// Bytes per token of sealed pages of one layer, of all ages as they are in a long context.
    pub fn layer_bytes_per_token(&self, layer: &LayerPlan) -> f64 {
        let new = 100 - self.tiers.iter().sum::<usize>();
        let shares = [new].into_iter().chain(self.tiers.iter().copied());
        let bytes = |(tier, share): (usize, usize)| {
            let parts = layer.sides.iter().map(|s| s.part_bytes(s.page_format(Age::Tier(tier)), self.page));
            (share * parts.sum::<usize>()) as f64 / 100.0
        };
        shares.enumerate().map(bytes).sum::<f64>() / self.page as f64
    }

    /// Bits of a value, where a token takes so many bytes.
    pub fn bits_per_value(&self, bytes_per_token: f64) -> f64 {
        let values: usize = self.layers.iter().flat_map(|l| &l.sides).map(|s| s.heads * s.head_dim).sum();
        8.0 * bytes_per_token / values.max(1) as f64
    }

    /// Bytes of the tail of one sequence.
    pub fn tail_bytes(&self, batch: usize) -> usize {
        self.tail_token_bytes() * self.tail_capacity(batch)
    }

    /// Bytes of one token in the tail, all layers.
    pub fn tail_token_bytes(&self) -> usize {
        self.layers.iter().flat_map(|l| &l.sides).map(SidePlan::tail_token_bytes).sum()
    }

    /// Bytes of the recurrent state of one sequence, however long it is.
    pub fn state_bytes(&self) -> usize {
        self.states.iter().map(StateShape::bytes).sum()
    }

    /// Bytes of `snapshots` snapshots of it.
    pub fn snapshot_bytes(&self, snapshots: usize) -> usize {
        let bytes = |state: &StateShape| -> usize {
            (0..snapshots).map(|newer| state.snapshot_bytes(newer >= EXACT_SNAPSHOTS)).sum()
        };
        self.states.iter().map(bytes).sum()
    }

    /// The most bytes a sequence takes while it grows to `tokens` tokens, its tail for batches of `batch`
    /// and its recurrent state included.
    pub fn sequence_bytes(&self, tokens: usize, batch: usize) -> usize {
        let sealed = tokens.saturating_sub(self.tail);
        let classes = self.windows.iter().enumerate().map(|(class, window)| {
            // What the tail's first token sees is held, however long the tail is.
            let held = window.map_or(sealed, |w| sealed.min(w + self.page));
            let pages = held / self.page;
            // Sinks leave a window too, but lie in it at first.
            let sinks = pages.min(self.sink_pages);
            let sealed = self.tier_pages(pages, sinks).enumerate();
            let bytes = |(tier, n): (usize, usize)| n.saturating_mul(self.page_bytes(Age::Tier(tier), class));
            sealed.map(bytes).fold(sinks * self.page_bytes(Age::Sink, class), usize::saturating_add)
        });
        let snapshots = self.snapshot_bytes(self.snapshots.min(tokens / self.page));
        classes.fold(self.tail_bytes(batch) + self.state_bytes() + snapshots, usize::saturating_add)
    }

    /// The largest context whose sequence fits in `bytes`; 0 if not even the tail does.
    pub fn context_that_fits(&self, bytes: usize, batch: usize) -> usize {
        if self.sequence_bytes(0, batch) > bytes || (self.layers.is_empty() && self.states.is_empty()) {
            return 0;
        }
        let (mut fits, mut too_long) = (0, 1 << 40);
        while too_long - fits > 1 {
            let middle = fits + (too_long - fits) / 2;
            *(if self.sequence_bytes(middle, batch) <= bytes { &mut fits } else { &mut too_long }) = middle;
        }
        fits
    }

    fn sides(&self, window_class: usize) -> impl Iterator<Item = &SidePlan> {
        self.layers.iter().filter(move |l| l.window_class == window_class).flat_map(|l| &l.sides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: KvLayer = KvLayer { heads: 2, head_dim: [128, 128], values_in_keys: false, window: None };

    #[test]
    fn bytes_are_what_the_formats_say() {
        let bits = |k: &str, v: &str, side: usize| {
            let plan = Plan::new(&Policy::uniform(k, v), &[LAYER]).unwrap();
            let side = &plan.layers[0].sides[side];
            side.part_bytes(side.formats[0], plan.page) as f64 * 8.0 / (plan.page * 2 * 128) as f64
        };
        assert_eq!(bits("f16", "turbo3", 0), 16.0);
        assert_eq!(bits("f16", "turbo3", 1), 3.125 + 0.125);
        assert_eq!(bits("turbo4", "q8_0", 0), 4.125 + 0.125);
        assert_eq!(bits("turbo4", "q8_0", 1), 8.5 + 0.125);
        let plan = Plan::new(&Policy::uniform("turbo4", "q8_0"), &[LAYER]).unwrap();
        assert_eq!(plan.bits_per_value(plan.bytes_per_token()), (4.25 + 8.625) / 2.0);
    }

    #[test]
    fn awkward_head_sizes_are_never_padded() {
        for (head_dim, format, bits) in
            [(48, "turbo3", 3.0 + 16.0 / 48.0), (80, "q8_0", 8.5), (112, "q4_0", 4.5)]
        {
            let layer = KvLayer { heads: 1, head_dim: [head_dim; 2], ..LAYER };
            let plan = Plan::new(&Policy::uniform(format, format), &[layer]).unwrap();
            let side = &plan.layers[0].sides[0];
            let found = side.part_bytes(side.formats[0], 128) as f64 * 8.0 / (128 * head_dim) as f64;
            assert!((found - bits - 0.125).abs() < 1e-9, "{format} at {head_dim}: {found}");
        }
    }

    #[test]
    fn values_in_keys_cost_nothing() {
        let latent = KvLayer { heads: 1, head_dim: [576, 512], values_in_keys: true, window: None };
        let plan = Plan::new(&Policy::uniform("turbo3", "q8_0"), &[latent]).unwrap();
        let layer = &plan.layers[0];
        assert_eq!(layer.sides.len(), 1);
        assert!(Side::BOTH.iter().all(|side| layer.side(*side).formats[0].name == "turbo3"));
        // Three bits a value and a scale for each token, a mean for each page.
        assert_eq!(plan.page_bytes(Age::Tier(0), 0), 128 * (576 * 3 / 8 + 2) + 576 * 2);
        assert_eq!(plan.page_bytes(Age::Sink, 0), 128 * 576 * 2);
        assert_eq!(plan.tail_bytes(512), (128 + 128 + 512) * 576 * 2);
        assert_eq!(plan.bytes_per_token(), plan.layer_bytes_per_token(layer));
    }

    #[test]
    fn older_tokens_take_less() {
        let policy = Policy::uniform("q8_0", "turbo3").with_decay("25,40,35").unwrap();
        let windowed = KvLayer { window: Some(300), ..LAYER };
        let plan = Plan::new(&policy, &[LAYER, windowed]).unwrap();
        let pages = |age| plan.page_bytes(age, 0);
        // 8 + 1/2, 4 + 1/8 and 3 + 1/8 bits, and a mean, of keys; 3 + 1/8 and 2 + 1/8 of values.
        let bytes = |k: usize, v: usize| 2 * (128 * (k + v) + 2 * 256);
        assert_eq!(
            [Age::Tier(0), Age::Tier(1), Age::Tier(2)].map(pages),
            [bytes(136, 50), bytes(66, 34), bytes(50, 34)]
        );
        assert_eq!(plan.page_bytes(Age::Tier(2), 1), pages(Age::Tier(0)), "what a window holds is new");
        // 100 pages: one sink, 34 cold ones, 40 warm ones, 25 new ones, and a page of tail.
        assert_eq!([35, 36, 75, 76].map(|page| plan.tier(page * 128, 12_800)), [2, 1, 1, 0]);
        let global = Plan::new(&policy, &[LAYER]).unwrap();
        let expected =
            pages(Age::Sink) + 34 * pages(Age::Tier(2)) + 40 * pages(Age::Tier(1)) + 25 * pages(Age::Tier(0));
        assert_eq!(global.sequence_bytes(12_800 + 128, 512) - global.tail_bytes(512), expected);
        let shares = 0.25 * pages(Age::Tier(0)) as f64
            + 0.4 * pages(Age::Tier(1)) as f64
            + 0.35 * pages(Age::Tier(2)) as f64;
        assert!((global.bytes_per_token() * 128.0 - shares).abs() < 1e-6);
        assert!((global.bytes_per_token_of(12_800) * 128.0 - shares).abs() < 1e-6);
        // Seven pages: two cold, three warm, two new.
        let few = 2 * pages(Age::Tier(2)) + 3 * pages(Age::Tier(1)) + 2 * pages(Age::Tier(0));
        assert!((global.bytes_per_token_of(7 * 128) * 7.0 * 128.0 - few as f64).abs() < 1e-6);
    }

    #[test]
    fn context_that_fits_is_the_inverse_of_bytes() {
        let windowed = KvLayer { window: Some(300), ..LAYER };
        let policy = Policy::uniform("turbo3", "q8_0").with_decay("balanced").unwrap();
        let plan = Plan::new(&policy, &[LAYER, windowed]).unwrap();
        for tokens in [1000, 5000, 100_000] {
            let fits = plan.context_that_fits(plan.sequence_bytes(tokens, 512), 512);
            assert!(fits >= tokens && fits < tokens + plan.page, "{tokens}: {fits}");
        }
        assert_eq!(plan.context_that_fits(10, 512), 0);
    }

    #[test]
    fn a_state_costs_the_same_at_any_length() {
        let state = StateShape { conv: [3, 8192], matrix: [32, 128, 128] };
        let bare =
            Plan::new(&Policy { snapshots: 4, ..Policy::uniform("turbo3", "q8_0") }, &[LAYER]).unwrap();
        let plan = bare.clone().with_states(vec![state; 3]).unwrap();
        let extra = |tokens: usize| plan.sequence_bytes(tokens, 512) - bare.sequence_bytes(tokens, 512);
        let (conv, matrix) = (4 * 3 * 8192, 4 * 32 * 128 * 128);
        let rounded = conv + matrix / 32 * 34 / 4;
        assert_eq!(extra(127), 3 * (conv + matrix));
        assert_eq!(extra(128), 2 * extra(0));
        assert_eq!(extra(100_000), 3 * (3 * (conv + matrix) + 2 * rounded));
        assert_eq!(plan.bytes_per_token(), bare.bytes_per_token());
        for size in [0, 40] {
            let state = StateShape { matrix: [2, 64, size], ..state };
            let error = bare.clone().with_states(vec![state]).unwrap_err().to_string();
            assert!(error.contains(&format!("state size {size}")), "{error}");
        }
    }

    #[test]
    fn head_sizes_that_cannot_be_stored_are_refused() {
        let check = |head_dim: usize, format: &str, part: &str| {
            let layer = KvLayer { heads: 1, head_dim: [head_dim; 2], ..LAYER };
            let error = Plan::new(&Policy::uniform(format, format), &[layer]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(40, "f16", "head size 40");
        check(0, "f16", "head size 0");
    }
}
