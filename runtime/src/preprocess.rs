//! From a picture to a network's input: resize, then `(x - mean) / std`.
//!
//! Trainer and device call the same function, so that a network sees on the line what it saw in training. The result
//! is the same to the last bit on every machine, see [`crate::resize`]. The whole picture is resized; whether its aspect
//! ratio is kept, the input says.

use andon_protocol::release::{Input, Preprocessing};

use crate::{image::Image, resize::Resizer, session::Pictures, tensor::Tensor};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PreprocessError {
    #[error(
        "input {width}x{height}x{channels} is not supported, expected are sides of 1 to 8192 and 1 or 3 channels"
    )]
    Input { width: u32, height: u32, channels: u32 },
    #[error("mean has {mean} values and std {std}, expected are {channels} each")]
    Constants { mean: usize, std: usize, channels: u32 },
}

/// `[1, channels, height, width]` f32. A grey picture's values are repeated for an RGB network; an RGB picture is
/// reduced to luma (Rec. 601) for a grey one.
pub fn preprocess(
    image: &Image,
    input: &Input,
    constants: &Preprocessing,
) -> Result<Tensor, PreprocessError> {
    let Input { width, height, channels, .. } = *input;
    if !(1..=8192).contains(&width) || !(1..=8192).contains(&height) || !matches!(channels, 1 | 3) {
        return Err(PreprocessError::Input { width, height, channels });
    }
    let Preprocessing { mean, std } = constants.clone();
    if mean.len() != channels as usize || std.len() != channels as usize {
        return Err(PreprocessError::Constants { mean: mean.len(), std: std.len(), channels });
    }
    let to = [height, width, channels].map(|side| side as usize);
    let from = [image.height(), image.width(), image.channels()];
    let pictures = Pictures { mean, std, fit: input.fit };
    let values = planes(&Resizer::new(from, to, input.fit), image.pixels(), &pictures);
    let [height, width, channels] = to;
    Ok(Tensor::f32(vec![1, channels, height, width], values).expect("one value for each pixel and channel"))
}

/// Channel after channel; `mean` and `std` have a value for each.
pub(crate) fn planes(resizer: &Resizer, pixels: &[u8], meaning: &Pictures) -> Vec<f32> {
    let ([height, width, channels], lanes) = (resizer.to, resizer.lanes());
    let Pictures { mean, std, .. } = meaning;
    debug_assert_eq!((mean.len(), std.len()), (channels, channels));
    let mut rows = vec![0.0; resizer.from[0] * resizer.row()];
    resizer.across(pixels, 0, &mut rows);
    let constants = || mean.iter().zip(std);
    let (window, fill) = (resizer.window, f32::from(meaning.fill()));
    let bars = constants().flat_map(|(m, s)| std::iter::repeat_n(normalised(fill, *m, *s), height * width));
    let (mut values, mut line) = (bars.collect::<Vec<f32>>(), vec![0.0; resizer.row()]);
    for y in 0..window.height {
        resizer.down(&rows, y, &mut line);
        let planes = values.chunks_exact_mut(height * width).zip(constants());
        for (channel, (plane, (mean, std))) in planes.enumerate() {
            let own = line.iter().skip(channel.min(lanes - 1)).step_by(lanes);
            let out = plane[(window.top + y) * width + window.left..].iter_mut();
            out.zip(own).for_each(|(out, value)| *out = normalised(*value, *mean, *std));
        }
    }
    values
}

/// What a byte, or something between two, means to a network.
pub(crate) fn normalised(value: f32, mean: f32, std: f32) -> f32 {
    (value - mean) / std
}

#[cfg(test)]
mod tests {
    use andon_protocol::release::Fit;
    use proptest::prelude::*;

    use super::*;

    fn input(width: u32, height: u32, channels: u32) -> Input {
        Input { name: "image".into(), width, height, channels, fit: Fit::Stretched }
    }

    fn plain(channels: usize) -> Preprocessing {
        Preprocessing { mean: vec![0.0; channels], std: vec![1.0; channels] }
    }

    fn run(image: &Image, width: u32, height: u32, channels: u32) -> Vec<f32> {
        let tensor = preprocess(image, &input(width, height, channels), &plain(channels as usize)).unwrap();
        assert_eq!(tensor.shape(), [1, channels as usize, height as usize, width as usize]);
        tensor.as_f32().unwrap().to_vec()
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = Image::new(3, 2, 1, vec![0, 50, 100, 150, 200, 250]).unwrap();
        assert_eq!(run(&image, 3, 2, 1), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
    }

    #[test]
    fn halving_is_a_triangle_over_four_pixels() {
        // Weights at distances 0.5 and 1.5 of support 2: 0.75 and 0.25; at the border the missing tap's share is spread.
        let image = Image::new(4, 1, 1, vec![0, 100, 200, 40]).unwrap();
        let left = (0.75 * 0.0 + 0.75 * 100.0 + 0.25 * 200.0) / 1.75;
        let right = (0.25 * 100.0 + 0.75 * 200.0 + 0.75 * 40.0) / 1.75;
        let got = run(&image, 2, 1, 1);
        assert!((got[0] - left).abs() < 1e-3 && (got[1] - right).abs() < 1e-3, "{got:?}");
    }

    #[test]
    fn doubling_interpolates_between_half_pixel_centres() {
        let image = Image::new(2, 1, 1, vec![0, 100]).unwrap();
        assert_eq!(run(&image, 4, 1, 1), [0.0, 25.0, 75.0, 100.0]);
    }

    #[test]
    fn bars_are_beside_what_keeps_its_aspect_ratio() {
        let image = Image::new(4, 1, 1, vec![10, 10, 30, 30]).unwrap();
        let input = Input { fit: Fit::Letterboxed { fill: 200 }, ..input(2, 3, 1) };
        let constants = Preprocessing { mean: vec![100.0], std: vec![2.0] };
        let tensor = preprocess(&image, &input, &constants).unwrap();
        let values = tensor.as_f32().unwrap();
        assert_eq!([&values[..2], &values[4..]], [[50.0; 2]; 2]);
        assert!(values[2] < -40.0 && values[3] > -40.0 && values[3] < -30.0, "{values:?}");
        // The same shape has none.
        let image = Image::new(4, 6, 1, vec![10; 24]).unwrap();
        assert_eq!(preprocess(&image, &input, &constants).unwrap().as_f32().unwrap(), [-45.0; 6]);
    }

    #[test]
    fn channels_are_repeated_or_reduced() {
        let grey = Image::new(1, 1, 1, vec![80]).unwrap();
        assert_eq!(run(&grey, 1, 1, 3), [80.0; 3]);
        let colour = Image::new(1, 1, 3, vec![10, 20, 30]).unwrap();
        assert_eq!(run(&colour, 1, 1, 3), [10.0, 20.0, 30.0]);
        assert!((run(&colour, 1, 1, 1)[0] - 18.15).abs() < 1e-4);
    }

    #[test]
    fn mean_and_std_are_per_channel() {
        let image = Image::new(1, 1, 3, vec![100, 100, 100]).unwrap();
        let constants = Preprocessing { mean: vec![0.0, 50.0, 100.0], std: vec![1.0, 2.0, 4.0] };
        let tensor = preprocess(&image, &input(1, 1, 3), &constants).unwrap();
        assert_eq!(tensor.as_f32().unwrap(), [100.0, 25.0, 0.0]);
    }

    #[test]
    fn inputs_out_of_range_are_errors() {
        let image = Image::new(1, 1, 1, vec![0]).unwrap();
        assert!(matches!(preprocess(&image, &input(0, 1, 1), &plain(1)), Err(PreprocessError::Input { .. })));
        assert!(matches!(preprocess(&image, &input(1, 1, 2), &plain(2)), Err(PreprocessError::Input { .. })));
        assert!(matches!(
            preprocess(&image, &input(1, 1, 3), &plain(1)),
            Err(PreprocessError::Constants { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_size_keeps_values_between_the_extremes(
            (w, h) in (1usize..40, 1usize..40), width in 1u32..50, height in 1u32..50, seed in any::<u8>(),
        ) {
            let pixels: Vec<u8> = (0..w * h).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
            let (low, high) = (*pixels.iter().min().unwrap(), *pixels.iter().max().unwrap());
            let image = Image::new(w, h, 1, pixels).unwrap();
            for value in run(&image, width, height, 1) {
                prop_assert!(value >= f32::from(low) - 1e-3 && value <= f32::from(high) + 1e-3);
            }
        }
    }
}
