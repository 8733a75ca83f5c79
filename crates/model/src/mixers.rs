//! What a layer does between tokens and to each of them. Each file has the weights, how they are loaded,
//! and their forward pass.

pub mod attention;
pub mod delta_net;
pub mod feed_forward;
pub mod latent;
pub mod per_layer;

use crate::config::MixerConfig;
use crate::error::Error;
use crate::forward::{Pass, Scratch};
use crate::load::LayerLoader;
use torque_backend::Backend;

/// What a layer does between tokens.
pub(crate) enum Mixer<B: Backend> {
    Attention(attention::Weights<B>),
    Latent(latent::Weights<B>),
    DeltaNet(delta_net::Weights<B>),
}

impl<B: Backend> Mixer<B> {
    pub fn load(at: &LayerLoader<B>, numbers: &MixerConfig) -> Result<Mixer<B>, Error> {
        let config = at.config();
        Ok(match (numbers, &config.latent, &config.delta_net) {
            (MixerConfig::DeltaNet(_), _, Some(numbers)) => {
                Mixer::DeltaNet(delta_net::Weights::load(at, numbers)?)
            }
            (MixerConfig::DeltaNet(_), _, None) => {
                unreachable!("only configs with a DeltaNet have its layers")
            }
            (MixerConfig::Attention(numbers), Some(latent), _) => {
                Mixer::Latent(latent::Weights::load(at, numbers, latent)?)
            }
            (MixerConfig::Attention(numbers), None, _) => {
                Mixer::Attention(attention::Weights::load(at, numbers)?)
            }
        })
    }

    /// From `h`, `[tokens, embedding]`, to what is added to the residual stream.
    pub fn forward(
        &self,
        pass: &Pass<B>,
        numbers: &MixerConfig,
        store: &mut B::Store,
        h: &B::Tensor,
        scratch: &mut Scratch<B>,
        y: &mut B::Tensor,
    ) {
        match (self, numbers) {
            (Mixer::Attention(weights), MixerConfig::Attention(numbers)) => {
                weights.forward(pass, numbers, store, h, scratch, y);
            }
            (Mixer::Latent(weights), MixerConfig::Attention(numbers)) => {
                weights.forward(pass, numbers, store, h, scratch, y);
            }
            (Mixer::DeltaNet(weights), MixerConfig::DeltaNet(state)) => {
                weights.forward(pass, *state, store, h, scratch, y);
            }
            _ => unreachable!("weights are loaded by these numbers"),
        }
    }
}
