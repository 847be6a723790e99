// Bundles the dashboard into dist/: hashed files under assets/, and the page that names them. With --tests, only the
// modules without a DOM, for `node --test`. The page is written last: what the server embeds is whole or absent.
import { build } from "esbuild";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

process.chdir(dirname(fileURLToPath(import.meta.url)));

async function tests() {
  await build({
    entryPoints: ["format", "queue", "live", "series", "words"].map((name) => `src/pure/${name}.ts`),
    outdir: "node_modules/.cache/andon-test",
    outExtension: { ".js": ".mjs" },
    bundle: true,
    format: "esm",
    platform: "neutral",
    logLevel: "warning",
  });
}

async function dashboard() {
  await rm("dist", { recursive: true, force: true });
  const { metafile } = await build({
    entryPoints: { main: "src/main.tsx", style: "src/app.css", icon: "src/icon.svg" },
    outdir: "dist",
    entryNames: "assets/[name]-[hash]",
    chunkNames: "assets/[name]-[hash]",
    assetNames: "assets/[name]-[hash]",
    bundle: true,
    minify: true,
    splitting: true,
    metafile: true,
    format: "esm",
    target: ["es2022", "chrome111", "firefox114", "safari16.4"],
    jsx: "automatic",
    jsxImportSource: "preact",
    loader: { ".svg": "copy", ".woff2": "file" },
    legalComments: "linked",
    logLevel: "warning",
  });
  const built = Object.entries(metafile.outputs);
  const named = (source, extension) => {
    const found = built.find(([path, out]) => path.endsWith(extension) && Object.keys(out.inputs).includes(source));
    if (!found) throw new Error(`the bundle has no ${extension} file made from ${source}`);
    return found[0].replace(/^dist/, "");
  };
  let page = await readFile("index.html", "utf8");
  for (const [slot, path] of [
    ["{{main}}", named("src/main.tsx", ".js")],
    ["{{style}}", named("src/app.css", ".css")],
    ["{{icon}}", named("src/icon.svg", ".svg")],
  ]) {
    page = page.replaceAll(slot, path);
  }
  await mkdir("dist", { recursive: true });
  await writeFile(join("dist", "index.html"), page);
  for (const [path, out] of built) console.log(`${String(out.bytes).padStart(8)}  ${path}`);
}

await (process.argv.includes("--tests") ? tests() : dashboard());
