//! Pictures, of the network's size and of others: the same bytes as on the CPU, and as of the real values that the host makes
//! of them.

use andon_protocol::release::Fit;
use andon_shaders::binding;

use super::{
    super::{golden::random::Random, resized::BYTES_MAX},
    *,
};
use crate::{
    preprocess::planes,
    resize::{Resizer, Sides},
};

/// A network that takes pictures, on both engines.
struct Pair {
    name: String,
    to: Sides,
    meaning: Pictures,
    cpu: Cpu,
    gpu: Gpu,
}

fn meaning(channels: usize, mean: f32, std: f32, fit: Fit) -> Pictures {
    let from = |first: f32, step: f32| (0..channels).map(|c| first + step * c as f32).collect();
    Pictures { mean: from(mean, 3.0), std: from(std, std / 40.0), fit }
}

impl Pair {
    fn new(name: &str, model: &Model, meaning: Pictures, device: Device, threads: usize) -> Self {
        let isa = Isa::chosen().unwrap();
        let closed = model.closed_inputs();
        let [1, c, h, w] = closed[0].1[..] else { panic!("no image") };
        let shapes = model.shapes(&closed).unwrap();
        let wanted = model.graph().outputs().to_vec();
        let sketch = |sources| Sketch::with(model.graph(), &shapes, &wanted, isa, sources).unwrap();
        let plan = |sources| sketch(sources).build(threads).unwrap().with_pictures(Some(&meaning));
        let cpu = plan(Sources::Dropped);
        let gpu = Gpu::of(plan(Sources::Kept), device, Choices::default()).unwrap();
        assert!(cpu.takes_pictures() && gpu.takes_pictures());
        Self { name: format!("{name}, {meaning:?}"), to: [h, w, c], meaning, cpu, gpu }
    }

    /// That the GPU took it as it is.
    fn check(&mut self, picture: &Tensor) {
        let expected = self.cpu.run(&[picture]).unwrap();
        let what = format!("{}: {:?} to {:?}", self.name, picture.shape(), self.to);
        let outputs = self.gpu.run(&[picture]).unwrap();
        for (ours, expected) in outputs.iter().zip(&expected) {
            assert!(ours == expected, "{what}: {}", difference(ours, expected));
        }
        assert_eq!(self.cpu.run(&[&self.real(picture)]).unwrap(), expected, "{what}: real values");
    }

    /// What the host makes of it.
    fn real(&self, picture: &Tensor) -> Tensor {
        let (&[1, height, width, channels], Data::U8(bytes)) = (picture.shape(), picture.data()) else {
            panic!("no picture")
        };
        let [h, w, c] = self.to;
        let Pictures { mean, std, fit } = &self.meaning;
        let real = match channels == c && [height, width] == [h, w] {
            true => (0..c * h * w)
                .map(|i| {
                    let (channel, pixel) = (i / (h * w), i % (h * w));
                    (f32::from(bytes[pixel * c + channel]) - mean[channel]) / std[channel]
                })
                .collect(),
            false => planes(&Resizer::new([height, width, channels], self.to, *fit), bytes, &self.meaning),
        };
        Tensor::f32(vec![1, c, h, w], real).unwrap()
    }
}

/// Of one kind or another: noise, next to nothing, one grey, the ends.
fn picture([h, w, c]: Sides, kind: usize) -> Tensor {
    let random = &mut Random::new((h * 1000 + w * 10 + c) as u64);
    let mut byte = || {
        let any = random.next() as u8;
        match kind % 4 {
            0 => any,
            1 if any > 250 => any,
            1 => 0,
            2 => 100,
            _ => 255 * (any & 1),
        }
    };
    Tensor::new(vec![1, h, w, c], Data::U8((0..h * w * c).map(|_| byte()).collect())).unwrap()
}

/// Between frames of f32, which the GPU quantises.
#[test]
fn pictures_are_exact() {
    for (name, own) in &mut devices() {
        for number in 0..3 {
            let model = cases::operator_case("ArgMax", number).unwrap();
            let [1, c, h, w] = model.closed_inputs()[0].1[..] else { panic!("no image") };
            let mut pair =
                Pair::new(name, &model, meaning(c, 100.0, 40.0, Fit::Stretched), own.take().unwrap(), 1);
            assert_eq!(pair.gpu.program.on_gpu.iter().filter(|on| !**on).count(), 1, "{name}");
            let bytes = (0..c * h * w).map(|i| (i * 37 % 256) as u8).collect();
            let picture = Tensor::new(vec![1, h, w, c], Data::U8(bytes)).unwrap();
            let frame = inputs(&model).remove(0);
            pair.check(&picture);
            assert_eq!(
                pair.gpu.run(&[&frame]).unwrap(),
                pair.cpu.run(&[&frame]).unwrap(),
                "{name}, {number}"
            );
            pair.check(&picture);
            let wrong = Tensor::new(vec![2], Data::U8(vec![0; 2])).unwrap();
            assert!(pair.gpu.run(&[&wrong]).is_err() && pair.cpu.run(&[&wrong]).is_err());
            *own = Some(pair.gpu.device);
        }
    }
}

#[test]
fn pictures_of_other_sizes_are_exact() {
    let random = &mut Random::new(17);
    let mut side = |most: usize| 1 + (random.next() % most as u64) as usize;
    let networks: [Sides; 4] = [[1, 1, 3], [11, 14, 3], [19, 8, 1], [3, 3, 3]];
    for (device_number, (name, own)) in devices().iter_mut().enumerate() {
        for (number, to) in networks.into_iter().enumerate() {
            let model = cases::picture_case(to).unwrap();
            // Steps as fine as numbers near 100 are told apart, as networks have them, and down instead of up, for which
            // there are no stairs: then the host resizes.
            let meanings = [
                (58.0, Fit::Stretched),
                (3.8e-4, Fit::Stretched),
                (-40.0, Fit::Letterboxed { fill: 90 }),
                (58.0, Fit::Letterboxed { fill: 114 }),
            ];
            for (kind, (std, fit)) in meanings.into_iter().enumerate() {
                let own_meaning = meaning(to[2], 100.0, std, fit);
                let mut pair = Pair::new(name, &model, own_meaning, own.take().unwrap(), 1 + number % 2);
                let resizes =
                    pair.gpu.program.phases.iter().flat_map(|phase| &phase.raws).any(|raw| raw.resizes);
                assert_eq!(resizes, std > 0.0);
                // Weights of next to nothing, one pixel, one line, the same size.
                let mut sizes: Vec<Sides> =
                    vec![[383, 47, 3], [1, 1, 1], [1, 1, 3], [1, 40, 3], [70, 1, 1], to];
                sizes.extend((0..cases_count(4)).map(|i| [side(60), side(90), [1, 3][(i + kind) % 2]]));
                for (i, sides) in sizes.into_iter().enumerate() {
                    pair.check(&picture(sides, i + kind + device_number));
                }
                // Once more than needed: a small one in the large one's place.
                pair.check(&picture([383, 47, 3], 0));
                pair.check(&picture([2, 2, 3], 2));
                *own = Some(pair.gpu.device);
            }
        }
    }
}

/// The buffers that they go through are every lane's own. Where the GPU shares its memory it reads those, else there is one
/// where they go.
#[test]
fn pictures_that_overlap_are_exact() {
    for (name, own) in &mut devices() {
        let model = cases::picture_case([11, 14, 3]).unwrap();
        let mut pair = Pair::new(
            name,
            &model,
            meaning(3, 100.0, 58.0, Fit::Letterboxed { fill: 7 }),
            own.take().unwrap(),
            1,
        );
        let sizes = [[20, 30, 3], [90, 10, 3], [11, 14, 3], [5, 5, 1], [91, 11, 3], [20, 30, 3]];
        let frames: Vec<Tensor> = sizes.into_iter().map(|sides| picture(sides, 0)).collect();
        let alone: Vec<Vec<Tensor>> = frames.iter().map(|frame| pair.cpu.run(&[frame]).unwrap()).collect();
        use wgpu::BufferUsages as Usage;
        let shares = pair.gpu.device.shares_memory();
        assert!(shares || !name.starts_with("vulkan llvmpipe"), "{name} has memory of its own");
        let memory = if shares { Usage::MAP_WRITE } else { Usage::COPY_DST } | Usage::STORAGE;
        assert!(pair.gpu.begin(&[&frames[0]]).unwrap(), "{name}: nothing overlaps");
        assert_eq!(pair.gpu.memory.album.memory(), Some(memory), "{name}");
        for i in 1..frames.len() {
            assert!(pair.gpu.begin(&[&frames[i]]).unwrap());
            assert_eq!(pair.gpu.finish().unwrap(), alone[i - 1], "{name}, frame {}", i - 1);
        }
        assert_eq!(pair.gpu.finish().unwrap(), alone[frames.len() - 1], "{name}");
        *own = Some(pair.gpu.device);
    }
}

#[test]
fn a_picture_that_is_too_large_is_resized_by_the_host() {
    let Some((name, own)) = devices().into_iter().next() else { return };
    let model = cases::picture_case([11, 14, 3]).unwrap();
    let mut pair =
        Pair::new(&name, &model, meaning(3, 100.0, 58.0, Fit::Letterboxed { fill: 7 }), own.unwrap(), 2);
    let width = BYTES_MAX / 3 / 4000 + 1;
    pair.check(&picture([4000, width, 3], 0));
    let bytes = |gpu: &mut Gpu, picture: &Tensor| {
        let mut seen = 0;
        let Gpu { device, program, memory, cpu, .. } = gpu;
        let mut after = |moment| {
            if let run::Moment::Uploaded { bytes } = moment {
                seen = bytes
            }
        };
        memory.run(device, 0, &program.phases[0], cpu, &[picture], &mut after).unwrap();
        seen
    };
    // Real values instead of bytes.
    assert_eq!(bytes(&mut pair.gpu, &picture([4000, width, 3], 0)), 4 * 11 * 14 * 3);
    let small = bytes(&mut pair.gpu, &picture([40, 50, 3], 0));
    assert!((6000..8000).contains(&small), "{small}");
}

/// The kernel's own numbers against the processor's, those next to nothing and halves between two included.
#[test]
fn its_real_numbers_are_those_of_the_processor() {
    const COUNT: usize = 1 << 14;
    let source = Variant::Resized.source().unwrap();
    let functions = &source[..source.find("@compute").unwrap()];
    let main = "@compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            let a = constants[2u * id.x];
            let b = constants[2u * id.x + 1u];
            words[2u * id.x] = sum(a, b);
            words[2u * id.x + 1u] = product(a, b);
        }";
    let random = &mut Random::new(5);
    let mut pairs: Vec<[f32; 2]> =
        vec![[0.0, 0.0], [0.0, 1.0], [1.0, f32::MIN_POSITIVE], [f32::MIN_POSITIVE / 2.0, 0.75]];
    while pairs.len() < COUNT {
        // Few bits make ties, near exponents sums of which both have a say.
        let mut real = |least: u64, most: u64| {
            let exponent = least + random.next() % (most - least);
            let bits = (random.next() as u32 & 0x7f_ffff)
                & [0x7f_ffff, 0x7f_f000, 0x70_0000][random.next() as usize % 3];
            f32::from_bits(((exponent as u32) << 23) | bits)
        };
        let (value, weight) = match pairs.len() % 4 {
            0 => (real(0, 134), real(60, 128)),
            1 => (real(0, 3), real(1, 4)),
            2 => (real(100, 134), real(100, 134)),
            _ => (real(0, 60), real(60, 128)),
        };
        pairs.push([value, weight]);
    }
    let bytes: Vec<u8> = pairs.iter().flatten().flat_map(|real| real.to_bits().to_le_bytes()).collect();
    for (name, device) in devices() {
        let device = device.unwrap();
        let raw = &device.device;
        let module = raw.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(format!("{functions}\n{main}").into()),
        });
        let pipeline = raw.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        use wgpu::BufferUsages as Usage;
        let buffer = |usage| {
            let size = bytes.len() as u64;
            raw.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        let (from, to) = (buffer(Usage::STORAGE | Usage::COPY_DST), buffer(Usage::STORAGE | Usage::COPY_SRC));
        let readback = buffer(Usage::MAP_READ | Usage::COPY_DST);
        device.queue.write_buffer(&from, 0, &bytes);
        let group = raw.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[(binding::WORDS, &to), (binding::CONSTANTS, &from)].map(|(binding, buffer)| {
                wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
            }),
        });
        let mut encoder = raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(COUNT as u32 / 64, 1, 1);
        drop(pass);
        encoder.copy_buffer_to_buffer(&to, 0, &readback, 0, bytes.len() as u64);
        let flight = Flight::start(&device, encoder, &readback, bytes.len() as u64);
        let words = flight.land(&device, &readback, |bytes| {
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect::<Vec<_>>()
        });
        for ([a, b], found) in pairs.iter().zip(words.unwrap().as_chunks::<2>().0) {
            assert_eq!(found.map(f32::to_bits), [a + b, a * b].map(f32::to_bits), "{name}: {a:e}, {b:e}");
        }
    }
}
