//! `andon-agent bench --per-step`: what each step of a network takes, beside what this machine can do at most.
//!
//! Two limits are measured first: 8-bit multiply-accumulates from registers on as many threads as the network gets, and
//! bytes a second of a copy that no cache holds. The bound of a step is the larger of its multiply-accumulates at the one
//! and its bytes at the other; that of the network is the sum. Steps whose bytes stay in a cache may be below it.

use std::time::Duration;

use andon_agent::clock::{Clock, SystemClock};
use andon_runtime::{
    EngineChoice, Model, Session, StepTime, Tensor, TimedBy, chosen_gpu, multiply_accumulate,
};
use anyhow::{Context, Result, ensure};

use super::{bench::quantile, say};

pub(super) fn show(
    model: &Model,
    session: &mut Session,
    inputs: &[(&str, Tensor)],
    runs: u32,
    threads: usize,
) -> Result<()> {
    if session.engine() == "gpu" {
        return on_gpu(model, session, inputs, runs);
    }
    let steps = model.explain().steps;
    ensure!(
        session.engine() == "cpu" && !steps.is_empty(),
        "only the engines cpu and gpu have steps to show"
    );
    let macs_per_second = measure_macs(threads)?;
    let bytes_per_second = measure_copy();

    let clock = SystemClock::new();
    let mut times: Vec<Vec<Duration>> = vec![Vec::with_capacity(runs as usize); steps.len()];
    for _ in 0..runs {
        let mut last = clock.elapsed();
        session.run_watched(inputs, &mut |number| {
            let now = clock.elapsed();
            if let Some(times) = times.get_mut(number) {
                times.push(now.saturating_sub(last));
            }
            last = now;
        })?;
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        if times.is_empty() { 0.0 } else { quantile(times, 50).as_secs_f64() }
    };
    let medians: Vec<f64> = times.iter_mut().map(median).collect();
    let total: f64 = medians.iter().sum();

    say(format_args!(
        "{:>4}  {:<7} {:<44} {:>9} {:>6} {:>8} {:>7} {:>7}\n",
        "step", "does", "node", "us", "share", "GMAC/s", "of peak", "bound"
    ))?;
    let mut bound_total = 0.0;
    for (number, (step, seconds)) in steps.iter().zip(&medians).enumerate() {
        let macs = step.macs.unwrap_or(0) as f64;
        let bound = (macs / macs_per_second).max(step.bytes as f64 / bytes_per_second);
        bound_total += bound;
        let rate = macs / seconds.max(1e-9);
        // The end of a long name tells more than its start.
        let name: String = step.node.chars().skip(step.node.chars().count().saturating_sub(44)).collect();
        say(format_args!(
            "{number:>4}  {:<7} {name:<44} {:>9.1} {:>5.1}% {:>8.1} {:>6.1}% {:>6.1}%\n",
            step.kind,
            seconds * 1e6,
            100.0 * seconds / total.max(1e-9),
            rate / 1e9,
            100.0 * rate / macs_per_second,
            100.0 * bound / seconds.max(1e-9),
        ))?;
    }
    say(format_args!(
        "limits: {:.1} GMAC/s on {threads} threads, {:.1} GB/s copied on one; bound of the whole {:.3} ms, steps together {:.3} ms: {:.1}%\n",
        macs_per_second / 1e9,
        bytes_per_second / 1e9,
        bound_total * 1e3,
        total * 1e3,
        100.0 * bound_total / total.max(1e-9),
    ))
}

/// The parts of a run by this machine's clock, then each dispatch by the GPU's own, beside its peak of 8-bit dot
/// products, or of f32 where the network is of floats;
/// the fastest of all runs.
fn on_gpu(model: &Model, session: &mut Session, inputs: &[(&str, Tensor)], runs: u32) -> Result<()> {
    let explanation = model.explain_for(EngineChoice::Gpu);
    // Float networks have no plan: their steps are nodes.
    let is_float = explanation.steps.is_empty();
    let of = |step: usize| match is_float {
        true => explanation.rows.get(step).map(|row| (&*row.node, row.macs)),
        false => explanation.steps.get(step).map(|step| (&*step.node, step.macs)),
    };
    let clock = SystemClock::new();
    let adapter = chosen_gpu().map_err(anyhow::Error::msg)?;
    let peaks = adapter.measure(&|| clock.elapsed()).map_err(anyhow::Error::msg)?;
    let clock = andon_runtime::Clock::new(move || clock.elapsed());
    let mut best = session.profile(inputs, &clock)?;
    for _ in 1..runs {
        for (best, other) in best.iter_mut().zip(session.profile(inputs, &clock)?) {
            best.time = best.time.min(other.time);
        }
    }
    // What every dispatch's time has in it.
    let empty = best.pop_if(|one| one.clock != TimedBy::Host && one.step.is_none());
    let empty = empty.map_or(0.0, |one| one.time.as_secs_f64());
    let is_dispatch = |one: &&StepTime| one.clock != TimedBy::Host;
    let sum =
        |on_gpu| best.iter().filter(|one| is_dispatch(one) == on_gpu).map(|one| one.time).sum::<Duration>();
    let totals = [false, true].map(sum);
    let (peak, ceiling) = match is_float {
        true => (peaks.f32_gflops, "f32"),
        false => (peaks.dot4_gops, "dot4"),
    };
    say(format_args!(
        "{:>4}  {:<36} {:>9} {:>6} {:>8} {:>7} {:>7}  {}\n",
        "step", "node", "us", "share", "GMAC/s", "of peak", "inside", "what"
    ))?;
    for (at, one) in best.iter().enumerate() {
        let (name, macs) = one.step.and_then(of).unwrap_or_default();
        let name: String = name.chars().skip(name.chars().count().saturating_sub(36)).collect();
        let number = one.step.map_or(String::new(), |step| step.to_string());
        let (microseconds, [host, gpu]) = (one.time.as_secs_f64() * 1e6, totals.map(|t| t.as_secs_f64()));
        let total = if one.clock == TimedBy::Host { host } else { gpu };
        let share = 100.0 * one.time.as_secs_f64() / total.max(1e-9);
        say(format_args!("{number:>4}  {name:<36} {microseconds:>9.2} {share:>5.1}% "))?;
        if one.clock == TimedBy::Host {
            say(format_args!("{:>25}  {}\n", "", one.kernel))?;
            continue;
        }
        // Behind the last of several dispatches of a step stands what they come to together.
        let is_same = |other: &&StepTime| is_dispatch(other) && other.step == one.step;
        let is_last = !best[at + 1..].iter().any(|other| is_same(&other));
        let of_step: Vec<f64> = best.iter().filter(is_same).map(|other| other.time.as_secs_f64()).collect();
        let macs = macs.filter(|_| is_last).unwrap_or(0) as f64;
        let (seconds, empty) = (of_step.iter().sum::<f64>(), empty * of_step.len() as f64);
        let rate = |seconds: f64| macs / seconds.max(1e-9) / 1e9;
        let of_peak = |rate: f64| 100.0 * 2.0 * rate / peak.max(1e-9);
        let inside = rate((seconds - empty).max(seconds / 10.0));
        let (rate, inside) = (rate(seconds), of_peak(inside));
        say(format_args!("{rate:>8.1} {:>6.1}% {inside:>6.1}%  {}\n", of_peak(rate), one.kernel))?;
    }
    let dispatches = best.iter().filter(is_dispatch).count();
    let repeated = best.iter().any(|one| one.clock == TimedBy::Repeated);
    let whose = if repeated { ", by this machine's clock since the driver has none" } else { "" };
    let [host, gpu] = totals.map(|time| time.as_secs_f64() * 1e3);
    say(format_args!(
        "a run {host:.3} ms, its {dispatches} dispatches {gpu:.3} ms together{whose}, in each of which a pass of one workgroup has {:.2} us (not counted inside); {ceiling} {peak:.0} G/s, copy {:.1} GB/s, {:.2} us a dispatch, of which CPU {:.2} us\n",
        empty * 1e6,
        peaks.copy_gbs,
        peaks.dispatch_us,
        peaks.encode_us
    ))
}

/// Multiply-accumulates a second of all threads together: the best of several tries.
fn measure_macs(threads: usize) -> Result<f64> {
    const TRIES: usize = 5;
    const ROUNDS: u32 = 2_000_000;
    let once = || -> Option<f64> {
        let clock = SystemClock::new();
        let start = clock.elapsed();
        let done: Option<u64> = std::thread::scope(|scope| {
            let team: Vec<_> = (0..threads).map(|_| scope.spawn(|| multiply_accumulate(ROUNDS))).collect();
            team.into_iter().map(|thread| thread.join().ok().flatten()).sum()
        });
        Some(done? as f64 / clock.elapsed().saturating_sub(start).as_secs_f64().max(1e-9))
    };
    let best = (0..TRIES).filter_map(|_| once()).reduce(f64::max);
    best.context("the limit of this machine could not be measured")
}

/// Bytes a second, those read and those written, of a copy much larger than any cache: the best of several tries.
fn measure_copy() -> f64 {
    const TRIES: usize = 5;
    const BYTES: usize = 128 << 20;
    let clock = SystemClock::new();
    let (from, mut to) = (vec![1u8; BYTES], vec![2u8; BYTES]);
    let once = |_| {
        let start = clock.elapsed();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        2.0 * BYTES as f64 / clock.elapsed().saturating_sub(start).as_secs_f64().max(1e-9)
    };
    (0..TRIES).map(once).fold(1.0, f64::max)
}
