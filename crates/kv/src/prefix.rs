//! Sealed pages by the text they hold, so that a sequence whose text begins as another's did takes them instead of
//! computing them.
//!
//! The texts form a tree: an entry is a page of tokens behind another entry, and is found by just these, so what is found
//! always has the tokens that were asked for. The tree belongs to one store, and with it to one model and policy. It is
//! one more owner of its pages. What nobody else owns is kept within a budget, and given up in the order of last use,
//! ends of texts first.

use crate::{Age, Freed, PageId, Pages, Plan, Sequence, Snapshots, Span};
use std::cmp::Reverse;
use std::collections::HashMap;

/// What an entry follows, and its tokens.
type Key = (Option<Number>, Box<[u32]>);
/// Entries are numbered as they are made.
type Number = u64;

/// The tree.
#[derive(Debug)]
pub struct Prefixes {
    entries: HashMap<Key, Entry>,
    /// Most bytes of what nobody else owns.
    budget: usize,
    made: Number,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    number: Number,
    page: PageId,
    /// Pages before it.
    depth: usize,
    /// The window classes whose parts it owns.
    owns: Vec<bool>,
    /// Whether the backend keeps a copy of the recurrent state at its end.
    state: bool,
    /// When it was last used.
    used: u64,
}

impl Entry {
    /// The classes whose parts nobody else owns.
    fn alone<'a>(&'a self, pages: &'a Pages) -> impl Iterator<Item = usize> + 'a {
        (0..self.owns.len()).filter(|&class| self.owns[class] && pages.references(self.page, class) == 1)
    }

    /// Bytes that are there for the tree alone.
    fn bytes(&self, plan: &Plan, pages: &Pages) -> usize {
        let parts: usize = self.alone(pages).map(|class| plan.page_bytes(pages.age(self.page), class)).sum();
        parts + if self.state { plan.state_bytes() } else { 0 }
    }
}

/// The beginning of a text that the tree has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its pages.
    pages: Vec<PageId>,
    /// The first of them that is needed and there, for each window class.
    held: Vec<usize>,
    /// Its tokens.
    pub len: usize,
}

impl Prefix {
    /// The page it ends with.
    pub fn last(&self) -> PageId {
        *self.pages.last().expect("a prefix is a page at least")
    }
}

/// What the backend frees.
#[derive(Debug, Default)]
pub struct GivenUp {
    /// Parts of pages.
    pub parts: Vec<Freed>,
    /// Copies of recurrent states, by the pages whose end they are of.
    pub states: Vec<PageId>,
}

impl Prefixes {
    /// An empty tree that may keep `budget` bytes of what nobody else owns.
    pub fn new(budget: usize) -> Prefixes {
        Prefixes { entries: HashMap::new(), budget, made: 0, clock: 0 }
    }

    /// Enters the sealed pages of a sequence of this text. Returns those at whose end the sequence has a snapshot of its
    /// recurrent state that is new here: the backend keeps a copy of it.
    ///
    /// What lies behind a cut or behind forgotten tokens is left out: it is not what another sequence would compute.
    pub fn insert(&mut self, sequence: &Sequence, text: &[u32], plan: &Plan, pages: &mut Pages) -> Vec<Span> {
        let mut states = Vec::new();
        self.clock += 1;
        let mut parent = None;
        for (i, span) in sequence.spans.iter().enumerate() {
            let whole = (span.start, span.len) == (i * plan.page, plan.page);
            if !whole || !sequence.forgotten.is_empty() {
                break;
            }
            let key = (parent, Box::from(&text[span.start..][..span.len]));
            let entry = self.entries.entry(key).or_insert_with(|| {
                let owns: Vec<bool> = sequence.held.iter().map(|held| *held <= i).collect();
                (0..owns.len()).filter(|class| owns[*class]).for_each(|class| pages.share(span.page, class));
                self.made += 1;
                Entry { number: self.made, page: span.page, depth: i, owns, state: false, used: 0 }
            });
            let end = span.start + span.len;
            if !entry.state && entry.page == span.page && sequence.snapshots.positions().contains(&end) {
                entry.state = true;
                states.push(*span);
            }
            (entry.used, parent) = (self.clock, Some(entry.number));
        }
        states
    }

    /// The longest beginning of a text that a sequence can go on from: whole pages, not sealed in smaller formats than the
    /// policy has for their places, or if it is guided, for as many, with all that windows see from their end on, and the recurrent state. A token at least
    /// is left, so that there will be logits.
    pub fn find(&mut self, text: &[u32], plan: &Plan, pages: &Pages) -> Option<Prefix> {
        self.clock += 1;
        let (mut parent, mut chain) = (None, Vec::new());
        for tokens in text[..text.len().saturating_sub(1)].chunks_exact(plan.page) {
            let Some(entry) = self.entries.get_mut(&(parent, Box::from(tokens))) else { break };
            (entry.used, parent) = (self.clock, Some(entry.number));
            chain.push((entry.page, entry.owns.clone(), entry.state));
        }
        (1..=chain.len()).rev().find_map(|count| {
            let (chain, len) = (&chain[..count], count * plan.page);
            let places = (1..=count).map(|i| plan.tier(i * plan.page, len));
            let aged = chain.iter().zip(places).filter_map(|((page, ..), place)| match pages.age(*page) {
                Age::Sink => None,
                Age::Tier(tier) => Some((tier, place)),
            });
            let fits = match plan.guided {
                // Which pages are old is not a matter of their places, how many are is.
                true => (1..=plan.tiers.len()).all(|tier| {
                    let count = |old: fn(&(usize, usize), usize) -> bool| {
                        aged.clone().filter(|of_page| old(of_page, tier)).count()
                    };
                    count(|(age, _), tier| *age >= tier) <= count(|(_, place), tier| *place >= tier)
                }),
                false => aged.clone().all(|(age, place)| age <= place),
            };
            let first = |(class, window): (usize, &Option<usize>)| {
                let there = chain.iter().rev().take_while(|(_, owns, _)| owns[class]).count();
                let unseen = |window: usize| (count - there) * plan.page + window <= len + 1;
                (there == count || window.is_some_and(unseen)).then_some(count - there)
            };
            let held = plan.windows.iter().enumerate().map(first).collect::<Option<Vec<_>>>()?;
            let state = plan.states.is_empty() || chain[count - 1].2;
            (state && fits).then(|| Prefix {
                pages: chain.iter().map(|(page, ..)| *page).collect(),
                held,
                len,
            })
        })
    }

    /// Gives up what is beyond the budget.
    pub fn settle(&mut self, plan: &Plan, pages: &mut Pages) -> GivenUp {
        let mut given_up = GivenUp::default();
        loop {
            let alone = self.entries.values().map(|entry| (entry.bytes(plan, pages), entry));
            let alone: Vec<_> = alone.filter(|(bytes, _)| *bytes > 0).collect();
            if alone.iter().map(|(bytes, _)| bytes).sum::<usize>() <= self.budget {
                return given_up;
            }
            let oldest = alone.into_iter().map(|(_, entry)| entry);
            let oldest = oldest.min_by_key(|entry| (entry.used, Reverse(entry.depth), entry.number));
            self.give_up(oldest.expect("something is beyond the budget").number, plan, pages, &mut given_up);
        }
    }

    /// Gives up what of an entry nobody else owns. Where that is more than what a window sees, nobody can go on from it,
    /// and it goes with all that follows.
    fn give_up(&mut self, number: Number, plan: &Plan, pages: &mut Pages, given_up: &mut GivenUp) {
        let entry = self.entries.values_mut().find(|entry| entry.number == number).expect("an entry");
        if std::mem::take(&mut entry.state) {
            given_up.states.push(entry.page);
        }
        for class in entry.alone(pages).collect::<Vec<_>>() {
            pages.release(entry.page, class, &mut given_up.parts);
            entry.owns[class] = false;
        }
        let owns = |(class, window): (usize, &Option<usize>)| entry.owns[class] || window.is_some();
        if plan.windows.iter().enumerate().all(owns) && entry.owns.contains(&true) {
            return;
        }
        let mut gone = vec![number];
        while let Some(number) = gone.pop() {
            self.entries.retain(|(parent, _), entry| {
                if *parent == Some(number) {
                    gone.push(entry.number);
                }
                if entry.number == number {
                    given_up.states.extend(entry.state.then_some(entry.page));
                    let owned = (0..entry.owns.len()).filter(|class| entry.owns[*class]);
                    owned.for_each(|class| pages.release(entry.page, class, &mut given_up.parts));
                }
                entry.number != number
            });
        }
    }
}

impl Sequence {
    /// Makes a sequence, which must be empty, one of these pages. The backend takes the recurrent state at their end.
    pub fn adopt(&mut self, prefix: &Prefix, plan: &Plan, pages: &mut Pages) {
        assert!(self.is_empty() && self.spans.is_empty(), "adopt into an empty sequence");
        for (class, &held) in prefix.held.iter().enumerate() {
            prefix.pages[held..].iter().for_each(|page| pages.share(*page, class));
        }
        let span = |(i, page): (usize, &PageId)| Span { page: *page, start: i * plan.page, len: plan.page };
        *self = Sequence {
            spans: prefix.pages.iter().enumerate().map(span).collect(),
            held: prefix.held.clone(),
            tail_start: prefix.len,
            len: prefix.len,
            ..Sequence::new(plan, self.slot)
        };
        if !plan.states.is_empty() {
            self.snapshots = Snapshots::restored(plan, &[prefix.len], 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvLayer, Policy, StateShape};

    /// Sequences that share a tree.
    struct Cache {
        plan: Plan,
        pages: Pages,
        tree: Prefixes,
        texts: Vec<Vec<u32>>,
        sequences: Vec<Sequence>,
        /// What is freed for good, each part once.
        freed: Vec<Freed>,
    }

    impl Cache {
        fn new(policy: Policy, windows: &[Option<usize>], budget_pages: usize) -> Cache {
            let layer = |window: &Option<usize>| KvLayer {
                heads: 1,
                head_dim: [64, 64],
                values_in_keys: false,
                window: *window,
            };
            let layers: Vec<_> = windows.iter().map(layer).collect();
            let plan = Plan::new(&Policy { page: 16, tail: 4, sink: 0, ..policy }, &layers).unwrap();
            let budget = budget_pages * plan.page_bytes(Age::Tier(0), 0);
            Cache {
                sequences: (0..3).map(|slot| Sequence::new(&plan, slot)).collect(),
                texts: vec![Vec::new(); 3],
                plan,
                pages: Pages::default(),
                tree: Prefixes::new(budget),
                freed: Vec::new(),
            }
        }

        /// Makes a sequence one of this text; returns how much of it was there.
        fn feed(&mut self, sequence: usize, text: &[u32]) -> usize {
            self.end(sequence);
            let (plan, pages) = (&self.plan, &mut self.pages);
            let it = &mut self.sequences[sequence];
            let found = self.tree.find(text, plan, pages);
            if let Some(prefix) = &found {
                it.adopt(prefix, plan, pages);
            }
            self.texts[sequence] = text.to_vec();
            for _ in it.len()..text.len() {
                it.append(1);
                while it.seal(plan, pages).is_some() {}
                self.tree.insert(it, text, plan, pages);
                it.expire(plan, pages, &mut self.freed);
            }
            self.settle();
            found.map_or(0, |prefix| prefix.len)
        }

        fn settle(&mut self) {
            self.freed.extend(self.tree.settle(&self.plan, &mut self.pages).parts);
        }

        fn end(&mut self, sequence: usize) {
            self.sequences[sequence].clear(&mut self.pages, &mut self.freed);
        }
    }

    fn text(start: u32, tokens: usize) -> Vec<u32> {
        (0..tokens as u32).map(|i| start + i % 7).collect()
    }

    #[test]
    fn a_text_that_begins_alike_takes_the_pages() {
        let mut cache = Cache::new(Policy::default(), &[None], 0);
        assert_eq!(cache.feed(0, &text(1, 100)), 0);
        let in_use = cache.pages.in_use();
        // All of it, but for the tail and a last token; up to where texts part; nothing.
        assert_eq!(cache.feed(1, &text(1, 100)), 96);
        assert_eq!(cache.pages.in_use(), in_use);
        let parts = [text(1, 50), text(3, 50)].concat();
        assert_eq!(cache.feed(2, &parts), 48);
        assert_eq!(cache.pages.in_use(), in_use + 3);
        assert_eq!(cache.feed(1, &text(1, 96)), 80, "a token is left");
        assert_eq!(cache.feed(1, &text(2, 100)), 0);
        // Without a budget, a text is there as long as a sequence has it.
        cache.end(0);
        cache.settle();
        assert_eq!(cache.feed(0, &text(1, 100)), 48);
        for sequence in 0..3 {
            cache.end(sequence);
        }
        cache.settle();
        assert_eq!((cache.pages.in_use(), cache.tree.entries.len()), (0, 0));
        let total = cache.freed.len();
        cache.freed.sort_by_key(|freed| freed.page);
        assert!(total > 12, "every page that was taken is freed: {total}");
    }

    #[test]
    fn the_same_tokens_elsewhere_are_another_text() {
        let mut cache = Cache::new(Policy::default(), &[None], 0);
        let [a, b, c] = [1, 30, 60].map(|start| text(start, 16));
        let end = text(90, 20);
        cache.feed(0, &[&a[..], &b, &c, &end].concat());
        assert_eq!(cache.feed(1, &[&b[..], &c, &end].concat()), 0);
        assert_eq!(cache.feed(1, &[&a[..], &c, &b, &end].concat()), 16);
        assert_eq!(cache.feed(1, &[&a[..], &b, &c, &end].concat()), 64);
    }

    #[test]
    fn what_was_used_last_is_kept_within_the_budget() {
        let mut cache = Cache::new(Policy::default(), &[None], 8);
        let texts = [text(1, 85), text(20, 85), text(40, 85)];
        for (i, text) in texts.iter().enumerate() {
            cache.feed(i, text);
        }
        (0..3).for_each(|sequence| cache.end(sequence));
        cache.settle();
        assert_eq!(cache.pages.in_use(), 8);
        // Of five pages each: all of the last, the beginning of the one before, nothing of the first.
        let mut found =
            |text| cache.tree.find(text, &cache.plan, &cache.pages).map_or(0, |prefix| prefix.len);
        assert_eq!([2, 1, 0].map(|i| found(&texts[i])), [80, 48, 0]);
        // Those just asked for stay.
        assert_eq!(cache.feed(0, &texts[1]), 48);
        cache.feed(1, &texts[0]);
        (0..3).for_each(|sequence| cache.end(sequence));
        cache.settle();
        let mut found =
            |text| cache.tree.find(text, &cache.plan, &cache.pages).map_or(0, |prefix| prefix.len);
        assert_eq!([0, 1, 2].map(|i| found(&texts[i])), [80, 48, 0]);
    }

    #[test]
    fn windows_must_see_what_they_need() {
        // Without a budget windowed parts go when the sequence lets them go: one can go on from its end alone.
        let windows = [None, Some(40)];
        let mut cache = Cache::new(Policy::default(), &windows, 0);
        cache.feed(0, &text(1, 150));
        assert_eq!(cache.feed(1, &text(1, 150)), 144);
        assert_eq!(cache.feed(1, &[text(1, 120), text(30, 30)].concat()), 0);
        // With one, from anywhere.
        let mut cache = Cache::new(Policy::default(), &windows, 100);
        cache.feed(0, &text(1, 150));
        assert_eq!(cache.feed(1, &[text(1, 120), text(30, 30)].concat()), 112);
        assert_eq!(cache.sequences[1].spans(1)[0].start, 96);
        (0..2).for_each(|sequence| cache.end(sequence));
        cache.tree.budget = 0;
        cache.settle();
        assert_eq!((cache.pages.in_use(), cache.tree.entries.len()), (0, 0));
    }

    #[test]
    fn pages_that_are_too_old_for_their_place_are_left() {
        let policy = Policy::uniform("turbo4", "turbo4").with_decay("40,30,30").unwrap();
        for guided in [false, true] {
            let mut cache = Cache::new(Policy { guided, ..policy.clone() }, &[None], 0);
            cache.feed(0, &text(1, 170));
            // Page 2 gets all attention there is.
            cache.pages.attend(&cache.plan, &[(&cache.sequences[0], 1)], &[0.0, 0.0, 1.0]);
            cache.pages.grow_old(&cache.plan, &cache.sequences);
            let third = cache.sequences[0].spans(0)[2].page;
            assert_eq!(cache.pages.age(third), Age::Tier(if guided { 0 } else { 2 }));
            // All ten pages are as old as they should be; of the first five, three are older.
            let mut found = |tokens| {
                let text = text(1, tokens);
                cache.tree.find(&text, &cache.plan, &cache.pages).map_or(0, |prefix| prefix.len)
            };
            assert_eq!((found(170), found(90)), (160, 0), "{guided}");
        }
    }

    #[test]
    fn a_recurrent_state_must_be_there() {
        let mut cache = Cache::new(Policy::default(), &[None], 100);
        let state = StateShape { conv: [3, 32], matrix: [1, 16, 16] };
        cache.plan = cache.plan.with_states(vec![state]).unwrap();
        cache.sequences = (0..3).map(|slot| Sequence::new(&cache.plan, slot)).collect();
        let whole = text(1, 150);
        let sequence = &mut cache.sequences[0];
        // Passes that end far from one another leave few copies; the page of the second is sealed after the third.
        let kept = [70, 60, 20].map(|tokens| {
            sequence.append(tokens);
            while sequence.seal(&cache.plan, &mut cache.pages).is_some() {}
            let kept = cache.tree.insert(sequence, &whole, &cache.plan, &mut cache.pages);
            kept.iter().map(|span| span.start + span.len).collect::<Vec<_>>()
        });
        assert_eq!(kept, [vec![64], vec![], vec![128, 144]]);
        let mut found =
            |text: &[u32]| cache.tree.find(text, &cache.plan, &cache.pages).map(|prefix| prefix.len);
        assert_eq!(found(&whole), Some(144));
        assert_eq!(found(&whole[..140]), Some(128));
        assert_eq!(found(&whole[..120]), Some(64));
        assert_eq!(found(&whole[..60]), None);
        cache.tree.budget = 0;
        let given_up = cache.tree.settle(&cache.plan, &mut cache.pages);
        assert_eq!(given_up.states.len(), 3);
    }
}
