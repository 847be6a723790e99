//! Faults that are asked for, to see what happens: `ANDON_GPU_FAULT=lost`, from a certain run on `lost@10`.

use std::{str::FromStr, thread, time::Duration};

use super::device::{Device, Scope};
use crate::tensor::{Data, Tensor};

const VARIABLE: &str = "ANDON_GPU_FAULT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The driver takes the device away.
    Lost,
    /// A run does not end.
    Hang,
    /// A run ends with something else.
    Wrong,
    /// There is no memory for a network.
    Memory,
    /// There is no GPU.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    kind: Kind,
    /// The first run, from 1, that it happens in: of each device anew. From 0 it happens in comparisons, too, that are made
    /// before a driver is trusted.
    from: u64,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, from) = text.split_once('@').unwrap_or((text, "2"));
        let kind = match kind {
            "lost" => Kind::Lost,
            "hang" => Kind::Hang,
            "wrong" => Kind::Wrong,
            "memory" => Kind::Memory,
            "none" => Kind::None,
            other => {
                return Err(format!("{VARIABLE} is {other:?}, known are lost, hang, wrong, memory and none"));
            }
        };
        let from = from.parse().map_err(|_| format!("{VARIABLE}: {from:?} is no number of a run"))?;
        Ok(Self { kind, from })
    }
}

impl Fault {
    /// What the environment asks for.
    pub(crate) fn asked() -> Result<Option<Self>, String> {
        std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()).map(|text| text.parse()).transpose()
    }

    /// Whether not even the cases are spared that show whether a driver computes right.
    pub(super) fn is_everywhere(self) -> bool {
        self.from == 0
    }

    pub(super) fn adapter(self) -> Result<(), String> {
        match self.kind {
            Kind::None => Err(format!("no GPU that computes ({VARIABLE})")),
            _ => Ok(()),
        }
    }

    /// Asks the driver for far too much.
    pub(super) fn memory(self, device: &Device) -> Result<(), String> {
        if self.kind != Kind::Memory {
            return Ok(());
        }
        let scope = Scope::new(&device.device);
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: 1 << 60,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        };
        drop(device.device.create_buffer(&descriptor));
        scope.end()
    }

    /// Before run number `run`.
    pub(super) fn before(self, run: u64, device: &Device) {
        match self.kind {
            Kind::Lost if run >= self.from => device.device.destroy(),
            Kind::Hang if run >= self.from => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            _ => {}
        }
    }

    /// Behind run number `run`.
    pub(super) fn after(self, run: u64, outputs: &mut [Tensor]) {
        if self.kind != Kind::Wrong || run < self.from {
            return;
        }
        for output in outputs {
            let dims = output.shape().to_vec();
            let data = match output.data() {
                Data::F32(values) => Data::F32(values.iter().map(|v| -3.0 * v - 1.0).collect()),
                Data::U8(values) => Data::U8(values.iter().map(|v| !v).collect()),
                Data::I8(values) => Data::I8(values.iter().map(|v| !v).collect()),
                other => other.clone(),
            };
            // The same shape, and as many elements.
            if let Ok(tensor) = Tensor::new(dims, data) {
                *output = tensor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_names() {
        assert_eq!("lost".parse(), Ok(Fault { kind: Kind::Lost, from: 2 }));
        assert_eq!("wrong@17".parse(), Ok(Fault { kind: Kind::Wrong, from: 17 }));
        assert!("fire".parse::<Fault>().unwrap_err().contains("known are lost, hang"));
        assert!("lost@soon".parse::<Fault>().is_err());
    }
}
