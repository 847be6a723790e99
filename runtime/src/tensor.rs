//! Tensors as they cross the border of the runtime: a shape and row-major elements of one of the types that
//! networks take and give. Invariant: the shape's product is the number of elements.

use crate::onnx::DataType;

/// Elements, by type.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::Bool(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// ONNX's name of the type, lower case.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::I32(_) => "i32",
            Self::I64(_) => "i64",
            Self::Bool(_) => "bool",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// A shape that does not hold the number of elements given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shape {shape:?} does not hold {elements} elements")]
pub struct ShapeError {
    pub shape: Vec<usize>,
    pub elements: usize,
}

impl Tensor {
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self, ShapeError> {
        let product = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if product == Some(data.len()) {
            Ok(Self { shape, data })
        } else {
            Err(ShapeError { elements: data.len(), shape })
        }
    }

    /// The same values each time, f32 between -2 and 2, in no regular pattern: what a network is timed with. Only f32, u8 and
    /// i8 can be made up; not even shapes and indices of other types could be guessed.
    pub fn noise(shape: &[usize], data_type: Option<DataType>) -> Result<Self, String> {
        let mut state = 0x9e37_79b9_u32;
        let mut next = || {
            // xorshift32: Marsaglia 2003.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let range = 0..shape.iter().product();
        let data = match data_type {
            Some(DataType::Float) => {
                Data::F32(range.map(|_| next() as f32 / u32::MAX as f32 * 4.0 - 2.0).collect())
            }
            Some(DataType::Uint8) => Data::U8(range.map(|_| next() as u8).collect()),
            Some(DataType::Int8) => Data::I8(range.map(|_| next() as i8).collect()),
            other => {
                return Err(format!("an input of type {other:?} cannot be made up, only f32, u8 and i8"));
            }
        };
        Self::new(shape.to_vec(), data).map_err(|e| e.to_string())
    }

    pub fn f32(shape: Vec<usize>, values: Vec<f32>) -> Result<Self, ShapeError> {
        Self::new(shape, Data::F32(values))
    }

    /// A tensor for operators that look at nothing but the shape.
    pub(crate) fn shape_only(dims: &[usize]) -> Self {
        Self { shape: dims.to_vec(), data: Data::Bool(vec![]) }
    }

    /// Becomes another's copy, in the memory that it has where that is of the same type.
    pub(crate) fn assign(&mut self, other: &Self) {
        self.shape.clone_from(&other.shape);
        match (&mut self.data, &other.data) {
            (Data::F32(own), Data::F32(other)) => own.clone_from(other),
            (Data::U8(own), Data::U8(other)) => own.clone_from(other),
            (own, other) => *own = other.clone(),
        }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn data(&self) -> &Data {
        &self.data
    }

    pub fn into_data(self) -> Data {
        self.data
    }

    /// The elements, if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            _ => None,
        }
    }
}
