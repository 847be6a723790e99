//! From a picture to a class: preprocessing, network, softmax.

use andon_protocol::release::{Input, Manifest, Preprocessing};

use crate::{
    engine::GuardEvent,
    image::Image,
    model::{LoadError, Model},
    preprocess::preprocess,
    session::{Pictures, RunError, Session, SessionOptions},
    tensor::Tensor,
};

/// What a classifier says of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Probabilities, one a class: the softmax of the network's scores, unless it ends in one itself.
    pub scores: Vec<f32>,
    /// Index of the largest score.
    pub class: usize,
    /// What the last layer reads, flattened; empty if the network has no such layer.
    pub embedding: Vec<f32>,
}

/// How a picture becomes the input of a network, and how its output is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierSpec {
    pub input: Input,
    pub preprocessing: Preprocessing,
    /// Name of the output with one score a class.
    pub scores: String,
    /// Name of the value drift watches, if there is one.
    pub embedding: Option<String>,
    /// Number of classes, if it must be a certain one.
    pub classes: Option<usize>,
}

#[derive(Debug)]
pub struct Classifier {
    session: Session,
    spec: ClassifierSpec,
    /// The network ends in a softmax of its own.
    gives_probabilities: bool,
    model: String,
}

impl Classifier {
    /// Shapes of the inputs of a release's network.
    pub fn input_shapes(manifest: &Manifest) -> Vec<(String, Vec<usize>)> {
        shapes_of(&manifest.input)
    }

    /// What a camera's pictures mean to a release's network.
    pub fn pictures(manifest: &Manifest) -> Pictures {
        pictures_of(&manifest.input, &manifest.preprocessing)
    }

    /// The classifier of a release.
    pub fn new(model: &Model, manifest: &Manifest, options: SessionOptions) -> Result<Self, LoadError> {
        let spec = ClassifierSpec {
            input: manifest.input.clone(),
            preprocessing: manifest.preprocessing.clone(),
            scores: manifest.outputs.scores.clone(),
            embedding: Some(manifest.outputs.embedding.clone()),
            classes: Some(manifest.labels.len()),
        };
        Self::with_spec(model, spec, options)
    }

    /// A classifier of which only the network is known.
    pub fn with_spec(
        model: &Model,
        spec: ClassifierSpec,
        mut options: SessionOptions,
    ) -> Result<Self, LoadError> {
        let Input { name, width, height, channels, .. } = &spec.input;
        let refuse = |reason: String| LoadError::NoClassifier { model: model.name().into(), reason };
        if model.inputs().len() != 1 {
            return Err(refuse(format!("it has {} inputs, expected 1", model.inputs().len())));
        }
        let constants = &spec.preprocessing;
        if constants.mean.len() != *channels as usize || constants.std.len() != *channels as usize {
            return Err(refuse(format!("mean and std need {channels} values each")));
        }
        options.input_shapes = shapes_of(&spec.input);
        options.pictures = Some(pictures_of(&spec.input, constants));
        let mut session = Session::new(model, &options)?;
        // One run on an even grey shows whether the outputs are there, before a frame depends on it.
        let zeros = vec![0.0; (*channels * *height * *width) as usize];
        let probe = Tensor::f32(session_shape(&session), zeros).map_err(|e| refuse(e.to_string()))?;
        let outputs = session.run(&[(name, probe)]).map_err(|e| refuse(e.to_string()))?;
        for wanted in [Some(&spec.scores), spec.embedding.as_ref()].into_iter().flatten() {
            let known = outputs.iter().map(|(name, _)| name.to_owned()).collect();
            let model = model.name().to_owned();
            let found = outputs.get(wanted);
            let found =
                found.ok_or_else(|| LoadError::UnknownOutput { model, output: wanted.clone(), known })?;
            if found.as_f32().is_none() {
                return Err(refuse(format!(
                    "output {wanted:?} is {}, expected f32",
                    found.data().type_name()
                )));
            }
        }
        let actual = outputs.get(&spec.scores).map_or(0, |t| t.data().len());
        let expected = spec.classes.unwrap_or(actual.max(1));
        if actual != expected {
            let (model, output) = (model.name().into(), spec.scores.clone());
            return Err(LoadError::OutputSize { model, output, expected, actual });
        }
        let graph = model.graph();
        let last = graph.find(&spec.scores).and_then(|id| graph.producer(id));
        let gives_probabilities = last.is_some_and(|id| graph.proto(id).op_type == "Softmax");
        Ok(Self { session, spec, gives_probabilities, model: model.name().into() })
    }

    pub fn engine(&self) -> &'static str {
        self.session.engine()
    }

    /// What happened to an engine that is guarded, since the last call.
    pub fn take_events(&mut self) -> Vec<GuardEvent> {
        self.session.take_events()
    }

    pub fn spec(&self) -> &ClassifierSpec {
        &self.spec
    }

    pub fn classify(&mut self, image: &Image) -> Result<Judgement, RunError> {
        let tensor = match self.as_it_is(image) {
            Some(tensor) => tensor,
            None => preprocess(image, &self.spec.input, &self.spec.preprocessing)?,
        };
        self.judge(tensor)
    }

    /// A picture that the engine takes without preprocessing. A grey picture that fits an RGB network has its values repeated,
    /// so that it needs no resizing.
    fn as_it_is(&self, image: &Image) -> Option<Tensor> {
        let Input { width, height, channels, .. } = self.spec.input;
        let [width, height, channels] = [width, height, channels].map(|n| n as usize);
        let fits = image.width() == width && image.height() == height;
        let (pixels, own) = match image.channels() {
            _ if !self.session.takes_pictures() => return None,
            1 if fits && channels != 1 => {
                (image.pixels().iter().flat_map(|v| std::iter::repeat_n(*v, channels)).collect(), channels)
            }
            own => (image.pixels().to_vec(), own),
        };
        let dims = vec![1, image.height(), image.width(), own];
        let tensor = Tensor::new(dims, crate::tensor::Data::U8(pixels)).ok()?;
        self.session.takes_picture(&tensor).then_some(tensor)
    }

    /// `tensor`: a preprocessed picture, `[1, channels, height, width]` f32, or what [`Session::takes_pictures`] says.
    pub fn judge(&mut self, tensor: Tensor) -> Result<Judgement, RunError> {
        let mut outputs = self.session.run(&[(&self.spec.input.name, tensor)])?;
        let mut floats = |name: &str| {
            let tensor = outputs.take(name).map(Tensor::into_data);
            match tensor {
                Some(crate::tensor::Data::F32(values)) => Ok(values),
                other => Err(RunError::OutputMismatch {
                    model: self.model.clone(),
                    output: name.into(),
                    expected: "f32".into(),
                    actual: other.map_or("nothing", |d| d.type_name()).into(),
                }),
            }
        };
        let embedding = self.spec.embedding.as_deref().map(&mut floats).transpose()?.unwrap_or_default();
        let logits = floats(&self.spec.scores)?;
        // A network that overflows must not pass as a verdict.
        if let Some(bad) = logits.iter().find(|v| !v.is_finite()) {
            return Err(RunError::OutputMismatch {
                model: self.model.clone(),
                output: self.spec.scores.clone(),
                expected: "finite scores".into(),
                actual: bad.to_string(),
            });
        }
        let scores = if self.gives_probabilities { logits } else { softmax(&logits) };
        Ok(Judgement { class: argmax(&scores), scores, embedding })
    }
}

fn shapes_of(input: &Input) -> Vec<(String, Vec<usize>)> {
    let shape = [1, input.channels, input.height, input.width].map(|d| d as usize).to_vec();
    vec![(input.name.clone(), shape)]
}

fn pictures_of(input: &Input, constants: &Preprocessing) -> Pictures {
    Pictures { mean: constants.mean.clone(), std: constants.std.clone(), fit: input.fit }
}

fn session_shape(session: &Session) -> Vec<usize> {
    session.inputs().next().map(|(_, shape)| shape.to_vec()).unwrap_or_default()
}

/// Of finite values; sums to 1 but for rounding.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|v| (v - max).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

/// Index of the largest value, the first of equals; 0 of none.
fn argmax(values: &[f32]) -> usize {
    let best = values
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{float_proto, model};

    fn spec(scores: &str, embedding: Option<&str>, classes: Option<usize>) -> ClassifierSpec {
        ClassifierSpec {
            input: Input { name: "image".into(), width: 2, height: 2, channels: 1, fit: Default::default() },
            preprocessing: Preprocessing { mean: vec![0.0], std: vec![1.0] },
            scores: scores.into(),
            embedding: embedding.map(Into::into),
            classes,
        }
    }

    /// The tiny network for grey pictures.
    fn grey() -> Model {
        let mut proto = float_proto();
        let graph = proto.graph.as_mut().unwrap();
        graph.initializer[0] = crate::onnx::TensorProto::f32("conv.w", &[2, 1, 1, 1], &[1.0, 0.5]);
        graph.input[0] =
            crate::onnx::ValueInfoProto::new("image", crate::onnx::DataType::Float, &[1, 1, 2, 2]);
        model(proto)
    }

    #[test]
    fn a_picture_becomes_a_class() {
        let spec = spec("scores", Some("embedding"), Some(2));
        let mut classifier = Classifier::with_spec(&grey(), spec, SessionOptions::default()).unwrap();
        // Conv gives 1.5 2.5 2.5 3.5 and -0.5 0 0 0.5, of which the Relu cuts the first.
        let image = Image::new(2, 2, 1, vec![1, 2, 2, 3]).unwrap();
        let judgement = classifier.classify(&image).unwrap();
        assert_eq!(judgement.embedding, [2.5, 0.125]);
        assert_eq!(judgement.class, 0);
        let logits = [2.5 + 0.25 + 0.1, -2.5 + 0.0625 + 0.2f32];
        for (score, expected) in judgement.scores.iter().zip(softmax(&logits)) {
            assert!((score - expected).abs() < 1e-6);
        }
    }

    /// As with the same picture made real before.
    #[test]
    fn pictures_of_all_sizes_are_judged() {
        let mut proto = crate::fixtures::qdq_proto();
        let graph = proto.graph.as_mut().unwrap();
        let at = graph.initializer.iter().position(|t| t.name == "conv.w").unwrap();
        assert_eq!(graph.initializer[at].dims, [2, 2, 1, 1]);
        graph.initializer[at] = crate::onnx::TensorProto::i8("conv.w", &[2, 3, 1, 1], &[2, -1, 1, 1, 3, -2]);
        graph.input[0] =
            crate::onnx::ValueInfoProto::new("image", crate::onnx::DataType::Float, &[1, 3, 2, 2]);
        let mut spec = spec("scores", None, Some(2));
        spec.input.channels = 3;
        spec.preprocessing = Preprocessing { mean: vec![90.0, 100.0, 110.0], std: vec![3.0, 4.0, 5.0] };
        let mut classifier =
            Classifier::with_spec(&model(proto), spec.clone(), SessionOptions::default()).unwrap();
        assert_eq!(classifier.engine(), "cpu");
        let mut seen = vec![];
        for (width, height, channels) in [(2, 2, 3), (2, 2, 1), (5, 3, 3), (1, 1, 3), (1, 7, 1)] {
            let pixels = (0..width * height * channels).map(|i| (80 + i * 13 % 60) as u8).collect();
            let image = Image::new(width, height, channels, pixels).unwrap();
            let tensor = classifier.as_it_is(&image).unwrap();
            assert_eq!(tensor.shape()[1..3], [height, width]);
            let judgement = classifier.classify(&image).unwrap();
            let real = preprocess(&image, &spec.input, &spec.preprocessing).unwrap();
            assert_eq!(judgement, classifier.judge(real).unwrap());
            seen.push(judgement.scores);
        }
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
    }

    #[test]
    fn what_does_not_fit_the_network_is_refused() {
        let make =
            |spec| Classifier::with_spec(&grey(), spec, SessionOptions::default()).unwrap_err().to_string();
        assert!(make(spec("logits", None, None)).contains(r#"no output "logits""#));
        assert!(make(spec("scores", Some("features"), None)).contains(r#"no output "features""#));
        assert!(make(spec("scores", None, Some(3))).contains("2 values, expected 3"));
        let mut wrong = spec("scores", None, None);
        wrong.input.channels = 3;
        assert!(make(wrong.clone()).contains("mean and std"));
        wrong.preprocessing = Preprocessing { mean: vec![0.0; 3], std: vec![1.0; 3] };
        assert!(make(wrong).contains("takes [1, 1, 2, 2], not [1, 3, 2, 2]"));
        let mut renamed = spec("scores", None, None);
        renamed.input.name = "pixels".into();
        assert!(make(renamed).contains(r#"no input "pixels""#));
    }

    #[test]
    fn a_softmax_in_the_network_is_not_repeated() {
        let mut model = float_proto();
        let graph = model.graph.as_mut().unwrap();
        graph.node.push(crate::onnx::NodeProto::new("Softmax", "softmax", ["scores"], ["probabilities"]));
        graph.output[0].name = "probabilities".into();
        let mut wide = spec("probabilities", None, Some(2));
        (wide.input.channels, wide.preprocessing.mean, wide.preprocessing.std) =
            (2, vec![0.0; 2], vec![1.0; 2]);
        let model = crate::fixtures::model(model);
        let mut classifier = Classifier::with_spec(&model, wide, SessionOptions::default()).unwrap();
        let judgement = classifier.judge(crate::fixtures::image()).unwrap();
        for (score, expected) in judgement.scores.iter().zip(softmax(&crate::fixtures::SCORES)) {
            assert!((score - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn softmax_bears_large_values() {
        assert_eq!(softmax(&[1000.0, 1000.0]), [0.5, 0.5]);
        assert_eq!(softmax(&[-1e30, 0.0]), [0.0, 1.0]);
        assert_eq!(argmax(&[0.2, 0.5, 0.5]), 1);
    }
}
