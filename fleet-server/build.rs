//! Chooses what the server embeds as its dashboard: `ui/dist` where `cargo xtask ui` has built it, otherwise one page
//! that says how. Never runs Node, so that building, checking and editing the server need Rust alone.

use std::{env, error::Error, fs, path::Path};

const NO_DASHBOARD: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Andon</title>
<h1>This build has no dashboard</h1>
<p>Run <code>cargo xtask ui</code>, then build the server again. The API is served all the same.</p>
</html>
";

fn main() -> Result<(), Box<dyn Error>> {
    let ui = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("ui");
    let dist = ui.join("dist");
    let folder = if dist.join("index.html").is_file() {
        println!("cargo::rerun-if-changed=ui/dist");
        dist
    } else {
        // Cargo re-runs a script for ever when a path that it watches is missing: watch the parent.
        println!("cargo::rerun-if-changed=ui");
        println!("cargo::warning=no dashboard in this build: run `cargo xtask ui` to have one");
        let folder = Path::new(&env::var("OUT_DIR")?).join("dashboard");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("index.html"), NO_DASHBOARD)?;
        folder
    };
    println!("cargo::rustc-env=ANDON_DASHBOARD_DIR={}", folder.display());
    Ok(())
}
