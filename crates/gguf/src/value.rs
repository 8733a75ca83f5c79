//! The values of metadata: numbers, bools, strings, and arrays of one of them.

use std::fmt;
use std::io::{self, Write};

use crate::Error;
use crate::read::Cursor;

/// Arrays may hold arrays, so many levels deep. No known writer nests at all.
pub(crate) const NESTING_MAX: usize = 8;

/// The shortest a value can be: a one-byte number.
pub(crate) const VALUE_BYTES_MIN: u64 = 1;

const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Writes out what is the same for every number type: the variants, ids, conversions, reading and writing.
macro_rules! values {
    ($($id:literal $variant:ident $number:ident)*) => {
        /// A metadata value.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is named after its type")]
        pub enum Value {
            $($variant($number),)*
            Bool(bool),
            /// Text. What is not valid UTF-8 in the file is replaced by U+FFFD.
            String(String),
            Array(Array),
        }

        /// A metadata array: all elements have one type, and an empty array has a type too.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is named after its element type")]
        pub enum Array {
            $($variant(Vec<$number>),)*
            Bool(Vec<bool>),
            /// Texts. What is not valid UTF-8 in the file (some vocabularies cut tokens inside a character) is
            /// replaced by U+FFFD.
            String(Vec<String>),
            Array(Vec<Array>),
        }

        impl Value {
            /// The name of the value's type, such as `u32`.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Value::$variant(_) => stringify!($number),)*
                    Value::Bool(_) => "bool",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                }
            }

            /// The value, if it is an integer of any width.
            pub(crate) fn integer(&self) -> Option<i128> {
                match self {
                    $(Value::$variant(x) => values!(@integer $number x),)*
                    _ => None,
                }
            }

            pub(crate) fn read(cursor: &mut Cursor, key: &str, id: u32) -> Result<Value, Error> {
                let what = &format_args!("the value of `{key}`");
                Ok(match id {
                    $($id => Value::$variant($number::from_le_bytes(cursor.array(what)?)),)*
                    BOOL => Value::Bool(bool_of(key, cursor.array::<1>(what)?[0])?),
                    STRING => Value::String(cursor.text(what)?),
                    ARRAY => Value::Array(Array::read(cursor, key, 1)?),
                    found => return Err(Error::ValueType { key: key.into(), found }),
                })
            }

            /// Writes the type and the value.
            pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
                match self {
                    $(Value::$variant(x) => {
                        out.write_all(&u32::to_le_bytes($id))?;
                        out.write_all(&x.to_le_bytes())
                    })*
                    Value::Bool(x) => {
                        out.write_all(&BOOL.to_le_bytes())?;
                        out.write_all(&[u8::from(*x)])
                    }
                    Value::String(x) => {
                        out.write_all(&STRING.to_le_bytes())?;
                        write_text(x, out)
                    }
                    Value::Array(x) => {
                        out.write_all(&ARRAY.to_le_bytes())?;
                        x.write(out)
                    }
                }
            }
        }

        impl Array {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(x) => x.len(),)*
                    Array::Bool(x) => x.len(),
                    Array::String(x) => x.len(),
                    Array::Array(x) => x.len(),
                }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The name of the elements' type, such as `u32`.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Array::$variant(_) => stringify!($number),)*
                    Array::Bool(_) => "bool",
                    Array::String(_) => "string",
                    Array::Array(_) => "array",
                }
            }

            /// The element at this index.
            pub fn get(&self, index: usize) -> Option<Value> {
                match self {
                    $(Array::$variant(x) => x.get(index).copied().map(Value::$variant),)*
                    Array::Bool(x) => x.get(index).copied().map(Value::Bool),
                    Array::String(x) => x.get(index).cloned().map(Value::String),
                    Array::Array(x) => x.get(index).cloned().map(Value::Array),
                }
            }

            fn read(cursor: &mut Cursor, key: &str, depth: usize) -> Result<Array, Error> {
                if depth > NESTING_MAX {
                    return Err(Error::Nesting { key: key.into(), max: NESTING_MAX });
                }
                let id = u32::from_le_bytes(cursor.array(&format_args!("the array `{key}`"))?);
                let count = u64::from_le_bytes(cursor.array(&format_args!("the array `{key}`"))?);
                // The shortest element of each type bounds the count, and so what is allocated below.
                let element_bytes = match id {
                    $($id => size_of::<$number>() as u64,)*
                    BOOL => 1,
                    STRING => 8,
                    ARRAY => 12,
                    found => return Err(Error::ValueType { key: key.into(), found }),
                };
                let what = &format_args!("the array `{key}` of {count} elements");
                let bytes = count.saturating_mul(element_bytes);
                cursor.expect(bytes, what)?;
                Ok(match id {
                    $($id => {
                        let (elements, _) = cursor.take(bytes, what)?.as_chunks();
                        Array::$variant(elements.iter().map(|x| $number::from_le_bytes(*x)).collect())
                    })*
                    BOOL => {
                        let elements = cursor.take(bytes, what)?;
                        Array::Bool(elements.iter().map(|x| bool_of(key, *x)).collect::<Result<_, _>>()?)
                    }
                    STRING => {
                        let mut elements = Vec::with_capacity(count as usize);
                        for _ in 0..count {
                            elements.push(cursor.text(what)?);
                        }
                        Array::String(elements)
                    }
                    ARRAY => {
                        Array::Array((0..count).map(|_| Array::read(cursor, key, depth + 1)).collect::<Result<_, _>>()?)
                    }
                    _ => unreachable!("other ids were refused above"),
                })
            }

            /// Writes the element type, the count and the elements.
            fn write(&self, out: &mut dyn Write) -> io::Result<()> {
                let id = match self {
                    $(Array::$variant(_) => $id,)*
                    Array::Bool(_) => BOOL,
                    Array::String(_) => STRING,
                    Array::Array(_) => ARRAY,
                };
                out.write_all(&id.to_le_bytes())?;
                out.write_all(&(self.len() as u64).to_le_bytes())?;
                match self {
                    $(Array::$variant(x) => x.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),)*
                    Array::Bool(x) => x.iter().try_for_each(|x| out.write_all(&[u8::from(*x)])),
                    Array::String(x) => x.iter().try_for_each(|x| write_text(x, out)),
                    Array::Array(x) => x.iter().try_for_each(|x| x.write(out)),
                }
            }

            /// The elements, if they are integers of any width.
            pub(crate) fn integers(&self) -> Option<Vec<i128>> {
                match self {
                    $(Array::$variant(x) => x.iter().map(|x| values!(@integer $number x)).collect(),)*
                    _ => None,
                }
            }
        }

        $(
            impl From<$number> for Value {
                fn from(x: $number) -> Value {
                    Value::$variant(x)
                }
            }

            impl From<Vec<$number>> for Value {
                fn from(x: Vec<$number>) -> Value {
                    Value::Array(Array::$variant(x))
                }
            }
        )*
    };
    (@integer f32 $x:ident) => {{ let _ = $x; None }};
    (@integer f64 $x:ident) => {{ let _ = $x; None }};
    (@integer $number:ident $x:ident) => { Some(i128::from(*$x)) };
}

values! {
    0 U8 u8
    1 I8 i8
    2 U16 u16
    3 I16 i16
    4 U32 u32
    5 I32 i32
    6 F32 f32
    10 U64 u64
    11 I64 i64
    12 F64 f64
}

fn bool_of(key: &str, byte: u8) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Error::Bool { key: key.into(), found }),
    }
}

/// Writes a length and that many bytes.
pub(crate) fn write_text(text: &str, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

macro_rules! from {
    ($($from:ty, $x:ident => $value:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($x: $from) -> Value {
                $value
            }
        })*
    };
}

from! {
    bool, x => Value::Bool(x);
    &str, x => Value::String(x.into());
    String, x => Value::String(x);
    Array, x => Value::Array(x);
    Vec<bool>, x => Value::Array(Array::Bool(x));
    Vec<String>, x => Value::Array(Array::String(x));
    Vec<Array>, x => Value::Array(Array::Array(x));
}

/// The value in one short line: long strings and arrays are cut, and say how long they are.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARACTERS: usize = 60;
        match self {
            Value::String(x) => match x.char_indices().nth(CHARACTERS) {
                Some((cut, _)) => write!(f, "{:?}… ({} bytes)", &x[..cut], x.len()),
                None => write!(f, "{x:?}"),
            },
            Value::Array(x) => x.fmt(f),
            Value::Bool(x) => x.fmt(f),
            Value::F32(x) => x.fmt(f),
            Value::F64(x) => x.fmt(f),
            integer => integer.integer().expect("only integers are left").fmt(f),
        }
    }
}

/// The first elements in one short line, and how many there are.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ELEMENTS: usize = 6;
        f.write_str("[")?;
        for (i, element) in (0..ELEMENTS).map_while(|i| self.get(i)).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{element}")?;
        }
        if self.len() > ELEMENTS {
            write!(f, ", … ({} elements)", self.len())?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_in_one_short_line() {
        for (value, line) in [
            (Value::from(7u8), "7"),
            (Value::from(-1i64), "-1"),
            (Value::from(0.5f32), "0.5"),
            (Value::from(true), "true"),
            (Value::from("a\nb"), r#""a\nb""#),
            (Value::from("é".repeat(61)), &format!("\"{}\"… (122 bytes)", "é".repeat(60))),
            (Value::from(Vec::<f32>::new()), "[]"),
            (Value::from(vec![1u16, 2]), "[1, 2]"),
            (Value::from((0..9i32).collect::<Vec<_>>()), "[0, 1, 2, 3, 4, 5, … (9 elements)]"),
            (Value::from(vec![Array::Bool(vec![true]), Array::U8(vec![])]), "[[true], []]"),
        ] {
            assert_eq!(value.to_string(), line);
        }
    }
}
