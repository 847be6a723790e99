//! ONNX files: the messages ([`ModelProto`] and what it holds), a reader that trusts nothing, a writer, and short ways
//! to build and to read nodes, attributes and constants.
//!
//! A file is untrusted. [`read`] bounds its size, counts every message before decoding ([`Limits`]), and checks each
//! tensor's bytes against its shape, so that later code can index by shape. Not accepted: data in other files, sparse
//! tensors, tensors in segments, model-local functions. Whether operators make sense is no question of this module:
//! see [`crate::Graph`] and the engines.
//!
//! ```
//! use andon_runtime::onnx::{self, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, DataType};
//! let relu = NodeProto::new("Clip", "clip", ["image", "low"], ["y"]);
//! let graph = GraphProto {
//!     name: "tiny".into(),
//!     node: vec![relu],
//!     initializer: vec![TensorProto::f32("low", &[], &[0.0])],
//!     input: vec![ValueInfoProto::new("image", DataType::Float, &[1, 3, 8, 8])],
//!     output: vec![ValueInfoProto::new("y", DataType::Float, &[1, 3, 8, 8])],
//!     ..Default::default()
//! };
//! let bytes = ModelProto::new(graph, 13).to_bytes();
//! assert!(onnx::read(&bytes, &onnx::Limits::default()).is_ok());
//! ```

mod build;
mod check;
mod file;
mod proto;
mod scan;

use prost::{Message, bytes::Bytes};

pub use file::File;
pub use proto::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};

/// Oldest and newest version of ONNX's own operator set that is read.
pub const OPSET_MIN: i64 = 7;
pub const OPSET_MAX: i64 = 25;

/// What a file may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub file_bytes_max: usize,
    pub nodes_max: usize,
    /// Initialisers and tensors in attributes.
    pub tensors_max: usize,
    /// All other fields together: attributes, names, dimensions, ….
    pub fields_max: usize,
    /// Graphs within graphs (bodies of `If` and `Loop`), the outermost counted.
    pub graph_depth_max: usize,
    pub rank_max: usize,
    /// Elements of one tensor, be it a constant or computed.
    pub elements_max: usize,
    pub name_bytes_max: usize,
}

impl Default for Limits {
    /// Room for every vision network in common use: ResNet-152 in float has 241 MB and some 500 nodes.
    fn default() -> Self {
        Self {
            file_bytes_max: 512 << 20,
            nodes_max: 20_000,
            tensors_max: 40_000,
            fields_max: 2_000_000,
            graph_depth_max: 3,
            rank_max: 8,
            elements_max: 128 << 20,
            name_bytes_max: 1024,
        }
    }
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("ONNX file has {bytes} bytes, allowed are {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("not a valid ONNX file: {reason} (byte {offset})")]
    Wire { offset: usize, reason: &'static str },
    #[error("not a valid ONNX file")]
    Decode(#[from] prost::DecodeError),
    #[error("ONNX file has more than {max} {what}")]
    TooMany { what: &'static str, max: usize },
    #[error("ONNX file has graphs nested more than {max} deep")]
    TooDeep { max: usize },
    #[error("ONNX file has no graph")]
    NoGraph,
    #[error("ONNX file names no version of the standard operator set")]
    NoOpset,
    #[error("ONNX operator set {version} is not supported, expected {OPSET_MIN} to {OPSET_MAX}")]
    Opset { version: i64 },
    #[error("ONNX file uses {what}, which is not supported")]
    Unsupported { what: &'static str },
    #[error("name {start:?}… has {bytes} bytes, allowed are {max}")]
    Name { start: String, bytes: usize, max: usize },
    #[error("{owner}: tensor {name:?}: {problem}")]
    Tensor { owner: String, name: String, problem: TensorError },
}

/// Why a constant cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    #[error("rank {rank}, allowed are {max}")]
    Rank { rank: usize, max: usize },
    #[error("dimensions {dims:?} are negative or hold more than {max} elements")]
    Dims { dims: Vec<i64>, max: usize },
    #[error("data type {code} is not supported")]
    DataType { code: i32 },
    #[error("expected {expected:?}, found {actual:?}")]
    WrongType { expected: DataType, actual: DataType },
    #[error("dimensions {dims:?} of {data_type:?} need {expected} {unit}, found {actual}")]
    Size { dims: Vec<i64>, data_type: DataType, unit: &'static str, expected: usize, actual: usize },
    #[error("data lies outside the file")]
    External,
    #[error("data comes in segments")]
    Segment,
}

/// Decodes and checks a file. What it returns is within `limits`, has a graph, a supported operator set, and
/// constants whose data fit their shapes.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<ModelProto, ReadError> {
    // Copied once, so that constants can share one buffer instead of being copied one by one.
    if bytes.len() > limits.file_bytes_max {
        return Err(ReadError::TooLarge { bytes: bytes.len(), max: limits.file_bytes_max });
    }
    read_shared(Bytes::copy_from_slice(bytes), limits)
}

/// As [`read`], without a copy: constants refer to the file.
pub fn read_file(file: &File, limits: &Limits) -> Result<ModelProto, ReadError> {
    read_shared(file.bytes(), limits)
}

fn read_shared(bytes: Bytes, limits: &Limits) -> Result<ModelProto, ReadError> {
    if bytes.len() > limits.file_bytes_max {
        return Err(ReadError::TooLarge { bytes: bytes.len(), max: limits.file_bytes_max });
    }
    scan::scan(&bytes, limits)?;
    let model = ModelProto::decode(bytes)?;
    check::check(&model, limits)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tiny() -> ModelProto {
        let conv = NodeProto::new("Conv", "conv", ["image", "w"], ["y"])
            .with_ints("kernel_shape", &[1, 1])
            .with_int("group", 1)
            .with_float("unused", -0.5)
            .with_string("auto_pad", "NOTSET")
            .with_tensor("t", TensorProto::i64("inner", &[2], &[3, -4]));
        let graph = GraphProto {
            name: "tiny".into(),
            node: vec![conv],
            initializer: vec![TensorProto::f32("w", &[2, 3, 1, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])],
            input: vec![ValueInfoProto::new("image", DataType::Float, &[1, 3, 4, 4])],
            output: vec![ValueInfoProto::new("y", DataType::Float, &[1, 2, 4, 4])],
            ..Default::default()
        };
        ModelProto::new(graph, 13)
    }

    fn tensor_error(tensor: TensorProto) -> TensorError {
        let mut model = tiny();
        model.graph.as_mut().unwrap().initializer[0] = tensor;
        match read(&model.to_bytes(), &Limits::default()) {
            Err(ReadError::Tensor { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let model = tiny();
        let back = read(&model.to_bytes(), &Limits::default()).unwrap();
        assert_eq!(back, model);
        let graph = back.graph.unwrap();
        let node = &graph.node[0];
        assert_eq!(node.ints("kernel_shape"), Some(&[1, 1][..]));
        assert_eq!((node.int("group"), node.float("unused")), (Some(1), Some(-0.5)));
        assert_eq!(node.string("auto_pad"), Some("NOTSET"));
        assert_eq!(node.tensor("t").unwrap().to_i64().unwrap(), [3, -4]);
        assert_eq!(node.int("kernel_shape"), None);
        assert_eq!(graph.initializer[0].to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(graph.input[0].dims(), Some(vec![Some(1), Some(3), Some(4), Some(4)]));
    }

    #[test]
    fn typed_fields_read_like_raw_data() {
        let typed = TensorProto {
            dims: vec![3],
            data_type: DataType::Int8 as i32,
            int32_data: vec![-1, 0, 127],
            ..Default::default()
        };
        assert_eq!(typed.to_i8().unwrap(), TensorProto::i8("", &[3], &[-1, 0, 127]).to_i8().unwrap());
    }

    #[test]
    fn constants_that_lie_are_refused() {
        let w = |dims: &[i64], data_type: i32, raw: usize| TensorProto {
            name: "w".into(),
            dims: dims.to_vec(),
            data_type,
            raw_data: vec![0; raw].into(),
            ..Default::default()
        };
        let float = DataType::Float as i32;
        assert!(matches!(
            tensor_error(w(&[2, 3], float, 20)),
            TensorError::Size { expected: 24, actual: 20, .. }
        ));
        assert!(matches!(
            tensor_error(w(&[2, 3], float, 0)),
            TensorError::Size { expected: 6, actual: 0, .. }
        ));
        assert!(matches!(tensor_error(w(&[-2, 3], float, 24)), TensorError::Dims { .. }));
        assert!(matches!(tensor_error(w(&[i64::MAX, i64::MAX], float, 24)), TensorError::Dims { .. }));
        assert!(matches!(tensor_error(w(&[1 << 40], float, 24)), TensorError::Dims { .. }));
        assert!(matches!(tensor_error(w(&[1; 9], float, 4)), TensorError::Rank { rank: 9, max: 8 }));
        assert!(matches!(tensor_error(w(&[1], 99, 4)), TensorError::DataType { code: 99 }));
        let external = TensorProto { data_location: 1, ..w(&[1], float, 4) };
        assert_eq!(tensor_error(external), TensorError::External);
    }

    #[test]
    fn limits_hold_before_anything_is_decoded() {
        let bytes = tiny().to_bytes();
        let limits = Limits::default();
        let with = |limits: Limits| read(&bytes, &limits).map(drop).unwrap_err();
        assert!(matches!(with(Limits { file_bytes_max: 10, ..limits.clone() }), ReadError::TooLarge { .. }));
        assert!(matches!(
            with(Limits { nodes_max: 0, ..limits.clone() }),
            ReadError::TooMany { what: "nodes", .. }
        ));
        assert!(matches!(
            with(Limits { tensors_max: 1, ..limits.clone() }),
            ReadError::TooMany { what: "tensors", .. }
        ));
        assert!(matches!(
            with(Limits { fields_max: 5, ..limits.clone() }),
            ReadError::TooMany { what: "fields", .. }
        ));
        assert!(matches!(with(Limits { name_bytes_max: 3, ..limits }), ReadError::Name { .. }));
    }

    #[test]
    fn nested_graphs_end() {
        let mut model = tiny();
        for _ in 0..200 {
            let attribute = AttributeProto {
                name: "body".into(),
                g: model.graph.take().map(Box::new),
                ..Default::default()
            };
            let node = NodeProto::new("Loop", "", [""; 0], [""; 0]).with(attribute);
            model.graph = Some(GraphProto { node: vec![node], ..Default::default() });
        }
        assert!(matches!(read(&model.to_bytes(), &Limits::default()), Err(ReadError::TooDeep { max: 3 })));
    }

    #[test]
    fn opsets_outside_the_range_are_named() {
        for version in [OPSET_MIN - 1, OPSET_MAX + 1, i64::MIN] {
            let model = ModelProto::new(GraphProto::default(), version);
            assert!(
                matches!(read(&model.to_bytes(), &Limits::default()), Err(ReadError::Opset { .. })),
                "{version}"
            );
        }
        assert!(matches!(read(&[], &Limits::default()), Err(ReadError::NoGraph)));
    }

    #[test]
    fn a_file_cut_anywhere_is_no_panic() {
        let bytes = tiny().to_bytes();
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end], &Limits::default()).is_err(), "cut at {end} of {}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_are_no_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = tiny().to_bytes();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            drop(read(&bytes, &Limits::default()));
        }

        #[test]
        fn noise_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(read(&bytes, &Limits::default()));
        }
    }
}
