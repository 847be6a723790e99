//! The engine `tract`: the crate of that name runs the whole network, on one thread.
//!
//! It takes any ONNX model that tract knows, and is the reference for float networks and the fallback for the rest.
//! Quantised networks run in float with every rounding to 8 bits in its place: see [`super::qdq`].

use std::sync::Arc;

use prost::Message;
use tract_onnx::{
    model::ParsingContext,
    pb,
    prelude::*,
    tract_core::{
        internal::format_err,
        ops::element_wise::{ElementWiseMiniOp, ElementWiseOp},
        plan::SimpleState,
    },
    tract_hir::internal::{ElementWiseIntoHir, Factoid, InferenceOp},
};

use super::{Engine, guarded, qdq};
use crate::{
    graph::{Graph, ValueId},
    tensor::{Data, Tensor as Ours},
};

type State = SimpleState<TypedFact, Box<dyn TypedOp>>;

pub(crate) struct Tract {
    plan: Arc<TypedRunnableModel>,
    /// `None` after a fault: whatever it was left in is dropped.
    state: Option<State>,
}

impl Tract {
    /// `inputs`: the shape of each, in the graph's order.
    pub(crate) fn new(graph: &Graph, inputs: &[Vec<usize>], outputs: &[ValueId]) -> Result<Self, String> {
        let plan = guarded(|| load(graph, inputs, outputs).map_err(|e| format!("{e:#}")))?;
        Ok(Self { plan, state: None })
    }
}

fn load(graph: &Graph, inputs: &[Vec<usize>], outputs: &[ValueId]) -> TractResult<Arc<TypedRunnableModel>> {
    // Our messages and tract's are the same on the wire.
    let proto = pb::ModelProto::decode(&*qdq::to_float(graph).encode_to_vec())?;
    let mut onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    onnx.op_register.insert(qdq::ROUND_TRIP, round_trip);
    let mut model = onnx.model_for_proto_model(&proto)?;
    drop(proto);
    for (i, dims) in inputs.iter().enumerate() {
        let data_type = model.input_fact(i)?.datum_type.concretize().unwrap_or(f32::datum_type());
        model = model.with_input_fact(i, InferenceFact::dt_shape(data_type, dims))?;
    }
    let outlets = outputs.iter().map(|id| outlet(&model, graph, *id)).collect::<TractResult<Vec<_>>>()?;
    model.select_output_outlets(&outlets)?;
    model.into_optimized()?.into_runnable()
}

fn outlet(model: &InferenceModel, graph: &Graph, id: ValueId) -> TractResult<OutletId> {
    // Inputs have no labels.
    if let Some(at) = graph.inputs().position(|(input, _)| input == id) {
        return Ok(model.input_outlets()?[at]);
    }
    let name = &graph.value(id).name;
    let found = model.find_outlet_label(name);
    found.ok_or_else(|| format_err!("value {name:?} is missing after import"))
}

fn round_trip(_: &ParsingContext, node: &pb::NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let integer = |name: &str| Ok::<_, TractError>(node.get_attr::<i64>(name)? as f32);
    let scale = node.get_attr("scale")?;
    let step = RoundTrip { scale, zero: integer("zero")?, low: integer("low")?, high: integer("high")? };
    Ok((ElementWiseOp(Box::new(step), None).into_hir(), vec![]))
}

/// [`qdq::ROUND_TRIP`] as an operator of tract's.
#[derive(Debug, Clone, PartialEq)]
struct RoundTrip {
    scale: f32,
    zero: f32,
    low: f32,
    high: f32,
}

impl Eq for RoundTrip {}

impl ElementWiseMiniOp for RoundTrip {
    fn name(&self) -> String {
        qdq::ROUND_TRIP.into()
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        let Self { scale, zero, low, high } = *self;
        for v in tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()? {
            // NaN becomes `low`, as in ONNX Runtime.
            let q = ((*v / scale).round_ties_even() + zero).max(low).min(high);
            *v = (q - zero) * scale;
        }
        Ok(())
    }
}

impl Engine for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn run(&mut self, inputs: &[&Ours]) -> Result<Vec<Ours>, String> {
        let inputs = inputs.iter().map(|tensor| to_tract(tensor).map(Into::into)).collect::<TractResult<_>>();
        let inputs: TVec<TValue> = inputs.map_err(|e| format!("{e:#}"))?;
        let (plan, state) = (&self.plan, self.state.take());
        let (outputs, state) = guarded(|| {
            let run = || -> TractResult<_> {
                let mut state = state.map_or_else(|| plan.spawn(), Ok)?;
                let outputs = state.run(inputs)?;
                let outputs =
                    outputs.iter().map(|value| from_tract(value)).collect::<TractResult<Vec<_>>>()?;
                Ok((outputs, state))
            };
            run().map_err(|e| format!("{e:#}"))
        })?;
        self.state = Some(state);
        Ok(outputs)
    }
}

fn to_tract(tensor: &Ours) -> TractResult<Tensor> {
    let shape = tensor.shape();
    match tensor.data() {
        Data::F32(v) => Tensor::from_shape(shape, v),
        Data::U8(v) => Tensor::from_shape(shape, v),
        Data::I8(v) => Tensor::from_shape(shape, v),
        Data::I32(v) => Tensor::from_shape(shape, v),
        Data::I64(v) => Tensor::from_shape(shape, v),
        Data::Bool(v) => Tensor::from_shape(shape, v),
    }
}

/// Types that the border has no name for (f16, symbolic sizes, …) are cast to f32.
fn from_tract(value: &Tensor) -> TractResult<Ours> {
    fn list<T: Datum + Copy>(value: &Tensor) -> TractResult<Vec<T>> {
        Ok(value.cast_to::<T>()?.try_as_plain_ram()?.as_slice::<T>()?.to_vec())
    }
    let data = match value.datum_type().unquantized() {
        DatumType::U8 => Data::U8(list(value)?),
        DatumType::I8 => Data::I8(list(value)?),
        DatumType::I32 => Data::I32(list(value)?),
        DatumType::I64 | DatumType::TDim => Data::I64(list(value)?),
        DatumType::Bool => Data::Bool(list(value)?),
        _ => Data::F32(list(value)?),
    };
    Ok(Ours::new(value.shape().to_vec(), data)?)
}
