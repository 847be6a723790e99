// What the screenshot and the smoke test share: Debian's Chromium, a page that fails on console errors, the login.
import { chromium } from "playwright-core";
import { rm, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Runs `work(page, errors)` in a fresh browser. `errors` collects what the console and the page complained about. */
export async function withPage({ width = 1440, height = 900, scheme = "light" }, work) {
  const profile = await mkdtemp(join(tmpdir(), "andon-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.ANDON_CHROMIUM ?? "/usr/bin/chromium",
    args: ARGUMENTS,
    viewport: { width, height },
    colorScheme: scheme,
  });
  try {
    const page = context.pages()[0] ?? (await context.newPage());
    page.setDefaultTimeout(30_000);
    const errors = [];
    page.on("console", (m) => {
      // Without a session `/me` answers 401, which Chromium itself reports; that is how the page learns to ask.
      if (m.type() === "error" && !m.location().url.endsWith("/api/v1/me")) errors.push(`console: ${m.text()} (${m.location().url})`);
    });
    page.on("pageerror", (e) => errors.push(`page: ${e.message}`));
    return await work(page, errors);
  } finally {
    await context.close();
    await rm(profile, { recursive: true, force: true });
  }
}

export async function login(page, base, user, password) {
  await page.goto(base);
  await page.fill('input[name="user"]', user);
  await page.fill('input[name="password"]', password);
  await page.click('button[type="submit"]');
  await page.waitForSelector("nav.side");
}

/** Whole: no skeleton is left, every image that is in view has loaded, fonts are there. */
export async function settled(page) {
  await page.waitForFunction(() => document.querySelector("main h1, .desk") && !document.querySelector(".loading"));
  await page.waitForFunction(() =>
    [...document.images].every((i) => i.complete || i.getBoundingClientRect().top > innerHeight),
  );
  await page.evaluate(() => document.fonts.ready.then(() => {}));
}

/** `--name value` pairs. */
export function options(known) {
  const found = { ...known };
  const args = process.argv.slice(2);
  for (let i = 0; i < args.length; i += 2) {
    const name = args[i]?.replace(/^--/, "");
    if (!(name in known) || args[i + 1] === undefined) {
      console.error(`unknown or incomplete option ${args[i]}; known: ${Object.keys(known).map((k) => `--${k}`).join(" ")}`);
      process.exit(2);
    }
    found[name] = args[i + 1];
  }
  return found;
}

export function credentials() {
  const user = process.env.ANDON_USER ?? "admin";
  const password = process.env.ANDON_PASSWORD ?? process.env.ANDON_ADMIN_PASSWORD;
  if (!password) {
    console.error("set ANDON_PASSWORD (and ANDON_USER where it is not admin)");
    process.exit(2);
  }
  return { user, password };
}
