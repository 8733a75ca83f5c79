//! Choosing an instruction set at run time.

#[cfg(target_arch = "x86_64")]
use crate::{Avx2, Avx512};
#[cfg(target_arch = "aarch64")]
use crate::{Dotprod, Neon};
use crate::{Isa, Scalar};

/// The name of an instruction set, on this or another kind of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Plain loops.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with AMX: [`crate::tiles`] of bfloat16.
    Amx,
    /// 64-bit Arm.
    Neon,
    /// 64-bit Arm with products of bytes.
    Dotprod,
}

impl Level {
    /// Every instruction set, slowest first.
    pub const ALL: [Level; 6] =
        [Level::Scalar, Level::Avx2, Level::Avx512, Level::Amx, Level::Neon, Level::Dotprod];

    /// The best instruction set of this processor.
    pub fn detect() -> Level {
        *Level::all_available().last().expect("the scalar level is always available")
    }

    /// The instruction sets of this processor, slowest first.
    pub fn all_available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Avx512::new().is_some() && crate::tiles::available(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => Neon::new().is_some(),
            #[cfg(target_arch = "aarch64")]
            Level::Dotprod => Dotprod::new().is_some(),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The name used by the command line and in benchmark records.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => Scalar::NAME,
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
            Level::Neon => "neon",
            Level::Dotprod => "dotprod",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// `dispatch!(level, |isa| expression)` evaluates the expression with `isa` the value of that level's
/// instruction set: one copy of the expression for each instruction set of the target. Vectors of [`Level::Amx`] are those of
/// [`Level::Avx512`].
///
/// # Panics
///
/// If the processor lacks the level; [`Level::is_available`] tells.
#[macro_export]
macro_rules! dispatch {
    ($level:expr, |$isa:ident| $body:expr) => {{
        macro_rules! arm {
            ($set:ident) => {{
                let $isa = <$crate::$set as $crate::Isa>::new()
                    .expect(concat!("the processor lacks the level ", stringify!($set)));
                $body
            }};
        }
        match $level {
            $crate::Level::Scalar => arm!(Scalar),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2 => arm!(Avx2),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 | $crate::Level::Amx => arm!(Avx512),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::Neon => arm!(Neon),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::Dotprod => arm!(Dotprod),
            #[allow(unreachable_patterns)]
            other => panic!("level `{}` belongs to another kind of processor", other.name()),
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_instruction_sets() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_name("mmx"), None);
        for level in Level::all_available() {
            fn name<I: Isa>(_: I) -> &'static str {
                I::NAME
            }
            let vectors = if level == Level::Amx { Level::Avx512 } else { level };
            assert_eq!(dispatch!(level, |isa| name(isa)), vectors.name());
        }
        assert!(Level::detect().is_available());
    }
}
