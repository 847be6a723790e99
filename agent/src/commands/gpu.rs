//! `andon-agent gpu`: the GPUs of this machine, their drivers, and what they can do at most.

use andon_agent::clock::{Clock, SystemClock};
use andon_runtime::{GpuAdapter, GpuPeaks, gpus};

use super::say;

#[derive(Debug, clap::Args)]
pub(crate) struct GpuArgs {
    /// Do not measure, only list
    #[arg(long)]
    list: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &GpuArgs) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    let adapters = gpus();
    let measure = |adapter: &GpuAdapter| (!args.list).then(|| adapter.measure(&|| clock.elapsed()));
    let measured: Vec<_> = adapters.iter().map(measure).collect();
    if args.json {
        let each = adapters.iter().zip(&measured).map(|(adapter, peaks)| json(adapter, peaks.as_ref()));
        return say(format_args!("{}\n", serde_json::json!({ "adapters": each.collect::<Vec<_>>() })));
    }
    if adapters.is_empty() {
        return say("no GPU that computes, through Vulkan or OpenGL ES 3.1\n");
    }
    for (adapter, peaks) in adapters.iter().zip(&measured) {
        say(format_args!("{} through {} ({})\n", adapter.name, adapter.backend, adapter.kind))?;
        say(format_args!("  driver      {} {}\n", adapter.driver, adapter.driver_info))?;
        say(format_args!("  number      {:04x}:{:04x}\n", adapter.vendor, adapter.device))?;
        say(format_args!("  features    {}\n", adapter.features.join(", ")))?;
        say(format_args!(
            "  limits      buffer {} MiB, workgroup {} bytes and {} threads\n",
            adapter.buffer_bytes_max >> 20,
            adapter.workgroup_bytes,
            adapter.invocations_max
        ))?;
        match peaks {
            None => {}
            Some(Err(why)) => say(format_args!("  not usable  {why}\n"))?,
            Some(Ok(peaks)) => show(peaks)?,
        }
    }
    Ok(())
}

fn show(peaks: &GpuPeaks) -> anyhow::Result<()> {
    let f16 = peaks.f16_gflops.map_or("-".into(), |rate| format!("{rate:.0}"));
    say(format_args!(
        "  measured    dot4 {:.0} GOPS, f32 {:.0} GFLOPS, f16 {f16} GFLOPS, copy {:.1} GB/s\n",
        peaks.dot4_gops, peaks.f32_gflops, peaks.copy_gbs
    ))?;
    say(format_args!(
        "  dispatch    {:.2} us each, of which the CPU {:.2} us to encode and submit\n",
        peaks.dispatch_us, peaks.encode_us
    ))
}

fn json(adapter: &GpuAdapter, peaks: Option<&Result<GpuPeaks, String>>) -> serde_json::Value {
    let mut all = serde_json::json!({
        "name": adapter.name,
        "backend": adapter.backend,
        "kind": adapter.kind,
        "driver": adapter.driver,
        "driver_info": adapter.driver_info,
        "vendor": adapter.vendor,
        "device": adapter.device,
        "features": adapter.features,
        "buffer_bytes_max": adapter.buffer_bytes_max,
        "workgroup_bytes": adapter.workgroup_bytes,
        "invocations_max": adapter.invocations_max,
    });
    match peaks {
        None => {}
        Some(Err(why)) => all["error"] = why.as_str().into(),
        Some(Ok(peaks)) => {
            all["peaks"] = serde_json::json!({
                "dot4_gops": peaks.dot4_gops,
                "f32_gflops": peaks.f32_gflops,
                "f16_gflops": peaks.f16_gflops,
                "copy_gbs": peaks.copy_gbs,
                "dispatch_us": peaks.dispatch_us,
                "encode_us": peaks.encode_us,
            });
        }
    }
    all
}
