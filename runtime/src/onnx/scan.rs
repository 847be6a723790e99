//! A walk over the bytes of an ONNX file, before anything is decoded: counts messages, repeated values and nesting.
//!
//! It exists because a decoder multiplies: two bytes on the wire become a node of some 200 bytes in memory, so a file
//! within the size limit could still ask for a hundred times its size. The walk allocates nothing and visits each byte
//! at most once per level of nesting. It checks lengths, not meaning.

use super::{Limits, ReadError};

/// What a length-delimited field holds, as far as bounds are concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    Shape,
    /// Small messages of scalars and strings.
    Flat,
    /// Strings and bytes: one value, whatever the length.
    Bytes,
    /// Packed scalars: at most one value a byte, which the size limit bounds already.
    Packed,
}

fn child(parent: Kind, tag: u64) -> Kind {
    match (parent, tag) {
        (Kind::Model, 7) | (Kind::Attribute, 6 | 11) => Kind::Graph,
        (Kind::Model, 8 | 14) | (Kind::Shape, 1) | (Kind::Tensor, 13) => Kind::Flat,
        (Kind::Graph, 1) => Kind::Node,
        (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) => Kind::Tensor,
        (Kind::Graph, 11..=13) => Kind::Value,
        (Kind::Node, 5) => Kind::Attribute,
        (Kind::Value, 2) => Kind::Type,
        (Kind::Type, 1) => Kind::TensorType,
        (Kind::TensorType, 2) => Kind::Shape,
        (Kind::Tensor, 1 | 4 | 5 | 7 | 10 | 11) | (Kind::Attribute, 7 | 8) => Kind::Packed,
        _ => Kind::Bytes,
    }
}

/// Refuses a file whose decoded form could exceed the limits.
pub(super) fn scan(bytes: &[u8], limits: &Limits) -> Result<(), ReadError> {
    let mut scan = Scan { limits, nodes: 0, tensors: 0, items: 0 };
    scan.message(bytes, 0, Kind::Model, 0)
}

struct Scan<'a> {
    limits: &'a Limits,
    nodes: usize,
    tensors: usize,
    /// Everything else that costs memory per piece: messages, strings, unpacked scalars.
    items: usize,
}

impl Scan<'_> {
    /// `base`: where `bytes` starts in the file; `graphs`: how many graphs are around it.
    fn message(&mut self, bytes: &[u8], base: usize, kind: Kind, graphs: usize) -> Result<(), ReadError> {
        let graphs = graphs + usize::from(kind == Kind::Graph);
        if graphs > self.limits.graph_depth_max {
            return Err(ReadError::TooDeep { max: self.limits.graph_depth_max });
        }
        let mut reader = Reader { bytes, at: 0, base };
        while reader.at < bytes.len() {
            let start = reader.at;
            let key = reader.varint()?;
            let tag = key >> 3;
            match key & 7 {
                0 => drop(reader.varint()?),
                1 => drop(reader.take(8)?),
                5 => drop(reader.take(4)?),
                2 => {
                    let length = reader.varint()?;
                    let length = usize::try_from(length).map_err(|_| reader.error("length out of range"))?;
                    let at = base + reader.at;
                    let inner = reader.take(length)?;
                    let child = child(kind, tag);
                    self.count(child)?;
                    if !matches!(child, Kind::Bytes | Kind::Packed) {
                        self.message(inner, at, child, graphs)?;
                    }
                    continue;
                }
                // ONNX has no groups, and a decoder that skips them recurses.
                _ => return Err(ReadError::Wire { offset: base + start, reason: "unknown wire type" }),
            }
            self.count(Kind::Bytes)?;
        }
        Ok(())
    }

    fn count(&mut self, kind: Kind) -> Result<(), ReadError> {
        let (what, count, max) = match kind {
            Kind::Node => ("nodes", &mut self.nodes, self.limits.nodes_max),
            Kind::Tensor => ("tensors", &mut self.tensors, self.limits.tensors_max),
            _ => ("fields", &mut self.items, self.limits.fields_max),
        };
        *count += 1;
        if *count > max { Err(ReadError::TooMany { what, max }) } else { Ok(()) }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, reason: &'static str) -> ReadError {
        ReadError::Wire { offset: self.base + self.at, reason }
    }

    fn varint(&mut self) -> Result<u64, ReadError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.error("file ends in a number"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error("number longer than 10 bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ReadError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(self.error("file ends in a field")) };
        let inner = &self.bytes[self.at..end];
        self.at = end;
        Ok(inner)
    }
}
