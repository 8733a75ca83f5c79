//! Metadata: what a GGUF file says about the model, as an ordered map with typed getters.

use std::borrow::Cow;

use indexmap::IndexMap;

use crate::Error;
use crate::value::{Array, Value};

/// Keys and values, in file order.
///
/// The getters return `Ok(None)` if the key is absent, and an error that names the key, the expected and the found
/// type if it holds something else. Writers disagree about integer types, so a getter for integers takes any width and
/// sign as long as the number fits. Floats do not stand for integers, nor integers for floats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: IndexMap<String, Value>,
}

impl Metadata {
    /// The value of a key, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Keys and values, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Sets a key, at the end if it is new; returns the value it replaces.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.values.insert(key.into(), value.into())
    }

    /// Removes a key; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.values.shift_remove(key)
    }

    /// The value of a key as a `T`, if the key is there.
    pub fn optional<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(x) => Ok(Some(x)),
            None => Err(Error::KeyType {
                key: key.into(),
                expected: T::EXPECTED,
                found: match value {
                    Value::Array(x) => format!("array of {} {x}", x.type_name()),
                    x => format!("{} {x}", x.type_name()),
                },
            }),
        }
    }

    /// The value of a key as a `T`, or an error if it is missing.
    ///
    /// ```
    /// # let mut metadata = torque_gguf::Metadata::default();
    /// # metadata.insert("llama.block_count", 32u32);
    /// let layers: usize = metadata.required("llama.block_count")?;
    /// # assert_eq!(layers, 32);
    /// # Ok::<(), torque_gguf::Error>(())
    /// ```
    pub fn required<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, Error> {
        self.optional(key)?.ok_or_else(|| Error::MissingKey { key: key.into() })
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        self.optional(key)
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.optional(key)
    }

    /// An integer that fits `u32`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.optional(key)
    }

    /// An integer that fits `u64`.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.optional(key)
    }

    /// An integer that fits `usize`.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, Error> {
        self.optional(key)
    }

    /// A float, rounded to `f32` if it is stored as `f64`.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.optional(key)
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        self.optional(key)
    }

    /// An array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>, Error> {
        self.optional(key)
    }

    /// An array of floats, borrowed if stored as `f32`.
    pub fn f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>, Error> {
        self.optional(key)
    }

    /// An array of integers that fit `i32`, borrowed if stored as `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>, Error> {
        self.optional(key)
    }

    /// An array of integers that fit `u32`, borrowed if stored as `u32`.
    pub fn u32s(&self, key: &str) -> Result<Option<Cow<'_, [u32]>>, Error> {
        self.optional(key)
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Metadata {
        Metadata { values: pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }
}

/// A type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// What an error message calls it.
    const EXPECTED: &'static str;

    /// The value as this type; `None` if it is of another type or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($type:ty, $expected:literal, $value:ident => $from:expr;)*) => {
        $(impl<'a> FromValue<'a> for $type {
            const EXPECTED: &'static str = $expected;

            fn from_value($value: &'a Value) -> Option<Self> {
                $from
            }
        })*
    };
}

from_value! {
    u8, "u8", x => x.integer()?.try_into().ok();
    u16, "u16", x => x.integer()?.try_into().ok();
    u32, "u32", x => x.integer()?.try_into().ok();
    u64, "u64", x => x.integer()?.try_into().ok();
    usize, "usize", x => x.integer()?.try_into().ok();
    i32, "i32", x => x.integer()?.try_into().ok();
    i64, "i64", x => x.integer()?.try_into().ok();
    f32, "f32", x => match x {
        Value::F32(x) => Some(*x),
        Value::F64(x) => Some(*x as f32),
        _ => None,
    };
    bool, "bool", x => match x {
        Value::Bool(x) => Some(*x),
        _ => None,
    };
    &'a str, "string", x => match x {
        Value::String(x) => Some(x),
        _ => None,
    };
    &'a Array, "array", x => match x {
        Value::Array(x) => Some(x),
        _ => None,
    };
    &'a [String], "array of string", x => match x {
        Value::Array(Array::String(x)) => Some(x),
        _ => None,
    };
    &'a [bool], "array of bool", x => match x {
        Value::Array(Array::Bool(x)) => Some(x),
        _ => None,
    };
    Cow<'a, [f32]>, "array of f32", x => match x {
        Value::Array(Array::F32(x)) => Some(x.into()),
        Value::Array(Array::F64(x)) => Some(x.iter().map(|x| *x as f32).collect()),
        _ => None,
    };
    Cow<'a, [i32]>, "array of i32", x => match x {
        Value::Array(Array::I32(x)) => Some(x.into()),
        Value::Array(x) => x.integers()?.into_iter().map(|x| x.try_into().ok()).collect(),
        _ => None,
    };
    Cow<'a, [u32]>, "array of u32", x => match x {
        Value::Array(Array::U32(x)) => Some(x.into()),
        Value::Array(x) => x.integers()?.into_iter().map(|x| x.try_into().ok()).collect(),
        _ => None,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key `k` with this value.
    fn one(value: impl Into<Value>) -> Metadata {
        Metadata::from_iter([("k", value)])
    }

    #[track_caller]
    fn check<'a, T: FromValue<'a> + std::fmt::Debug>(metadata: &'a Metadata, expected: &str) {
        let found = match metadata.required::<T>("k") {
            Ok(x) => format!("{x:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn integers_of_any_width_are_accepted_where_they_fit() {
        for value in [
            Value::U8(7),
            Value::I8(7),
            Value::U16(7),
            Value::I16(7),
            Value::U32(7),
            Value::I32(7),
            Value::U64(7),
            Value::I64(7),
        ] {
            let metadata = one(value);
            assert_eq!(metadata.u32("k").unwrap(), Some(7));
            assert_eq!(metadata.u64("k").unwrap(), Some(7));
            assert_eq!(metadata.usize("k").unwrap(), Some(7));
            assert_eq!(metadata.required::<i32>("k").unwrap(), 7);
        }
        check::<u32>(&one(-1i32), "metadata key `k` is i32 -1, expected u32");
        check::<i32>(&one(1u32 << 31), "metadata key `k` is u32 2147483648, expected i32");
        check::<u8>(&one(256u16), "metadata key `k` is u16 256, expected u8");
        check::<i64>(&one(u64::MAX), "metadata key `k` is u64 18446744073709551615, expected i64");
        check::<u64>(&one(u64::MAX), "18446744073709551615");
        check::<Cow<[u32]>>(&one(vec![1i8, 2]), "[1, 2]");
        check::<Cow<[i32]>>(&one(vec![3u64]), "[3]");
        check::<Cow<[u32]>>(
            &one(vec![1i32, -1]),
            "metadata key `k` is array of i32 [1, -1], expected array of u32",
        );
    }

    #[test]
    fn the_wrong_type_is_an_error_that_names_key_and_types() {
        check::<u32>(&one(1.0f32), "metadata key `k` is f32 1, expected u32");
        check::<f32>(&one(1u32), "metadata key `k` is u32 1, expected f32");
        check::<f32>(&one(0.5f64), "0.5");
        check::<bool>(&one(1u8), "metadata key `k` is u8 1, expected bool");
        check::<&str>(&one(true), "metadata key `k` is bool true, expected string");
        check::<u32>(&one("7"), "metadata key `k` is string \"7\", expected u32");
        check::<u32>(&one(vec![7u32]), "metadata key `k` is array of u32 [7], expected u32");
        check::<&[String]>(&one("a"), "metadata key `k` is string \"a\", expected array of string");
        check::<&[bool]>(&one(vec![true, false]), "[true, false]");
        check::<Cow<[f32]>>(&one(vec![0.5f64]), "[0.5]");
        check::<Cow<[f32]>>(&one(vec![1u8]), "metadata key `k` is array of u8 [1], expected array of f32");
    }

    #[test]
    fn absent_keys_are_none_or_an_error() {
        assert_eq!(one(1u32).u32("other").unwrap(), None);
        assert_eq!(
            one(1u32).required::<u32>("other").unwrap_err().to_string(),
            "metadata key `other` is missing"
        );
    }

    #[test]
    fn keys_keep_their_order() {
        let mut metadata = Metadata::from_iter([("b", 1u32), ("a", 2), ("c", 3)]);
        assert_eq!(metadata.insert("b", 4u32), Some(Value::U32(1)));
        assert_eq!(metadata.remove("a"), Some(Value::U32(2)));
        metadata.insert("a", "last");
        assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["b", "c", "a"]);
    }
}
