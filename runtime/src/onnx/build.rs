//! Short ways to write and to read the messages: constructors that take slices, typed access to attributes and to
//! the elements of constants. No checks beyond types; [`super::read`] did those.

use prost::{Message, bytes::Bytes};

use super::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorError, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};

impl ModelProto {
    /// A model over ONNX's own operators of version `opset`, in an IR version that readers of that age know.
    pub fn new(graph: GraphProto, opset: i64) -> Self {
        Self {
            ir_version: if opset >= 19 { 9 } else { 8 },
            producer_name: "andon".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
            ..Default::default()
        }
    }

    /// Version of ONNX's own operator set.
    pub fn opset(&self) -> Option<i64> {
        let standard = |o: &&OperatorSetIdProto| o.domain.is_empty() || o.domain == "ai.onnx";
        self.opset_import.iter().find(standard).map(|o| o.version)
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl GraphProto {
    /// `NAME` → `NAME.q` (u8) → `NAME.f`
    pub fn quantise(&mut self, name: &str, scale: f32, zero: u8) {
        let [q, f, s, z] = ["q", "f", "scale", "zero"].map(|suffix| format!("{name}.{suffix}"));
        self.initializer.push(TensorProto::f32(&s, &[], &[scale]));
        self.initializer.push(TensorProto::u8(&z, &[], &[zero]));
        self.node.push(NodeProto::new("QuantizeLinear", "", [name, &s, &z], [&*q]));
        self.node.push(NodeProto::new("DequantizeLinear", "", [&*q, &s, &z], [&*f]));
    }
}

impl NodeProto {
    pub fn new<I, O>(op_type: &str, name: &str, inputs: I, outputs: O) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
        O: IntoIterator,
        O::Item: Into<String>,
    {
        Self {
            op_type: op_type.into(),
            name: name.into(),
            input: inputs.into_iter().map(Into::into).collect(),
            output: outputs.into_iter().map(Into::into).collect(),
            ..Default::default()
        }
    }

    pub fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }

    pub fn with_int(self, name: &str, value: i64) -> Self {
        self.with(AttributeProto { i: value, ..AttributeProto::of(name, AttributeType::Int) })
    }

    pub fn with_ints(self, name: &str, values: &[i64]) -> Self {
        self.with(AttributeProto { ints: values.to_vec(), ..AttributeProto::of(name, AttributeType::Ints) })
    }

    pub fn with_float(self, name: &str, value: f32) -> Self {
        self.with(AttributeProto { f: value, ..AttributeProto::of(name, AttributeType::Float) })
    }

    pub fn with_string(self, name: &str, value: &str) -> Self {
        let s = Bytes::copy_from_slice(value.as_bytes());
        self.with(AttributeProto { s, ..AttributeProto::of(name, AttributeType::String) })
    }

    pub fn with_tensor(self, name: &str, value: TensorProto) -> Self {
        self.with(AttributeProto { t: Some(value), ..AttributeProto::of(name, AttributeType::Tensor) })
    }

    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name == name)
    }

    /// The integer attribute `name`; `None` if there is none of that name and type.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).filter(|a| a.is(AttributeType::Int)).map(|a| a.i)
    }

    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).filter(|a| a.is(AttributeType::Ints)).map(|a| &*a.ints)
    }

    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).filter(|a| a.is(AttributeType::Float)).map(|a| a.f)
    }

    pub fn string(&self, name: &str) -> Option<&str> {
        let attribute = self.attribute(name).filter(|a| a.is(AttributeType::String))?;
        std::str::from_utf8(&attribute.s).ok()
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name).filter(|a| a.is(AttributeType::Tensor)).and_then(|a| a.t.as_ref())
    }

    /// Input `index`, or `None` where an optional input is left out.
    pub fn input_name(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }
}

impl AttributeProto {
    fn of(name: &str, kind: AttributeType) -> Self {
        Self { name: name.into(), r#type: kind as i32, ..Default::default() }
    }

    fn is(&self, kind: AttributeType) -> bool {
        self.r#type == kind as i32
    }
}

impl DataType {
    /// Bytes of one element; `None` for strings and types without a size of their own.
    pub fn bytes(self) -> Option<usize> {
        Some(match self {
            Self::Uint8 | Self::Int8 | Self::Bool => 1,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Float | Self::Int32 | Self::Uint32 => 4,
            Self::Int64 | Self::Double | Self::Uint64 | Self::Complex64 => 8,
            Self::Complex128 => 16,
            Self::Undefined | Self::String => return None,
        })
    }
}

/// A constructor that writes `raw_data`, and its inverse.
macro_rules! elements {
    ($make:ident, $read:ident, $element:ty, $data_type:ident, $field:ident, $from:expr) => {
        impl TensorProto {
            #[doc = concat!("A constant of `", stringify!($element), "`, row-major.")]
            pub fn $make(name: &str, dims: &[usize], values: &[$element]) -> Self {
                debug_assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}: {dims:?}");
                Self {
                    name: name.into(),
                    dims: dims.iter().map(|d| *d as i64).collect(),
                    data_type: DataType::$data_type as i32,
                    raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
                    ..Default::default()
                }
            }

            #[doc = concat!("The elements, if the constant is of `", stringify!($element), "`, wherever they are stored.")]
            pub fn $read(&self) -> Result<Vec<$element>, TensorError> {
                let actual = self.element_type()?;
                if actual != DataType::$data_type {
                    return Err(TensorError::WrongType { expected: DataType::$data_type, actual });
                }
                if self.raw_data.is_empty() {
                    return Ok(self.$field.iter().map($from).collect());
                }
                let (chunks, _) = self.raw_data.as_chunks();
                Ok(chunks.iter().map(|c| <$element>::from_le_bytes(*c)).collect())
            }
        }
    };
}

elements!(f32, to_f32, f32, Float, float_data, |v| *v);
elements!(f64, to_f64, f64, Double, double_data, |v| *v);
elements!(i64, to_i64, i64, Int64, int64_data, |v| *v);
elements!(i32, to_i32, i32, Int32, int32_data, |v| *v);
elements!(u8, to_u8, u8, Uint8, int32_data, |v| *v as u8);
elements!(i8, to_i8, i8, Int8, int32_data, |v| *v as i8);

impl TensorProto {
    /// Number of elements; `None` where a dimension is negative or the product overflows.
    pub fn elements(&self) -> Option<usize> {
        self.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
    }

    /// Bytes of all elements; those without a size of their own count as eight.
    pub fn bytes(&self) -> u64 {
        let width = self.element_type().ok().and_then(DataType::bytes).unwrap_or(8);
        (self.elements().unwrap_or(0) * width) as u64
    }

    /// Dimensions, where none is negative.
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(|d| usize::try_from(*d).ok()).collect()
    }

    pub fn element_type(&self) -> Result<DataType, TensorError> {
        match DataType::try_from(self.data_type) {
            Ok(known) if known != DataType::Undefined => Ok(known),
            _ => Err(TensorError::DataType { code: self.data_type }),
        }
    }
}

impl ValueInfoProto {
    /// A tensor of fixed shape.
    pub fn new(name: &str, data_type: DataType, dims: &[usize]) -> Self {
        let dim = |d: &usize| DimensionProto { value: Some(Dimension::Value(*d as i64)) };
        let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
        let tensor = TensorTypeProto { elem_type: data_type as i32, shape: Some(shape) };
        Self { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
    }

    pub fn data_type(&self) -> Option<DataType> {
        let tensor = self.r#type.as_ref()?.tensor_type.as_ref()?;
        DataType::try_from(tensor.elem_type).ok().filter(|t| *t != DataType::Undefined)
    }

    /// The declared shape; a dimension that is named, negative or not given reads as `None`. `None` as a whole if
    /// not even the rank is known.
    pub fn dims(&self) -> Option<Vec<Option<usize>>> {
        let shape = self.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()?;
        let known = |d: &DimensionProto| match d.value {
            Some(Dimension::Value(v)) => usize::try_from(v).ok(),
            _ => None,
        };
        Some(shape.dim.iter().map(known).collect())
    }
}
