//! Files that lie, one case a line; and files damaged at random.

use proptest::prelude::*;

use super::*;
use crate::{Array, Gguf, Writer};

fn u32s(x: u32) -> Vec<u8> {
    x.to_le_bytes().into()
}

fn u64s(x: u64) -> Vec<u8> {
    x.to_le_bytes().into()
}

fn text(x: impl AsRef<[u8]>) -> Vec<u8> {
    [&u64s(x.as_ref().len() as u64), x.as_ref()].concat()
}

/// A metadata entry: key, type id, the bytes of the value.
fn key(key: impl AsRef<[u8]>, id: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&text(key)[..], &u32s(id), value.as_ref()].concat()
}

/// An array: element type, claimed count, the bytes of the elements.
fn array(id: u32, count: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    [&u32s(id)[..], &u64s(count), elements.as_ref()].concat()
}

/// An entry in the table of tensors.
fn tensor(name: impl AsRef<[u8]>, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let shape_bytes: Vec<u8> = shape.iter().flat_map(|x| x.to_le_bytes()).collect();
    [&text(name)[..], &u32s(shape.len() as u32), &shape_bytes, &u32s(kind), &u64s(offset)].concat()
}

/// A file of version 3 with these entries, padded, and so many bytes of data.
fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let counts = [u64s(tensors.len() as u64), u64s(keys.len() as u64)].concat();
    let mut bytes = [&b"GGUF"[..], &u32s(3), &counts, &keys.concat(), &tensors.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_DEFAULT as usize) + data, 0);
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::from_bytes(bytes.into())
}

#[track_caller]
fn check(bytes: Vec<u8>, expected: &str) {
    assert_eq!(read(bytes).expect_err("the file lies").to_string(), expected);
}

/// Checks the error of a file with one metadata entry.
#[track_caller]
fn check_key(key: Vec<u8>, expected: &str) {
    check(file(&[key], &[], 0), expected);
}

/// Checks the error of a file with these tensors and so many bytes of data.
#[track_caller]
fn check_tensors(tensors: &[Vec<u8>], data: usize, expected: &str) {
    check(file(&[], tensors, data), expected);
}

#[test]
fn lies_of_the_header() {
    let header = |magic: &[u8], version: u32, tensors: u64, keys: u64| {
        [magic, &u32s(version), &u64s(tensors), &u64s(keys), &[0; 64]].concat()
    };
    check(
        vec![],
        "the magic \"GGUF\" needs 4 bytes, but the file has 0 left: truncated, or the number is wrong",
    );
    check(header(b"ggjt", 3, 0, 0), "not a GGUF file: it starts with \"ggjt\", expected \"GGUF\"");
    check(
        header(b"\0\xff\n\"", 3, 0, 0),
        r#"not a GGUF file: it starts with "\x00\xff\n\"", expected "GGUF""#,
    );
    let big_endian = "big-endian GGUF is not supported; convert the file to little-endian";
    check(header(b"FUGG", 3, 0, 0), big_endian);
    check(header(b"GGUF", 3 << 24, 0, 0), big_endian);
    for version in [0, 1, 4, u32::MAX] {
        let expected = format!("GGUF version {version} is not supported, expected 2 or 3");
        check(header(b"GGUF", version, 0, 0), &expected);
    }
    let rest = "but the file has 64 left: truncated, or the number is wrong";
    check(header(b"GGUF", 3, 0, 5), &format!("metadata of 5 keys needs 65 bytes, {rest}"));
    check(header(b"GGUF", 3, 3, 0), &format!("a table of 3 tensors needs 72 bytes, {rest}"));
    check(
        header(b"GGUF", 2, 0, u64::MAX),
        &format!("metadata of {} keys needs {} bytes, {rest}", u64::MAX, u64::MAX),
    );
}

#[test]
fn lies_of_the_metadata() {
    let left = |n: u64| format!("but the file has {n} left: truncated, or the number is wrong");
    check_key(key("k", 13, [0; 8]), "metadata key `k`: value type 13 is unknown, expected 0 to 12");
    check_key(
        key("k", 9, array(13, 1, [0; 8])),
        "metadata key `k`: value type 13 is unknown, expected 0 to 12",
    );
    check_key(key("k", 7, [2]), "metadata key `k`: a bool is stored as 2, expected 0 or 1");
    check_key(key("k", 9, array(7, 2, [1, 9])), "metadata key `k`: a bool is stored as 9, expected 0 or 1");
    check_key(
        key("k", 8, u64s(1 << 40)),
        &format!(
            "a string of 1099511627776 bytes in the value of `k` needs 1099511627776 bytes, {}",
            left(19)
        ),
    );
    check_key(
        key("k", 9, array(10, 1 << 61, [])),
        &format!("the array `k` of 2305843009213693952 elements needs {} bytes, {}", u64::MAX, left(15)),
    );
    check_key(
        key("k", 9, array(8, 2, [0; 9])),
        &format!("the array `k` of 2 elements needs 16 bytes, {}", left(15)),
    );
    check_key(
        key("k", 9, array(8, 1, u64s(99))),
        &format!("a string of 99 bytes in the array `k` of 1 elements needs 99 bytes, {}", left(7)),
    );
    check_key(
        key("k", 9, array(9, 100, array(0, 0, []))),
        &format!("the array `k` of 100 elements needs 1200 bytes, {}", left(15)),
    );
    let nested = (0..9).fold(array(0, 0, []), |inner, _| array(9, 1, inner));
    check_key(key("k", 9, nested), "metadata key `k`: arrays nested more than 8 deep");
    check_key(key([0xff], 7, [0]), "the name of metadata key 0 is not valid UTF-8");
    check_key(
        key(vec![b'k'; 65536], 7, [0]),
        "the name of metadata key 0 has 65536 bytes, expected at most 65535",
    );
    check_key(key("general.alignment", 6, [0; 4]), "metadata key `general.alignment` is f32 0, expected u64");
    for alignment in [0, 1, 4, 24, 4 << 20, u32::MAX] {
        check_key(
            key("general.alignment", 4, u32s(alignment)),
            &format!(
                "metadata key `general.alignment` is {alignment}, expected a power of two from 8 to 2097152"
            ),
        );
    }
    check(file(&[key("k", 7, [0]), key("k", 0, [0])], &[], 0), "metadata key `k` appears twice");
}

#[test]
fn lies_of_the_tensors() {
    let f32s = |name, offset| tensor(name, &[8], 0, offset);
    check_tensors(&[f32s("a", 0), f32s("a", 32)], 64, "tensor `a` appears twice");
    check_tensors(&[tensor([0xc0], &[8], 0, 0)], 32, "the name of tensor 0 is not valid UTF-8");
    check_tensors(&[tensor("a", &[1; 5], 0, 0)], 32, "tensor `a` has 5 dimensions, expected at most 4");
    check_tensors(
        &[tensor("a", &[1 << 32, 1 << 32], 0, 0)],
        32,
        "tensor `a`: shape [4294967296, 4294967296] overflows 64 bits",
    );
    check_tensors(
        &[tensor("a", &[1 << 62], 0, 0)],
        32,
        "tensor `a`: shape [4611686018427387904] overflows 64 bits",
    );
    check_tensors(
        &[tensor("a", &[1 << 32, 1 << 32], 99, 0)],
        32,
        "tensor `a`: shape [4294967296, 4294967296] overflows 64 bits",
    );
    // Nothing to store, but the sizes around the zero still overflow.
    check_tensors(
        &[tensor("a", &[0, 1 << 32, 1 << 33], 0, 0)],
        32,
        "tensor `a`: shape [0, 4294967296, 8589934592] overflows 64 bits",
    );
    check_tensors(
        &[tensor("a", &[48, 2], 12, 0)],
        32,
        "tensor `a`: row length 48 is not a multiple of 256, the block of q4_k",
    );
    check_tensors(&[f32s("a", 8)], 64, "tensor `a`: offset 8 is not a multiple of the alignment 32");
    check_tensors(
        &[f32s("a", 0), f32s("b", 32)],
        63,
        "tensor `b` (f32, shape [8]) needs 32 bytes at offset 32 of the data, but the file has 63 bytes of data",
    );
    check_tensors(
        &[f32s("a", u64::MAX - 31)],
        32,
        "tensor `a` (f32, shape [8]) needs 32 bytes at offset 18446744073709551584 of the data, \
         but the file has 32 bytes of data",
    );
    check_tensors(
        &[tensor("a", &[0], 0, 64)],
        32,
        "tensor `a` (f32, shape [0]) needs 0 bytes at offset 64 of the data, but the file has 32 bytes of data",
    );
    check_tensors(
        &[tensor("a", &[8], 99, 0), f32s("b", 1 << 40)],
        32,
        "tensor `b` (f32, shape [8]) needs 32 bytes at offset 1099511627776 of the data, \
         but the file has 32 bytes of data",
    );
    let inside = "tensor `b` starts at offset 32, inside tensor `a` which ends at 64";
    check_tensors(&[tensor("a", &[16], 0, 0), f32s("b", 32)], 64, inside);
    check_tensors(&[f32s("b", 32), tensor("a", &[16], 0, 0)], 64, inside);
    let same = "tensor `b` starts at offset 0, inside tensor `a` which ends at 32";
    check_tensors(&[f32s("a", 0), f32s("b", 0)], 64, same);
    check_tensors(
        &[tensor("a", &[64], 45, 0)],
        31,
        "tensor `a` (tq3_1s, shape [64]) needs 32 bytes at offset 0 of the data, but the file has 31 bytes of data",
    );
}

/// Checks the type of a tensor that has so much room before the next one.
#[track_caller]
fn check_kind(id: u32, shape: &[u64], room: u64, expected: &str) {
    let tensors = [tensor("a", shape, id, 0), tensor("b", &[8], 0, room)];
    let gguf = read(file(&[], &tensors, room as usize + 32)).unwrap();
    let a = gguf.tensor("a").unwrap();
    assert_eq!((a.kind.name().as_ref(), a.kind.id()), (expected, id));
    let length = data_bytes("a", shape, a.kind).unwrap().unwrap_or(room);
    assert_eq!(a.data.len() as u64, length);
}

#[test]
fn contested_ids_are_told_by_length() {
    check_kind(44, &[256, 4], 512, "tq3_1s");
    check_kind(45, &[256, 4], 512, "tq3_1s");
    check_kind(45, &[256, 4], 640, "tq4_1s");
    check_kind(46, &[256, 4], 640, "tq4_1s");
    check_kind(46, &[32, 17], 352, "tq4_1s"); // 340 and padding
    check_kind(46, &[256, 4], 512, "type 46");
    check_kind(44, &[256, 4], 640, "type 44");
    check_kind(45, &[256, 4], 1024, "type 45");
    check_kind(45, &[40, 4], 96, "type 45");
    check_kind(42, &[256, 4], 288, "q2_0");
    check_kind(42, &[256, 4], 320, "type 42");
}

#[test]
fn unknown_types_are_listed_with_the_room_they_have() {
    for id in [4, 31, 43, 99, u32::MAX] {
        check_kind(id, &[7, 3], 96, &format!("type {id}"));
    }
}

#[test]
fn odd_but_honest_files_open() {
    let gguf = read(file(
        &[key("k", 8, text([b'a', 0xff])), key("", 9, array(8, 2, [text([0xe2, 0x82]), text("b")].concat()))],
        &[
            tensor("scalar", &[], 0, 32),
            tensor("empty", &[0, 5], 12, 32),
            tensor("", &[2, 1, 1, 3], 0, 0),
            tensor("end", &[0], 0, 64),
        ],
        64,
    ))
    .unwrap();
    assert_eq!(gguf.metadata().string("k").unwrap(), Some("a\u{fffd}"));
    assert_eq!(gguf.metadata().strings("").unwrap().unwrap(), ["\u{fffd}", "b"]);
    let lengths: Vec<_> = gguf.tensors().iter().map(|tensor| tensor.data.len()).collect();
    assert_eq!(lengths, [4, 0, 24, 0]);
}

/// A file with every kind of value and several kinds of tensor, the last one not padded.
fn sound_file() -> Vec<u8> {
    let mut metadata = Metadata::from_iter([
        ("general.architecture", Value::from("llama")),
        ("general.alignment", Value::from(16u32)),
        ("split.no", Value::from(0u16)),
        ("scale", Value::from(0.5f32)),
        ("flag", Value::from(true)),
        ("tokens", Value::from(vec!["a".to_string(), "é".to_string(), String::new()])),
        ("types", Value::from(vec![1i32, 3, -1])),
        ("wide", Value::from(vec![1.5f64])),
        ("flags", Value::from(vec![true, false])),
    ]);
    metadata
        .insert("nested", vec![Array::U8(vec![1, 2]), Array::Array(vec![Array::String(vec!["x".into()])])]);
    let mut writer = Writer::new(metadata).unwrap();
    for (name, shape, kind, bytes) in [
        ("norm", &[6][..], TensorType::F32, 24),
        ("weight", &[32, 3], TensorType::Q4_0, 54),
        ("rotated", &[64, 2], TensorType::TQ3_1S, 64),
        ("strange", &[5, 2], TensorType::from_id(99), 33),
    ] {
        writer.tensor(name, shape, kind, vec![7; bytes]).unwrap();
    }
    let mut bytes = writer.to_bytes().unwrap();
    bytes.truncate(bytes.len() - 15);
    bytes
}

/// Whatever was done to the file: no panic, and what opens is well formed.
fn survives(bytes: Vec<u8>) {
    let Ok(gguf) = read(bytes) else { return };
    for tensor in gguf.tensors() {
        assert!(gguf.tensor(&tensor.name).is_some());
        if let Some(expected) = data_bytes(&tensor.name, &tensor.shape, tensor.kind).unwrap() {
            assert_eq!(expected, tensor.data.len() as u64, "{tensor:?}");
        }
    }
    for (_, value) in gguf.metadata().iter() {
        assert!(value.to_string().len() < 100_000);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_or_loses_only_data_of_unknown_length() {
    let bytes = sound_file();
    assert_eq!(read(bytes.clone()).unwrap().tensors().len(), 4);
    // The last tensor is of unknown type, so only the file's end bounds it.
    let strange = 33;
    for length in 0..bytes.len() {
        let result = read(bytes[..length].to_vec());
        assert_eq!(result.is_ok(), length >= bytes.len() - strange, "cut to {length} bytes");
    }
}

#[test]
fn any_one_byte_may_be_wrong() {
    let sound = sound_file();
    for at in 0..sound.len() {
        for byte in [0, 1, 7, 0x7f, 0x80, 0xff, sound[at] ^ 1, sound[at].wrapping_add(1)] {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            survives(bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn damaged_files_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u32..64), 0..3),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sound_file();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Whole numbers of all magnitudes, so that lengths and counts lie in interesting ways.
        for (at, word, shift) in words {
            let at = at.index(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&(word >> shift).to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survives(bytes);
    }

    #[test]
    fn random_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 24..300)) {
        bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
        survives(bytes.clone());
        // Small counts get further.
        bytes[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        survives(bytes);
    }
}
