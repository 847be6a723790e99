// usage: ANDON_PASSWORD=… node test/browser.mjs --url http://HOST:PORT [--label 2]
// Smoke test against a live server: a wrong password is refused in words, every page loads its data, labelling by keys
// reaches the server and undo takes it back, and nothing complains on the console. With `--label N` (0: none) that many
// samples must be there to be labelled.
import assert from "node:assert/strict";
import { credentials, login, options, settled, withPage } from "./browser-kit.mjs";

const o = options({ url: process.env.ANDON_URL ?? "", label: "2" });
if (!o.url) {
  console.error("--url or ANDON_URL is needed");
  process.exit(2);
}
const { user, password } = credentials();
const labels = Number(o.label);
const at = (path) => new URL(path, o.url).href;
const step = (text) => console.log(`ok  ${text}`);

await withPage({}, async (page, errors) => {
  await refusesWrongPassword(page, errors);
  await login(page, o.url, user, password);
  step("login");
  const api = async (path) => {
    const response = await page.request.get(at(`/api/v1${path}`));
    assert.ok(response.ok(), `${path} answered ${response.status()}`);
    return response.json();
  };
  await everyPage(page, api);
  if (labels > 0) await labelling(page, api);
  await page.goto(at("/"));
  await settled(page);
  await page.click("text=Log out");
  await page.waitForSelector('input[name="password"]');
  step("logout");
  assert.deepEqual(errors, [], "the console must stay empty");
  step("no console error");
});

async function refusesWrongPassword(page, errors) {
  await page.goto(o.url);
  await page.fill('input[name="user"]', user);
  await page.fill('input[name="password"]', `${password}-wrong`);
  await page.click('button[type="submit"]');
  await page.waitForSelector(".failed");
  // Chromium reports the 401 that was asked for; nothing else may have been said.
  assert.ok(errors.length <= 1 && errors.every((e) => e.includes("401")), errors.join("\n"));
  errors.length = 0;
  step("a wrong password is refused in words");
}

async function everyPage(page, api) {
  const devices = (await api("/devices")).items;
  const rollouts = (await api("/rollouts")).items;
  const models = (await api("/models")).items;
  const paths = ["/", "/samples", "/models", "/rollouts", "/audit"];
  if (devices[0]) paths.push(`/devices/${encodeURIComponent(devices[0].id)}`);
  if (models[0]) paths.push(`/models/${encodeURIComponent(models[0].name)}`);
  if (rollouts[0]) paths.push(`/rollouts/${encodeURIComponent(rollouts[0].id)}`);
  for (const path of paths) {
    await page.goto(at(path));
    await settled(page);
    assert.equal(await page.locator(".failed").count(), 0, `${path} shows an error: ${await page.locator(".failed").allTextContents()}`);
    step(`${path} loads`);
  }
  await page.goto(at("/"));
  await page.waitForSelector(".live.live");
  step("the event stream is open");
  if (devices.length > 0) {
    const rows = Math.min(devices.length, 500);
    await page.waitForFunction((n) => document.querySelectorAll("tr.link").length === n, rows);
    step("every device has a row");
  }
}

async function labelling(page, api) {
  const waiting = (await api("/samples?labelled=false&limit=100")).items;
  assert.ok(waiting.length >= labels, `${waiting.length} samples wait for a label, the test needs ${labels}`);
  await page.goto(at("/label?labelled=false"));
  await page.waitForSelector(".stage img");
  const first = await sampleShown(page);
  const written = (method, id) => page.waitForResponse((r) => r.request().method() === method && r.url().includes(`/samples/${id}/label`));
  let last = first;
  for (let i = 0; i < labels; i++) {
    last = await sampleShown(page);
    const [response] = await Promise.all([written("PUT", last), page.keyboard.press("1")]);
    assert.equal(response.status(), 200, "the label is stored");
  }
  const label = (await api(`/samples/${first}`)).label;
  assert.equal(label?.by, user);
  step(`${labels} labelled by keys`);
  const [response] = await Promise.all([written("DELETE", last), page.keyboard.press("0")]);
  assert.ok(response.ok(), "undo is stored");
  assert.equal((await api(`/samples/${last}`)).label ?? null, null);
  assert.equal(await sampleShown(page), last, "undo goes back to its image");
  const count = await page.locator("[data-progress]").textContent();
  assert.match(count, new RegExp(`^${labels - 1} of `));
  step("undo takes the last one back");
}

async function sampleShown(page) {
  const src = await page.locator(".stage img").getAttribute("src");
  return src.split("/").at(-2);
}
