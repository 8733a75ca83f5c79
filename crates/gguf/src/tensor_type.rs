//! The number formats a tensor can be stored in: GGML's type ids, names and block sizes.

use std::borrow::Cow;
use std::fmt;

/// How a tensor's numbers are stored: a GGML type id, and the block it stands for if that is known.
///
/// A row is cut into blocks of so many elements, each stored in so many bytes. An id this crate does not know is kept
/// by its number, so that a file can still be listed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType {
    id: u32,
    /// Empty if the id is unknown.
    name: &'static str,
    block_elements: usize,
    block_bytes: usize,
}

/// Declares each type as a constant and collects them in a list.
macro_rules! tensor_types {
    ($(#[$doc:meta])* $list:ident: $($id:literal $constant:ident $name:literal $elements:literal $bytes:literal;)*) => {
        impl TensorType {
            $(
                #[doc = concat!("`", $name, "`, id ", $id, ": ", $elements, " elements in ", $bytes, " bytes.")]
                pub const $constant: TensorType =
                    TensorType { id: $id, name: $name, block_elements: $elements, block_bytes: $bytes };
            )*
        }
        $(#[$doc])*
        const $list: &[TensorType] = &[$(TensorType::$constant),*];
    };
}

tensor_types! {
    /// Types whose ids everybody agrees on (`enum ggml_type`; the gaps are types GGML has removed).
    SETTLED:
    0 F32 "f32" 1 4;
    1 F16 "f16" 1 2;
    2 Q4_0 "q4_0" 32 18;
    3 Q4_1 "q4_1" 32 20;
    6 Q5_0 "q5_0" 32 22;
    7 Q5_1 "q5_1" 32 24;
    8 Q8_0 "q8_0" 32 34;
    9 Q8_1 "q8_1" 32 36;
    10 Q2_K "q2_k" 256 84;
    11 Q3_K "q3_k" 256 110;
    12 Q4_K "q4_k" 256 144;
    13 Q5_K "q5_k" 256 176;
    14 Q6_K "q6_k" 256 210;
    15 Q8_K "q8_k" 256 292;
    16 IQ2_XXS "iq2_xxs" 256 66;
    17 IQ2_XS "iq2_xs" 256 74;
    18 IQ3_XXS "iq3_xxs" 256 98;
    19 IQ1_S "iq1_s" 256 50;
    20 IQ4_NL "iq4_nl" 32 18;
    21 IQ3_S "iq3_s" 256 110;
    22 IQ2_S "iq2_s" 256 82;
    23 IQ4_XS "iq4_xs" 256 136;
    24 I8 "i8" 1 1;
    25 I16 "i16" 1 2;
    26 I32 "i32" 1 4;
    27 I64 "i64" 1 8;
    28 F64 "f64" 1 8;
    29 IQ1_M "iq1_m" 256 56;
    30 BF16 "bf16" 1 2;
    34 TQ1_0 "tq1_0" 256 54;
    35 TQ2_0 "tq2_0" 256 66;
    39 MXFP4 "mxfp4" 32 17;
    40 NVFP4 "nvfp4" 64 36;
    41 Q1_0 "q1_0" 128 18;
}

tensor_types! {
    /// Types whose ids mean different things to different writers: GGML and several forks number from 42 on as they
    /// please, and have renumbered. In a file such an id is believed only if the tensor has the length that the type
    /// would give it; the first that fits wins, so the current meaning of an id stands before older ones.
    CONTESTED:
    42 Q2_0 "q2_0" 64 18;
    45 TQ3_1S "tq3_1s" 32 16;
    46 TQ4_1S "tq4_1s" 32 20;
    44 TQ3_1S_OLD "tq3_1s" 32 16;
    45 TQ4_1S_OLD "tq4_1s" 32 20;
}

impl TensorType {
    /// The type with this id; unknown if there is none, or if writers disagree on its meaning (ids 42 and above).
    pub fn from_id(id: u32) -> TensorType {
        let unknown = TensorType { id, name: "", block_elements: 0, block_bytes: 0 };
        SETTLED.iter().copied().find(|kind| kind.id == id).unwrap_or(unknown)
    }

    /// The type with this name, such as `"q4_k"`.
    pub fn named(name: &str) -> Option<TensorType> {
        TensorType::all().find(|kind| kind.name == name)
    }

    /// Every known type, once for every id it is written with.
    pub fn all() -> impl Iterator<Item = TensorType> {
        SETTLED.iter().chain(CONTESTED).copied()
    }

    /// What a contested id may stand for, likeliest first. Empty if the id is settled or unknown.
    pub(crate) fn candidates(id: u32) -> impl Iterator<Item = TensorType> {
        CONTESTED.iter().copied().filter(move |kind| kind.id == id)
    }

    /// The number that stands for this type in the file.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// GGML's name in lower case, such as `q4_k`; `type 99` if the id is unknown.
    pub fn name(&self) -> Cow<'static, str> {
        match self.name {
            "" => format!("type {}", self.id).into(),
            name => name.into(),
        }
    }

    /// Elements and bytes of one block; `None` if the id is unknown.
    pub fn block(&self) -> Option<(usize, usize)> {
        (!self.name.is_empty()).then_some((self.block_elements, self.block_bytes))
    }

    /// Bytes of one row of so many elements; `None` if the id is unknown, the row is not a whole number of blocks, or
    /// the length overflows.
    pub fn row_bytes(&self, elements: u64) -> Option<u64> {
        let (block, bytes) = self.block()?;
        if !elements.is_multiple_of(block as u64) {
            return None;
        }
        (elements / block as u64).checked_mul(bytes as u64)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (id {})", self.name(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_ids_and_names_are_unique_and_in_order() {
        assert!(SETTLED.is_sorted_by(|a, b| a.id < b.id));
        for (i, kind) in SETTLED.iter().enumerate() {
            assert_eq!(SETTLED.iter().position(|other| other.name == kind.name), Some(i), "{kind}");
            assert!(TensorType::candidates(kind.id).next().is_none(), "{kind} is settled and contested");
        }
    }

    #[test]
    fn every_type_is_found_by_name_and_settled_ones_by_id() {
        for kind in TensorType::all() {
            assert_eq!(TensorType::named(&kind.name()).unwrap().block(), kind.block());
        }
        for &kind in SETTLED {
            assert_eq!(TensorType::from_id(kind.id()), kind);
        }
        assert_eq!(TensorType::named("tq3_1s").unwrap().id(), 45);
        assert_eq!(TensorType::named("type 99"), None);
    }

    #[test]
    fn unknown_and_contested_ids_keep_their_number() {
        for id in [4, 5, 31, 44, 45, 46, 99, u32::MAX] {
            let kind = TensorType::from_id(id);
            assert_eq!((kind.id(), kind.name(), kind.block()), (id, format!("type {id}").into(), None));
            assert_eq!(kind.row_bytes(256), None);
        }
    }

    #[test]
    fn row_bytes() {
        for (kind, elements, bytes) in [
            (TensorType::F32, 7, Some(28)),
            (TensorType::Q4_K, 512, Some(288)),
            (TensorType::Q4_K, 128, None),
            (TensorType::F64, u64::MAX, None),
            (TensorType::TQ4_1S, 96, Some(60)),
        ] {
            assert_eq!(kind.row_bytes(elements), bytes, "{kind} {elements}");
        }
    }
}
