//! The engine `tract`: the crate of that name runs the whole network, on one thread.
//!
//! It takes any ONNX model that tract knows. It is the reference for float networks and the fallback for the rest;
//! its int8 is slow (it has no fused quantised convolution for the Q/DQ form).

use std::sync::Arc;

use prost::Message;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::format_err;
use tract_onnx::{tract_core::plan::SimpleState, tract_hir::infer::Factoid};

use super::{Engine, guarded};
use crate::{
    model::LoadError,
    session::Request,
    tensor::{Data, Tensor as Ours},
};

type State = SimpleState<TypedFact, Box<dyn TypedOp>>;

pub(crate) struct Tract {
    plan: Arc<TypedRunnableModel>,
    /// `None` after a fault: whatever it was left in is dropped.
    state: Option<State>,
}

impl Tract {
    pub(crate) fn new(request: &Request<'_>) -> Result<Self, LoadError> {
        let plan = guarded(|| load(request).map_err(|e| format!("{e:#}")));
        let engine = "tract";
        let model = request.model.name().to_owned();
        let plan = plan.map_err(|reason| LoadError::Engine { model, engine, reason })?;
        Ok(Self { plan, state: None })
    }
}

fn load(request: &Request<'_>) -> TractResult<Arc<TypedRunnableModel>> {
    let graph = request.model.graph();
    // Our messages and tract's are the same on the wire.
    let proto = tract_onnx::pb::ModelProto::decode(&*graph.model_proto().encode_to_vec())?;
    let onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut model = onnx.model_for_proto_model(&proto)?;
    drop(proto);
    for (i, (_, dims)) in request.inputs.iter().enumerate() {
        let data_type = model.input_fact(i)?.datum_type.concretize().unwrap_or(f32::datum_type());
        model = model.with_input_fact(i, InferenceFact::dt_shape(data_type, dims))?;
    }
    let names: Vec<&str> = request.outputs.iter().map(|id| graph.value(*id).name.as_str()).collect();
    let outlets = names.iter().map(|name| outlet(&model, name)).collect::<TractResult<Vec<_>>>()?;
    model.select_output_outlets(&outlets)?;
    model.into_optimized()?.into_runnable()
}

fn outlet(model: &InferenceModel, name: &str) -> TractResult<OutletId> {
    let found = model.find_outlet_label(name);
    found.ok_or_else(|| format_err!("value {name:?} is missing after import"))
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
