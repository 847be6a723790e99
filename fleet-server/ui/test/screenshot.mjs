// usage: ANDON_PASSWORD=… node test/screenshot.mjs --url http://HOST:PORT --page / --out FILE.png
//        [--wait SELECTOR] [--width 1440] [--height 900] [--scheme light|dark] [--max-kb 150]
// Logs in, opens a page, waits for its data, writes a PNG. Fails on any console error, and where the picture is larger
// than allowed even at a smaller size.
import { stat, writeFile } from "node:fs/promises";
import { credentials, login, options, settled, withPage } from "./browser-kit.mjs";

const o = options({ url: process.env.ANDON_URL ?? "", page: "/", out: "", wait: "", width: "1440", height: "900", scheme: "light", "max-kb": "150" });
if (!o.url || !o.out) {
  console.error("--url (or ANDON_URL) and --out are needed");
  process.exit(2);
}
const { user, password } = credentials();
const bytesMax = Number(o["max-kb"]) * 1000;

await withPage({ width: Number(o.width), height: Number(o.height), scheme: o.scheme }, async (page, errors) => {
  await login(page, o.url, user, password);
  await page.goto(new URL(o.page, o.url).href);
  await settled(page);
  if (o.wait) await page.waitForSelector(o.wait);
  // Charts and sparklines read after they are seen; two quiet frames let them draw.
  await page.waitForFunction(() => [...document.querySelectorAll(".spark")].every((s) => s.getBoundingClientRect().top > innerHeight || s.textContent));
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  await page.screenshot({ path: o.out });
  for (let scale = 0.9; (await stat(o.out)).size > bytesMax && scale > 0.4; scale -= 0.1) {
    await writeFile(o.out, await smaller(page, scale));
  }
  const { size } = await stat(o.out);
  if (size > bytesMax) errors.push(`the picture has ${size} bytes, allowed are ${bytesMax}`);
  if (errors.length > 0) {
    console.error(errors.join("\n"));
    process.exitCode = 1;
    return;
  }
  console.log(`${o.out}: ${size} bytes`);
});

/** Draws the page again with fewer device pixels. */
async function smaller(page, scale) {
  const session = await page.context().newCDPSession(page);
  const { width, height } = page.viewportSize();
  const { data } = await session.send("Page.captureScreenshot", { format: "png", clip: { x: 0, y: 0, width, height, scale } });
  await session.detach();
  return Buffer.from(data, "base64");
}
