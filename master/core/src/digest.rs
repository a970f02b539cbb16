//! A digest of the state, for comparing masters.

use crate::state::ClusterState;
use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use std::fmt;

impl ClusterState {
    /// 64-bit FNV-1a over all that a snapshot would hold: equal states have equal hashes, whatever the machine, and masters
    /// of one build with different hashes at the same log index are a fault.
    ///
    /// Walks through the whole state: something for once in a while, not for each command. Guards against mistakes, not
    /// against somebody who makes up states.
    pub fn hash(&self) -> u64 {
        let mut digest = Digest(FNV_OFFSET);
        match self.serialize(&mut digest) {
            Ok(()) => digest.0,
            // No type of the state refuses; if one did, then on every master.
            Err(Refused) => 0,
        }
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Before each element of something of open length, and at its end: so that `[[1], []]` is not `[[], [1]]`.
const ELEMENT: u8 = 1;
const END: u8 = 0;

/// Serde's view of a value, fed to FNV-1a. Numbers count with their full width, texts with their length before them,
/// variants by name, fields by place.
struct Digest(u64);

impl Digest {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }

    fn feed_text(&mut self, bytes: &[u8]) {
        self.feed(&(bytes.len() as u64).to_le_bytes());
        self.feed(bytes);
    }
}

/// What a type says that cannot be serialised.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not serialisable")
    }
}

impl std::error::Error for Refused {}

impl serde::ser::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method(self, value: $type) -> Result<(), Refused> {
            self.feed(&value.to_le_bytes());
            Ok(())
        })+
    };
}

impl Serializer for &mut Digest {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers! {
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_u128: u128,
        serialize_f32: f32,
        serialize_f64: f64,
    }

    fn serialize_bool(self, value: bool) -> Result<(), Refused> {
        self.serialize_u8(u8::from(value))
    }

    fn serialize_char(self, value: char) -> Result<(), Refused> {
        self.serialize_u32(u32::from(value))
    }

    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        self.feed_text(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Refused> {
        self.serialize_u8(END)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.feed(&[ELEMENT]);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refused> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Refused> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.feed_text(variant.as_bytes());
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.feed_text(variant.as_bytes());
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.feed_text(variant.as_bytes());
        Ok(self)
    }
}

impl SerializeSeq for &mut Digest {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.feed(&[ELEMENT]);
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Refused> {
        self.serialize_u8(END)
    }
}

impl SerializeMap for &mut Digest {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.feed(&[ELEMENT]);
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Refused> {
        self.serialize_u8(END)
    }
}

/// What has a fixed number of parts needs no marks between them.
macro_rules! parts {
    ($($trait:ident: $method:ident($($name:ty)?)),+ $(,)?) => {
        $(impl $trait for &mut Digest {
            type Ok = ();
            type Error = Refused;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Result<(), Refused> {
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        })+
    };
}

parts! {
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(&'static str),
    SerializeStructVariant: serialize_field(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(value: &impl Serialize) -> u64 {
        let mut digest = Digest(FNV_OFFSET);
        value.serialize(&mut digest).unwrap();
        digest.0
    }

    #[test]
    fn it_is_fnv_1a() {
        // Of the empty input, and of the byte "a": the algorithm's published test vectors.
        assert_eq!(digest(&()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(&b'a'), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn values_of_the_same_bytes_but_another_shape_differ() {
        let different = [
            digest(&[vec![1u8], vec![]].to_vec()),
            digest(&[vec![], vec![1u8]].to_vec()),
            digest(&[vec![1u8]].to_vec()),
            digest(&("ab", "c")),
            digest(&("a", "bc")),
            digest(&("abc", "")),
            digest(&Some(0u8)),
            digest(&None::<u8>),
            digest(&Ok::<u8, u8>(1)),
            digest(&Err::<u8, u8>(1)),
            digest(&std::collections::BTreeMap::from([(1u8, 2u8)])),
            digest(&std::collections::BTreeMap::from([(1u8, 2u8), (3, 4)])),
        ];
        for (i, a) in different.iter().enumerate() {
            for (j, b) in different.iter().enumerate() {
                assert!(i == j || a != b, "{i} and {j}");
            }
        }
    }
}
