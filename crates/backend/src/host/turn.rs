//! Keys of sealed pages that move to other positions.

use super::{Part, SealJob, Store};
use crate::Angles;
use torque_kv::{Moved, Side, SidePlan};
use torque_quant::rotate;

impl Store {
    /// Turns the keys of parts, layer by layer, and makes the parts those of [`Moved::to`]. `run` runs the jobs.
    pub fn turn(&mut self, moved: &[Moved], angles: &[Option<Angles>], run: impl FnOnce(&mut [SealJob])) {
        let layers = || self.plan.layers.iter().enumerate();
        let places: Vec<(Moved, usize)> = (moved.iter())
            .flat_map(|moved| {
                let of_class = layers().filter(|(_, layer)| layer.window_class == moved.window_class);
                of_class.map(|(layer, _)| (*moved, layer))
            })
            .collect();
        let parts = |(moved, layer): &(Moved, usize)| {
            self.pages[moved.from.0 as usize][*layer]
                .as_ref()
                .expect("a sequence holds only pages that are there")
        };
        let mut turned: Vec<Vec<Part>> = places.iter().map(|place| parts(place).clone()).collect();
        let mut jobs = Vec::new();
        for (place, new) in places.iter().zip(&mut turned) {
            let (side, tokens) = (self.plan.layers[place.1].side(Side::K), self.plan.page);
            let keys = &parts(place)[Side::K as usize];
            if let Some(angles) = angles[place.1] {
                let of_page = new[Side::K as usize].seal(side, tokens, |head| keys.head(side, head));
                jobs.extend(of_page.map(|job| SealJob { gain: keys.format.gain, turn: Some(angles), ..job }));
            }
        }
        run(&mut jobs);
        for ((moved, layer), parts) in places.into_iter().zip(turned) {
            let page = moved.to.0 as usize;
            if self.pages.len() <= page {
                self.pages.resize_with(page + 1, Vec::new);
            }
            self.pages[page].resize_with(self.plan.layers.len(), || None);
            self.pages[page][layer] = Some(parts);
        }
    }
}

/// Turns one head's keys, `[tokens, head_dim]`, rotated if the side is.
pub(super) fn keys(side: &SidePlan, angles: &Angles, keys: &mut [f32]) {
    let rotation = side.rotated.then(|| rotate::Head::new(side.head_dim).expect("checked by Plan::new"));
    for key in keys.chunks_exact_mut(side.head_dim) {
        rotation.iter().for_each(|rotation| rotation.inverse(key));
        angles.turn(0, key);
        rotation.iter().for_each(|rotation| rotation.forward(key));
    }
}
