//! Which engine a release runs on, and why: [`decide`], a function of what was asked for and what is known.
//!
//! Software that plays a GPU is never chosen, only obeyed; a blocked driver is not even obeyed.

use andon_protocol::tuf::UtcTime;
use andon_runtime::{AdapterKey, EngineChoice, Tuning};
use serde::{Deserialize, Serialize};

/// A GPU through one of its drivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub key: AdapterKey,
    /// No hardware.
    pub is_software: bool,
}

/// A driver that is not used any more on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    pub adapter: AdapterKey,
    pub since: UtcTime,
    pub reason: String,
}

/// What was measured, by which agent: another one may have other kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub agent: String,
    pub at: UtcTime,
    pub tuning: Tuning,
}

/// All that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub asked: EngineChoice,
    /// Why no GPU computes anything of the network, if none does.
    pub network: Result<(), &'a str>,
    /// The GPU that would be used; looked for only where it matters.
    pub gpu: Result<&'a Gpu, &'a str>,
    pub blocked: &'a [Blocked],
    pub tuning: Option<&'a Kept>,
    /// This agent's version, the network's digest, and the threads that the CPU would have.
    pub agent: &'a str,
    pub model: &'a str,
    pub threads: usize,
    /// Height, width and channels of the camera's pictures, as far as that is known.
    pub picture: Option<[usize; 3]>,
}

impl Known<'_> {
    /// Whether what was measured is what would be measured now.
    pub fn is_of(&self, kept: &Kept, gpu: &Gpu) -> bool {
        kept.tuning.is_of(&gpu.key, self.model)
            && kept.agent == self.agent
            && kept.tuning.threads == self.threads
            && kept.tuning.picture == self.picture
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Run(EngineChoice, String),
    /// It takes measuring to know.
    Measure,
}

pub fn decide(known: &Known<'_>) -> Decision {
    use EngineChoice::{Auto, Cpu, Gpu as OnGpu, Tract};
    const ASKED: &str = "asked for by ANDON_ENGINE or --engine";
    let not = |why: String| Decision::Run(Auto, why);
    let wish = match known.asked {
        Cpu | Tract => return Decision::Run(known.asked, ASKED.into()),
        OnGpu => "the GPU was asked for, but ",
        Auto => "",
    };
    if let Err(why) = known.network {
        return not(format!("{wish}no GPU computes this network: {why}"));
    }
    let gpu = match known.gpu {
        Ok(gpu) => gpu,
        Err(why) => return not(format!("{wish}there is {why}")),
    };
    let name = name(&gpu.key);
    if known.asked == Auto && gpu.is_software {
        return not(format!("the only GPU is software ({name})"));
    }
    if let Some(blocked) = known.blocked.iter().find(|blocked| blocked.adapter == gpu.key) {
        return not(format!("{wish}{}", blocked.text()));
    }
    if known.asked == OnGpu {
        return Decision::Run(OnGpu, format!("{ASKED} ({name})"));
    }
    let Some(Kept { tuning, at, .. }) = known.tuning.filter(|kept| known.is_of(kept, gpu)) else {
        return Decision::Measure;
    };
    let of = tuning.picture.map(|[height, width, _]| format!(" for pictures of {width}x{height}"));
    let took = format!(
        "{name} took {:.2} ms, the CPU {:.2} ms{} (tuned {})",
        tuning.gpu_ms,
        tuning.cpu_ms,
        of.unwrap_or_default(),
        day(*at)
    );
    match &*tuning.engine {
        "gpu" => Decision::Run(OnGpu, took),
        _ => not(took),
    }
}

impl Blocked {
    pub fn text(&self) -> String {
        format!("the driver of {} is blocked since {}: {}", name(&self.adapter), day(self.since), self.reason)
    }
}

/// `NVIDIA H200 through vulkan`
pub fn name(adapter: &AdapterKey) -> String {
    format!("{} through {}", adapter.name, adapter.backend)
}

fn day(time: UtcTime) -> String {
    time.to_string().chars().take(10).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::engines) fn key(name: &str) -> AdapterKey {
        AdapterKey {
            name: name.into(),
            backend: "vulkan".into(),
            driver: "maker".into(),
            driver_info: "580.1".into(),
            vendor: 1,
            device: 2,
        }
    }

    pub(in crate::engines) fn kept(key: AdapterKey, model: &str, engine: &str) -> Kept {
        let (cpu_ms, gpu_ms) = if engine == "gpu" { (1.144, 0.7) } else { (1.144, 1.36) };
        let tuning = Tuning {
            format: 1,
            adapter: key,
            model: model.into(),
            engine: engine.into(),
            cpu_ms,
            gpu_ms,
            threads: 1,
            picture: None,
            half_precision: false,
            alone: None,
            untuned: None,
            wrong: 0,
            kernels: vec![],
        };
        Kept { agent: "1.0".into(), at: at(), tuning }
    }

    fn at() -> UtcTime {
        "2026-11-26T23:04:05Z".parse().unwrap()
    }

    #[test]
    fn each_engine_is_chosen_for_a_reason() {
        use EngineChoice::{Auto, Cpu, Gpu as OnGpu, Tract};
        let h200 = Gpu { key: key("H200"), is_software: false };
        let newer =
            Gpu { key: AdapterKey { driver_info: "581.0".into(), ..key("H200") }, is_software: false };
        let llvmpipe = Gpu { key: key("llvmpipe"), is_software: true };
        let (faster, slower) = (kept(key("H200"), "m", "gpu"), kept(key("H200"), "m", "cpu"));
        let soft = kept(key("llvmpipe"), "m", "gpu");
        let other_model = kept(key("H200"), "n", "gpu");
        let other_agent = Kept { agent: "0.9".into(), ..faster.clone() };
        let other_threads = Kept { tuning: Tuning { threads: 2, ..faster.tuning.clone() }, ..faster.clone() };
        let other_picture = Kept {
            tuning: Tuning { picture: Some([480, 640, 3]), ..faster.tuning.clone() },
            ..faster.clone()
        };
        let other_format = Kept { tuning: Tuning { format: 0, ..faster.tuning.clone() }, ..faster.clone() };
        let bad = |gpu: &Gpu| {
            let reason = "3 failures in a row, the last: the device is lost".into();
            vec![Blocked { adapter: gpu.key.clone(), since: at(), reason }]
        };
        let (none, fine) = (Err("no GPU that computes"), Ok(()));
        let no_bytes = Err("node \"conv\" (Conv): float");
        let measure = (Auto, "MEASURE");
        let gpu_took = "H200 through vulkan took 0.70 ms, the CPU 1.14 ms (tuned 2026-11-26)";
        let cpu_took = "H200 through vulkan took 1.36 ms, the CPU 1.14 ms (tuned 2026-11-26)";
        let blocked = "the driver of H200 through vulkan is blocked since 2026-11-26: 3 failures in a row, the \
                       last: the device is lost";
        let asked = "asked for by ANDON_ENGINE or --engine";
        type Row<'a> = (
            EngineChoice,
            Result<(), &'a str>,
            Result<&'a Gpu, &'a str>,
            Vec<Blocked>,
            Option<&'a Kept>,
            (EngineChoice, &'a str),
        );
        let rows: Vec<Row<'_>> = vec![
            // What is asked for is obeyed, and nothing else looked at.
            (Cpu, no_bytes, none, bad(&h200), Some(&faster), (Cpu, asked)),
            (Tract, fine, Ok(&h200), vec![], Some(&faster), (Tract, asked)),
            // Nothing to use, or nothing to use it for.
            (Auto, fine, none, vec![], None, (Auto, "there is no GPU that computes")),
            (
                OnGpu,
                fine,
                none,
                vec![],
                None,
                (Auto, "the GPU was asked for, but there is no GPU that computes"),
            ),
            (
                Auto,
                no_bytes,
                Ok(&h200),
                vec![],
                Some(&faster),
                (Auto, "no GPU computes this network: node \"conv\" (Conv): float"),
            ),
            (
                OnGpu,
                no_bytes,
                Ok(&h200),
                vec![],
                None,
                (
                    Auto,
                    "the GPU was asked for, but no GPU computes this network: node \"conv\" (Conv): float",
                ),
            ),
            // Software is never chosen, whatever somebody measured; it is obeyed.
            (
                Auto,
                fine,
                Ok(&llvmpipe),
                vec![],
                Some(&soft),
                (Auto, "the only GPU is software (llvmpipe through vulkan)"),
            ),
            (
                OnGpu,
                fine,
                Ok(&llvmpipe),
                vec![],
                None,
                (OnGpu, "asked for by ANDON_ENGINE or --engine (llvmpipe through vulkan)"),
            ),
            // The faster one, if it was measured here.
            (Auto, fine, Ok(&h200), vec![], Some(&faster), (OnGpu, gpu_took)),
            (Auto, fine, Ok(&h200), vec![], Some(&slower), (Auto, cpu_took)),
            (Auto, fine, Ok(&h200), bad(&llvmpipe), Some(&faster), (OnGpu, gpu_took)),
            (Auto, fine, Ok(&h200), vec![], None, measure),
            (Auto, fine, Ok(&newer), vec![], Some(&faster), measure),
            (Auto, fine, Ok(&h200), vec![], Some(&other_model), measure),
            (Auto, fine, Ok(&h200), vec![], Some(&other_agent), measure),
            (Auto, fine, Ok(&h200), vec![], Some(&other_threads), measure),
            (Auto, fine, Ok(&h200), vec![], Some(&other_format), measure),
            (Auto, fine, Ok(&h200), vec![], Some(&other_picture), measure),
            // A blocked driver is not used, and not measured either; another version of it is another driver.
            (Auto, fine, Ok(&h200), bad(&h200), Some(&faster), (Auto, blocked)),
            (Auto, fine, Ok(&h200), bad(&h200), None, (Auto, blocked)),
            (Auto, fine, Ok(&newer), bad(&h200), None, measure),
            (
                OnGpu,
                fine,
                Ok(&h200),
                bad(&h200),
                None,
                (
                    Auto,
                    "the GPU was asked for, but the driver of H200 through vulkan is blocked since 2026-11-26: \
                     3 failures in a row, the last: the device is lost",
                ),
            ),
            (
                OnGpu,
                fine,
                Ok(&newer),
                bad(&h200),
                None,
                (OnGpu, "asked for by ANDON_ENGINE or --engine (H200 through vulkan)"),
            ),
        ];
        for (number, (asked, network, gpu, blocked, tuning, (engine, why))) in rows.iter().enumerate() {
            let known = Known {
                asked: *asked,
                network: *network,
                gpu: *gpu,
                blocked,
                tuning: *tuning,
                agent: "1.0",
                model: "m",
                threads: 1,
                picture: None,
            };
            let expected = match *why {
                "MEASURE" => Decision::Measure,
                why => Decision::Run(*engine, why.into()),
            };
            assert_eq!(decide(&known), expected, "row {number}: {known:?}");
        }
        let known = Known {
            asked: Auto,
            network: fine,
            gpu: Ok(&h200),
            blocked: &[],
            tuning: Some(&other_picture),
            agent: "1.0",
            model: "m",
            threads: 1,
            picture: Some([480, 640, 3]),
        };
        let took =
            "H200 through vulkan took 0.70 ms, the CPU 1.14 ms for pictures of 640x480 (tuned 2026-11-26)";
        assert_eq!(decide(&known), Decision::Run(OnGpu, took.into()));
    }
}
