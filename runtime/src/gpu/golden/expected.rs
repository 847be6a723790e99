//! What is known to go wrong on a driver, and why. `andon-agent gpu --check` fails for what is wrong and not listed here, and
//! for what is listed here and not wrong any more. An agent trusts no driver the more for it.

use serde::{Deserialize, Serialize};

use super::GoldenReport;

/// A line of the list.
#[derive(Debug, Clone, Copy)]
struct Expectation {
    /// As wgpu calls it.
    backend: &'static str,
    /// Parts of the adapter's and the driver's names.
    adapter: &'static str,
    driver: &'static str,
    /// How the names of the cases begin; all do with nothing.
    cases: &'static str,
    reason: &'static str,
}

const EXPECTATIONS: &[Expectation] = &[Expectation {
    backend: "gl",
    adapter: "NVIDIA",
    driver: "3.3.0 NVIDIA 580",
    cases: "",
    reason: "without a display this driver offers OpenGL 3.3, which has no compute shaders; Vulkan is preferred",
}];

/// Cases that went wrong as they were expected to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    pub cases: usize,
    pub reason: String,
}

impl GoldenReport {
    /// Moves what is expected out of what is wrong.
    pub(super) fn settle(&mut self, info: &wgpu::AdapterInfo) {
        settle(self, EXPECTATIONS, info);
    }
}

fn settle(report: &mut GoldenReport, expectations: &[Expectation], info: &wgpu::AdapterInfo) {
    let applies = |line: &&Expectation| {
        line.backend == info.backend.to_str()
            && info.name.contains(line.adapter)
            && info.driver_info.contains(line.driver)
    };
    for line in expectations.iter().filter(applies) {
        let before = report.wrong.len();
        report.wrong.retain(|wrong| !wrong.case.starts_with(line.cases));
        let cases = before - report.wrong.len();
        if cases > 0 {
            report.expected.push(Expected { cases, reason: line.reason.into() });
        } else if report.left.is_empty() {
            // There was time for all cases.
            report.stale.push(line.reason.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::WrongCase, *};

    #[test]
    fn what_is_expected_is_not_wrong_and_must_go_on_to_happen() {
        let line =
            |cases, reason| Expectation { backend: "vulkan", adapter: "Mali", driver: "1.2", cases, reason };
        let lines = [
            line("Softmax", "exp is coarse"),
            line("Resize", "was repaired"),
            line("", "never comes to be asked"),
        ];
        let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, wgpu::Backend::Vulkan);
        (info.name, info.driver_info) = ("Mali-G52".into(), "v1.2.3".into());
        let wrong = |case: &str| WrongCase { case: case.into(), variants: vec![], reason: "x".into() };
        let report = || GoldenReport {
            wrong: ["Softmax 0", "Add 1", "Softmax 2"].map(wrong).to_vec(),
            ..Default::default()
        };
        let settled = |info: &wgpu::AdapterInfo| {
            let mut report = report();
            settle(&mut report, &lines[..2], info);
            report
        };
        let known = settled(&info);
        assert_eq!(known.wrong, [wrong("Add 1")]);
        assert_eq!(known.expected, [Expected { cases: 2, reason: "exp is coarse".into() }]);
        assert_eq!(known.stale, ["was repaired"]);
        // What was not run may be wrong still.
        let mut hasty = GoldenReport { left: vec![andon_shaders::Variant::Copy], ..report() };
        settle(&mut hasty, &lines[..2], &info);
        assert_eq!(hasty.stale, Vec::<String>::new());
        // Another adapter, another driver.
        for (name, driver) in [("Adreno", "v1.2.3"), ("Mali-G52", "v2")] {
            let info = wgpu::AdapterInfo { name: name.into(), driver_info: driver.into(), ..info.clone() };
            assert_eq!(settled(&info), report(), "{name} {driver}");
        }
        // All that is left.
        let mut all = report();
        settle(&mut all, &lines[2..], &info);
        assert!(all.wrong.is_empty() && all.expected[0].cases == 3, "{all:?}");
    }
}
