//! Pixels at the network's input size, before normalisation: what augmentation and appearance matching work on. Resized
//! by the runtime's own preprocessing, so that training sees what a device will see.

use std::{fs, path::PathBuf};

use andon_protocol::release::{Input, Preprocessing};
use andon_runtime::{Image, ImageLimits, preprocess};

use crate::team::Team;

/// Share of a data set's images that may be broken before it is refused.
const BROKEN_SHARE_MAX: f64 = 0.01;

/// An image at `height` x `width`, units of 0 to 255, one plane (grey) or three (RGB).
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    pub height: usize,
    pub width: usize,
    pub planes: Vec<Vec<f32>>,
}

impl Pixels {
    pub fn of(image: &Image, input: &Input) -> Result<Self, String> {
        let channels = if image.channels() == 1 { 1 } else { input.channels };
        let raw = Preprocessing { mean: vec![0.0; channels as usize], std: vec![1.0; channels as usize] };
        let tensor =
            preprocess(image, &Input { channels, ..input.clone() }, &raw).map_err(|e| e.to_string())?;
        let (height, width) = (input.height as usize, input.width as usize);
        let values = tensor.as_f32().ok_or("preprocessing gave no f32")?;
        let planes = values.chunks_exact(height * width).map(<[f32]>::to_vec).collect();
        Ok(Self { height, width, planes })
    }

    /// `[channels, height, width]`, normalised.
    pub fn normalised(&self, constants: &Preprocessing) -> Vec<f32> {
        let channels = constants.mean.iter().zip(&constants.std).enumerate();
        let plane = |c: usize| &self.planes[c.min(self.planes.len() - 1)];
        channels.flat_map(|(c, (mean, std))| plane(c).iter().map(move |v| (v - mean) / std)).collect()
    }

    /// Luma (Rec. 601), as the runtime's preprocessing makes it for one channel.
    pub fn gray(&self) -> Vec<f32> {
        match &self.planes[..] {
            [r, g, b] => {
                r.iter().zip(g).zip(b).map(|((r, g), b)| 0.299 * r + 0.587 * g + 0.114 * b).collect()
            }
            planes => planes[0].clone(),
        }
    }

    /// Mirrored left to right, top to bottom, or both.
    pub fn flipped(&self, across: bool, down: bool) -> Self {
        let (h, w) = (self.height, self.width);
        let at = |y: usize, x: usize| {
            let y = if down { h - 1 - y } else { y };
            y * w + if across { w - 1 - x } else { x }
        };
        let flip = |p: &Vec<f32>| {
            (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).map(|(y, x)| p[at(y, x)]).collect()
        };
        Self { height: h, width: w, planes: self.planes.iter().map(flip).collect() }
    }
}

/// Where an image comes from, and what it is called in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub path: PathBuf,
}

/// An image that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub name: String,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PixelsError {
    #[error("{} of {of} images cannot be read (at most 1 % may be): {}", .broken.len(), first(.broken))]
    TooManyBroken { broken: Vec<Broken>, of: usize },
}

fn first(broken: &[Broken]) -> String {
    let names: Vec<String> = broken.iter().take(5).map(|b| format!("{}: {}", b.name, b.reason)).collect();
    names.join("; ") + if broken.len() > 5 { "; …" } else { "" }
}

/// Reads all images, side by side. Up to one in a hundred may be broken: they come back as `None` and in the list.
pub fn load(
    team: &Team,
    sources: &[Source],
    input: &Input,
) -> Result<(Vec<Option<Pixels>>, Vec<Broken>), PixelsError> {
    let read = |i: usize| Ok::<_, std::convert::Infallible>(read_one(&sources[i], input));
    let Ok(results) = team.map(sources.len(), read);
    let mut broken = Vec::new();
    let pixels = results.into_iter().zip(sources).map(|(result, source)| match result {
        Ok(pixels) => Some(pixels),
        Err(reason) => {
            broken.push(Broken { name: source.name.clone(), reason });
            None
        }
    });
    let pixels: Vec<_> = pixels.collect();
    if broken.len() as f64 > BROKEN_SHARE_MAX * sources.len() as f64 {
        return Err(PixelsError::TooManyBroken { broken, of: sources.len() });
    }
    Ok((pixels, broken))
}

fn read_one(source: &Source, input: &Input) -> Result<Pixels, String> {
    let limits = ImageLimits::default();
    let bytes = fs::metadata(&source.path).map_err(|e| e.to_string())?.len();
    if bytes > limits.file_bytes_max as u64 {
        return Err(format!("{bytes} bytes, allowed are {}", limits.file_bytes_max));
    }
    let bytes = fs::read(&source.path).map_err(|e| e.to_string())?;
    let image = Image::decode(&bytes, &limits).map_err(|e| e.to_string())?;
    Pixels::of(&image, input)
}
