//! What the repository promises of itself: which crate may know which, how files open and how long they get, and that
//! every exception says why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

/// Files get no longer than this before their tests.
const LINES_MAX: usize = 500;
const SCREENSHOT_BYTES_MAX: u64 = 150_000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All files that git knows, relative to the root.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> = names.split('\0').filter(|n| !n.is_empty()).map(PathBuf::from).collect();
    files.into_iter().filter(|f| root().join(f).is_file()).collect()
}

fn rust_files() -> Vec<(PathBuf, String)> {
    let rust = files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "rs"));
    rust.map(|f| (f.clone(), fs::read_to_string(root().join(&f)).unwrap())).collect()
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

fn packages() -> BTreeMap<String, Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(root());
    let output = metadata.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    metadata.packages.into_iter().map(|p| (p.name.clone(), p)).collect()
}

#[test]
fn crates_depend_downwards_only() {
    // Crate, crates of ours that it may use, and crates of others that would break what it promises not to know.
    let network = ["axum", "hyper", "reqwest", "rumqttc", "tokio"];
    let none: [&str; 0] = [];
    let rules: [(&str, &[&str], &[&str]); 10] = [
        ("andon-protocol", &[], &["axum", "hyper", "reqwest", "rumqttc", "tokio", "rand", "tempfile"]),
        ("andon-shaders", &[], &["wgpu"]),
        ("andon-runtime", &["andon-protocol", "andon-shaders"], &network),
        ("andon-drift", &["andon-protocol"], &network),
        ("andon-agent", &["andon-drift", "andon-protocol", "andon-runtime"], &["burn", "sqlx", "rmqtt"]),
        (
            "andon-trainer",
            &["andon-drift", "andon-protocol", "andon-runtime"],
            &["axum", "reqwest", "rumqttc", "sqlx"],
        ),
        ("andon-fleet-server", &["andon-protocol"], &["burn", "sled", "tract-onnx", "wgpu"]),
        ("andon-cli", &["andon-protocol"], &["sqlx", "rumqttc"]),
        ("andon-tests", &["andon-protocol"], &["sqlx", "burn", "sled"]),
        ("xtask", &[], &none),
    ];
    let packages = packages();
    assert_eq!(
        packages.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        rules.iter().map(|r| r.0).collect()
    );
    let mut wrong = Vec::new();
    for (name, ours, forbidden) in rules {
        for dependency in packages[name].dependencies.iter().filter(|d| d.kind.is_none()) {
            let used = dependency.name.as_str();
            if dependency.path.is_some() && !ours.contains(&used) || forbidden.contains(&used) {
                wrong.push(format!("{name} must not know {used}"));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let manifests = files().into_iter().filter(|f| f.ends_with("Cargo.toml") && f.components().count() == 2);
    let without = manifests.filter(|f| {
        let manifest = fs::read_to_string(root().join(f)).unwrap();
        // The fuzzer is no member, and has lints of its own.
        let apart = manifest.contains("\n[workspace]\n") && manifest.contains("[lints.rust]");
        // What is forbidden cannot be allowed again in one module, so the crate with the kernels only denies it.
        let kernels = f.starts_with("runtime") && manifest.contains("unsafe_code = \"deny\"");
        !manifest.contains("[lints]\nworkspace = true") && !kernels && !apart
    });
    assert_none(without.map(|f| format!("{}: no [lints] workspace = true", f.display())).collect());
}

#[test]
fn every_file_says_what_it_is_and_stays_short() {
    let mut wrong = Vec::new();
    for (file, text) in rust_files() {
        if !text.starts_with("//! ") {
            wrong.push(format!("{}: does not open with `//! `, what it is", file.display()));
        }
        let lines = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
        let is_test = file.components().any(|c| c.as_os_str() == "tests") || file.ends_with("tests.rs");
        if lines > LINES_MAX && !is_test {
            wrong.push(format!("{}: {lines} lines before its tests, at most {LINES_MAX}", file.display()));
        }
    }
    assert_none(wrong);
}

#[test]
fn no_test_is_ignored_and_every_exception_has_a_reason() {
    // In pieces, so that this file does not find itself.
    let ignored = ["#[", "ignore"].concat();
    let allowed = [["#[", "allow("].concat(), ["#![", "allow("].concat(), ["#[", "expect("].concat()];
    let mut wrong = Vec::new();
    for (file, text) in rust_files() {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let at = format!("{}:{}", file.display(), number + 1);
            if line.contains(&ignored) {
                wrong.push(format!("{at}: an ignored test tests nothing"));
            }
            if allowed.iter().any(|a| line.contains(a.as_str())) {
                // The attribute may be wrapped.
                let attribute = lines[number..].iter().take(6).copied().collect::<Vec<_>>().join(" ");
                let end = attribute.find(")]").unwrap_or(attribute.len());
                if !attribute[..end].contains("reason =") {
                    wrong.push(format!("{at}: an exception without a reason"));
                }
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn every_exception_in_deny_toml_has_a_reason() {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    let mut exceptions = 0;
    for (number, line) in lines.iter().enumerate() {
        let inline = line.contains("{ id = ") || line.contains("{ crate = ");
        if inline {
            exceptions += 1;
            let reason = line.split("reason = \"").nth(1).map_or(0, str::len);
            let above = lines[..number].last().is_some_and(|l| l.trim_start().starts_with("# "));
            if reason < 20 && !above {
                wrong.push(format!("deny.toml:{}: {line}", number + 1));
            }
        }
    }
    assert!(exceptions > 0, "the form of deny.toml has changed, and this test with it must");
    assert_none(wrong);
}

#[test]
fn nothing_of_the_machine_it_was_written_on() {
    let forbidden = [
        ["/ro", "ot/"].concat(),
        ["/wo", "rk/"].concat(),
        ["/ho", "me/"].concat(),
        ["BEGIN PRIV", "ATE KEY"].concat(),
    ];
    let mut wrong = Vec::new();
    for file in files() {
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if forbidden.iter().any(|f| line.contains(f.as_str())) {
                wrong.push(format!(
                    "{}:{}: {}",
                    file.display(),
                    number + 1,
                    line.chars().take(100).collect::<String>()
                ));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn the_screenshot_is_there_and_small() {
    let size = fs::metadata(root().join("docs").join("dashboard.png")).unwrap().len();
    assert!((10_000..=SCREENSHOT_BYTES_MAX).contains(&size), "docs/dashboard.png has {size} bytes");
}
