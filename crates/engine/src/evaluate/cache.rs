//! What a KV cache changes: the divergence of a model's logits from its own with a cache in f16.

use super::{Chunks, Step};
use crate::engine::Engine;
use crate::error::Error;
use crate::machine::available_memory;
use crate::measure::{Divergence, DivergenceReport, Row};
use crate::session::{Session, SessionOptions};
use serde::{Deserialize, Serialize};
use torque_kv::Policy;

/// What a policy did to a chunk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheCell {
    /// Which chunk.
    pub chunk: usize,
    /// What the cache was sealed in.
    pub policy: Policy,
    /// The scored tokens, in order.
    pub rows: Vec<Row>,
}

/// Runs every chunk with every policy, `batch` tokens at a time, which see one another exactly, and adds a cell for each pair that
/// `cells` lacks. The policies share one pass with a cache in f16, as many at once as fit in memory. Whether all is done, and not
/// stopped by `step`.
pub fn cache(
    engine: &Engine,
    chunks: &Chunks,
    policies: &[Policy],
    batch: usize,
    cells: &mut Vec<CacheCell>,
    step: &mut dyn FnMut(Step<CacheCell>) -> bool,
) -> Result<bool, Error> {
    let session = |policy: &Policy| {
        engine.session(&SessionOptions {
            context: Some(chunks.context),
            batch,
            policy: policy.clone(),
            ..SessionOptions::default()
        })
    };
    let lacks = |cells: &[CacheCell], policy: &Policy, chunk: usize| {
        !cells.iter().any(|cell| cell.chunk == chunk && cell.policy == *policy)
    };
    let exact = Policy::default();
    let unfinished =
        policies.iter().filter(|policy| (0..chunks.count).any(|chunk| lacks(cells, policy, chunk)));
    let groups = groups(engine, &exact, unfinished, chunks.context, batch)?;
    let runs = groups.iter().flat_map(|group| (0..chunks.count).map(|chunk| (&group[..], chunk)));
    let runs = runs.map(|(group, chunk)| group.iter().filter(|policy| lacks(cells, policy, chunk)).count());
    // One pass more is in f16.
    let of = chunks.context * runs.map(|runs| if runs == 0 { 0 } else { runs + 1 }).sum::<usize>();
    let mut done = 0;
    for group in groups {
        let mut reference = session(&exact)?;
        let mut ours = Vec::new();
        for policy in group {
            ours.push((policy, session(policy)?));
        }
        for chunk in 0..chunks.count {
            let lacking = ours.iter_mut().filter(|(policy, _)| lacks(cells, policy, chunk));
            let mut running: Vec<_> =
                lacking.map(|(policy, session)| (*policy, session, Divergence::default())).collect();
            let runs = running.len() + 1;
            if runs == 1 {
                continue;
            }
            let whole =
                compare(&chunks.tokens(chunk), chunks.from, batch, &mut reference, &mut running, &mut |n| {
                    done += n * runs;
                    step(Step::Tokens { done, of })
                })?;
            if !whole {
                return Ok(false);
            }
            for (policy, _, divergence) in running {
                let rows = divergence.rows().to_vec();
                cells.push(CacheCell { chunk, policy: policy.clone(), rows });
                if !step(Step::Finished(cells.last().expect("just pushed"))) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Policies that fit in memory together, with the one that all are compared with.
fn groups<'a>(
    engine: &Engine,
    exact: &Policy,
    policies: impl Iterator<Item = &'a Policy>,
    context: usize,
    batch: usize,
) -> Result<Vec<Vec<&'a Policy>>, Error> {
    let bytes = |policy: &Policy| Ok::<_, Error>(engine.plan(policy)?.sequence_bytes(context, batch));
    // A part stays free, for activations and logits.
    let room = (available_memory() as usize / 4 * 3).saturating_sub(bytes(exact)?);
    let (mut groups, mut taken): (Vec<Vec<&Policy>>, usize) = (Vec::new(), 0);
    for policy in policies {
        let needed = bytes(policy)?;
        match groups.last_mut().filter(|_| taken + needed <= room) {
            Some(group) => group.push(policy),
            None => {
                groups.push(vec![policy]);
                taken = 0;
            }
        }
        taken += needed;
    }
    Ok(groups)
}

/// Runs a chunk through all sessions, a batch at a time, so that the reference's logits of one batch are all that is held. Calls
/// `progress(tokens of the batch)`; whether that never said `false`.
fn compare(
    tokens: &[u32],
    from: usize,
    batch: usize,
    reference: &mut Session,
    ours: &mut [(&Policy, &mut Session, Divergence)],
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<bool, Error> {
    reference.truncate(0);
    ours.iter_mut().for_each(|(_, session, _)| session.truncate(0));
    for unscored in tokens[..from].chunks(batch) {
        reference.append(unscored)?;
        for (_, session, _) in &mut *ours {
            session.append(unscored)?;
        }
        if !progress(unscored.len()) {
            return Ok(false);
        }
    }
    let mut expected: Vec<f32> = Vec::new(); // [batch, vocabulary]
    for (index, scored) in tokens[from..].chunks(batch).enumerate() {
        expected.clear();
        reference.append_each(scored, &mut |_, logits| {
            expected.extend_from_slice(logits);
            true
        })?;
        let next = &tokens[from + index * batch + 1..];
        for (_, session, divergence) in &mut *ours {
            session.append_each(scored, &mut |row, logits| {
                if let Some(&next) = next.get(row) {
                    divergence.add_next(&expected[row * logits.len()..][..logits.len()], logits, next);
                }
                true
            })?;
        }
        if !progress(scored.len()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a policy costs: memory on one side, quality on the other.
#[derive(Clone, Debug, Serialize)]
pub struct CacheReport {
    /// What it is called.
    pub name: String,
    /// What the cache was sealed in.
    pub policy: Policy,
    /// Bytes of a sealed token at the end of a chunk, all layers, sinks left out.
    pub bytes_per_token: f64,
    /// Bits of a sealed value there.
    pub bits_per_value: f64,
    /// How far logits are from those with a cache in f16.
    #[serde(flatten)]
    pub divergence: DivergenceReport,
    /// Perplexity.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_error: f64,
    /// Perplexity with a cache in f16.
    pub f16_perplexity: f64,
    /// Its standard error.
    pub f16_perplexity_error: f64,
    /// The same by position.
    pub positions: Vec<PositionReport>,
}

/// The part of a [`CacheReport`] of some positions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PositionReport {
    /// The first position.
    pub from: usize,
    /// The one behind the last.
    pub to: usize,
    /// Mean KL divergence.
    pub kld_mean: f64,
    /// Its standard error.
    pub kld_mean_error: f64,
    /// The fraction of tokens with the same most likely token.
    pub top1_agreement: f64,
}

/// The most ranges of positions that are told apart.
const POSITIONS: usize = 16;

impl CacheReport {
    /// What the cells of a policy say.
    pub fn new(
        engine: &Engine,
        chunks: &Chunks,
        batch: usize,
        name: &str,
        policy: &Policy,
        cells: &[CacheCell],
    ) -> Result<CacheReport, Error> {
        let plan = engine.plan(policy)?;
        let bytes_per_token = plan.bytes_per_token_of(chunks.context.saturating_sub(plan.tail));
        let ours = |cell: &&CacheCell| cell.policy == *policy && cell.chunk < chunks.count;
        let cells: Vec<&CacheCell> = cells.iter().filter(ours).collect();
        let whole: Divergence = cells.iter().flat_map(|cell| cell.rows.iter().copied()).collect();
        let [f16, perplexity] = whole.perplexity();
        // Inside a batch tokens see one another exactly: whole batches compare.
        let width = chunks.scored().div_ceil(POSITIONS).next_multiple_of(batch);
        let positions = (0..chunks.scored()).step_by(width).map(|from| {
            let to = (from + width).min(chunks.scored());
            let part: Divergence =
                cells.iter().flat_map(|cell| cell.rows[from..to].iter().copied()).collect();
            let report = part.report();
            PositionReport {
                from: chunks.from + from,
                to: chunks.from + to,
                kld_mean: report.kld_mean,
                kld_mean_error: report.kld_mean_error,
                top1_agreement: report.top1_agreement,
            }
        });
        Ok(CacheReport {
            name: name.into(),
            policy: policy.clone(),
            bytes_per_token,
            bits_per_value: plan.bits_per_value(bytes_per_token),
            divergence: whole.report(),
            perplexity: perplexity.value(),
            perplexity_error: perplexity.standard_error(),
            f16_perplexity: f16.value(),
            f16_perplexity_error: f16.standard_error(),
            positions: positions.collect(),
        })
    }
}
