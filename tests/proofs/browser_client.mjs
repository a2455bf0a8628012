// Ask the page of an exported model in Firefox: node browser_client.mjs MODULES FIREFOX REQUESTS.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , modules, executablePath, input] = process.argv;
const puppeteer = createRequire(`${modules}/`)("puppeteer-core");
const { url, requests } = JSON.parse(readFileSync(input, "utf8"));
const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true, protocolTimeout: 600_000 });
const page = await browser.newPage();
const loaded = [];
page.on("request", (request) => loaded.push(request.url()));
await page.goto(url, { waitUntil: "load", timeout: 120_000 });
await page.waitForFunction("document.getElementById('loading').hidden", { timeout: 120_000 });
const answers = [];
for (const [name, ...values] of requests) {
  const call = name === "text" ? showText : (name, ...values) => gpt2kit.request(name, ...values);
  answers.push(await page.evaluate(call, name, ...values));
}
process.stdout.write(JSON.stringify({ answers, loaded }));
await browser.close();

// Generate a text with the controls of the page, and return what it shows.
async function showText(_, prompt, values) {
  document.getElementById("prompt").value = prompt;
  for (const [name, value] of Object.entries(values)) document.getElementById(name).value = value;
  document.getElementById("generate").click();
  const isBusy = () => document.getElementById("result").getAttribute("aria-busy") === "true";
  do await new Promise((resolve) => setTimeout(resolve, 20));
  while (isBusy());
  return document.getElementById("result").textContent;
}
